"""The system's layers, made of real packages of trixie: the base, its user, an ``apt.txt``; here and for arm64."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import debs
from families import made_once
from lithify.assemble import tree
from lithify.assemble.system import SystemLayer, check_twins, system_layers
from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform, host_platform
from lithify.progress import silent
from lithify.read.family import DebianBase
from lithify.store.compression import GZIP, ZSTD, Compression, decompressed
from lithify.store.store import Store, open_store

pytestmark = [
    pytest.mark.network,
    pytest.mark.xdist_group("system-layers"),  # they share a store, and some look at all that is in it
    pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="these tests build on amd64"),
]
BASE = DebianBase(debs.SUITE, (), "3.13")

# Run by another user too, so it stands alone.
BUILD = """
import sys
from pathlib import Path
import debs
from lithify.assemble.system import system_layers
from lithify.platforms import parse_platform
from lithify.read.family import DebianBase
from lithify.store.compression import ZSTD
from lithify.store.store import Store, open_store
lock, artefacts, store, platform = Path(sys.argv[1]).read_text(), Store(Path(sys.argv[2])), sys.argv[3], sys.argv[4]
levels = debs.levels_in(lock)
def fetched(packages):
    return {package: artefacts.artefact_path(package.sha256) for package in packages}
platform = parse_platform(platform)
made = system_layers(open_store(Path(store)), DebianBase(debs.SUITE, (), "3.13"), levels[platform],
    levels[parse_platform("linux/amd64")], platform, ZSTD, fetched=fetched)
print(" ".join(one.layer.descriptor.digest for one in made))
"""


@pytest.fixture(scope="session")
def levels(shared: Path) -> Mapping[Platform, debs.Levels]:
    with made_once(shared, "trixie-lock") as (folder, empty):
        if empty:
            found = {platform: debs.levels(platform) for platform in debs.PLATFORMS}
            debs.fetched([p for of in found.values() for level in of for p in level])
            folder.mkdir()
            (folder / "lock").write_text(debs.lock_text(found))
    return debs.levels_in((folder / "lock").read_text())


@pytest.fixture(scope="session")
def built(shared: Path, levels: Mapping[Platform, debs.Levels]) -> Store:
    """A store with the system's layers for both platforms."""
    with made_once(shared, "trixie-store") as (folder, empty):
        store = open_store(folder)
        if empty:
            for platform in debs.PLATFORMS:
                make(store, levels, platform)
    return store


def make(
    store: Store, levels: Mapping[Platform, debs.Levels], platform: Platform, compression: Compression = ZSTD
) -> tuple[SystemLayer, ...]:
    return system_layers(
        store, BASE, levels[platform], levels[LINUX_AMD64], platform, compression, fetched=debs.fetched
    )


def no_fetching(packages: Sequence[Package]) -> Mapping[Package, Path]:
    raise AssertionError(f"asked for {packages}")


