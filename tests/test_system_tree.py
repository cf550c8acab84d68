"""From an overlay's folders to a layer: what is in it, what is hidden, what is left out."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lithify.assemble import tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="overlay whiteouts are made by root")


def layer(root: Path, lower: Path | None = None) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(tree.layer_of(root, lower)))) as archive:
        return archive.getmembers()


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An upper folder and what lies below."""
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for folder in (upper, lower / "etc", lower / "usr/share"):
        folder.mkdir(parents=True)
    (lower / "etc/old").write_text("old")
    yield upper, lower


def test_names_are_sorted_and_times_owners_and_modes_are_fixed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "b").chmod(0o1777)
    (root / "b/z").write_text("z")
    (root / "b/z").chmod(0o4755)
    (root / "b-a").symlink_to("b")
    (root / "a").write_text("")
    found = layer(root)
    assert [member.name for member in found] == ["a", "b", "b/z", "b-a"]
    assert {member.mtime for member in found} == {315619200}
    assert [member.mode for member in found[1:3]] == [0o1777, 0o4755]
    assert {(member.uname, member.gname) for member in found} == {("", "")}


def test_files_with_two_names_are_kept_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "b").write_text("content")
    os.link(root / "b", root / "a")
    first, second = layer(root)
    assert (first.isreg(), second.islnk(), second.linkname) == (True, True, "a")


def test_folders_that_are_only_passed_through_are_left_out(trees: tuple[Path, Path]) -> None:
    upper, lower = trees
    (upper / "usr/share").mkdir(parents=True)
    (upper / "etc").mkdir()
    (upper / "etc/new").write_text("new")
    assert [member.name for member in layer(upper, lower)] == ["etc", "etc/new"]


def test_a_folder_whose_mode_changed_is_in_the_layer(trees: tuple[Path, Path]) -> None:
    upper, lower = trees
    (upper / "etc").mkdir()
    (upper / "etc").chmod(0o700)
    assert [(member.name, member.mode) for member in layer(upper, lower)] == [("etc", 0o700)]


@needs_root
def test_what_is_gone_is_a_whiteout_if_it_was_there(trees: tuple[Path, Path]) -> None:
    upper, lower = trees
    (upper / "etc").mkdir()
    for name in ("old", "never"):
        os.mknod(upper / "etc" / name, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    assert [member.name for member in layer(upper, lower)] == ["etc", "etc/.wh.old"]


@needs_root
def test_a_folder_that_hides_the_one_below_is_marked(trees: tuple[Path, Path]) -> None:
    upper, lower = trees
    (upper / "etc").mkdir()
    (upper / "etc/new").write_text("new")
    try:
        os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    assert [member.name for member in layer(upper, lower)] == ["etc", "etc/.wh..wh..opq", "etc/new"]


@needs_root
def test_merging_gives_what_the_overlay_shows(trees: tuple[Path, Path]) -> None:
    upper, lower = trees
    (lower / "usr/share/kept").write_text("kept")
    (upper / "etc").mkdir(mode=0o711)
    os.mknod(upper / "etc/old", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
    (upper / "etc/new").write_text("new")
    (upper / "usr").mkdir()
    (upper / "usr/share").symlink_to("elsewhere")
    tree.merge(upper, lower)
    assert sorted(path.name for path in (lower / "etc").iterdir()) == ["new"]
    assert stat.S_IMODE((lower / "etc").stat().st_mode) == 0o711
    assert (lower / "usr/share").is_symlink()


def test_cleaning_removes_secrets_caches_and_backups_only(tmp_path: Path) -> None:
    gone = [
        *("etc/passwd-", "etc/ssh/ssh_host_ed25519_key", "var/log/dpkg.log", "var/log/apt/term.log", "tmp/x"),
        *("var/lib/dpkg/status-old", "var/cache/ldconfig/aux-cache", "var/lib/apt/lists/a", "run/x/y"),
        *("etc/ld.so.cache", "var/cache/man/index.db", "usr/sbin/policy-rc.d"),
    ]
    kept = ["etc/passwd", "etc/ssh/ssh_config", "var/lib/dpkg/status", "usr/share/x-old", "var/cache/fontconfig/a"]
    for name in (*gone, *kept, "etc/machine-id", "etc/shadow"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "etc/shadow").write_text("root:*:20000:0:99999:7:::\nx:!:::::::\n")
    tree.clean(tmp_path, loader_cache=False)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "etc/machine-id", "etc/shadow"}
    assert (tmp_path / "etc/machine-id").read_bytes() == b""
    assert (tmp_path / "etc/shadow").read_text() == "root:*:3653:0:99999:7:::\nx:!:::::::\n"
    assert (tmp_path / "var/log").is_dir()


def test_elf_files_are_known_by_their_machine() -> None:
    def head(machine: int, order: int) -> bytes:
        return b"\x7fELF\x02" + bytes([order]) + b"\0" * 12 + machine.to_bytes(2, "little" if order == 1 else "big")

    assert tree.elf_machine(head(183, 1)) == 183
    assert tree.elf_machine(head(22, 2)) == 22
    assert tree.elf_machine(b"#!/bin/sh" + b"\0" * 20) is None
    assert tree.elf_machine(b"\x7fELF") is None


def test_a_program_is_told_from_a_library() -> None:
    def resolved(name: str) -> Path:
        return Path(name).resolve()

    assert tree.is_program(resolved("/bin/sh"))
    libraries = sorted(Path("/usr/lib").glob("*-linux-gnu/libm.so.6"))
    assert not any(tree.is_program(path) for path in libraries)
