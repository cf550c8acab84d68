"""Opening a conda package, in both of its formats, and believing nothing in it.

A ``.conda`` is a zip archive of stored members: ``metadata.json`` and two tars compressed with zstd, ``info-*`` for
what is said of the package and ``pkg-*`` for its files (CEP 35 and conda's package specification). The older
``.tar.bz2`` holds both in one tar.

A tar can only be read from its beginning, and files are wanted in another order, so the files' part is decompressed
once, into memory or (where it is large) into a file without a name, and its members are views of that.
"""

from __future__ import annotations

import bz2
import json
import mmap
import os
import re
import stat
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

from lithify.errors import HostError, LithifyError
from lithify.store import tar

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

# What is kept in memory, in bytes; more goes to disk.
IN_MEMORY = 32 << 20
_CHUNK = 1 << 20
# The widest real package seen is under 40:1 as a whole, zeros reach many thousands.
_MAXIMUM_RATIO = 200
_RATIO_FREE = 256 << 20
_MAXIMUM_INFO = 256 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_PART = re.compile(r"(pkg|info)-[^/]*\.tar\.zst")
INDEX = "info/index.json"
# What the link rules read of a package's description of itself.
DESCRIPTION = frozenset((INDEX, "info/paths.json", "info/files", "info/has_prefix", "info/no_link", "info/link.json"))

# What the libraries raise for a broken archive, and what reading text out of it can raise.
_BROKEN = (
    zipfile.BadZipFile,
    zstd.ZstdError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
    OSError,
)


@dataclass(frozen=True)
class Member:
    """A file of an archive: ``data`` is its content, or ``link`` where a symbolic link points."""

    mode: int
    data: memoryview
    link: str = ""


@dataclass(frozen=True)
class Archive:
    """An opened package: what it says of itself, by name, and its files, by their paths in the archive."""

    info: Mapping[str, bytes]
    members: Mapping[str, Member]


def refused(label: str, message: str) -> LithifyError:
    """The error that says what is wrong with the package ``label`` (``SUBDIR/FILE``)."""
    return LithifyError(
        f"conda package {label}: {message}",
        hint="it cannot be used as it is published; require another build or version of it",
    )


@contextmanager
def refusing(label: str) -> Iterator[None]:
    """Turn whatever a broken package makes the libraries raise into the error that names it."""
    try:
        yield
    except _BROKEN as error:
        raise refused(label, f"broken: {error}") from error


def open_archive(artefact: Path, label: str) -> Archive:
    """Read the package at ``artefact``: all of its names are plain, no two are one, and every link's text is there.

    Raises:
        LithifyError: naming ``label``, for a package that is broken, or holds what no package holds.
        HostError: when there is no room for its content.
    """
    with refusing(label), artefact.open("rb") as file:
        parts = _parts(file)
        if parts is None:
            spool = _spooled(_whole(file, bz2.BZ2Decompressor), os.fstat(file.fileno()).st_size, artefact.parent)
            return _read(spool, spool, label)
        info, files = parts
        described = _in_memory(_inflated(info), label)
        return _read(described, _spooled(_inflated(files), files.size, artefact.parent), label)


def read_info(artefact: Path, names: Collection[str], label: str = "") -> dict[str, bytes]:
    """Those of the files ``names`` (``info/...``) that the package has, without reading more of it than that takes.

    Raises:
        LithifyError: naming ``label`` (or else the file), for a package that is broken.
    """
    label = label or artefact.name
    found: dict[str, bytes] = {}
    with refusing(label), artefact.open("rb") as file:
        parts = _parts(file)
        chunks = _whole(file, bz2.BZ2Decompressor) if parts is None else _inflated(parts[0])
        taken = 0
        for member, content in tar.members(_bounded(chunks, os.fstat(file.fileno()).st_size)):
            name = member.path.removeprefix(b"./").decode("utf-8", "replace")
            if name in names and member.type in tar.REGULAR:
                taken += member.size
                if taken > _MAXIMUM_INFO:
                    raise refused(label, f"says more than {_MAXIMUM_INFO:,} bytes of itself")
                found[name] = b"".join(content)
                if len(found) == len(names):
                    break
    return found


def read_index(artefact: Path, label: str = "") -> dict[str, Any]:
    """What the package says of itself in ``info/index.json``: name, version, build, dependencies, ...

    Raises:
        LithifyError: naming ``label`` (or else the file), when it is no conda package.
    """
    label = label or artefact.name
    return parse_index(read_info(artefact, {INDEX}, label), label)