@functools.cache
def members(root: Path, digest: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    store = Store(root)
    found = {}
    with store.blob_path(digest).open("rb") as file:
        data = b"".join(decompressed(file, ZSTD.media_type))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = member, content.read() if content else b""
    return found


@pytest.fixture(params=debs.PLATFORMS, ids=str)
def platform(request: pytest.FixtureRequest) -> Platform:
    found: Platform = request.param
    return found


@pytest.fixture
def layers(
    built: Store, levels: Mapping[Platform, debs.Levels], platform: Platform
) -> list[dict[str, tuple[tarfile.TarInfo, bytes]]]:
    """What is in the base's, the user's and the apt level's layer."""
    return [members(built.root, one.layer.descriptor.digest) for one in make(built, levels, platform)]


def test_the_layers_are_base_user_and_one_for_each_level_that_adds_packages(
    built: Store, levels: Mapping[Platform, debs.Levels], platform: Platform
) -> None:
    made = make(built, levels, platform)
    assert [one.level for one in made] == [0, 0, 1]
    packages = made[2].layer.descriptor.annotations["dev.lithify.layer.packages"]
    assert any(word.startswith("debian/trixie:zip=") for word in packages.split())
    without = (*levels[platform], ())
    again = system_layers(built, BASE, without, without, platform, ZSTD, fetched=no_fetching)
    assert [one.layer for one in again] == [one.layer for one in made]


def test_layers_that_are_there_are_reused_and_nothing_is_fetched(
    built: Store, levels: Mapping[Platform, debs.Levels], platform: Platform
) -> None:
    made = system_layers(
        built, BASE, levels[platform], levels[LINUX_AMD64], platform, ZSTD, fetched=no_fetching, report=silent
    )
    assert all(one.reused for one in made)


def test_another_compression_holds_the_same_tar_and_runs_nothing_again(
    built: Store, levels: Mapping[Platform, debs.Levels]
) -> None:
    zstd = make(built, levels, LINUX_AMD64)
    gzip = system_layers(built, BASE, levels[LINUX_AMD64], levels[LINUX_AMD64], LINUX_AMD64, GZIP, fetched=no_fetching)
    assert [one.layer.diff_id for one in gzip] == [one.layer.diff_id for one in zstd]
    assert gzip[0].layer.descriptor.media_type == GZIP.media_type


def test_every_package_is_installed_for_the_platform(
    layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]], levels: Mapping[Platform, debs.Levels], platform: Platform
) -> None:
    status = layers[2]["var/lib/dpkg/status"][1].decode()
    stanzas = [dict(line.split(": ", 1) for line in s.splitlines() if ": " in line) for s in status.split("\n\n") if s]
    found = {stanza["Package"]: (stanza["Status"], stanza["Version"]) for stanza in stanzas}
    locked = {p.name: ("install ok installed", p.version) for level in levels[platform] for p in level}
    assert found == locked
    assert {stanza["Architecture"] for stanza in stanzas} == {"all", platform.debian}
    assert not layers[2].get("var/lib/dpkg/arch")


def test_programs_and_libraries_are_all_for_the_platform(
    layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]], platform: Platform
) -> None:
    machines = [{tree.elf_machine(content[:20]) for _, content in layer.values()} - {None} for layer in layers]
    assert machines[0] == {platform.elf_machine}
    assert machines[1] == set()
    assert machines[2] == {platform.elf_machine}
    other = next(p for p in debs.PLATFORMS if p != platform)
    assert [path for layer in layers for path in layer if other.triplet in path] == []


def test_what_scripts_do_is_the_same_on_both_platforms(built: Store, levels: Mapping[Platform, debs.Levels]) -> None:
    """The trees differ in what is named after the architecture, and in nothing else."""
    here, there = (
        [members(built.root, one.layer.descriptor.digest) for one in make(built, levels, platform)]
        for platform in debs.PLATFORMS
    )
    for ours, theirs in zip(here, there, strict=True):
        a = {_neutral(path, LINUX_AMD64): _facts(member, LINUX_AMD64) for path, (member, _) in ours.items()}
        b = {_neutral(path, LINUX_ARM64): _facts(member, LINUX_ARM64) for path, (member, _) in theirs.items()}
        only = sorted(set(a) ^ set(b))
        # The loader's name, amd64's second library folder and aliases of setarch, a cache that arm64 goes without.
        known = ("ld-linux", "lib64", "etc/ld.so.cache", "usr/bin/i386", "usr/bin/x86_64", "padlock.so", "preloadable")
        assert [path for path in only if not any(word in path for word in known)] == []
        differing = [path for path in a.keys() & b.keys() if a[path] != b[path]]
        assert [path for path in differing if path != "usr/bin/ld.so"] == []
        for path in a.keys() & b.keys():
            if path.startswith("etc/") and not path.startswith("etc/ld.so"):
                one, two = (side.get(path, (None, b""))[1] for side in (ours, theirs))
                assert one.replace(b"x86_64-linux-gnu", b"T") == two.replace(b"aarch64-linux-gnu", b"T"), path


def _neutral(path: str, platform: Platform) -> str:
    return path.replace(platform.triplet, "TRIPLET").replace(f":{platform.debian}.", ":ARCH.")


