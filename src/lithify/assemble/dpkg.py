"""The process that makes system layers: Debian packages in, a layer's tar out, with the target's own dpkg.

It runs where every owner exists: as root, or as the root of a user namespace with subordinate ids. It lets dpkg and
the packages' scripts run in the sandbox, over the tree below, then cleans, and writes what was added as a tar.
`lithify.assemble.system` starts it with a `Job` on standard input and reads one JSON document from standard output.

Packages of another architecture are made without emulation. The scripts in a Debian package are shell, Perl or Python;
what executes are the programs that they call. So the sandbox shows the foreign tree with **shadow programs** over
it: the programs and libraries of the twin, the same packages for this machine, at the same paths. dpkg itself is one of
them, and believes that the foreign architecture is its own. What the scripts write is kept, what shadows is not.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lithify import runtime
from lithify.assemble import tree
from lithify.errors import FetchError, InputError, LithifyError
from lithify.platforms import PLATFORMS, Platform
from lithify.sandbox import Bind, Sandbox, arguments, without_sync
from lithify.sources.deb import data_archive
from lithify.store import tar

ENVIRONMENT = {
    "PATH": runtime.SYSTEM_PATH,
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "SHELL": "/bin/sh",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
    # What honours it writes no time of its own: byte code is checked by hash, font caches hold this time.
    "SOURCE_DATE_EPOCH": str(runtime.MTIME),
    "PYTHONHASHSEED": "0",
}
# In the image, so that what users install later with dpkg or apt follows the same rules.
_CONFIGURATION = "etc/dpkg/dpkg.cfg.d/lithify"
# dpkg's programs ask it before a service is started: none is, in a build (101: forbidden).
_POLICY = "#!/bin/sh\nexit 101\n"
_DEBS = "/run/debs"
_WILD, _ESCAPED = re.compile(r"([*?\[\\])"), r"\\\1"
_FACT = re.compile(r"^(Package|Status|Version|Architecture): (.*)$", re.MULTILINE)
_FIRST = ("base-passwd", "base-files")


@dataclass(frozen=True)
class Deb:
    """A package to install; ``essential`` ones are unpacked first, so that there is something to run."""

    name: str
    version: str
    path: str
    essential: bool = False


@dataclass(frozen=True)
class Job:
    """One system layer to make.

    ``lower`` is the tree below, with every owner; empty for a base. ``twin`` is the host's system of the same packages,
    this level included, when the platform is not the host's. Neither is written to. ``folder`` is an empty folder to
    work in, ``output`` the tar.
    """

    platform: str
    host: str
    lower: str
    twin: str
    debs: tuple[Deb, ...]
    folder: str
    output: str

    def document(self) -> str:
        """The job as JSON."""
        return json.dumps(asdict(self))


def parse_job(text: str) -> Job:
    """The job that `Job.document` wrote."""
    fields: dict[str, Any] = json.loads(text)
    fields["debs"] = tuple(Deb(**deb) for deb in fields["debs"])
    return Job(**fields)


def run(job: Job) -> None:
    """Make the layer.

    Raises:
        LithifyError: when a layer or a package is not what it says, or when a package's script fails.
    """
    folder, platform, host = Path(job.folder), PLATFORMS[job.platform], PLATFORMS[job.host]
    upper, work = folder / "upper", folder / "work"
    for path in (upper, work):
        path.mkdir(mode=0o755)
    is_base = not job.lower
    lower = _bootstrap(job.debs, folder / "lower", platform) if is_base else Path(job.lower)
    if not (lower / "var/lib/dpkg/status").is_file():
        raise InputError(
            "the base has no dpkg database, so nothing of an apt.txt can be installed on it",
            hint="use a base made from Debian or Ubuntu, or remove apt.txt",
        )
    policy = folder / "policy-rc.d"
    policy.write_text(_POLICY)
    policy.chmod(0o755)
    cross = _Cross(job, platform, host, folder) if platform != host else None
    sandbox = Sandbox(
        lower=(cross.shadow, lower) if cross else (lower,),
        upper=upper,
        work=work,
        environment=ENVIRONMENT,
        all_owners=True,
        binds=(
            Bind(policy, "/usr/sbin/policy-rc.d"),
            *(Bind(Path(deb.path), f"{_DEBS}/{deb.name}.deb") for deb in job.debs),
        ),
    )
    excluded = cross.excluded if cross else ()
    names = sorted(deb.name for deb in job.debs)
    for name in _FIRST:
        if is_base and name in names:
            _dpkg(sandbox, ["--force-depends", "--install", f"{_DEBS}/{name}.deb"], excluded)
            # Once only: unpacked again, dpkg would take what is excluded for what the new version has dropped.
            names.remove(name)
    _dpkg(sandbox, ["--force-depends", "--unpack", *(f"{_DEBS}/{name}.deb" for name in names)], excluded)
    _dpkg(sandbox, ["--configure", "--pending"], excluded)
    if cross:
        cross.restore(upper, lower)
    _all_installed(upper / "var/lib/dpkg/status", job.debs, platform)
    # Another machine's ldconfig cannot read the libraries; and what one machine cannot make, none may have.
    keep_cache = platform.architecture == "amd64" and cross is None
    if is_base:
        tree.merge(upper, lower)
        tree.clean(lower, loader_cache=keep_cache)
        # /run was in memory; this folder of base-files is what /var/lock leads to.
        (lower / "run/lock").mkdir(mode=0o755)
        (lower / "run/lock").chmod(0o1777)
        layer = tree.layer_of(lower)
    else:
        tree.clean(upper, loader_cache=keep_cache)
        layer = tree.layer_of(upper, lower)
    if cross:
        _none_for(host, platform, lower if is_base else upper)
    with Path(job.output).open("wb") as file:
        for chunk in layer:
            file.write(chunk)


# -- what lies below -------------------------------------------------------------------------------------------


def _bootstrap(debs: Sequence[Deb], root: Path, platform: Platform) -> Path:
    """A tree in which dpkg can run: the Essential packages' files, an empty database."""
    root.mkdir(mode=0o755)
    # Merged /usr (Debian's base-files ships the links from trixie on; before, the installer made them).
    for name in ("bin", "sbin", "lib", *(("lib64",) if platform.architecture == "amd64" else ())):
        (root / "usr" / name).mkdir(mode=0o755, parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "etc/dpkg/dpkg.cfg.d"):
        (root / folder).mkdir(mode=0o755, parents=True)
    for name in ("status", "available"):
        (root / "var/lib/dpkg" / name).touch(mode=0o644)
    (root / _CONFIGURATION).write_text("".join(f"{option}\n" for option in _path_options()).replace("--", ""))
    for deb in sorted(debs, key=lambda deb: (deb.name != "base-files", deb.name)):
        if deb.essential:
            with data_archive(Path(deb.path)) as archive:
                tree.unpack(archive, root, wanted=_is_wanted)
    return root