def parse_index(info: Mapping[str, bytes], label: str) -> dict[str, Any]:
    """``info/index.json`` of an opened package.

    Raises:
        LithifyError: when it is missing, or is no JSON object.
    """
    if INDEX not in info:
        raise refused(label, f"has no {INDEX}")
    return parse_object(info[INDEX], INDEX, label)


def parse_object(data: bytes, name: str, label: str) -> dict[str, Any]:
    """The JSON object in the file ``name``.

    Raises:
        LithifyError: when it is anything else.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise refused(label, f"{name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise refused(label, f"{name} is not a JSON object")
    return value


def is_plain(path: str) -> bool:
    """Whether ``path`` is relative, means the place that it spells, and can be a file's name.

    A backslash may be in it (systemd's units have some), but not so that it leads elsewhere where it separates.
    """
    if 0 < len(path) < 200 and path.isascii() and path.isprintable() and "\\" not in path:  # nearly all
        return not (path[0] in "/." or path[-1] == "/" or "//" in path or "/." in path) or _is_plain(path)
    return _is_plain(path)


def _is_plain(path: str) -> bool:
    return (
        not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in path)
        and not any(part in ("", ".", "..") for part in path.replace("\\", "/").split("/"))
        and not any(len(part.encode()) > 255 for part in path.split("/"))
        and len(path.encode()) < 4096 - 256
    )


# -- the container ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some bytes of an open file."""

    file: BinaryIO
    start: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a chunk at a time."""
        at, end = self.start, self.start + self.size
        while at < end:
            data = os.pread(self.file.fileno(), min(_CHUNK, end - at), at)
            if not data:
                raise EOFError("the file is cut off")
            at += len(data)
            yield data


def _whole(file: BinaryIO, decompressor: Callable[[], _Decompressor]) -> Iterator[bytes]:
    return _decompressed(_Part(file, 0, os.fstat(file.fileno()).st_size).chunks(), decompressor)


def _inflated(part: _Part) -> Iterator[bytes]:
    return _decompressed(part.chunks(), zstd.ZstdDecompressor)


def _parts(file: BinaryIO) -> tuple[_Part, _Part] | None:
    """Where the description and the files lie in a ``.conda``; None for the older format."""
    if file.read(3) == b"BZh":
        return None
    found: dict[str, _Part] = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = info.orig_filename
            match = _PART.fullmatch(name)
            kind = match[1] if match else name
            if kind not in ("metadata.json", "info", "pkg"):
                raise ValueError(f"`{name}` is no part of a conda package")
            if kind in found:
                raise ValueError(f"it holds two parts `{kind}`")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ValueError(f"`{name}` is compressed twice")
            if info.flag_bits & 0x1 or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ValueError(f"`{name}` is no plain file")
            found[kind] = _located(file, info)
    missing = [f"{kind}-*.tar.zst" for kind in ("info", "pkg") if kind not in found]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    if "metadata.json" in found:
        data = b"".join(found["metadata.json"].chunks()) if found["metadata.json"].size < _CHUNK else b""
        version = json.loads(data).get("conda_pkg_format_version") if data else None
        if version != 2:
            raise ValueError(f"its format is {version!r}; 2 is known")
    return found["info"], found["pkg"]


def _located(file: BinaryIO, info: zipfile.ZipInfo) -> _Part:
    """Where a member's bytes lie (APPNOTE.TXT, section 4.3.7)."""
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    head = os.pread(file.fileno(), _LOCAL_HEADER.size + len(name), info.header_offset)
    fields = _LOCAL_HEADER.unpack_from(head)
    if fields[0] != b"PK\x03\x04" or head[_LOCAL_HEADER.size :] != name or fields[9] != len(name):
        raise ValueError(f"`{info.orig_filename}` has two names in the archive")
    start = info.header_offset + len(head) + int(fields[10])
    if start + info.compress_size > os.fstat(file.fileno()).st_size:
        raise ValueError(f"`{info.orig_filename}` lies outside of the archive")
    return _Part(file, start, info.compress_size)


# -- decompressing ------------------------------------------------------------------------------------------------


class _Decompressor(Protocol):
    """What zstd's and bz2's decompressors have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _decompressed(chunks: Iterator[bytes], decompressor: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """What frames or streams, one after the other, hold; never more than a chunk at once."""
    current = decompressor()
    began = False
    for chunk in chunks:
        data = chunk
        while data or not current.needs_input:
            if current.eof:
                current, began = decompressor(), False
            began = True
            if piece := current.decompress(data, _CHUNK):
                yield piece
            data = b""
            if current.eof:
                data = current.unused_data
                if not data:
                    break
    if not began or not current.eof:
        raise EOFError("its compressed data are cut off")


def _bounded(chunks: Iterator[bytes], compressed: int) -> Iterator[bytes]:
    """The chunks, as long as they are not absurdly many."""
    total, limit = 0, _MAXIMUM_RATIO * compressed + _RATIO_FREE
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise ValueError(f"{compressed:,} bytes hold more than {limit:,}: a decompression bomb")
        yield chunk


def _in_memory(chunks: Iterator[bytes], label: str) -> memoryview:
    parts, total = [], 0
    for chunk in chunks:
        total += len(chunk)
        if total > _MAXIMUM_INFO:
            raise refused(label, f"says more than {_MAXIMUM_INFO:,} bytes of itself")
        parts.append(chunk)
    return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))


def _spooled(chunks: Iterator[bytes], compressed: int, folder: Path) -> memoryview:
    """All of the chunks: in memory, or in a file in ``folder`` that has no name and ends with the view."""
    parts: list[bytes] = []
    total, file = 0, None
    for chunk in _bounded(chunks, compressed):
        total += len(chunk)
        if file is None and total > IN_MEMORY:
            file = _nameless(folder)
            _write(file, parts, folder)
            parts.clear()
        parts.append(chunk)
        if file is not None:
            _write(file, parts, folder)
            parts.clear()
    if file is None:
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
    with file:
        file.flush()
        return memoryview(mmap.mmap(file.fileno(), total, access=mmap.ACCESS_READ))


def _nameless(folder: Path) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError:  # the folder of a cache that is only read
        return tempfile.TemporaryFile(buffering=0)


def _write(file: IO[bytes], parts: list[bytes], folder: Path) -> None:
    try:
        for part in parts:
            with memoryview(part) as view:
                at = 0
                while at < len(view):
                    at += file.write(view[at:])
    except OSError as error:
        raise HostError(
            f"there is no room beside {folder} for a package's files: {error}",
            hint="free some space, or put the store on another disk with --store or LITHIFY_STORE",
        ) from error


# -- the tar ------------------------------------------------------------------------------------------------------


def _read(described: memoryview, spool: memoryview, label: str) -> Archive:
    """The archive in two tars, which are one and the same for the older format."""
    info: dict[str, bytes] = {}
    members: dict[str, Member] = {}
    if described is not spool:
        for member, at in tar.index(described):
            if member.type == tar.DIRECTORY:
                continue
            name = _name(member.path, label)
            if not name.startswith("info/"):
                raise refused(label, f"`{name}` lies among what describes the package")
            _describe(info, name, member, described[at : at + member.size], label)
    for member, at in tar.index(spool):
        if member.type == tar.DIRECTORY:  # There are those that files need.
            continue
        name = _name(member.path, label)
        if name.startswith("info/"):
            if described is not spool:
                raise refused(label, f"`{name}` lies among the package's files")
            _describe(info, name, member, spool[at : at + member.size], label)
            continue
        if name in members:
            raise refused(label, f"holds `{name}` twice")
        if member.type in tar.REGULAR:
            members[name] = Member(member.mode, spool[at : at + member.size])
        elif member.type == tar.SYMLINK:
            members[name] = Member(0o777, spool[:0], _link(member.link, name, label))
        elif member.type == tar.HARDLINK:
            other = members.get(_name(member.link, label))
            if other is None:
                raise refused(label, f"`{name}` is a hard link to what is not there")
            members[name] = other
        else:
            raise refused(label, f"`{name}` is neither file nor link")
    return Archive(info, members)


def _describe(info: dict[str, bytes], name: str, member: tar.Member, data: memoryview, label: str) -> None:
    if name not in DESCRIPTION:
        return
    if name in info:
        raise refused(label, f"holds `{name}` twice")
    if member.type not in tar.REGULAR:
        raise refused(label, f"`{name}` is no plain file")
    if len(data) > _MAXIMUM_INFO:
        raise refused(label, f"says more than {_MAXIMUM_INFO:,} bytes of itself")
    info[name] = bytes(data)


def _name(path: bytes, label: str) -> str:
    try:
        name = path.decode()
    except UnicodeDecodeError:
        raise refused(label, f"{path!r} is no name in UTF-8") from None
    if name.startswith("./"):
        name = name[2:]
    if not is_plain(name):
        raise refused(label, f"{name[:200]!r} is no plain path below the prefix")
    return name


def _link(target: bytes, name: str, label: str) -> str:
    try:
        link = target.decode()
    except UnicodeDecodeError:
        link = ""
    if not link or len(target) > 4095 or any(ord(c) < 32 or ord(c) == 127 for c in link):
        raise refused(label, f"`{name}` links to {target[:200]!r}, which is no path")
    return link
