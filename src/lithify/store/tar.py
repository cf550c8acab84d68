"""Tar, written deterministically (the same entries give the same bytes everywhere) and read with distrust.

POSIX.1-2001 (pax) throughout: a plain ustar header, preceded by an extended header only where a path, a link or
a size does not fit. No user or group names, one modification time for all. The standard library's `tarfile` writes
the same format at a third of the speed; building headers is half of the cost of a small file. Reading is the same
story: see docs/decisions/030-reading-tar.md. The tests hold `tarfile` as the judge of both.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

BLOCK = 512
END = b"\0" * (2 * BLOCK)

Kind = Literal["file", "directory", "symlink", "hardlink"]
_TYPEFLAG = {"file": b"0", "hardlink": b"1", "symlink": b"2", "directory": b"5"}
_MAX_OCTAL_SIZE = 0o77777777777
_MAX_OCTAL_ID = 0o7777777


@dataclass(frozen=True)
class Entry:
    """The metadata of one tar member. ``path`` is relative, with no leading or trailing slash.

    ``size`` is the number of bytes of content that follow a file's header; ``link`` is the target of a link.
    """

    path: str
    kind: Kind = "file"
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    link: str = ""
    mtime: int = 0


def header(entry: Entry) -> bytes:
    """The header blocks of ``entry``: an extended header where one is needed, then the ustar header."""
    path = entry.path.encode("utf-8", "surrogateescape")
    if entry.kind == "directory":
        path += b"/"
    link = entry.link.encode("utf-8", "surrogateescape")
    mode = 0o777 if entry.kind == "symlink" else entry.mode
    extended = b""
    if len(link) > 100:
        extended += _record(b"linkpath", link)
    if len(path) > 100:
        extended += _record(b"path", path)
    if entry.size > _MAX_OCTAL_SIZE:
        extended += _record(b"size", b"%d" % entry.size)
    uid, gid = entry.uid, entry.gid
    if uid > _MAX_OCTAL_ID:
        extended += _record(b"uid", b"%d" % uid)
        uid = 0
    if gid > _MAX_OCTAL_ID:
        extended += _record(b"gid", b"%d" % gid)
        gid = 0
    blocks = b""
    if extended:
        blocks = _ustar(b"././@PaxHeader", 0o644, 0, 0, len(extended), 0, b"x", b"") + extended + padding(len(extended))
    size = entry.size if entry.size <= _MAX_OCTAL_SIZE else 0
    return blocks + _ustar(path[:100], mode, uid, gid, size, entry.mtime, _TYPEFLAG[entry.kind], link[:100])


def padding(size: int) -> bytes:
    """The zeros that fill the last block of ``size`` bytes of content."""
    return b"\0" * (-size % BLOCK)


def parents(paths: Iterable[str]) -> list[str]:
    """Every folder above ``paths``, sorted."""
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return sorted(found)


def _ustar(path: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, typeflag: bytes, link: bytes) -> bytes:
    owned, dated, rest, common = _frame(mode, uid, gid, mtime, typeflag)
    extent = b"%011o\0" % size
    checksum = common + sum(path) + sum(extent) + sum(link)
    return b"%b%b%b%b%06o\0 %b%b%b" % (
        path.ljust(100, b"\0"),
        owned,
        extent,
        dated,
        checksum,
        typeflag,
        link.ljust(100, b"\0"),
        rest,
    )


@functools.lru_cache(maxsize=256)
def _frame(mode: int, uid: int, gid: int, mtime: int, typeflag: bytes) -> tuple[bytes, bytes, bytes, int]:
    """What the headers of many members share, and its part of their checksums."""
    owned, dated, rest = b"%07o\0%07o\0%07o\0" % (mode, uid, gid), b"%011o\0" % mtime, b"ustar\x0000"
    rest = rest.ljust(BLOCK - 257, b"\0")
    # The checksum's own field counts as eight spaces.
    return owned, dated, rest, sum(owned) + sum(dated) + sum(rest) + sum(typeflag) + 8 * 32


def _record(key: bytes, value: bytes) -> bytes:
    """A pax record, ``LENGTH key=value\\n``, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def stream(members: Iterable[tuple[Entry, Iterable[bytes]]]) -> Iterator[bytes]:
    """The tar slice of ``members`` in the given order, without the end-of-archive blocks.

    Raises:
        ValueError: when a member's content is not of the size that its entry says.
    """
    for entry, content in members:
        yield header(entry)
        written = 0
        for chunk in content:
            written += len(chunk)
            yield chunk
        if written != entry.size:
            raise ValueError(f"{entry.path}: {entry.size} bytes announced, {written} found")
        if pad := padding(written):
            yield pad


