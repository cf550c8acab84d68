"""A whole notebook image of conda packages, as its users have it: built on Debian, looked into, asked, compared."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import channel_server
import conda_channel
import conda_families
import families
import lithify
from conda_python import HOST_SUBDIR
from conda_wheels import conda_name
from lithify.lockfile import Package, read_lock
from lithify.platforms import LINUX_AMD64
from lithify.read.settings import Settings
from lithify.store.manifests import Manifest, manifest_for
from lithify.store.rootfs import root_filesystem
from lithify.store.store import open_store
from making_conda import NOARCH

if TYPE_CHECKING:
    from rattler import RepoDataRecord

IMAGE = "base-notebook"
PREFIX = "/srv/conda/envs/notebook"
# Every environment of the image, by its name.
PREFIXES = {"base": "/srv/conda", "notebook": PREFIX, "tools": "/srv/conda/envs/tools"}
# Packages of `conda_special`: of each kind one that distributions of the index are not.
SPECIALS = (
    *("awkward-names", "binary-prefix", "clobber-different-a", "clobber-different-b", "clutter", "env-vars"),
    *("long-shebang", "menu", "modes", "new-style-bz2", "old-style", "pre-unlink", "proj-like", "text-prefix"),
)
# The channel has the whole of these under the distribution's name, and the distribution alone under another.
WHOLES = ("dask", "geopandas", "jupyterhub", "matplotlib")
# In the channel, with all that it needs in the image, and left for users to install.
LEFT_FOR_USERS = "jupyter-resource-usage"
# Below its prefix, what the family's [files] leave out.
EXCLUDED = ("*.a", "*.js.map", "*/bokeh/server/static/*.js")
KEPT = ("*/bokeh/server/static/*.min.js",)


# -- an image ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """What `build` made: a folder with the ``family``, and a ``store`` with its images."""

    folder: Path

    @property
    def family(self) -> Path:
        return self.folder / "family"

    @property
    def settings(self) -> Settings:
        return Settings(self.folder / "store", jobs=2)

    @property
    def name(self) -> str:
        return f"local/{IMAGE}"

    @cached_property
    def manifest(self) -> Manifest:
        return manifest_for(open_store(self.settings.store), self.name, LINUX_AMD64)

    @cached_property
    def root(self) -> Path:
        """The image's files, the caller's own here, and not to be changed."""
        return root_filesystem(open_store(self.settings.store), self.manifest.layers)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the image's configuration."""
        return dict(entry.split("=", 1) for entry in self.manifest.runtime["Env"])

    def locked(self, environment: str) -> list[Package]:
        """The conda packages that the lock has in one of the image's environments."""
        lock = read_lock(self.family / IMAGE / "lithify.lock")
        return [one for one in lock.of(LINUX_AMD64, "conda") if one.environment == environment]

    def run(
        self, *command: str | Path, options: Sequence[str] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the image, through `lithify run`."""
        return families.run_inside(self.settings.store, self.name, *command, options=options, check=check)

    def says(self, *command: str | Path, options: Sequence[str] = ()) -> str:
        """What a command in the image prints."""
        return self.run(*command, options=options).stdout.strip()


def write_family(root: Path, distributions: Iterable[str], apt: str = "") -> Path:
    """Pangeo's family with ``distributions`` of the index, `SPECIALS`, and an environment ``tools`` with a kernel.

    ``apt`` is base-notebook's ``apt.txt``, if it is to have one.
    """
    asked = sorted(conda_names(distributions) - {LEFT_FOR_USERS, "python"})
    tools = conda_families.environment(["python", "ipykernel", "proj-like"], name="tools")
    family = conda_families.write_pangeo(
        root,
        notebook=[f"python={conda_families.HOST_PYTHON}", *asked, *SPECIALS],
        more={
            f"{IMAGE}/environment-tools.yml": f"{tools}variables:\n  OF_TOOLS: 'yes'\n",
            **({f"{IMAGE}/apt.txt": apt} if apt else {}),
        },
    )
    with (family / "lithify.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[images.{IMAGE}.environments.tools]\nkernel = "Tools"\n')
    return family


def conda_names(requirements: Iterable[str]) -> set[str]:
    """What the channel calls the distributions that requirements ask for."""
    return {name if name in WHOLES else conda_name(name) for name in names(requirements)}


def names(requirements: Iterable[str]) -> list[str]:
    """The distributions that requirements ask for."""
    return [re.split(r"[\[<>=!~; ]", line)[0] for line in requirements]


def lines(requirements: Path) -> list[str]:
    """The requirements in a file."""
    found = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    return [line for line in found if line and not line.startswith("-")]


def build(folder: Path, channels: Path, distributions: Iterable[str], apt: str = "") -> None:
    """Write the family into ``folder`` (see `write_family`), lock it, and build its images."""
    family = write_family(folder / "family", distributions, apt)
    with channel_server.serving(channels) as server:
        settings = Settings(open_store(folder / "store").root, 2)
        settings = conda_families.served_from(settings, server.channel(conda_channel.CHANNEL))
        lithify.lock(family, settings=settings)
        lithify.build(family, locked=True, settings=settings)


# -- programs that run in it ---------------------------------------------------------------------------------------

# Asks a Jupyter server (address, token) for a kernel of a name, runs code in it, and prints what the code prints.
ASK_KERNEL = """\
import asyncio, json, sys, time, urllib.request, uuid
from tornado.websocket import websocket_connect

url, token, name, code = sys.argv[1:]

def ask(path, data=None):
    request = urllib.request.Request(f"{url}api/{path}", data, {"Authorization": f"token {token}"})
    for attempt in range(240):
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except ConnectionError:
            time.sleep(0.5)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            time.sleep(0.5)
    sys.exit("the server does not answer")

async def main():
    kernel = ask("kernels", json.dumps({"name": name}).encode())
    socket = await websocket_connect(f"ws{url[4:]}api/kernels/{kernel['id']}/channels?token={token}")
    header = {"msg_id": uuid.uuid4().hex, "username": "", "session": uuid.uuid4().hex, "version": "5.3"}
    header["msg_type"] = "execute_request"
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": True}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
    await socket.write_message(json.dumps(message))
    while True:
        said = json.loads(await socket.read_message())
        if said["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        content = said["content"]
        if said["msg_type"] == "stream":
            print(content["text"], end="")
        elif said["msg_type"] == "error":
            sys.exit("\\n".join(content["traceback"]))
        elif said["msg_type"] == "status" and content["execution_state"] == "idle":
            return

asyncio.run(main())
"""

COMPUTE = """\
from dask.distributed import Client, LocalCluster
import dask.array as da
if __name__ == '__main__':
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        print(da.ones((400, 400), chunks=100).sum().compute(), len(client.scheduler_info()['workers']))
        print(*sorted(set(client.run(lambda: __import__('os').environ.get('TEST_PROJ_DATA')).values())))
"""

# Imports every module of distributions, those of each in a process of their own; prints those that fail, and why.
IMPORT_ALL = """\
import collections, importlib, importlib.metadata, json, os, re, sys, traceback
def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()
modules = collections.defaultdict(list)
for module, owners in importlib.metadata.packages_distributions().items():
    for owner in owners:
        # Some say of themselves that they have modules which they do not have.
        if any(file.parts[0].partition(".")[0] == module for file in importlib.metadata.files(owner) or ()):
            modules[canonical(owner)].append(module)
failed = []
for name in sys.argv[1:]:
    found = [one for one in modules[canonical(name)] if one.isidentifier() and not one.startswith("_")]
    if not found:
        failed.append(name)
    child = os.fork()
    if not child:
        code = 1
        try:
            for module in found:
                importlib.import_module(module)
            code = 0
        except BaseException:
            print(traceback.format_exc(), file=sys.stderr)
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(json.dumps(failed))
"""

# What is below a folder of the image: kind, mode, content.
WALK = """\
import hashlib, json, os, stat, sys
found = {}
for top, folders, names in os.walk(sys.argv[1]):
    for name in [*folders, *names]:
        path = os.path.join(top, name)
        status = os.lstat(path)
        if os.path.islink(path):
            what = [0o777, "link", os.readlink(path)]
        elif os.path.isdir(path):
            what = [stat.S_IMODE(status.st_mode), "folder", ""]
        else:
            with open(path, "rb") as file:
                what = [stat.S_IMODE(status.st_mode), "file", hashlib.sha256(file.read()).hexdigest()]
        found[os.path.relpath(path, sys.argv[1])] = what
print(json.dumps(found))
"""


# -- trees ---------------------------------------------------------------------------------------------------------

# What a path is: its mode, its kind (`file`, `link`, `folder`), and the digest or the target.
Entry = tuple[int, str, str]
Tree = dict[str, Entry]
_T = TypeVar("_T")


def tree(root: Path, skip: Sequence[str] = ()) -> Tree:
    """What is below ``root``, without the folders ``skip``."""
    found: Tree = {}
    for top, folders, files in os.walk(root):
        place = os.path.relpath(top, root)
        folders[:] = [name for name in folders if os.path.normpath(f"{place}/{name}") not in skip]
        for name in [*folders, *files]:
            path = Path(top, name)
            inside = os.path.normpath(f"{place}/{name}")
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                found[inside] = (0o777, "link", str(path.readlink()))
            elif path.is_dir():
                found[inside] = (mode, "folder", "")
            else:
                with path.open("rb") as file:
                    found[inside] = (mode, "file", hashlib.file_digest(file, "sha256").hexdigest())
    return found


def differences(first: Mapping[str, _T], second: Mapping[str, _T]) -> set[str]:
    """The paths at which two trees differ, or the keys of two of anything."""
    return {path for path in first.keys() | second.keys() if first.get(path) != second.get(path)}


def channel_records(channel: Path, packages: Iterable[Package]) -> list[RepoDataRecord]:
    """What a channel's index says of locked packages."""
    from rattler import Channel, RepoData

    found = {}
    for subdir in (HOST_SUBDIR, NOARCH):
        data = RepoData.from_path(channel / subdir / "repodata.json")
        for record in data.into_repo_data(Channel(channel.as_uri())):
            found[f"{subdir}/{record.file_name}"] = record
    return [found[package.file] for package in packages]


def reason(path: str, ours: Entry | None, theirs: Entry | None, clobbered: Iterable[str] = ()) -> str:
    """Why a prefix of an image and one that rattler made from the same records may differ at a path; else nothing."""
    if "__pycache__" in path.split("/"):
        return "compiled here; rattler lays out what packages ship"
    if path.startswith("conda-meta/") and path.endswith(".json"):
        return "the record says where it comes from; compared by fields"
    if path in ("conda-meta/history", "CACHEDIR.TAG", "conda-meta/state") or path.startswith((".rattler", "pkgs")):
        return "of the environment, not of a package"
    if path in (".condarc", "etc/dask.yml") or path.startswith("share/jupyter/kernels/tools"):
        return "the contract's"
    if ours is None and theirs is not None:
        if any(fnmatchcase(f"/{path}", pattern) for pattern in EXCLUDED) and not any(
            fnmatchcase(f"/{path}", pattern) for pattern in KEPT
        ):
            return "[files] leaves it out"
        if "__clobber" in path:
            return "rattler keeps losers' files"
        if theirs[1] == "folder":
            return "a folder of nothing but what is left out"
    if path in clobbered:
        return (
            "of packages that do not need each other, rattler keeps the first one's file, conda and we the last one's"
        )
    if ours and theirs and ours[1:] == theirs[1:] and ours[0] == theirs[0] & 0o777:
        return "nothing of a user's environment is set-uid"
    return ""


def described(record: Mapping[str, Any]) -> dict[str, Any]:
    """A ``conda-meta`` record without what is of the builder, the cache or the index; compiled files left out."""
    left_out = {"link", "extracted_package_dir", "package_tarball_full_path", "channel", "url", "indexed_timestamp"}
    left_out |= {"run_exports", "requested_spec", "requested_specs", "files", "paths_data"}
    return {key: value for key, value in record.items() if key not in left_out and value not in (None, [])}


def files_of(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The kind and digest of every file that a ``conda-meta`` record lists, without what was compiled.

    A link has no digest here: rattler's says what it led to while it was made.
    """
    return {
        entry["_path"]: (
            entry["path_type"],
            "" if entry["path_type"] == "softlink" else entry.get("sha256_in_prefix") or entry.get("sha256") or "",
        )
        for entry in record["paths_data"]["paths"]
        if "__pycache__/" not in entry["_path"]
    }


def records(prefix: Path) -> dict[str, dict[str, Any]]:
    """The records of a prefix's ``conda-meta``, by file name."""
    return {path.name: json.loads(path.read_bytes()) for path in sorted(prefix.glob("conda-meta/*.json"))}


def altered(prefix: Path) -> list[str]:
    """Files of a prefix that are not what its records say: missing, or of other bytes (conda's doctor, strictly)."""
    found = []
    for name, record in records(prefix).items():
        listed = {entry["_path"] for entry in record["paths_data"]["paths"]}
        if set(record["files"]) != listed:
            found.append(f"{name}: `files` is not `paths_data`")
        for entry in record["paths_data"]["paths"]:
            path = prefix / entry["_path"]
            if not os.path.lexists(path):
                found.append(f"{name}: no {entry['_path']}")
            elif entry["path_type"] == "softlink":
                if not path.is_symlink():
                    found.append(f"{name}: {entry['_path']} is no link")
            elif path.is_symlink() or not path.is_file():
                found.append(f"{name}: {entry['_path']} is no file")
            else:
                data = path.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                if entry.get("sha256_in_prefix") != digest or entry.get("size_in_bytes") != len(data):
                    found.append(f"{name}: {entry['_path']} is another file")
    return found