def _facts(member: tarfile.TarInfo, platform: Platform) -> tuple[object, ...]:
    return member.type, member.mode, member.uid, member.gid, _neutral(member.linkname, platform), member.mtime


def test_byte_code_is_the_same_on_both_platforms(built: Store, levels: Mapping[Platform, debs.Levels]) -> None:
    here, there = (members(built.root, make(built, levels, p)[0].layer.descriptor.digest) for p in debs.PLATFORMS)
    compiled = [path for path in here if path.endswith(".pyc") and "sysconfigdata" not in path]
    assert len(compiled) > 50
    assert all(here[path][1] == there[path][1] for path in compiled)
    # Flags 3: checked by the source's hash (PEP 552), so that no file's time matters.
    assert {here[path][1][4] for path in compiled} == {3}


def test_a_list_of_modules_names_the_modules_of_the_platform(
    layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]], platform: Platform
) -> None:
    caches = [
        content for path, (_, content) in layers[2].items() if path.endswith("gdk-pixbuf-2.0/2.10.0/loaders.cache")
    ]
    assert len(caches) == 1
    assert f"/usr/lib/{platform.triplet}/".encode() in caches[0] or b"gif" in caches[0]
    other = next(p for p in debs.PLATFORMS if p != platform)
    assert other.triplet.encode() not in caches[0]


def test_accounts_of_scripts_and_of_ours_are_there(
    layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]],
) -> None:
    base, user, apt = layers
    assert "jovyan" not in base["etc/passwd"][1].decode()
    assert "jovyan:x:1000:1000::/home/jovyan:/bin/bash" in user["etc/passwd"][1].decode().splitlines()
    for path in ("home/jovyan", "srv"):
        assert (user[path][0].uid, user[path][0].gid, user[path][0].mode) == (1000, 1000, 0o755)
    groups = apt["etc/group"][1].decode().splitlines()
    assert "jovyan:x:1000:" in groups
    assert any(line.startswith("_ssh:") for line in groups)
    agent, _ = apt["usr/bin/ssh-agent"]
    gid = next(int(line.split(":")[2]) for line in groups if line.startswith("_ssh:"))
    assert (agent.gid, agent.mode) == (gid, 0o2755)
    shadow, _ = user["etc/shadow"]
    assert (shadow.uid, shadow.gid, shadow.mode) == (0, 42, 0o640)


def test_nothing_of_the_build_is_left(layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]]) -> None:
    for layer in layers:
        assert {member.mtime for member, _ in layer.values()} == {315619200}
        assert {member.uname for member, _ in layer.values()} == {""}
        assert [path for path, (member, _) in layer.items() if member.ischr() or member.isblk()] == []
        for path in layer:
            assert not path.startswith(("usr/share/man/", "var/log/dpkg", "var/cache/apt/", "tmp/", "dev/")), path
            assert path not in ("usr/sbin/policy-rc.d", "var/lib/dpkg/status-old", "etc/passwd-"), path
            if path.startswith("usr/share/doc/") and layer[path][0].isreg():
                # The script of base-files copies its own texts there.
                assert path.endswith("/copyright") or path.startswith("usr/share/doc/base-files/"), path
    assert "usr/share/doc/libc6/copyright" in layers[0]
    assert layers[0]["run/lock"][0].mode == 0o1777


def test_the_layer_of_an_apt_level_holds_only_what_it_changes(
    layers: list[dict[str, tuple[tarfile.TarInfo, bytes]]],
) -> None:
    base, _, apt = layers
    same = [
        path
        for path, (member, content) in apt.items()
        if member.isreg() and path in base and base[path][1] == content and base[path][0].mode == member.mode
    ]
    assert same == []
    assert "usr/bin/zip" in apt


