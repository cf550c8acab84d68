"""A wheel's files: where they go, and what no wheel can do."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import posixpath
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lithify.errors import LithifyError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64
from lithify.sources import File, Target
from lithify.sources.wheel import SMALL, wheel_files
from making_wheels import hashed, make_wheel, package_of

PREFIX = "srv/conda/envs/notebook"
SITE = f"{PREFIX}/lib/python3.13/site-packages"
TARGET = Target(LINUX_AMD64, f"/{PREFIX}", 1000, 1000, "3.13", "build")
DIST = "thing-1.0.dist-info"
DATA = "thing-1.0.data"


def installed(path: Path, target: Target = TARGET, package: Package | None = None) -> dict[str, tuple[File, bytes]]:
    found: dict[str, tuple[File, bytes]] = {}
    for file in wheel_files(package or package_of(path), path, target):
        assert file.path not in found
        with file.content() as stream:
            found[file.path] = (file, stream.read())
        assert len(found[file.path][1]) == file.size
    return found


def test_files_go_where_a_virtual_environment_has_them(tmp_path: Path) -> None:
    wheel = make_wheel(
        tmp_path,
        {
            "thing/__init__.py": b"",
            "thing/data.txt": b"text",
            f"{DATA}/purelib/pure.py": b"p",
            f"{DATA}/platlib/plat.py": b"q",
            f"{DATA}/headers/thing.h": b"h",
            f"{DATA}/data/share/jupyter/x.json": b"{}",
            f"{DATA}/data/etc/jupyter/y.json": b"{}",
            f"{DATA}/scripts/tool": b"#!/bin/sh\n",
        },
    )
    assert set(installed(wheel)) == {
        f"{SITE}/thing/__init__.py",
        f"{SITE}/thing/data.txt",
        f"{SITE}/pure.py",
        f"{SITE}/plat.py",
        f"{PREFIX}/include/site/python3.13/thing/thing.h",
        f"{PREFIX}/share/jupyter/x.json",
        f"{PREFIX}/etc/jupyter/y.json",
        f"{PREFIX}/bin/tool",
        *(f"{SITE}/{DIST}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "INSTALLER")),
    }


def test_only_python_files_of_site_packages_are_to_be_compiled(tmp_path: Path) -> None:
    members = {"thing/a.py": b"", "thing/b.txt": b"", f"{DATA}/scripts/c.py": b"", f"{DATA}/data/share/d.py": b""}
    found = installed(make_wheel(tmp_path, members))
    assert [path for path, (file, _) in found.items() if file.compile] == [f"{SITE}/thing/a.py"]


def test_executable_bits_are_kept_and_nothing_else_of_the_mode(tmp_path: Path) -> None:
    members = {"thing/run": b"1", "thing/plain": b"2", "thing/odd": b"3"}
    modes = {"thing/run": stat.S_IFREG | 0o100, "thing/plain": stat.S_IFREG | 0o666, "thing/odd": 0}
    found = installed(make_wheel(tmp_path, members, modes=modes))
    assert {path.rpartition("/")[2]: file.mode for path, (file, _) in found.items() if "/thing/" in path} == {
        "run": 0o755,
        "plain": 0o644,
        "odd": 0o644,
    }


@pytest.mark.parametrize("first", [b"#!python", b"#!pythonw", b"#!python -E"])
def test_scripts_start_the_environments_python(tmp_path: Path, first: bytes) -> None:
    found = installed(make_wheel(tmp_path, {f"{DATA}/scripts/tool": first + b"\nprint(1)\n"}))
    file, content = found[f"{PREFIX}/bin/tool"]
    assert content == f"#!/{PREFIX}/bin/python\nprint(1)\n".encode()
    assert file.mode == 0o755


def test_scripts_of_other_kinds_keep_their_bytes(tmp_path: Path) -> None:
    found = installed(make_wheel(tmp_path, {f"{DATA}/scripts/tool": b"\x7fELF..."}))
    assert found[f"{PREFIX}/bin/tool"][1] == b"\x7fELF..."


def test_entry_points_become_scripts(tmp_path: Path) -> None:
    points = "[console_scripts]\ntool = thing.cli:main.run\n[gui_scripts]\nwindow = thing:show\n[other]\nx = y\n"
    found = installed(make_wheel(tmp_path, entry_points=points))
    file, content = found[f"{PREFIX}/bin/tool"]
    assert content.startswith(f"#!/{PREFIX}/bin/python\n".encode())
    assert b"from thing.cli import main\n" in content and b"main.run()" in content
    assert file.mode == 0o755
    assert f"{PREFIX}/bin/window" in found


def test_an_entry_point_takes_the_place_of_a_script_in_the_archive(tmp_path: Path) -> None:
    members = {f"{DATA}/scripts/tool": b"#!python\nold\n"}
    found = installed(make_wheel(tmp_path, members, entry_points="[console_scripts]\ntool = thing:main\n"))
    assert b"from thing import main" in found[f"{PREFIX}/bin/tool"][1]


def test_a_shebang_that_the_kernel_would_cut_takes_a_way_round(tmp_path: Path) -> None:
    far = "/srv/" + "x" * 130
    target = Target(LINUX_AMD64, far, 1000, 1000, "3.13", "build")
    members = {f"{DATA}/scripts/old": b"#!python\nprint(1)\n"}
    found = installed(make_wheel(tmp_path, members, entry_points="[console_scripts]\nnew = thing:main\n"), target)
    for name in ("old", "new"):
        lines = found[f"{far[1:]}/bin/{name}"][1].splitlines()
        assert lines[0] == b"#!/bin/sh"
        assert f"{far}/bin/python".encode() in lines[1]
        compile(b"\n".join(lines), name, "exec")


def test_record_lists_every_file_with_its_own_hash(tmp_path: Path) -> None:
    members = {"thing/__init__.py": b"x", f"{DATA}/scripts/tool": b"#!python\n", f"{DATA}/data/share/a,b": b"c"}
    found = installed(make_wheel(tmp_path, members, entry_points="[console_scripts]\nnew = thing:main\n"))
    text = found[f"{SITE}/{DIST}/RECORD"][1].decode()
    rows = {row[0]: (row[1], row[2]) for row in csv.reader(io.StringIO(text))}
    by_path = {posixpath.normpath(f"{SITE}/{name}"): row for name, row in rows.items()}
    assert set(by_path) == set(found)
    for path, (_, content) in found.items():
        expected = ("", "") if path.endswith("/RECORD") else (hashed(content), str(len(content)))
        assert by_path[path] == expected
    assert text.splitlines() == sorted(text.splitlines(), key=lambda line: next(csv.reader([line]))[0])
    assert found[f"{SITE}/{DIST}/INSTALLER"][1] == b"lithify\n"


def test_shipped_bytecode_caches_and_signatures_are_left_out(tmp_path: Path) -> None:
    members = {"thing/a.py": b"", "thing/__pycache__/a.cpython-313.pyc": b"old", "thing/only.pyc": b"kept"}
    found = installed(make_wheel(tmp_path, members, unlisted={f"{DIST}/RECORD.jws": b"signed"}))
    names = {path.rpartition("/")[2] for path in found}
    assert "a.cpython-313.pyc" not in names and "RECORD.jws" not in names
    assert "only.pyc" in names


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_strong_hashes_of_record_are_understood(tmp_path: Path, algorithm: str) -> None:
    plain = make_wheel(tmp_path, {"thing/a.py": b"x"})
    with zipfile.ZipFile(plain) as archive:
        rows = "".join(
            f"{name},{hashed(archive.read(name), algorithm)},\n" for name in archive.namelist() if "RECORD" not in name
        )
    assert f"{SITE}/thing/a.py" in installed(make_wheel(tmp_path, {"thing/a.py": b"x"}, record=rows))


@pytest.mark.parametrize("size", [10, SMALL + 1])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_changed_bytes_are_noticed_while_reading(tmp_path: Path, size: int, compression: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    wheel = make_wheel(
        tmp_path,
        {"thing/blob": data},
        replaced={"thing/blob": data[:-1] + b"!"},
        compression=compression,
    )
    (file,) = (file for file in wheel_files(package_of(wheel), wheel, TARGET) if file.path.endswith("/blob"))
    with pytest.raises(LithifyError, match=r"thing-1\.0.*thing/blob.*not what RECORD says"):
        with file.content() as stream:
            while stream.read(1 << 16):
                pass


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_large_member_is_streamed_whole_and_in_little_memory(tmp_path: Path, compression: int) -> None:
    block = hashlib.sha256(b"seed").digest() * 2048
    data = block * 1024  # 64 MiB
    wheel = make_wheel(tmp_path, {"thing/blob": data}, compression=compression)
    expected = hashlib.sha256(data).hexdigest()
    package = package_of(wheel)
    del data
    tracemalloc.start()
    (file,) = (file for file in wheel_files(package, wheel, TARGET) if file.path.endswith("/blob"))
    found = hashlib.sha256()
    with file.content() as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.hexdigest() == expected
    assert peak < 16 << 20


def test_content_can_be_opened_more_than_once_and_after_the_listing(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"thing/blob": b"x" * 10})
    files = list(wheel_files(package_of(wheel), wheel, TARGET))
    (file,) = (file for file in files if file.path.endswith("/blob"))
    assert file.content().read() == file.content().read() == b"x" * 10


# -- hostile wheels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../evil.py", "leads outside"),
        ("thing/../../evil.py", "leads outside"),
        ("/etc/passwd", "absolute"),
        ("//etc/passwd", "absolute"),
        ("thing\\..\\evil.py", "backslash"),
        ("thing/./a.py", "no plain path"),
        ("thing//a.py", "no plain path"),
        ("./a.py", "no plain path"),
        ("thing/a\0b.py", "control character"),
        ("thing/a\nb.py", "control character"),
        ("thing/" + "a" * 300, "longer"),
        (f"{DATA}/data/../../../../../etc/passwd", "leads outside"),
        (f"{DATA}/elsewhere/a", "no scheme"),
        (f"{DATA}/scripts", "no scheme"),
        ("Thing-1.0.DIST-INFO/METADATA", ".dist-info"),
        ("other-1.0.dist-info/METADATA", ".dist-info"),
        ("Thing-1.0.data/scripts/x", "Thing-1.0.data"),
        ("thing-2.0.data/scripts/x", "thing-2.0.data"),
    ],
)
def test_names_that_lie_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(LithifyError, match=said.replace(".", r"\.")) as caught:
        installed(make_wheel(tmp_path, {name: b"x"}))
    assert "thing-1.0-py3-none-any.whl" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "no regular file"), (stat.S_IFCHR, "no regular file")],
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: int, said: str) -> None:
    with pytest.raises(LithifyError, match=said):
        installed(make_wheel(tmp_path, {"thing/x": b"/etc"}, modes={"thing/x": kind | 0o777}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unlisted": {"thing/extra.py": b""}}, "not in RECORD"),
        ({"replaced": {"thing/__init__.py": None}}, "which is not there"),
        ({"replaced": {f"{DIST}/RECORD": None}}, "has no thing-1.0.dist-info/RECORD"),
        ({"replaced": {f"{DIST}/WHEEL": None}}, "has no thing-1.0.dist-info/WHEEL"),
        ({"replaced": {f"{DIST}/METADATA": None}}, "has no thing-1.0.dist-info/METADATA"),
        ({"replaced": {f"{DIST}/METADATA": b"Name: other\nVersion: 1.0\n"}}, "METADATA says other"),
        ({"replaced": {f"{DIST}/METADATA": b"Name: thing\nVersion: 2.0\n"}}, "METADATA says thing 2.0"),
        ({"replaced": {f"{DIST}/WHEEL": b"Wheel-Version: 2.0\n"}}, "wheel version 2.0"),
        ({"replaced": {f"{DIST}/WHEEL": b"\xff\xfe"}}, "not UTF-8"),
        ({"replaced": {f"{DIST}/RECORD": b'"unclosed'}}, "RECORD"),
        ({"replaced": {f"{DIST}/RECORD": b"a,b\n"}}, "RECORD"),
        ({"replaced": {"thing/__init__.py": b"longer than announced"}}, "RECORD says 10"),
        ({"record": f"thing/__init__.py,,\n{DIST}/RECORD,,\n"}, "no strong hash"),
        ({"record": "thing/__init__.py,md5=abc,10\n"}, "no strong hash"),
        ({"record": "thing/__init__.py,sha256=###,10\n"}, "nonsense"),
        ({"record": "thing/__init__.py,sha256=abcd,10\n"}, "3 bytes"),
        ({"entry_points": "[console_scripts]\n../../evil = thing:main\n"}, "leads outside"),
        ({"entry_points": "[console_scripts]\n.. = thing:main\n"}, "leads outside"),
        ({"entry_points": "[console_scripts]\na\\b = thing:main\n"}, "backslash"),
        ({"entry_points": "[console_scripts]\ntool = no attribute\n"}, "entry_points.txt"),
        ({"entry_points": "tool = thing:main\n"}, "entry_points.txt"),
    ],
)
def test_metadata_that_lies_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(LithifyError, match=said.replace(".", r"\.")):
        installed(make_wheel(tmp_path, **change))  # type: ignore[arg-type]


def test_two_files_for_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LithifyError, match="two of its files"):
        installed(make_wheel(tmp_path, {"same.py": b"1", f"{DATA}/purelib/same.py": b"2"}))


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    for members in ({"a": b"1", "a/b": b"2"}, {"a": b"1", f"{DATA}/purelib/a/b": b"2"}):
        with pytest.raises(LithifyError, match="a file and a folder"):
            installed(make_wheel(tmp_path, members))


def test_a_name_twice_in_the_archive_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"thing/a.py": b"1", "thing/b.py": b"1"})
    wheel.write_bytes(wheel.read_bytes().replace(b"thing/b.py", b"thing/a.py"))
    with pytest.raises(LithifyError, match="twice"):
        installed(wheel)


def test_two_names_of_one_member_are_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"thing/a.py": b"1"})
    wheel.write_bytes(wheel.read_bytes().replace(b"thing/a.py", b"thing/b.py", 1))  # in the local header only
    with pytest.raises(LithifyError, match="two names"):
        installed(wheel)


def test_a_wheel_of_another_package_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    good = package_of(wheel)
    for name, version in (("other", "1.0"), ("thing", "1.1")):
        package = Package("pypi", name, LINUX_AMD64, version, good.file, good.sha256, good.size)
        with pytest.raises(LithifyError, match="the lock"):
            installed(wheel, package=package)


def test_spellings_of_one_name_and_version_are_equal(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"x.py": b""}, name="My_Thing", version="1.0.0")
    good = package_of(wheel)
    package = Package("pypi", "my-thing", LINUX_AMD64, "1.0", good.file, good.sha256, good.size)
    assert f"{SITE}/x.py" in installed(wheel, package=package)


def test_encrypted_and_oddly_compressed_members_are_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"thing/a.py": b"1"})
    data = bytearray(wheel.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    wheel.write_bytes(data)
    with pytest.raises(LithifyError, match="encrypted"):
        installed(wheel)
    with pytest.raises(LithifyError, match="compressed in a way"):
        installed(make_wheel(tmp_path, {"thing/a.py": b"1" * 99}, compression=zipfile.ZIP_BZIP2))


@pytest.mark.parametrize("announced", [5, 200_000, 0xFFFFFFF0])
def test_a_member_of_another_size_than_it_claims_is_refused(tmp_path: Path, announced: int) -> None:
    # RECORD gives no size, so that only the archive's own claim counts.
    data = b"z" * 100_000
    first = make_wheel(tmp_path, {"thing/a": data})
    with zipfile.ZipFile(first) as archive:
        rows = "".join(f"{n},{hashed(archive.read(n))},\n" for n in archive.namelist() if "RECORD" not in n)
    wheel = make_wheel(tmp_path, {"thing/a": data}, record=rows)
    raw = bytearray(wheel.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<L", announced)
    wheel.write_bytes(raw)
    with pytest.raises(LithifyError, match=r"claims|bomb"):
        installed(wheel)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip", b"PK\x05\x06" + b"\0" * 18])
def test_what_is_no_wheel_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "thing-1.0-py3-none-any.whl"
    path.write_bytes(data)
    with pytest.raises(LithifyError, match=r"thing-1\.0-py3-none-any\.whl"):
        installed(path)


def test_an_artefact_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"thing/a": b"x" * 5000})
    whole = wheel.read_bytes()
    for length in range(0, len(whole), 97):
        wheel.write_bytes(whole[:length])
        with pytest.raises(LithifyError):
            installed(wheel, package=Package("pypi", "thing", LINUX_AMD64, "1.0", wheel.name, "0" * 64, length))


def below_prefix(path: str) -> bool:
    return posixpath.normpath(path) == path and path.startswith(f"{PREFIX}/") and "\0" not in path


PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "b.py",
        "thing",
        DIST,
        DATA,
        "purelib",
        "scripts",
        "data",
        "headers",
        "RECORD",
        "~",
        "\\",
        "c:",
    ]
)
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=6).map("/".join),
    st.text(min_size=1, max_size=40).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text)),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, max_size=4, unique=True), points=st.text(max_size=30), kind=st.sampled_from([0, 4, 8, 10]))
def test_no_name_leads_outside_and_nothing_but_a_clear_error_comes(
    tmp_path: Path, names: list[str], points: str, kind: int
) -> None:
    members = {name: base64.b64encode(name.encode()) for name in names}
    try:
        wheel = make_wheel(
            tmp_path,
            members,
            modes=dict.fromkeys(names, kind << 12 | 511),
            entry_points=f"[console_scripts]\n{points} = thing:main\n",
        )
    except (ValueError, UnicodeEncodeError, AttributeError):
        return  # `zipfile` itself cannot write it
    try:
        found = installed(wheel)
    except LithifyError:
        return
    assert all(below_prefix(path) for path in found)
    assert not any(file.link for file, _ in found.values())


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_the_same_files_or_a_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    members = {"thing/a.py": b"a" * 300, "thing/b.so": bytes(range(256)), f"{DATA}/scripts/tool": b"#!python\n1\n"}
    wheel = make_wheel(tmp_path, members, entry_points="[console_scripts]\nx = thing:main\n")
    package = package_of(wheel)
    good = {path: content for path, (_, content) in installed(wheel).items()}
    raw = bytearray(wheel.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    wheel.write_bytes(raw)
    try:
        found = installed(wheel, package=package)
    except LithifyError:
        return
    for path, (_, content) in found.items():
        assert below_prefix(path)
        if path in good and not path.startswith(f"{SITE}/{DIST}/") and not path.endswith("/bin/x"):
            assert content == good[path]