class TarError(ValueError):
    """A tar archive that is broken, or that uses what no image layer needs."""


class Member(NamedTuple):
    """What the header of one member of somebody's archive says; nothing in it is to be trusted.

    ``path`` and ``link`` are the bytes as they stand there. ``type`` is the type flag of POSIX.1-2001.
    """

    path: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    link: bytes
    mtime: float


REGULAR = frozenset((b"0", b"\0", b"7"))
HARDLINK, SYMLINK, DIRECTORY = b"1", b"2", b"5"
_EXTENDED = frozenset((b"x", b"X", b"g", b"L", b"K"))
_KNOWN = REGULAR | {HARDLINK, SYMLINK, DIRECTORY, b"3", b"4", b"6"}
_MAX_EXTENDED = 1 << 20


def members(chunks: Iterable[bytes]) -> Iterator[tuple[Member, Iterator[memoryview]]]:
    """Every member of the archive that ``chunks`` hold, with its content, which must be read before the next member.

    Reads ustar, pax (POSIX.1-2001) and GNU's long names and large numbers. Content that is not read is skipped, and
    all chunks are consumed, those after the archive's end too.

    Raises:
        TarError: for anything else.
    """
    source = _Chunks(chunks)
    extended = _Extended()
    while True:
        block = source.take(BLOCK, at_end=True)
        if not block or block == _ZEROS:
            break
        member = _parse_header(block)
        if member.type in _EXTENDED:
            data = source.take(_extended_size(member))
            source.skip(-member.size % BLOCK)
            extended.add(member, data)
            continue
        member = extended.applied(member)
        size = _content_size(member)
        content = source.pieces(size)
        yield member, content
        for _ in content:
            pass
        source.skip(-size % BLOCK)
    source.drain()


def index(archive: memoryview) -> Iterator[tuple[Member, int]]:
    """Every member of an archive that can be reached as a whole, and where in it its content begins, in bytes.

    Reads what `members` reads. A member's content lies in the archive whole.

    Raises:
        TarError: for anything else.
    """
    extended, at, end = _Extended(), 0, len(archive)
    while at < end:
        block = bytes(archive[at : at + BLOCK])
        if block == _ZEROS:
            break
        if len(block) < BLOCK:
            raise TarError("the archive ends in the middle of a member")
        member = _parse_header(block)
        at += BLOCK
        if member.type in _EXTENDED:
            size = _extended_size(member)
            if at + size > end:
                raise TarError("the archive ends in the middle of a member")
            extended.add(member, bytes(archive[at : at + size]))
            at += size + -size % BLOCK
            continue
        member = extended.applied(member)
        size = _content_size(member)
        if at + size > end:
            raise TarError("the archive ends in the middle of a member")
        yield member, at
        at += size + -size % BLOCK


class _Extended:
    """What extended headers say of the members that follow them."""

    def __init__(self) -> None:
        self.shared: dict[bytes, bytes] = {}
        self.own: dict[bytes, bytes] = {}
        self.path = self.link = b""

    def add(self, member: Member, data: bytes) -> None:
        """Take in the extended header ``member``, whose content is ``data``."""
        if member.type == b"L":
            self.path = data.rstrip(b"\0")
        elif member.type == b"K":
            self.link = data.rstrip(b"\0")
        elif member.type == b"g":
            self.shared.update(_parse_records(data))
        else:
            self.own.update(_parse_records(data))

    def applied(self, member: Member) -> Member:
        """What ``member`` really is."""
        if self.path or self.link:
            member = member._replace(path=self.path or member.path, link=self.link or member.link)
        if self.shared or self.own:
            member = _extend(member, {**self.shared, **self.own})
        if self.path or self.link or self.own:
            self.own, self.path, self.link = {}, b"", b""
        if member.type not in _KNOWN:
            raise TarError(f"a member of the unknown type {member.type!r}")
        return member