@pytest.mark.parametrize("platform", [LINUX_AMD64, pytest.param(LINUX_ARM64, marks=pytest.mark.slow)], ids=str)
def test_root_and_somebody_else_make_the_same_bytes(
    built: Store, levels: Mapping[Platform, debs.Levels], tmp_path: Path, platform: Platform
) -> None:
    """Another user, store, time zone, umask, language, hash seed."""
    somebody = debs.unprivileged()
    if somebody is None:
        pytest.skip("no other user with subordinate ids on this machine")
    name, python = somebody
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lock = Path(folder, "lock")
        lock.write_text(debs.lock_text(levels))
        lock.chmod(0o644)
        store = debs.store_for(name, Path(folder, "elsewhere with a space"))
        result = debs.as_user(
            name,
            python,
            "import os; os.umask(0o077)\n" + BUILD,
            str(lock),
            str(debs.cache().store),
            str(store / "store"),
            str(platform),
            check=False,
            environment={"TZ": "Asia/Tokyo", "LC_ALL": "C", "LANG": "de_DE.UTF-8", "PYTHONHASHSEED": "7"},
        )
        assert result.returncode == 0, result.stderr
        left = sorted(path.name for path in (store / "store/tmp").iterdir())
    assert result.stdout.split() == [one.layer.descriptor.digest for one in make(built, levels, platform)]
    assert left == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")
def test_the_base_is_what_mmdebstrap_makes_of_the_same_packages(
    built: Store, levels: Mapping[Platform, debs.Levels], tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for package, path in debs.fetched(levels[LINUX_AMD64][0]).items():
        shutil.copyfile(path, pool / package.file.rpartition("/")[2])
    index = subprocess.run(["dpkg-scanpackages", "."], cwd=pool, capture_output=True, check=True).stdout
    (pool / "Packages").write_bytes(index)
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in tree.EXCLUDED]
    options += [f"--dpkgopt=path-include={pattern}" for pattern in tree.INCLUDED]
    names = ",".join(package.name for package in levels[LINUX_AMD64][0])
    subprocess.run(
        [
            *("mmdebstrap", "--variant=essential", f"--include={names}", *options),
            *("", str(tmp_path / "base.tar"), f"deb [trusted=yes] copy://{pool} ./"),
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "315619200"},
        check=True,
        capture_output=True,
    )
    theirs = {}
    with tarfile.open(tmp_path / "base.tar") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            theirs[member.name.removeprefix("./").rstrip("/")] = (member, content.read() if content else b"")
    ours = members(built.root, make(built, levels, LINUX_AMD64)[0].layer.descriptor.digest)
    # Devices, locks, logs, backups, and what belongs to the machine that it ran on or to apt, which nobody asked for.
    known = (
        *("dev/", "etc/apt", "var/cache/apt", "var/lib/apt", "var/log/", "etc/dpkg/dpkg.cfg.d/", "run/"),
        *("etc/fstab", "etc/hostname", "etc/resolv.conf", "var/lib/dpkg/", "var/cache/debconf/"),
    )
    assert [path for path in sorted(set(theirs) ^ set(ours)) if path != "." and not path.startswith(known)] == []
    for name in theirs.keys() & ours.keys():
        (one, ours_holds), (two, theirs_holds) = ours[name], theirs[name]
        assert (one.type, one.mode, one.uid, one.gid) == (two.type, two.mode, two.uid, two.gid), name
        assert one.linkname == two.linkname.removeprefix("./"), name
        assert ours_holds == theirs_holds, name


# -- bad input -----------------------------------------------------------------------------------------------------


def test_twins_of_another_version_are_named(levels: Mapping[Platform, debs.Levels]) -> None:
    base, apt = levels[LINUX_AMD64]
    moved = tuple(replace(p, version="2:9.9-1") if p.name == "bash" else p for p in base)
    with pytest.raises(InputError, match=r"bash \(.*2:9\.9-1 for linux/amd64\)"):
        check_twins(levels[LINUX_ARM64], (moved, apt), LINUX_ARM64, LINUX_AMD64)


def test_twins_that_were_only_rebuilt_are_fine(levels: Mapping[Platform, debs.Levels]) -> None:
    base, apt = levels[LINUX_AMD64]
    rebuilt = tuple(replace(p, version=f"{p.version.partition('+b')[0]}+b9") for p in base)
    check_twins(levels[LINUX_ARM64], (rebuilt, apt), LINUX_ARM64, LINUX_AMD64)


