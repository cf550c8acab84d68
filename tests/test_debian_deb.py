"""Reading packages: what a stanza says, what bootstraps, and files that are no packages."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import debs
from lithify.assemble import tree
from lithify.errors import FetchError, InputError, LithifyError
from lithify.sources.deb import bootstrap_set, control_stanza, data_archive

STANZA = "Package: small\nVersion: 1:2.0-3\nArchitecture: all\nDescription: a small package\n"
GOOD = debs.made(STANZA, {"./usr/share/small/text": b"hello\n"})


def write(folder: Path, data: bytes) -> Path:
    path = folder / "small.deb"
    path.write_bytes(data)
    return path


def test_the_stanza_and_the_data_are_read(tmp_path: Path) -> None:
    deb = write(tmp_path, GOOD)
    assert control_stanza(deb) == STANZA.rstrip("\n")
    with data_archive(deb) as archive:
        assert [member.name for member in archive] == ["./usr/share/small/text"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n",
        b"PK\x03\x04",
        GOOD[:100],
        GOOD[: len(GOOD) // 2],
        debs.archive({"debian-binary": b"2.0\n", "data.tar.xz": b""}),
        debs.archive({"control.tar.xz": b"this is not xz"}),
        debs.archive({"control.tar.zst": b"this is not zstd"}),
        debs.archive({"control.tar.gz": b"this is not gzip"}),
        debs.archive({"control.tar.lz5": b"?"}),
        debs.archive({"control.tar": b"\0" * 2048}),
        debs.archive({"debian-binary": b"2.0\n"})
        + b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (b"control.tar", 0, 0, 0, 0, -9),
    ],
    ids=range(12),
)
def test_what_is_no_package_is_an_error_that_names_the_file(tmp_path: Path, data: bytes) -> None:
    deb = write(tmp_path, data)
    with pytest.raises(FetchError, match=r"small\.deb is not a readable Debian package"):
        control_stanza(deb)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(GOOD) - 1), garbage=st.binary(min_size=1, max_size=80))
def test_no_damage_ends_in_anything_but_an_error_of_ours(tmp_path: Path, position: int, garbage: bytes) -> None:
    deb = write(tmp_path, GOOD[:position] + garbage + GOOD[position + len(garbage) :])
    root = tmp_path / f"root-{position}-{garbage.hex()[:20]}"
    root.mkdir(exist_ok=True)
    try:
        control_stanza(deb)
        with data_archive(deb) as archive:
            tree.unpack(archive, root)
    except LithifyError:
        pass


def test_what_bootstraps_is_the_essential_and_what_they_need() -> None:
    stanzas = [
        "Package: shell\nEssential: yes\nPre-Depends: libc (>= 2), awk | perl\nDepends: tool:any [linux-any]",
        "Package: libc\nDepends: libgcc",
        "Package: libgcc",
        "Package: mawk\nProvides: awk (= 1)",
        "Package: tool",
        "Package: other\nDepends: libc",
    ]
    assert bootstrap_set(stanzas) == {"shell", "libc", "libgcc", "mawk", "tool"}


# -- where members may lie -----------------------------------------------------------------------------------------


def archive(*members: tuple[str, str, str]) -> tarfile.TarFile:
    """A tar of (name, type, target or content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.uid, member.gid, member.mode = os.getuid(), os.getgid(), 0o755
            if kind == "file":
                member.size = len(text)
                out.addfile(member, io.BytesIO(text.encode()))
            else:
                member.type = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}[kind]
                member.linkname = text
                out.addfile(member)
    buffer.seek(0)
    return tarfile.open(fileobj=buffer, mode="r|")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/victim").write_text("whole")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.mark.parametrize(
    "members",
    [
        [("../outside/victim", "file", "x")],
        [("a/../../outside/victim", "file", "x")],
        [("a", "file", "x"), ("a/b", "file", "x")],
        [("a", "hard", "../outside/victim")],
        [("a", "hard", "nothing")],
        [("a", "link", "b"), ("b", "link", "a"), ("a/c", "file", "x")],
    ],
    ids=range(6),
)
def test_a_member_that_would_lie_outside_is_an_error(root: Path, members: list[tuple[str, str, str]]) -> None:
    with pytest.raises(InputError):
        tree.unpack(archive(*members), root)
    assert (root.parent / "outside/victim").read_text() == "whole"


@pytest.mark.parametrize("target", ["../outside", "/outside", "../../../outside", "{outside}"])
def test_links_are_followed_inside_only(root: Path, target: str) -> None:
    target = target.format(outside=root.parent / "outside")
    tree.unpack(archive(("way", "link", target), ("way/victim", "file", "x")), root)
    assert (root.parent / "outside/victim").read_text() == "whole"
    (written,) = [path for path in root.rglob("victim") if not path.parent.is_symlink()]
    assert written.read_text() == "x"


def test_a_file_replaces_a_link_and_does_not_write_through_it(root: Path) -> None:
    outside = root.parent / "outside/victim"
    tree.unpack(archive(("way", "link", str(outside)), ("way", "file", "x")), root)
    assert outside.read_text() == "whole"
    assert (root / "way").read_text() == "x"


def test_a_folder_over_a_link_to_a_folder_leaves_the_link(root: Path) -> None:
    tree.unpack(
        archive(("usr/lib", "dir", ""), ("lib", "link", "usr/lib"), ("lib", "dir", ""), ("lib/a", "file", "x")), root
    )
    assert (root / "lib").is_symlink()
    assert (root / "usr/lib/a").read_text() == "x"
