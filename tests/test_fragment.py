"""Fragments: a package's slice depends on the package and the target, and on nothing else."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import families
from lithify.errors import FetchError, HostError, LithifyError
from lithify.fragment.bytecode import Interpreter
from lithify.fragment.fragment import (
    Recipe,
    find_fragment,
    forget_fragment,
    fragment_key,
    fragment_path,
    make_fragment,
    make_fragments,
)
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.read.settings import Settings
from lithify.sources import File, Target
from lithify.sources.pypi import PypiSource
from lithify.store.compression import GZIP, ZSTD, decompressed
from lithify.store.manifests import manifest_for
from lithify.store.rootfs import root_filesystem
from lithify.store.store import Store, open_store

TARGET = Target(LINUX_AMD64, "/srv/conda/envs/notebook", 1000, 1000, families.HOST_PYTHON, "build 1")
PACKAGES = f"srv/conda/envs/notebook/lib/python{families.HOST_PYTHON}/site-packages"


@pytest.fixture(scope="module")
def interpreter(python_layout: Path) -> Interpreter:
    layout = open_store(python_layout)
    root = root_filesystem(layout, manifest_for(layout, "test/base", LINUX_AMD64).layers)
    return Interpreter((root,), f"/usr/bin/python{families.HOST_PYTHON}")


def recipe(store: Store, wheel: families.Wheel, interpreter: Interpreter | None = None) -> Recipe:
    families.provide(store, [wheel])
    source = PypiSource(Settings(store.root, jobs=1), families.HOST_PYTHON)
    return Recipe(wheel.package(), TARGET, ZSTD, source, store.artefact_path(wheel.sha256), interpreter)


def members(store: Store, key: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    """What the standard library finds in a fragment."""
    with fragment_path(store, key).open("rb") as file:
        data = b"".join(decompressed(file, ZSTD.media_type))
    with tarfile.open(fileobj=io.BytesIO(data + b"\0" * 1024)) as archive:
        found = [(member, archive.extractfile(member)) for member in archive]
        return {member.name: (member, file.read() if file else b"") for member, file in found}


def test_a_fragment_holds_files_and_nothing_else(store: Store, wheels: tuple[families.Wheel, ...]) -> None:
    for wheel in wheels:
        one = recipe(store, wheel)
        fragment = make_fragment(store, one, None)
        found = members(store, one.key)
        assert list(found) == sorted(found, key=lambda path: path.encode())
        assert found.keys() == fragment.paths.keys()
        for member, _ in found.values():
            assert member.isfile()
            assert (member.uid, member.gid, member.uname, member.mtime) == (1000, 1000, "", 315619200)
            assert member.mode in (0o644, 0o755)


def test_what_was_made_is_found(store: Store) -> None:
    one = recipe(store, families.wheel("plain"))
    assert find_fragment(store, one.key) is None
    made = make_fragment(store, one, None)
    assert find_fragment(store, one.key) == made
    forget_fragment(store, one.key)
    assert find_fragment(store, one.key) is None


def test_making_it_again_gives_the_same_bytes(store: Store, tmp_path: Path, wheels: tuple[families.Wheel, ...]) -> None:
    other = open_store(tmp_path / "another store")
    for wheel in wheels:
        first, second = recipe(store, wheel), recipe(other, wheel)
        assert first.key == second.key
        assert make_fragment(store, first, None).sha256 == make_fragment(other, second, None).sha256


@pytest.mark.parametrize(
    "change",
    [
        {"platform": LINUX_ARM64},
        {"prefix": "/opt/other"},
        {"uid": 1001},
        {"gid": 1001},
        {"python": "3.12"},
        {"python_build": "build 2"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_knows_the_target(change: dict[str, object]) -> None:
    package = families.wheel("plain").package()
    assert fragment_key(package, TARGET, ZSTD) != fragment_key(package, replace(TARGET, **change), ZSTD)  # type: ignore[arg-type]


def test_the_key_knows_the_artefact_and_the_compression() -> None:
    package = families.wheel("plain").package()
    keys = {
        fragment_key(package, TARGET, ZSTD),
        fragment_key(package, TARGET, GZIP),
        fragment_key(replace(package, sha256="0" * 64), TARGET, ZSTD),
        fragment_key(replace(package, file="plain-1.0-py2.py3-none-any.whl"), TARGET, ZSTD),
    }
    assert len(keys) == 4
    # Nothing else of the lock's entry counts: the same wheel for two platforms of a pure package, say.
    assert fragment_key(replace(package, platform=LINUX_ARM64), TARGET, ZSTD) in keys


def test_modules_get_their_bytecode(store: Store, interpreter: Interpreter) -> None:
    tool = next(wheel for wheel in families.pure_wheels() if wheel.name == "tool")
    one = recipe(store, tool, interpreter)
    make_fragments(store, [one], jobs=1)
    compiled = {path for path in members(store, one.key) if path.endswith(".pyc")}
    tag = f"cpython-{families.HOST_PYTHON.replace('.', '')}"
    # Not that of the test suite, nor of what is no module of this Python.
    assert compiled == {f"{PACKAGES}/tool/__pycache__/{name}.{tag}.pyc" for name in ("__init__", "sets")}


def test_several_processes_make_what_one_makes(
    store: Store, tmp_path: Path, interpreter: Interpreter, every_wheel: tuple[families.Wheel, ...]
) -> None:
    other = open_store(tmp_path / "other")
    wheels = [wheel for wheel in every_wheel if LINUX_ARM64.machine not in wheel.file]
    alone = [recipe(store, wheel, interpreter) for wheel in wheels]
    make_fragments(store, alone, jobs=1)
    together = [recipe(other, wheel, interpreter) for wheel in wheels]
    seen: list[str] = []
    make_fragments(other, together, jobs=2, report=lambda event: seen.append(event.kind))
    for one in alone:
        mine, theirs = find_fragment(store, one.key), find_fragment(other, one.key)
        assert mine is not None and theirs is not None
        assert (mine.sha256, mine.paths) == (theirs.sha256, theirs.paths)
    assert seen[0] == "start" and seen[-1] == "finish" and seen.count("advance") == len(wheels)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_names_the_package_and_keeps_the_rest(
    store: Store, jobs: int, every_wheel: tuple[families.Wheel, ...]
) -> None:
    bad = families.Wheel("bad-1.0-py3-none-any.whl", b"no wheel")
    # The large one comes first, so it is there when the bad one is met.
    wheels = [*(wheel for wheel in every_wheel if wheel.name == "machine" and LINUX_AMD64.machine in wheel.file), bad]
    recipes = [recipe(store, wheel) for wheel in wheels]
    with pytest.raises(LithifyError, match="bad"):
        make_fragments(store, recipes, jobs=jobs)
    assert find_fragment(store, recipes[0].key) is not None
    assert find_fragment(store, recipes[-1].key) is None
    assert not [path for path in (store.root / "tmp").iterdir() if path.name.startswith("write-")]


def test_an_artefact_that_is_not_what_was_locked_is_refused(store: Store) -> None:
    one = recipe(store, families.wheel("plain"))
    one.artefact.chmod(0o644)
    one.artefact.write_bytes(one.artefact.read_bytes() + b"x")
    with pytest.raises(FetchError, match="not what was locked"):
        make_fragment(store, one, None)
    assert not one.artefact.exists()
    assert find_fragment(store, one.key) is None


class Deadly(PypiSource):
    """A source whose files kill whoever reads them, as a machine without memory does."""

    def files(self, package: Package, artefact: Path, target: Target) -> Iterator[File]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_killed_process_is_told_as_such(store: Store) -> None:
    recipes = [
        replace(
            recipe(store, families.wheel(name, {"x": bytes(3_000_000)})), source=Deadly(Settings(store.root, jobs=1))
        )
        for name in ("one", "two")
    ]
    with pytest.raises(HostError, match="was killed") as caught:
        make_fragments(store, recipes, jobs=2)
    assert caught.value.hint and "--jobs 1" in caught.value.hint