def test_without_twins_the_message_says_to_lock_for_this_machine(levels: Mapping[Platform, debs.Levels]) -> None:
    with pytest.raises(InputError, match="no Debian packages for it") as caught:
        check_twins(levels[LINUX_ARM64], ((), ()), LINUX_ARM64, LINUX_AMD64)
    assert caught.value.hint is not None


@pytest.fixture
def broken(built: Store, levels: Mapping[Platform, debs.Levels], tmp_path: Path) -> Iterator[tuple[Store, Package]]:
    """The store with the base, and a package of ours to install on it."""
    (package,) = [p for p in levels[LINUX_AMD64][1] if p.name == "zip"]
    yield built, package


def install(store: Store, levels: Mapping[Platform, debs.Levels], package: Package, deb: bytes, folder: Path) -> None:
    path = folder / "package.deb"
    path.write_bytes(deb)
    changed = (levels[LINUX_AMD64][0], (replace(package, sha256="0" * 64),))
    system_layers(
        store, BASE, changed, changed, LINUX_AMD64, ZSTD, fetched=lambda packages: dict.fromkeys(packages, path)
    )


def stanza(package: Package) -> str:
    return (
        f"Package: {package.name}\nVersion: {package.version}\nArchitecture: amd64\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: a package\n"
    )


@pytest.mark.parametrize(
    ("deb", "message"),
    [
        (b"", "zip"),
        (b"!<arch>\nnonsense", "zip"),
        (debs.archive({"debian-binary": b"2.0\n"}), "zip"),
    ],
    ids=["empty", "no member", "no control"],
)
def test_a_file_that_is_no_package_is_named(
    broken: tuple[Store, Package], levels: Mapping[Platform, debs.Levels], tmp_path: Path, deb: bytes, message: str
) -> None:
    store, package = broken
    before = set((store.root / "blobs/sha256").iterdir())
    with pytest.raises(Exception, match=message) as caught:
        install(store, levels, package, deb, tmp_path)
    assert type(caught.value).__module__ == "lithify.errors"
    assert set((store.root / "blobs/sha256").iterdir()) == before
    assert list((store.root / "tmp").glob("system-*")) == []


def test_a_package_whose_script_fails_is_named_with_what_it_said(
    broken: tuple[Store, Package], levels: Mapping[Platform, debs.Levels], tmp_path: Path
) -> None:
    store, package = broken
    with pytest.raises(Exception, match="zip") as caught:
        install(store, levels, package, with_script(package, "echo the answer is no; exit 3"), tmp_path)
    assert "the answer is no" in str(caught.value)


def test_a_script_sees_no_network_and_no_file_of_this_machine(
    broken: tuple[Store, Package], levels: Mapping[Platform, debs.Levels], tmp_path: Path
) -> None:
    store, package = broken
    secret = tmp_path / "secret"
    secret.write_text("x")
    script = f"cat /proc/net/dev | grep -v -E 'lo:|face|Inter' ; ls {secret} ; ls /proc | grep -c '^[0-9]' ; exit 9"
    with pytest.raises(Exception, match="zip") as caught:
        install(store, levels, package, with_script(package, script), tmp_path)
    assert "No such file" in str(caught.value)
    assert ":" not in [line for line in str(caught.value).splitlines() if "eth" in line]


def with_script(package: Package, script: str) -> bytes:
    import lzma

    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w") as archive:
        for name, text, mode in (
            ("./control", stanza(package), 0o644),
            ("./postinst", f"#!/bin/sh\n{script}\n", 0o755),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text.encode()), mode
            archive.addfile(member, io.BytesIO(text.encode()))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w"):
        pass
    return debs.archive(
        {
            "debian-binary": b"2.0\n",
            "control.tar.xz": lzma.compress(control.getvalue()),
            "data.tar.xz": lzma.compress(data.getvalue()),
        }
    )


def test_a_lock_whose_version_is_not_the_packages_is_an_error(
    broken: tuple[Store, Package], levels: Mapping[Platform, debs.Levels], tmp_path: Path
) -> None:
    store, package = broken
    with pytest.raises(Exception, match="zip 9"):
        install(store, levels, replace(package, version="9"), with_script(package, "true"), tmp_path)
