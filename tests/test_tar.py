"""Tar: what we write, the standard library reads alike; what it writes, we read alike; nonsense is refused."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import images
from lithify.store import tar

_NAME = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..")
)
_PATH = st.lists(_NAME, min_size=1, max_size=6).map("/".join)
_ID = st.one_of(st.integers(0, 65535), st.integers(0, 2**32 - 2))


@st.composite
def _entries(draw: st.DrawFn) -> tuple[tar.Entry, bytes]:
    kind: tar.Kind = draw(st.sampled_from(["file", "directory", "symlink", "hardlink"]))
    content = draw(st.binary(max_size=2000)) if kind == "file" else b""
    entry = tar.Entry(
        path=draw(_PATH),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(_ID),
        gid=draw(_ID),
        size=len(content),
        link=draw(_PATH) if kind in ("symlink", "hardlink") else "",
        mtime=draw(st.integers(0, 2**33 - 1)),
    )
    return entry, content


def _as_read_by_tarfile(data: bytes) -> list[tuple[object, ...]]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as archive:
        found: list[tuple[object, ...]] = []
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            content = file.read() if file else b""
            found.append(
                (
                    member.name.encode("utf-8", "surrogateescape").rstrip(b"/"),
                    tar.REGULAR if member.isreg() else member.type,
                    member.mode,
                    member.uid,
                    member.gid,
                    len(content),
                    member.linkname.encode("utf-8", "surrogateescape"),
                    member.mtime,
                    content,
                )
            )
        return found


def _as_read_by_us(data: bytes, chunk: int = 1 << 20) -> list[tuple[object, ...]]:
    """By both ways, which must agree."""
    chunks = (data[at : at + chunk] for at in range(0, len(data), chunk))
    try:
        indexed = [
            _told(member, data[at : at + member.size] if member.type in tar.REGULAR else b"")
            for member, at in tar.index(memoryview(data))
        ]
    except tar.TarError:
        indexed = None
    found = [_told(member, b"".join(content)) for member, content in tar.members(chunks)]
    assert found == indexed
    return found


def _told(member: tar.Member, content: bytes) -> tuple[object, ...]:
    return (
        member.path.rstrip(b"/"),
        tar.REGULAR if member.type in tar.REGULAR else member.type,
        *member[2:5],
        member.size if member.type in tar.REGULAR else 0,
        member.link,
        member.mtime,
        content,
    )


@given(st.lists(_entries(), max_size=5))
@example([(tar.Entry("a" * 100), b"")])
@example([(tar.Entry("a" * 101, "symlink", link="é" * 51), b"")])
@example([(tar.Entry("a" * 99, "directory"), b"")])
@example([(tar.Entry("a", uid=0o7777777, gid=0o10000000), b"")])
def test_what_is_written_is_read_alike_by_the_standard_library(entries: list[tuple[tar.Entry, bytes]]) -> None:
    data = b"".join(tar.stream((entry, [content]) for entry, content in entries)) + tar.END

    expected = [
        (
            entry.path.encode(),
            {"file": tar.REGULAR, "directory": b"5", "symlink": b"2", "hardlink": b"1"}[entry.kind],
            0o777 if entry.kind == "symlink" else entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.link.encode(),
            entry.mtime,
            content,
        )
        for entry, content in entries
    ]
    # tarfile drops the slashes at an extended path's end only, and we never write them elsewhere but for folders.
    assert _as_read_by_tarfile(data) == expected
    assert _as_read_by_us(data) == expected
    assert len(data) % tar.BLOCK == 0


@given(
    st.lists(_entries(), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 3000),
)
def test_what_the_standard_library_writes_is_read_alike(
    entries: list[tuple[tar.Entry, bytes]], form: Literal[1, 2], chunk: int
) -> None:
    members = []
    for entry, content in entries:
        fields = {"mode": entry.mode, "uid": entry.uid, "gid": entry.gid, "mtime": entry.mtime}
        if entry.kind == "file":
            info, _ = images.file(entry.path, content)
        elif entry.kind == "directory":
            info, _ = images.folder(entry.path)
        else:
            info, _ = (images.symlink if entry.kind == "symlink" else images.hardlink)(entry.path, entry.link)
        for key, value in fields.items():
            setattr(info, key, value)
        members.append((info, content))
    data = images.archive(members, form)

    assert _as_read_by_us(data, chunk) == _as_read_by_tarfile(data)


@given(st.lists(_entries(), min_size=1, max_size=3), st.data())
def test_damaged_archives_give_an_error_or_other_members_but_never_a_traceback(
    entries: list[tuple[tar.Entry, bytes]], data: st.DataObject
) -> None:
    archive = bytearray(b"".join(tar.stream((entry, [content]) for entry, content in entries)) + tar.END)
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(archive)))

    for damaged in (bytes(archive), bytes(archive[:cut])):
        with contextlib.suppress(tar.TarError):
            assert len(_as_read_by_us(damaged)) <= len(entries) + 4


@given(st.binary(max_size=2000))
def test_a_broken_extended_header_is_refused(records: bytes) -> None:
    block = tar.header(tar.Entry("file"))
    extended = bytearray(tar.header(tar.Entry("head", size=len(records))))
    extended[156:157] = b"x"
    extended[148:156] = b" " * 8
    extended[148:156] = b"%06o\0 " % sum(extended)
    archive = bytes(extended) + records + tar.padding(len(records)) + block + tar.END

    with contextlib.suppress(tar.TarError):
        _as_read_by_us(archive)


def test_slices_may_be_joined() -> None:
    """What a layer is: the packages' slices one after the other, then the end."""
    one = b"".join(tar.stream([(tar.Entry("a/x", size=3), [b"abc"])]))
    two = b"".join(tar.stream([(tar.Entry("b" * 150, size=1), [b"d"])]))

    assert [member[0] for member in _as_read_by_tarfile(one + two + tar.END)] == [b"a/x", b"b" * 150]


def test_a_file_larger_than_octal_digits_can_say() -> None:
    size = 9 << 30
    header = tar.header(tar.Entry("big", size=size))
    info = tarfile.TarInfo.frombuf(header[-512:], "utf-8", "surrogateescape")
    archive = tarfile.open(fileobj=io.BytesIO(header + bytes(512)), mode="r:")  # noqa: SIM115

    assert info.size == 0
    assert archive.next().size == size  # type: ignore[union-attr]


def test_content_of_another_size_than_announced_is_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes announced, 3 found"):
        list(tar.stream([(tar.Entry("a", size=2), [b"abc"])]))


def test_the_chunks_after_the_end_are_read_too() -> None:
    """Somebody hashes them: a digest covers the padding after the archive."""
    seen = []

    def chunks() -> Iterator[bytes]:
        for chunk in (tar.END, b"after", b"more"):
            seen.append(chunk)
            yield chunk

    assert list(tar.members(chunks())) == []
    assert seen == [tar.END, b"after", b"more"]


@pytest.mark.parametrize("kind", [b"S", b"V", b"?"])
def test_sparse_files_and_unknown_members_are_refused(kind: bytes) -> None:
    info = tarfile.TarInfo("file")
    info.type = kind
    with pytest.raises(tar.TarError, match="unknown type"):
        _as_read_by_us(info.tobuf(tarfile.GNU_FORMAT) + tar.END)


def test_parents_are_every_folder_above() -> None:
    assert tar.parents(["a/b/c", "a/d", "e"]) == ["a", "a/b"]