def _extended_size(member: Member) -> int:
    if member.size > _MAX_EXTENDED:
        raise TarError(f"an extended header of {member.size} bytes")
    return member.size


def _content_size(member: Member) -> int:
    # As the standard library does: only a file's header is followed by content.
    return member.size if member.type in REGULAR else 0


_ZEROS = b"\0" * BLOCK


class _Chunks:
    """Bytes in chunks of any length, taken in pieces of the lengths that are asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._at = 0

    def take(self, size: int, *, at_end: bool = False) -> bytes:
        """The next ``size`` bytes; none at the end where ``at_end`` allows it."""
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        self._buffer, self._at = b"", 0
        while have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                if at_end and have == 0:
                    return b""
                raise TarError("the archive ends in the middle of a member")
            have += len(chunk)
            parts.append(chunk)
        last = parts[-1]
        self._buffer, self._at = last, len(last) - (have - size)
        parts[-1] = last[: self._at]
        return b"".join(parts)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes, without copies."""
        while size:
            if self._at == len(self._buffer):
                chunk = next(self._chunks, None)
                if chunk is None:
                    raise TarError("the archive ends in the middle of a member")
                self._buffer, self._at = chunk, 0
            end = min(self._at + size, len(self._buffer))
            piece = memoryview(self._buffer)[self._at : end]
            self._at = end
            size -= len(piece)
            if piece:
                yield piece

    def skip(self, size: int) -> None:
        if self._at + size <= len(self._buffer):
            self._at += size
        else:
            for _ in self.pieces(size):
                pass

    def drain(self) -> None:
        self._buffer, self._at = b"", 0
        for _ in self._chunks:
            pass


def _parse_header(block: bytes) -> Member:
    checksum = _number(block[148:156])
    # The sum counts the checksum's own field as eight spaces.
    if checksum != sum(block) - sum(block[148:156]) + 256:
        raise TarError("a header's checksum is wrong")
    path = block[:100].partition(b"\0")[0]
    kind = block[156:157]
    # GNU's own format keeps times where ustar keeps the path's first part.
    if block[257:263] == b"ustar\0" and block[345] and kind not in (b"L", b"K"):
        path = block[345:500].partition(b"\0")[0] + b"/" + path
    if kind == b"\0" and path.endswith(b"/"):
        kind = DIRECTORY
    return Member(
        path,
        kind,
        _number(block[100:108]) & 0o7777,
        _number(block[108:116]),
        _number(block[116:124]),
        _size(_number(block[124:136])),
        block[157:257].partition(b"\0")[0],
        _number(block[136:148]),
    )


@functools.lru_cache(maxsize=4096)  # owners, modes and times repeat
def _number(field: bytes) -> int:
    """A number of a header: octal digits, or GNU's base 256."""
    if field[0] in (0x80, 0xFF):
        value = int.from_bytes(field[1:], "big")
        return value - (1 << 8 * (len(field) - 1)) if field[0] == 0xFF else value
    text = field.partition(b"\0")[0].strip()
    if text.strip(b"01234567"):
        raise TarError(f"{field!r} is not a number")
    return int(text or b"0", 8)


def _size(value: int) -> int:
    if value < 0:
        raise TarError("a negative size")
    return value


def _parse_records(data: bytes) -> dict[bytes, bytes]:
    """The records ``LENGTH key=value\\n`` of an extended header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, _, _ = data[at : at + 20].partition(b" ")
        if not digits.isdigit():
            raise TarError("a broken extended header")
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end - 1].partition(b"=")
        if int(digits) == 0 or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise TarError("a broken extended header")
        records[key] = value
        at = end
    return records


def _extend(member: Member, records: dict[bytes, bytes]) -> Member:
    changes: dict[str, Any] = {}
    try:
        for key, value in records.items():
            if key.startswith(b"GNU.sparse."):
                raise TarError("a sparse file")
            if key == b"path":
                changes["path"] = value.rstrip(b"/")
            elif key == b"linkpath":
                changes["link"] = value
            elif key == b"size":
                changes["size"] = _size(int(value))
            elif key in (b"uid", b"gid"):
                changes[key.decode()] = int(value)
            elif key == b"mtime":
                changes["mtime"] = float(value)
    except ValueError as error:
        raise TarError(f"a broken extended header: {error}") from error
    return member._replace(**changes)
