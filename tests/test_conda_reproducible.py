"""A lock of conda packages gives the same bytes wherever it is built, for each platform what is right there."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import channel_server
import conda_channel
import conda_families
import families
import judge
import lithify
from conda_python import HOST_SUBDIR
from engines import engine_folder, podman, skopeo
from lithify.lockfile import Lock, Package, read_lock, write_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, host_platform
from lithify.read.family import lock_path, read_family
from lithify.read.settings import Settings
from lithify.resolve import fingerprint_of
from lithify.store.compression import GZIP, ZSTD, Compression
from lithify.store.manifests import manifest_for
from lithify.store.rootfs import root_filesystem
from lithify.store.store import open_store
from making_conda import CONDA, LINUX_64, PLACEHOLDER, TAR_BZ2, CondaPackage, File, Member, Symlink, binary, text

pytestmark = pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the channel's machine code is for linux/amd64")

NAME = "small/notebook"
PREFIX = "/srv/conda/envs/notebook"
BOTH = (LINUX_AMD64, LINUX_ARM64)
SPECS = (
    *("python", "click", "rich", "pyyaml", "text-prefix", "binary-prefix", "long-shebang", "links", "modes"),
    *("awkward-names", "clutter", "clobber-different-a", "clobber-different-b", "generic", "menu", "proj-like"),
    *("env-vars", "old-style", "new-style-bz2"),
)
# Environments of the same packages: one whose prefix is as long as the notebook's, and one whose is not.
TWIN, LONG = "/opt/other/places/tool-x", "/srv/conda/envs/an-environment-with-a-long-name"


@dataclass(frozen=True)
class Reference:
    """What building once gave: the family, a store with nothing but its packages, and that build's own store."""

    folder: Path

    @property
    def family(self) -> Path:
        return self.folder / "family"

    @property
    def packages(self) -> Path:
        return self.folder / "packages"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def built(self) -> dict[str, Any]:
        """The index's digest, and by platform the image's and how many fragments were made for it."""
        built: dict[str, Any] = json.loads((self.folder / "built.json").read_text())
        return built

    @property
    def digests(self) -> dict[str, str]:
        """As `digests` gives them."""
        return {
            "index": self.built["digest"],
            **{name: digest for name, (digest, _) in self.built["platforms"].items()},
        }


@pytest.fixture(scope="session")
def reference(shared: Path, python_layout: Path) -> Reference:
    """A family for both platforms, with further environments of the same packages, one of them a kernel."""
    with families.made_once(shared, "conda-reference") as (folder, empty):
        reference = Reference(folder)
        if empty:
            environment = conda_families.environment(SPECS)
            conda_families.write_small(
                reference.family,
                python_layout,
                SPECS,
                platforms=[str(platform) for platform in BOTH],
                image=f"[images.notebook.environments.twin]\nprefix = '{TWIN}'\nkernel = 'Twin'\n"
                f"[images.notebook.environments.long]\nprefix = '{LONG}'\n"
                "[files]\nexclude = ['*.a', '*.js.map']\n",
                more={f"notebook/environment-{name}.yml": environment for name in ("twin", "long")},
            )
            settings = Settings(open_store(reference.store).root, jobs=2)
            with channel_server.serving(conda_channel.small()) as server:
                settings = conda_families.served_from(settings, server.channel(conda_channel.CHANNEL))
                lithify.lock(reference.family, settings=settings)
                (built,) = lithify.build(reference.family, settings=settings)
            families.clone(reference.store, open_store(reference.packages).root, "artefacts")
            told = {str(one.platform): (one.digest, one.fragments_built) for one in built.platforms}
            (folder / "built.json").write_text(json.dumps({"digest": built.digest, "platforms": told}))
    return Reference(folder)


@pytest.fixture
def cold(reference: Reference, tmp_path: Path) -> Path:
    """A store with the packages and nothing else."""
    return families.clone(reference.packages, tmp_path / "store")


def digests(built: families.Built) -> dict[str, str]:
    return {"index": built.digest, **built.platforms}


def packages(reference: Reference) -> list[Package]:
    return [one for one in read_lock(reference.family / "notebook/lithify.lock").packages if one.kind == "conda"]


