"""A conda package's files: where they go, what is in them, and what no package can do."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import tarfile
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import making_conda
from lithify.errors import LithifyError
from lithify.fragment.fragment import fragment_key
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.sources import File, Target
from lithify.sources.conda import archive
from lithify.sources.conda.archive import read_index
from lithify.sources.conda.link import (
    conda_files,
    entry_points,
    listed,
    narrowed,
    parse_has_prefix,
)
from lithify.store.compression import ZSTD
from making_conda import (
    CONDA,
    HONEST,
    LINUX_64,
    OLD_PLACEHOLDER,
    PLACEHOLDER,
    TAR_BZ2,
    CondaPackage,
    Hardlink,
    Lies,
    Member,
    Symlink,
    binary,
    changed_row,
    text,
    victim,
    with_members,
)

PREFIX = "srv/conda/envs/notebook"
SITE = "lib/python3.13/site-packages"
TARGET = Target(LINUX_AMD64, f"/{PREFIX}", 1000, 1000, "3.13", "build", address="https://conda.example/forge")
BOTH = pytest.mark.parametrize("container", [CONDA, TAR_BZ2])


def package_of(made: CondaPackage, path: Path) -> Package:
    data = path.read_bytes()
    return Package(
        "conda/forge",
        made.name,
        LINUX_AMD64,
        made.version,
        f"{made.subdir}/{path.name}",
        hashlib.sha256(data).hexdigest(),
        len(data),
        depends=tuple(made.depends),
    )


Laid = dict[str, tuple[File, bytes]]


def laid_out(
    made: CondaPackage, folder: Path, container: str = CONDA, target: Target = TARGET, lies: Lies = HONEST
) -> Laid:
    """The files of a package, by their paths below the prefix; what was told of each is true."""
    path = made.write(folder, container, lies=lies)
    found: Laid = {}
    for file in conda_files(package_of(made, path), path, target):
        assert file.path.startswith(f"{PREFIX}/")
        if file.receipt is not None:
            content = file.receipt({})
        else:
            with file.content() as stream:
                content = stream.read()
            assert len(content) == file.size
            assert file.link or hashlib.sha256(content).hexdigest() == file.sha256
        assert file.path.removeprefix(f"{PREFIX}/") not in found
        found[file.path.removeprefix(f"{PREFIX}/")] = (file, content)
    return found


def record_in(found: Laid, made: CondaPackage) -> dict[str, Any]:
    document = json.loads(found[f"conda-meta/{made.stem}.json"][1])
    assert isinstance(document, dict)
    return document


def native(files: Mapping[str, Member], name: str = "thing", **options: Any) -> CondaPackage:
    return CondaPackage(name, files=files, subdir=LINUX_64, **options)


def pure(files: Mapping[str, Member], **options: Any) -> CondaPackage:
    return CondaPackage("thing", files=files, noarch="python", depends=["python >=3.9"], **options)


# -- places ----------------------------------------------------------------------------------------------------------


@BOTH
def test_files_are_at_their_places_with_their_modes(tmp_path: Path, container: str) -> None:
    files: dict[str, Member] = {
        "bin/run": making_conda.File(b"#!/bin/sh\n", 0o755),
        "share/data": making_conda.File(b"data", 0o664),
        "share/to-data": Symlink("data"),
        "share/again": Hardlink("share/data"),
        "share/setuid": making_conda.File(b"s", 0o4755),
        "share/folder": making_conda.Folder(),
    }
    found = laid_out(native(files), tmp_path, container)
    told = {path: (file.mode, file.link, content) for path, (file, content) in found.items() if file.receipt is None}
    assert told == {
        "bin/run": (0o755, "", b"#!/bin/sh\n"),
        "share/data": (0o664, "", b"data"),
        "share/to-data": (0o777, "data", b""),
        "share/again": (0o664, "", b"data"),
        "share/setuid": (0o755, "", b"s"),
    }


def test_a_noarch_package_s_modules_and_scripts_go_where_the_python_looks(tmp_path: Path) -> None:
    made = pure(
        {
            "site-packages/thing/__init__.py": making_conda.File(b""),
            "python-scripts/tool": text(f"#!{PLACEHOLDER}/bin/python\n", 0o755),
            "share/x": making_conda.File(b""),
        }
    )
    found = laid_out(made, tmp_path)
    assert {f"{SITE}/thing/__init__.py", "bin/tool", "share/x"} < found.keys()
    free = replace(TARGET, site_packages="lib/python3.13t/site-packages")
    found = laid_out(made, tmp_path, target=free)
    assert found["lib/python3.13t/site-packages/thing/__init__.py"][0].compile


def test_the_same_places_are_nothing_special_in_another_package(tmp_path: Path) -> None:
    assert "site-packages/x.py" in laid_out(native({"site-packages/x.py": making_conda.File(b"")}), tmp_path)


def test_entry_points_become_scripts(tmp_path: Path) -> None:
    found = laid_out(pure({}, entry_points=["tool = thing.cli:main.run", "tool = thing.cli:main.run"]), tmp_path)
    file, content = found["bin/tool"]
    assert file.mode == 0o775
    lines = content.decode().splitlines()
    assert lines[0] == f"#!/{PREFIX}/bin/python3.13"
    assert "from thing.cli import main" in lines
    assert "\tsys.exit(main.run())" in lines
    (entry,) = record_in(found, pure({}))["paths_data"]["paths"]
    assert entry["path_type"] == "unix_python_entry_point"


@pytest.mark.parametrize(
    "point",
    [
        "../tool = a:b",
        "/tool = a:b",
        ".tool = a:b",
        "a\\b = a:b",
        " = a:b",
        "tool = a",
        "tool",
        "tool = a:b()",
        "tool = os; import sys:b",
        "tool = a:b [extra]",
        "tool\n = a\n:b\nx",
    ],
)
def test_an_entry_point_that_is_none_is_refused(tmp_path: Path, point: str) -> None:
    with pytest.raises(LithifyError, match=r"noarch/thing-1\.0-0\.conda"):
        laid_out(pure({}, entry_points=[point]), tmp_path)


def test_two_entry_points_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LithifyError, match="two entry points `tool`"):
        laid_out(pure({}, entry_points=["tool = a:b", "tool = a:c"]), tmp_path)


def test_an_entry_point_and_a_file_of_one_name_are_refused(tmp_path: Path) -> None:
    made = pure({"python-scripts/tool": making_conda.File(b"")}, entry_points=["tool = a:b"])
    with pytest.raises(LithifyError, match="two of its files are to become `bin/tool`"):
        laid_out(made, tmp_path)


def test_a_python_package_needs_a_python(tmp_path: Path) -> None:
    with pytest.raises(LithifyError, match="the environment has no Python"):
        laid_out(pure({}), tmp_path, target=replace(TARGET, python=""))


def test_python_code_is_compiled_in_the_library_and_nowhere_else(tmp_path: Path) -> None:
    names = ("lib/python3.13/os.py", f"{SITE}/a.py", "share/b.py", "lib/python3.12/c.py", f"{SITE}/d.txt")
    made = native({name: making_conda.File(b"") for name in names})
    found = laid_out(made, tmp_path)
    assert {path for path, (file, _) in found.items() if file.compile} == set(names[:2])
    assert not any(file.compile for file, _ in laid_out(made, tmp_path, target=replace(TARGET, python="")).values())


def test_compiled_files_are_left_to_the_image_s_own_python(tmp_path: Path) -> None:
    names = (
        f"{SITE}/a.py",
        f"{SITE}/__pycache__/a.cpython-313.pyc",
        f"{SITE}/__pycache__/a.cpython-313.opt-1.pyc",
        f"{SITE}/__pycache__/alone.cpython-313.pyc",
        f"{SITE}/b.py",
        f"{SITE}/b.pyc",
    )
    found = laid_out(native({name: making_conda.File(b"") for name in names}), tmp_path)
    assert found.keys() & set(names) == {names[0], names[3], names[4], names[5]}


def test_what_the_family_leaves_out_is_neither_laid_out_nor_recorded(tmp_path: Path) -> None:
    made = native(
        {
            "lib/a.a": making_conda.File(b""),
            "lib/keep.a": making_conda.File(b""),
            "lib/b.so": making_conda.File(b""),
            "lib/theirs": making_conda.File(b""),
        }
    )
    target = replace(TARGET, exclude=("*.a",), keep=("lib/keep.a",), without=(f"{PREFIX}/lib/theirs",))
    found = laid_out(made, tmp_path, target=target)
    assert record_in(found, made)["files"] == ["lib/b.so", "lib/keep.a"]
    assert set(found) == {"lib/b.so", "lib/keep.a", f"conda-meta/{made.stem}.json"}


# -- contents --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("old", [True, False])
def test_the_prefix_takes_the_placeholder_s_place(tmp_path: Path, container: str, old: bool) -> None:
    table = f"\0{PLACEHOLDER}/a:{PLACEHOLDER}/b\0rest\0".encode()
    made = native(
        {
            "bin/script": text(f"#!{PLACEHOLDER}/bin/python\n{PLACEHOLDER}\n", 0o755),
            "bin/table": binary(table),
            "etc/with space": text(f"{PLACEHOLDER}\n"),
            "etc/older": making_conda.File(f"{OLD_PLACEHOLDER}/x".encode(), 0o644, OLD_PLACEHOLDER),
        },
        old=old,
    )
    found = laid_out(made, tmp_path, container)
    assert found["bin/script"][1] == f"#!/{PREFIX}/bin/python\n/{PREFIX}\n".encode()
    assert found["bin/table"][1] == f"\0/{PREFIX}/a:/{PREFIX}/b".encode().ljust(len(table) - 6, b"\0") + b"\0rest\0"
    assert found["etc/with space"][1] == f"/{PREFIX}\n".encode()
    assert found["etc/older"][1] == f"/{PREFIX}/x".encode()
    entries = {entry["_path"]: entry for entry in record_in(found, made)["paths_data"]["paths"]}
    assert entries["bin/table"]["prefix_placeholder"] == PLACEHOLDER
    assert entries["bin/table"]["file_mode"] == "binary"
    assert entries["bin/table"]["sha256_in_prefix"] == hashlib.sha256(found["bin/table"][1]).hexdigest()


def test_a_prefix_that_does_not_fit_into_a_binary_is_refused_by_name(tmp_path: Path) -> None:
    made = native({"lib/short.so": making_conda.File(b"\0/short/lib\0", 0o755, "/short", binary=True)})
    with pytest.raises(LithifyError, match=r"linux-64/thing-1.0-0.conda.*/srv/conda/.*lib/short.so"):
        laid_out(made, tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lib/x.pc", (OLD_PLACEHOLDER, "text", "lib/x.pc")),
        ('"lib/with space.pc"', (OLD_PLACEHOLDER, "text", "lib/with space.pc")),
        ("/old text lib/x", ("/old", "text", "lib/x")),
        ("/old BINARY lib/x", ("/old", "binary", "lib/x")),
        ('"/with space" binary "lib/a \\"b\\""', ("/with space", "binary", 'lib/a "b"')),
        ("/old\ttext  lib/x", ("/old", "text", "lib/x")),
        ("text", (OLD_PLACEHOLDER, "text", "text")),
    ],
)
def test_lines_of_has_prefix_are_read(line: str, expected: tuple[str, str, str]) -> None:
    assert parse_has_prefix(line, "x") == expected


@pytest.mark.parametrize("line", ["a b", "a text", "a wide b", '"a', '"" text x', "a text b c", ""])
def test_other_lines_of_has_prefix_are_refused(line: str) -> None:
    with pytest.raises(LithifyError, match="has_prefix"):
        parse_has_prefix(line, "x")


@given(st.text(max_size=80))
def test_any_line_of_has_prefix_is_read_or_refused(line: str) -> None:
    try:
        placeholder, mode, _ = parse_has_prefix(line, "x")
    except LithifyError:
        return
    assert placeholder
    assert mode in ("text", "binary")


# -- the record ------------------------------------------------------------------------------------------------------


def test_the_record_tells_what_the_artefact_the_lock_and_the_channel_say(tmp_path: Path) -> None:
    made = native({"share/x": making_conda.File(b"x"), "share/y": Symlink("x")}, index={"features": "blas"})
    path = made.write(tmp_path)
    package = replace(package_of(made, path), md5="0" * 32, depends=("corrected >=1",), constrains=("other",))
    (last,) = (file for file in conda_files(package, path, TARGET) if file.receipt is not None)
    assert last.path == f"{PREFIX}/conda-meta/thing-1.0-0.json"
    assert last.receipt is not None
    pyc = b"\0" * 20
    record = json.loads(last.receipt({f"{PREFIX}/{SITE}/__pycache__/a.cpython-313.pyc": pyc}))
    assert (record["name"], record["version"], record["build"], record["features"]) == ("thing", "1.0", "0", "blas")
    assert record["depends"] == ["corrected >=1"]
    assert record["constrains"] == ["other"]
    assert (record["md5"], record["sha256"], record["size"]) == ("0" * 32, package.sha256, path.stat().st_size)
    assert record["channel"] == "https://conda.example/forge"
    assert record["url"] == "https://conda.example/forge/linux-64/thing-1.0-0.conda"
    assert record["link"] == {"source": "", "type": 1}
    assert record["files"] == [f"{SITE}/__pycache__/a.cpython-313.pyc", "share/x", "share/y"]
    compiled, file, link = record["paths_data"]["paths"]
    assert compiled == {
        "_path": f"{SITE}/__pycache__/a.cpython-313.pyc",
        "path_type": "pyc_file",
        "sha256_in_prefix": hashlib.sha256(pyc).hexdigest(),
        "size_in_bytes": 20,
    }
    assert file["sha256"] == file["sha256_in_prefix"] == hashlib.sha256(b"x").hexdigest()
    assert link["path_type"] == "softlink"
    assert "sha256_in_prefix" not in link


def test_a_record_can_be_read_by_rattler(tmp_path: Path) -> None:
    rattler = pytest.importorskip("rattler")
    made = native({"share/x": making_conda.File(b"x")})
    content = laid_out(made, tmp_path)[f"conda-meta/{made.stem}.json"][1]
    path = tmp_path / f"{made.stem}.json"
    path.write_bytes(content)
    record = rattler.PrefixRecord.from_path(path)
    assert str(record.url) == f"https://conda.example/forge/linux-64/{made.stem}.conda"
    assert [str(one) for one in record.files] == ["share/x"]


def test_no_record_of_another_package_is_laid_out(tmp_path: Path) -> None:
    for name in ("conda-meta/other-1.0-0.json", "conda-meta/history", "conda-meta"):
        with pytest.raises(LithifyError, match="conda-meta"):
            laid_out(native({name: making_conda.File(b"{}")}), tmp_path)


def test_what_a_record_repeats_of_the_lock_is_in_the_fragment_s_key(tmp_path: Path) -> None:
    made = native({})
    package = package_of(made, made.write(tmp_path))
    others = [replace(package, md5="1" * 32), replace(package, depends=("x",)), replace(package, constrains=("x",))]
    keys = {fragment_key(one, TARGET, ZSTD) for one in (package, *others)}
    assert len(keys) == 4


# -- what a package does not depend on ---------------------------------------------------------------------------


def test_only_packages_of_python_depend_on_it(tmp_path: Path) -> None:
    package = package_of(native({}), native({}).write(tmp_path))
    for depends in (
        ("python",),
        ("forge::python >=3.9",),
        ("a", "python_abi 3.13.* *_cp313"),
        ("python[version='>3']",),
    ):
        assert narrowed(replace(package, depends=depends), TARGET) == TARGET
    for depends in (("libpython",), ("python-dateutil >=2", "__glibc >=2.17")):
        told = narrowed(replace(package, depends=depends), replace(TARGET, exclude=("*.a",), keep=("b",)))
        assert (told.python, told.python_build, told.site_packages) == ("", "", "")
        assert (told.exclude, told.keep) == (("*.a",), ("b",))
    assert narrowed(replace(package, name="python", depends=("zlib",)), TARGET) == TARGET
    # A list of addresses does not say what anything depends on.
    assert narrowed(replace(package, depends=()), TARGET) == TARGET


def test_noarch_packages_are_shared_by_all_platforms(tmp_path: Path) -> None:
    made = pure({"site-packages/a.py": making_conda.File(b"")}, entry_points=["a = a:a"])
    path = made.write(tmp_path)
    package = package_of(made, path)
    other = replace(package, platform=LINUX_ARM64)
    target = narrowed(other, replace(TARGET, platform=LINUX_ARM64))
    assert fragment_key(other, target, ZSTD) == fragment_key(package, narrowed(package, TARGET), ZSTD)
    assert narrowed(replace(package, file="linux-aarch64/x"), replace(TARGET, platform=LINUX_ARM64)).platform is (
        LINUX_ARM64
    )


# -- what a package says of itself -------------------------------------------------------------------------------


@BOTH
def test_the_index_is_read_without_the_rest(tmp_path: Path, container: str) -> None:
    assert read_index(victim().write(tmp_path, container))["name"] == "victim"


def test_a_noarch_package_s_link_script_lies_where_it_is_looked_for(tmp_path: Path) -> None:
    made = pure({"python-scripts/.thing-post-link.sh": making_conda.File(b"exit 1\n", 0o755)})
    assert "bin/.thing-post-link.sh" in laid_out(made, tmp_path)


# -- hostile packages --------------------------------------------------------------------------------------------

# Odd, but harmless: an absolute link names one place wherever the prefix is, and real packages have some; a text
# without the placeholder that it is said to have stays as it is.
HARMLESS = {"absolute symlink", "placeholder that is not there"}
HOSTILE = making_conda.hostile()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in HARMLESS])
def test_a_hostile_package_is_refused_by_name(tmp_path: Path, name: str) -> None:
    made, lies = HOSTILE[name]
    with pytest.raises(LithifyError, match=rf"linux-64/{made.stem}\.conda") as caught:
        laid_out(made, tmp_path, lies=lies)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_an_odd_package_is_laid_out(tmp_path: Path, name: str) -> None:
    made, lies = HOSTILE[name]
    assert "bin/victim" in laid_out(made, tmp_path, lies=lies)


@pytest.mark.parametrize("link", ["..", "../../..", "../../../../../x", "a/../../../y"])
def test_a_link_out_of_the_prefix_is_refused(tmp_path: Path, link: str) -> None:
    with pytest.raises(LithifyError, match="leads out of the prefix"):
        laid_out(native({"share": Symlink(link)}), tmp_path)
    inside = laid_out(native({"share/deep/x": Symlink("../../..x")}), tmp_path)
    assert inside["share/deep/x"][0].link == "../../..x"


def test_a_device_is_refused(tmp_path: Path) -> None:
    path = victim().write(tmp_path, TAR_BZ2)
    with tarfile.open(path, "w:bz2") as device:
        info = tarfile.TarInfo("dev/sda")
        info.type = tarfile.BLKTYPE
        device.addfile(info)
    with pytest.raises(LithifyError, match="neither file nor link"):
        list(conda_files(package_of(victim(), path), path, TARGET))


def test_another_version_or_build_than_the_locked_one_is_refused(tmp_path: Path) -> None:
    for change in ({"version": "2.0"}, {"build": "h1_1"}, {"name": "another"}, {"name": 5}):
        with pytest.raises(LithifyError, match=r"the lock has victim 1\.0|does not say"):
            laid_out(victim(), tmp_path, lies=Lies(index=lambda index, change=change: {**index, **change}))  # type: ignore[misc]


def test_a_bomb_costs_neither_memory_nor_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_RATIO_FREE", 8 << 20)
    path = victim().write(tmp_path, lies=making_conda.zstd_bomb(1 << 30))
    tracemalloc.start()
    with pytest.raises(LithifyError, match="a decompression bomb"):
        list(conda_files(package_of(victim(), path), path, TARGET))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_large_package_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "IN_MEMORY", 1 << 20)
    data = random.Random(0).randbytes(1 << 20) * 24
    made = native({"lib/large.bin": making_conda.File(data), "lib/small": making_conda.File(b"small")})
    path = made.write(tmp_path)
    package = package_of(made, path)
    digest = hashlib.sha256(data).hexdigest()
    del data, made
    tracemalloc.start()
    found = {file.path: file.sha256 for file in conda_files(package, path, TARGET)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[f"{PREFIX}/lib/large.bin"] == digest
    assert peak < 12 << 20
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def good() -> tuple[CondaPackage, dict[str, bytes]]:
    made = native(
        {
            "bin/run": text(f"#!{PLACEHOLDER}/bin/sh\n", 0o755),
            "lib/table": binary(f"\0{PLACEHOLDER}/a\0".encode()),
            "share/to": Symlink("../bin/run"),
            "share/again": Hardlink("lib/table"),
            "share/text": making_conda.File(b"text\n"),
        }
    )
    return made, {container: made.archive(container) for container in (CONDA, TAR_BZ2)}


@functools.cache
def honest(container: str, folder: Path) -> dict[str, bytes]:
    found = laid_out(good()[0], folder, container)
    return {path: content for path, (file, content) in found.items() if file.receipt is None}


@BOTH
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_archive_gives_the_same_files_or_is_refused(
    tmp_path: Path, container: str, data: st.DataObject
) -> None:
    made, archives = good()
    changed = bytearray(archives[container])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "remove"])):
            case "set":
                changed[at] = data.draw(st.integers(0, 255))
            case "cut":
                del changed[max(at, 1) :]
            case "insert":
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "remove":
                del changed[at : at + data.draw(st.integers(1, 64))]
        if not changed:
            changed = bytearray(b"x")
    path = tmp_path / "changed"
    path.write_bytes(changed)
    package = replace(package_of(made, path), file=f"linux-64/{made.stem}{container}")
    try:
        found = {}
        for file in conda_files(package, path, TARGET):
            if file.receipt is None:
                with file.content() as stream:
                    found[file.path.removeprefix(f"{PREFIX}/")] = stream.read()
    except LithifyError as error:
        assert package.file in error.message
        return
    # Modes, links and placeholders are in no digest of the package's own: the artefact's sha256 covers them.
    told = honest(container, tmp_path)
    assert found.keys() == told.keys()
    for place, content in found.items():
        member = made.files[place]
        unchanged = member.data if isinstance(member, making_conda.File) else made.files["lib/table"].data  # type: ignore[union-attr]
        assert content in (told[place], unchanged)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "_path": st.sampled_from(["a", "a/b", "../x", "/x", "", "a//b", "bin/run", "conda-meta/x.json"]) | JSON,
        "path_type": st.sampled_from(["hardlink", "softlink", "directory", "device"]) | JSON,
        "sha256": st.sampled_from(["0" * 64, ""]) | JSON,
        "size_in_bytes": JSON,
        "prefix_placeholder": JSON,
        "file_mode": st.sampled_from(["text", "binary"]) | JSON,
        "no_link": JSON,
    },
)


@settings(deadline=None)
@given(st.fixed_dictionaries({"paths_version": st.just(1) | JSON, "paths": st.lists(ROW | JSON, max_size=5) | JSON}))
def test_any_paths_json_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        found = listed({"info/paths.json": json.dumps(document).encode()}, "x")
    except LithifyError as error:
        assert "x" in error.message
        return
    assert len({one.path for one in found}) == len(document["paths"])


@settings(deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_description_is_read_or_refused(data: bytes) -> None:
    for info in ({"info/paths.json": data}, {"info/files": data, "info/has_prefix": data}):
        try:
            listed(info, "x")
        except LithifyError:
            continue
    try:
        entry_points({"info/link.json": data}, "x")
    except LithifyError:
        return


def test_an_honest_row_that_says_less_is_enough(tmp_path: Path) -> None:
    lies = changed_row("share/victim/text", sha256=None, size_in_bytes=None)
    assert laid_out(victim(), tmp_path, lies=lies)["share/victim/text"][1] == b"victim\n"
    with pytest.raises(LithifyError, match=r"lists `share/victim/text` twice"):
        laid_out(victim(), tmp_path, lies=Lies(paths=lambda rows: [*rows, rows[-1]]))
    with pytest.raises(LithifyError, match="hard link"):
        laid_out(victim(), tmp_path, lies=with_members(("share/hard", Hardlink("nowhere"))))