def _is_wanted(path: str) -> bool:
    absolute = f"/{path}"
    if any(fnmatch.fnmatchcase(absolute, pattern) for pattern in tree.INCLUDED):
        return True
    return not any(fnmatch.fnmatchcase(absolute, pattern) for pattern in tree.EXCLUDED)


def _path_options() -> list[str]:
    return [f"--path-exclude={p}" for p in tree.EXCLUDED] + [f"--path-include={p}" for p in tree.INCLUDED]


# -- dpkg ------------------------------------------------------------------------------------------------------


def _dpkg(sandbox: Sandbox, action: Sequence[str], excluded: Sequence[str]) -> None:
    """Run dpkg in the sandbox."""
    options = ["--force-unsafe-io", "--force-confdef", "--force-confold", "--log=/dev/null", *_path_options()]
    options += [f"--path-exclude=/{_WILD.sub(_ESCAPED, path)}" for path in excluded]
    with tempfile.TemporaryFile() as filter_file:
        filter_file.write(without_sync(os.uname().machine))
        filter_file.seek(0)
        if os.fstat(filter_file.fileno()).st_size:
            sandbox = replace(sandbox, seccomp=filter_file.fileno())
        result = subprocess.run(
            arguments(sandbox, ["dpkg", *options, *action]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[filter_file.fileno()],
            text=True,
            errors="replace",
            check=False,
        )
    if os.environ.get("LITHIFY_DEBUG"):
        sys.stderr.write(result.stdout)
    if result.returncode != 0:
        broken = re.findall(r"^dpkg: error processing (?:package|archive) (\S+)", result.stdout, re.MULTILINE)
        names = ", ".join(sorted({Path(name).name.removesuffix(".deb") for name in broken})) or "the packages"
        lines = [line for line in result.stdout.splitlines() if not line.startswith(("Selecting ", "(Reading "))]
        raise LithifyError(
            f"dpkg could not install {names}",
            details="\n".join(lines[-40:]),
            hint="if a package's own script fails in a build, leave the package out of apt.txt or [base]",
        )


def _all_installed(status: Path, debs: Sequence[Deb], platform: Platform) -> None:
    """Check that every package is installed, in the version and for the architecture that was asked for."""
    text = status.read_text(encoding="utf-8", errors="replace")
    found: dict[str, Mapping[str, str]] = {}
    for stanza in text.split("\n\n"):
        fields: Mapping[str, str] = dict(
            re.findall(r"^(Package|Status|Version|Architecture): (.*)$", stanza, re.MULTILINE)
        )
        if fields:
            found[dict(fields).get("Package", "")] = dict(fields)
    for deb in debs:
        of = found.get(deb.name, {})
        state = of.get("Status"), of.get("Version"), of.get("Architecture")
        if state[:2] != ("install ok installed", deb.version) or state[2] not in ("all", platform.debian):
            raise LithifyError(
                f"after dpkg ran, {deb.name} {deb.version} is `{' '.join(str(part) for part in state)}`",
                hint=f"the lock's entry and the package do not agree: lock again for {platform}",
            )


def _none_for(host: Platform, platform: Platform, root: Path) -> None:
    wrong = [path for path, machine in tree.elf_files(root) if machine == host.elf_machine]
    if wrong:
        raise LithifyError(
            f"{len(wrong)} programs in a layer for {platform} are for {host}: {', '.join(wrong[:5])}",
            hint=f"build for {platform} on such a machine, or leave the package out",
        )


# -- another architecture --------------------------------------------------------------------------------------


class _Cross:
    """The shadow programs, and how what they hid comes back."""

    def __init__(self, job: Job, platform: Platform, host: Platform, folder: Path) -> None:
        self.platform, self.host, self.debs, self.twin = platform, host, job.debs, Path(job.twin)
        self.shadow, self.real = folder / "shadow", folder / "real"
        self.generated = self._generated()
        self._lay_shadows()
        self._retarget_dpkg()
        self.excluded = self._hidden()

    def _foreign(self, path: str) -> str:
        return path.replace(self.host.triplet, self.platform.triplet)

    def _generated(self) -> dict[str, bytes]:
        """Text files that scripts made in the twin's library folders: lists of modules, by foreign path.

        The foreign package's script asks a shadow program for the same list, which cannot load foreign modules.
        """
        owned = set()
        for listing in (self.twin / "var/lib/dpkg/info").glob("*.list"):
            owned.update(listing.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        found = {}
        for folder, _, files in os.walk(self.twin / "usr/lib" / self.host.triplet):
            for name in files:
                path = Path(folder, name)
                inside = str(path.relative_to(self.twin))
                if f"/{inside}" in owned or f"/{inside.removeprefix('usr/')}" in owned or path.is_symlink():
                    continue
                data = path.read_bytes()
                if b"\0" not in data:
                    found[self._foreign(inside)] = data.replace(
                        self.host.triplet.encode(), self.platform.triplet.encode()
                    )
        return found

    def _lay_shadows(self) -> None:
        """Link the twin's programs and libraries, and what lies in folders named after the machine."""
        _copy_folder(self.twin, self.shadow)
        for folder, subfolders, files in os.walk(self.twin):
            inside = os.path.relpath(folder, self.twin)
            named = self.host.triplet in inside or inside in ("lib64", "usr/lib64")
            for name in [*files, *(n for n in subfolders if Path(folder, n).is_symlink())]:
                path = str(Path(inside, name))
                source = Path(folder, name)
                special = named or self.host.triplet in name or path == "lib64" or name.startswith("ld-linux")
                if special or (not source.is_symlink() and source.is_file() and _is_elf(source)):
                    self._link(source, path)
                    if named and not source.is_symlink() and tree.is_program(source):
                        # Scripts call programs in the library folder by their foreign path.
                        self._link(source, self._foreign(path))

    def _link(self, source: Path, path: str) -> None:
        target = self.shadow / path
        if not target.parent.exists():
            missing = [target.parent]
            while not missing[-1].parent.exists():
                missing.append(missing[-1].parent)
            for folder in reversed(missing):
                example = self.twin / folder.relative_to(self.shadow)
                _copy_folder(example if example.is_dir() else source.parent, folder)
        os.link(source, target, follow_symlinks=False)

    def _retarget_dpkg(self) -> None:
        """Let dpkg believe that the foreign architecture is its own: its name is a constant in the program."""
        old, new = self.host.debian.encode(), self.platform.debian.encode()
        assert len(old) == len(new)
        changed = 0
        for path in (self.shadow / "usr/bin").glob("dpkg*"):
            data = path.read_bytes()
            patched = data.replace(b"\0" + old + b"\0", b"\0" + new + b"\0")
            if patched != data:
                mode = stat.S_IMODE(path.stat().st_mode)
                path.unlink()  # It is a link to the twin's.
                path.write_bytes(patched)
                path.chmod(mode)
                changed += path.name == "dpkg"
        if not changed:
            raise LithifyError(
                f"the base's dpkg cannot be made to work for {self.platform} on this machine",
                hint=f"build for {self.platform} on a {self.platform} machine",
            )

    def _hidden(self) -> tuple[str, ...]:
        """The paths of the packages' files that a shadow hides: dpkg must not write there."""
        with ThreadPoolExecutor() as pool:
            return tuple(sorted({path for paths in pool.map(self._hidden_of, self.debs) for path in paths}))

    def _hidden_of(self, deb: Deb) -> list[str]:
        found = []
        with data_archive(Path(deb.path)) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if not member.isdir() and os.path.lexists(self.shadow / _merged(path)):
                    found.append(path)
        return found

    def restore(self, upper: Path, lower: Path) -> None:
        """Bring back what the shadows hid, and replace every copy that a script made of a shadow.

        A script may have changed a hidden file's owner or mode, moved it (a diversion) or copied it: its place and
        its metadata count, the content is the package's.
        """
        real = self.real
        (real / "usr").mkdir(mode=0o755, parents=True)
        for name in ("bin", "sbin", "lib"):
            (real / name).symlink_to(f"usr/{name}")
        hidden = {_merged(path) for path in self.excluded}
        wanted = hidden.union(tar.parents(hidden))
        for deb in self.debs:
            with data_archive(Path(deb.path)) as archive:
                tree.unpack(archive, real, wanted=lambda path: _merged(path) in wanted)
        copies = [path for path, machine in tree.elf_files(upper) if machine == self.host.elf_machine]
        originals = self._shadow_digests() if copies else {}
        for path in sorted(copies):
            copy = upper / path
            original = originals.get(_digest(copy))
            source = self._source(original, real, lower) if original else None
            if source is None:
                raise LithifyError(
                    f"a package's script made the {self.host} program /{path} in the image for {self.platform}",
                    hint=f"build for {self.platform} on such a machine, or leave the package out",
                )
            mode = stat.S_IMODE(copy.stat().st_mode)
            copy.write_bytes(source.read_bytes())
            # Writing takes the set-id bits away from a file, unless real root writes.
            copy.chmod(mode)
        for path in sorted(hidden):
            source = real / path
            there = upper / path
            if not os.path.lexists(source) or os.path.lexists(there):
                continue
            _make_parents(there, (lower, real), path)
            source.rename(there)
        tree.remove(upper / "usr/lib" / self.host.triplet)
        for path, data in self.generated.items():
            there = upper / path
            if there.is_file():
                there.write_bytes(data)
            elif (upper / Path(path).parent).is_dir() and not (lower / path).exists():
                there.write_bytes(data)
                there.chmod(0o644)

    def _shadow_digests(self) -> dict[bytes, str]:
        found = {}
        for path, _ in tree.elf_files(self.shadow):
            found[_digest(self.shadow / path)] = path
        return found

    def _source(self, path: str, real: Path, lower: Path) -> Path | None:
        for candidate in (path, self._foreign(path)):
            for root in (real, lower):
                if (root / candidate).is_file() and not (root / candidate).is_symlink():
                    return root / candidate
        return None


def _is_elf(path: Path) -> bool:
    with path.open("rb") as stream:
        return tree.elf_machine(stream.read(20)) is not None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _merged(path: str) -> str:
    """A path of a package where it really lies: /bin, /sbin and /lib are links into /usr."""
    first = path.partition("/")[0]
    return f"usr/{path}" if first in ("bin", "sbin", "lib", "lib64") and "/" in path else path


def _make_parents(path: Path, examples: Sequence[Path], inside: str) -> None:
    """The folders above ``path``, with the owners and modes that they have in the first tree that has them."""
    missing = []
    parent, name = path.parent, inside.rpartition("/")[0]
    while not parent.exists():
        missing.append((parent, name))
        parent, name = parent.parent, name.rpartition("/")[0]
    for folder, name in reversed(missing):
        _copy_folder(next(example / name for example in examples if (example / name).is_dir()), folder)


def _copy_folder(example: Path, folder: Path) -> None:
    """Make ``folder`` with the owner and the mode of ``example``."""
    folder.mkdir()
    status = example.stat()
    os.chown(folder, status.st_uid, status.st_gid)
    folder.chmod(stat.S_IMODE(status.st_mode))


def main() -> int:
    """Run the job on standard input; say on standard output how it went."""
    os.umask(0o022)
    job = parse_job(sys.stdin.read())
    answer: dict[str, str | None] = {}
    try:
        run(job)
    except LithifyError as error:
        kind = type(error).__name__ if isinstance(error, (InputError, FetchError)) else "LithifyError"
        answer = {"error": kind, "message": error.message, "hint": error.hint, "details": error.details}
    except OSError as error:
        answer = {"error": "OSError", "errno": str(error.errno), "message": str(error)}
    finally:
        from lithify.store.store import remove_tree

        for entry in list(os.scandir(job.folder)):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path))
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