# -- the same bytes ------------------------------------------------------------------------------------------------

SURROUNDINGS: dict[str, tuple[int, str, dict[str, str]]] = {
    "one job, another time zone, nobody else may read, variables that conda and Python heed": (
        1,
        "077",
        {
            "TZ": "Pacific/Chatham",
            "CONDA_PREFIX": "/opt/conda",
            "CONDA_OVERRIDE_GLIBC": "2.12",
            "PYTHONHASHSEED": "1",
            "PYTHONPYCACHEPREFIX": "/nowhere",
            "SOURCE_DATE_EPOCH": "1234567890",
        },
    ),
    "five jobs, another locale, everybody may write": (
        5,
        "000",
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "77", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nowhere"},
    ),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_surroundings_do_not_matter(reference: Reference, cold: Path, tmp_path: Path, name: str) -> None:
    jobs, umask, variables = SURROUNDINGS[name]
    elsewhere = tmp_path / "a longer place" / "with spaces"
    shutil.copytree(reference.family, elsewhere, copy_function=shutil.copyfile)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    temporary = tmp_path / "temporary files"
    temporary.mkdir()
    prefix = ["sh", "-c", f'umask {umask}; exec "$@"', "sh"]
    # Offline: a lock and its packages are all that a build needs.
    variables = {"TMPDIR": str(temporary), "LITHIFY_OFFLINE": "1", **variables}
    built = families.build(elsewhere, Settings(cold, jobs), prefix=prefix, **variables)
    assert digests(built) == reference.digests
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_the_order_of_platforms_does_not_matter(reference: Reference, cold: Path) -> None:
    for platform in reversed(BOTH):
        built = families.build(reference.family, Settings(cold, 2), "--platform", str(platform))
        assert built.platforms == {str(platform): reference.digests[str(platform)]}
    assert digests(families.build(reference.family, Settings(cold, 2))) == reference.digests


# -- platforms -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(reference: Reference) -> Mapping[str, judge.Judged]:
    return judge.judge(reference.store, reference.digests["index"])


def test_machine_code_is_of_the_image_s_platform(judged: Mapping[str, judge.Judged]) -> None:
    paths = {}
    for platform in BOTH:
        found = {path: machine for path, machine in judged[str(platform)].elf_machines().items() if in_prefix(path)}
        assert set(found.values()) == {platform.elf_machine}
        assert f"{PREFIX[1:]}/bin/python{conda_families.HOST_PYTHON}" in found
        paths[platform] = {path.replace(platform.triplet, "") for path in found}
    assert paths[LINUX_AMD64] == paths[LINUX_ARM64]


def in_prefix(path: str) -> bool:
    """Whether a path of an image is of its conda environments; the base is this machine's for both platforms."""
    return f"/{path}".startswith((PREFIX, TWIN, LONG))


def test_what_is_for_no_platform_is_laid_out_once(reference: Reference) -> None:
    counted: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for one in packages(reference):
        counted[one.file.split("/")[0]].add((one.file, one.environment))
    made = {platform: count for platform, (_, count) in reference.built["platforms"].items()}
    assert made == {
        str(LINUX_AMD64): len(counted["noarch"]) + len(counted[HOST_SUBDIR]),
        str(LINUX_ARM64): len(counted["linux-aarch64"]),
    }


def test_compiled_modules_are_the_same_on_every_platform(reference: Reference) -> None:
    compiled = []
    for platform in BOTH:
        root = root_of(reference, str(platform)) / PREFIX[1:]
        compiled.append(
            {
                str(path.relative_to(root)).replace(platform.triplet, ""): path.read_bytes()
                for path in root.rglob("*.pyc")
                if "_sysconfigdata" not in path.name
            }
        )
    assert compiled[0] == compiled[1]
    assert len(compiled[0]) > 500


def root_of(reference: Reference, platform: str) -> Path:
    store = open_store(reference.store)
    entry = next(one for one in BOTH if str(one) == platform)
    return root_filesystem(store, manifest_for(store, NAME, entry).layers)


def test_others_take_the_index_and_the_other_platform_s_image(reference: Reference, tmp_path: Path) -> None:
    place = f"oci:{reference.store}:{NAME}"
    index = json.loads(skopeo("inspect", "--raw", place))
    assert [one["platform"]["architecture"] for one in index["manifests"]] == ["amd64", "arm64"]
    skopeo("copy", "--quiet", "--all", "--preserve-digests", place, f"oci:{tmp_path}/copy:x")
    assert judge.judge(tmp_path / "copy", reference.digests["index"]).keys() == {str(one) for one in BOTH}
    with engine_folder() as engine:
        identifier = podman(engine, "pull", "--quiet", "--arch=arm64", place).split()[-1]
        (about,) = json.loads(podman(engine, "image", "inspect", identifier))
    assert about["Architecture"] == "arm64"
    assert f"CONDA_PREFIX={PREFIX}" in about["Config"]["Env"]


# -- another prefix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [TWIN, LONG], ids=["of the same length", "longer"])
def test_an_environment_elsewhere_differs_in_its_prefix_alone(reference: Reference, prefix: str) -> None:
    root = root_of(reference, str(LINUX_AMD64))
    first, second = (contents(root / place.lstrip("/")) for place in (PREFIX, prefix))
    kernel = "share/jupyter/kernels/twin/kernel.json"
    assert first.keys() - {kernel} == second.keys()
    changed = {path for path in second if first[path] != second[path]}
    for path in changed:
        (mode, ours), (other_mode, theirs) = first[path], second[path]
        assert mode == other_mode, path
        if path.endswith(".pyc"):
            folder, _, name = path.rpartition("/__pycache__/")
            if f"{folder}/{name.split('.')[0]}.py" not in changed:
                # A code object's equality leaves out where it comes from.
                assert ours[:16] == theirs[:16] and marshal.loads(ours[16:]) == marshal.loads(theirs[16:]), path
        elif path.startswith("conda-meta/") and path.endswith(".json"):
            assert without_digests(ours) == without_digests(theirs), path
        else:
            assert PREFIX.encode() in ours, path
            # A binary's strings are filled up with zeros.
            told = [data.replace(b"\0", b"") for data in (ours, theirs)]
            assert told[0].replace(PREFIX.encode(), prefix.encode()) == told[1], path
            if len(prefix) == len(PREFIX):
                assert ours.replace(PREFIX.encode(), prefix.encode()) == theirs, path
    assert {"bin/text-prefix", "share/binary-prefix/table.bin", "bin/old-style"} <= changed
    assert len(changed) < len(first)


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    """The mode and the bytes, or a link's target, of every file below ``root``."""
    return {
        str(path.relative_to(root)): (
            path.lstat().st_mode,
            os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes(),
        )
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def without_digests(record: bytes) -> dict[str, Any]:
    """A ``conda-meta`` record without what the prefix changes: digests of files in it, and their sizes."""
    document: dict[str, Any] = json.loads(record)
    for entry in document["paths_data"]["paths"]:
        for key in (
            "sha256_in_prefix",
            "size_in_bytes",
            *(["sha256"] if entry["path_type"].startswith("unix") else []),
        ):
            entry.pop(key, None)
    return document


def test_bytecode_is_this_python_s(reference: Reference) -> None:
    # Or the comparison above would fail for its own reasons.
    root = root_of(reference, str(LINUX_AMD64)) / PREFIX[1:]
    found = next(root.rglob("click/__pycache__/*.pyc"))
    assert found.read_bytes()[:4] == importlib.util.MAGIC_NUMBER


# -- a digest for all machines -------------------------------------------------------------------------------------

# Of one image, made of packages without Python or machine code, which are the same wherever they are made, on a base
# that is, too. It changes only when what Lithify writes changes: then say why, and raise a FORMAT where old caches
# would be wrong.
GOLDEN_LIBZSTD, GOLDEN_ZLIB_NG = "1.5.7", "2.3.3"
GOLDEN = {
    "zstd": "sha256:4ccb81ed16c60ff44844780c8f6838be11292bf785d3b3093d713162d29af4a2",
    "gzip": "sha256:56c24db13e01d92751ccf6a0f783b853631f0034a974b5b47d592c30fb6cc111",
}


def golden_packages() -> list[tuple[CondaPackage, str]]:
    """One of each kind, in both containers."""
    here = PLACEHOLDER
    table = f"\0first\0{here}/lib\0{here}/a:{here}/b:{here}\0last\0".encode() + bytes(range(256))
    files: dict[str, Member] = {
        "bin/golden": text(f"#!{here}/bin/sh\necho {here}\n", 0o755),
        f"bin/{'deep' * 10}": text(f"#!{here}/{'deep/' * 30}sh -e\nexit\n", 0o755),
        "etc/golden.ini": text(f"home = {here}\r\n"),
        "lib/golden.bin": binary(table, 0o644),
        "lib/golden.so": Symlink("golden.bin"),
        "share/golden/привет": File(b"unicode\n"),
        f"share/golden/{'/'.join(['long' * 15] * 5)}": File(b"a long path\n", 0o600),
    }
    native = CondaPackage("golden", files=files, subdir=LINUX_64, depends=["data"])
    data = CondaPackage("data", files={"share/data.txt": File(b"row\n" * 10_000)}, noarch="generic")
    loser = CondaPackage("clobbered", files={"share/data.txt": File(b"lost\n")}, noarch="generic")
    excluded = CondaPackage("clutter", files={"lib/x.a": File(b"!<arch>\n"), "lib/x": File(b"x\n")}, noarch="generic")
    variables = {"etc/conda/env_vars.d/golden.json": File(b'{"GOLDEN": "yes"}')}
    old = CondaPackage("old", files={"bin/old": files["bin/golden"], **variables}, subdir=LINUX_64, old=True)
    return [(native, CONDA), (data, CONDA), (loser, TAR_BZ2), (excluded, CONDA), (old, TAR_BZ2)]


@pytest.mark.parametrize("compression", [ZSTD, GZIP], ids=lambda one: one.name)
def test_the_golden_image(tmp_path: Path, settings: Settings, compression: Compression) -> None:
    # zstd makes the packages, too.
    for one, known in ((ZSTD, GOLDEN_LIBZSTD), (compression, None)):
        name, version = one.identity.split("-")[:2]
        if version != (known or {"zstd": GOLDEN_LIBZSTD, "gzip": GOLDEN_ZLIB_NG}[name]):
            pytest.skip(f"the golden digest holds for another {name} than {version}")
    layout = tmp_path / "base"
    families.plain_base(layout)
    store = open_store(settings.store)
    locked = []
    for package, container in golden_packages():
        data = package.archive(container)
        wheel = families.Wheel(package.path(Path(), container).name, data)
        families.provide(store, [wheel])
        file = f"{package.subdir}/{wheel.file}"
        depends = tuple(package.depends)
        locked.append(
            Package("conda/golden", package.name, LINUX_AMD64, "1.0", file, wheel.sha256, len(data), depends=depends)
        )
    channel = "https://conda.example/golden"
    family = conda_families.write_small(
        tmp_path / "family",
        layout,
        [],
        image="labels = { a = 'b' }\n[files]\nexclude = ['*.a']\n",
        more={
            "notebook/environment.yml": conda_families.environment(["golden", "old"], channels=[channel])
            + "variables:\n  OF_THE_FILE: a value\n"
        },
    )
    read = read_family(family)
    lock = Lock(fingerprint_of(read, read.image("notebook")), families.CREATED, tuple(sorted(locked)))
    lock_path(read.image("notebook")).write_text(write_lock(lock))
    (built,) = lithify.build(family, locked=True, compression=compression.name, settings=settings)
    image = judge.judge(settings.store, built.digest)[str(LINUX_AMD64)]
    assert "GOLDEN=yes" in image.config["config"]["Env"] and "OF_THE_FILE=a value" in image.config["config"]["Env"]
    assert image.read(f"{PREFIX[1:]}/etc/golden.ini").decode() == f"home = {PREFIX}\r\n"
    assert built.platforms[0].digest == GOLDEN[compression.name]
