"""A package's files as a compressed tar slice: the work behind every fragment.

A slice holds the headers and contents of files, sorted by path, and neither folders nor the end-of-archive blocks:
a layer adds both, once. So any slices can be joined into a layer in which no path occurs twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lithify import runtime
from lithify.errors import LithifyError
from lithify.fragment.bytecode import Compiler, cached_path, is_compiled
from lithify.sources import File, Held, Target
from lithify.store import tar
from lithify.store.compression import CHUNK, Compression, compressor


@dataclass(frozen=True)
class Slice:
    """What was written: the sha256 and size in bytes of the compressed slice, and what each path holds.

    The values of ``paths`` identify type, mode and content: two packages may both bring a path only where the values
    are equal. ``alone`` is the diffID of a layer that holds this slice only: most bytes of an image are in such
    layers, and hashing them on the way saves decompressing them later.
    """

    sha256: str
    size: int
    alone: str
    paths: dict[str, str]


# Small pieces are gathered up to this many bytes: hashing and compressing cost by the call, too.
_TOGETHER = 1 << 18

_Pieces = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class _Member:
    entry: tar.Entry
    file: File | None  # None: the content is `data`
    data: bytes = b""


def write_slice(
    files: Iterable[File], target: Target, compression: Compression, compiler: Compiler | None, output: BinaryIO
) -> Slice:
    """Write ``files``, and the ``.pyc`` of those that want one, as a slice to ``output``.

    Memory holds some chunks of content at a time, what the source holds, and a package's ``.pyc`` files.

    Raises:
        LithifyError: from a content that is not what its package promised.
    """
    members = sorted(_members(files, target, compiler), key=lambda member: member.entry.path.encode())
    frame, digest, size = compressor(compression), hashlib.sha256(), 0
    alone = hashlib.sha256(folders(member.entry.path for member in members))
    paths: dict[str, str] = {}

    def emit(data: bytes) -> None:
        nonlocal size
        if data:
            digest.update(data)
            size += len(data)
            output.write(data)

    for chunk in _gathered(_blocks(members, paths)):
        alone.update(chunk)
        emit(frame.compress(chunk))
    emit(frame.flush())
    alone.update(tar.END)
    return Slice(digest.hexdigest(), size, f"sha256:{alone.hexdigest()}", paths)


def _blocks(members: Iterable[_Member], paths: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The blocks of ``members``; what each holds is put into ``paths``."""
    for member in members:
        entry = member.entry
        yield tar.header(entry)
        known = (member.file.sha256 or "") if member.file else ""
        content = None if known else hashlib.sha256()
        written = 0
        for piece in _content(member):
            if content is not None:
                content.update(piece)
            yield piece
            written += len(piece)
        if written != entry.size:
            raise LithifyError(f"{entry.path}: {entry.size} bytes announced, {written} found")
        if pad := -written % tar.BLOCK:
            yield _ZEROS[:pad]
        paths[entry.path] = _identity(entry, known if content is None else content.hexdigest())


_ZEROS = bytes(tar.BLOCK)


def _gathered(pieces: _Pieces) -> Iterator[bytes | memoryview]:
    """The same bytes in chunks, few and neither small nor large."""
    waiting: list[bytes | memoryview] = []
    held = 0
    for piece in pieces:
        if len(piece) >= _TOGETHER:
            yield b"".join(waiting)
            waiting, held = [], 0
            with memoryview(piece) as view:
                yield from (view[at : at + CHUNK] for at in range(0, len(view), CHUNK))
        else:
            waiting.append(piece)
            held += len(piece)
            if held >= _TOGETHER:
                yield b"".join(waiting)
                waiting, held = [], 0
    yield b"".join(waiting)


def _identity(entry: tar.Entry, content: str) -> str:
    told = f"{entry.kind} {entry.mode:o} {entry.link}\0{content}"
    return hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def folders(paths: Iterable[str]) -> bytes:
    """The headers of every folder above ``paths``. The same metadata in every layer, so that no order matters."""
    user = runtime.JOVYAN
    return b"".join(
        tar.header(tar.Entry(path, "directory", 0o755, user.uid, user.gid, mtime=runtime.MTIME))
        for path in tar.parents(paths)
    )


def _members(files: Iterable[File], target: Target, compiler: Compiler | None) -> Iterator[_Member]:
    tag = f"cpython-{target.python.replace('.', '')}"
    given: dict[str, _Member] = {}
    compiled: dict[str, _Member] = {}
    receipts: list[File] = []
    for file in files:
        if file.path in given:
            raise LithifyError(f"the package holds {file.path} twice")
        if file.receipt is not None:
            receipts.append(file)
        kind: tar.Kind = "symlink" if file.link else "file"
        given[file.path] = _Member(_entry(file.path, kind, file.mode, file.size, file.link, target), file)
        if file.compile and compiler is not None and is_compiled(file.path):
            with file.content() as stream:
                source = stream.read()
            path = cached_path(file.path, tag)
            if target.wants(path) and (pyc := compiler.compile(f"/{file.path}", source)) is not None:
                compiled[path] = _Member(_entry(path, "file", 0o644, len(pyc), "", target), None, pyc)
    for file in receipts:
        assert file.receipt is not None
        data = file.receipt({path: member.data for path, member in compiled.items()})
        given[file.path] = _Member(_entry(file.path, "file", file.mode, len(data), "", target), None, data)
    # What a wheel ships in `__pycache__` was made for other modification times: ours replaces it.
    yield from ({**given, **compiled}).values()


def _entry(path: str, kind: tar.Kind, mode: int, size: int, link: str, target: Target) -> tar.Entry:
    return tar.Entry(path, kind, mode, target.uid, target.gid, 0 if link else size, link, runtime.MTIME)


def _content(member: _Member) -> _Pieces:
    if member.file is None:
        return (member.data,)
    if member.file.link:
        return ()
    if isinstance(member.file.content, Held):
        return member.file.content.pieces
    return _chunks(member.file)


def _chunks(file: File) -> Iterator[bytes]:
    with file.content() as stream:
        while chunk := stream.read(CHUNK):
            yield chunk
