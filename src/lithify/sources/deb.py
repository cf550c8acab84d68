"""Reading a ``.deb``: an ``ar`` archive of a control and a data tar (deb(5))."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from lithify.errors import FetchError

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

_MAGIC = b"!<arch>\n"
_CONTROL_LIMIT = 64 << 20


def control_stanza(deb: Path) -> str:
    """The control stanza of ``deb`` (deb-control(5)), without trailing newlines.

    Raises:
        FetchError: when the file is not a Debian package.
    """
    with _readable(deb):
        with deb.open("rb") as file:
            stream, size = _member(file, "control.tar")
            if size > _CONTROL_LIMIT:
                raise ValueError(f"its control archive claims {size} bytes")
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if member.name.removeprefix("./") == "control":
                        content = archive.extractfile(member)
                        if content is not None and member.size <= _CONTROL_LIMIT:
                            return content.read().decode("utf-8").rstrip("\n")
        raise ValueError("it has no control file")


def bootstrap_set(stanzas: Iterable[str]) -> frozenset[str]:
    """The names of the Essential packages among ``stanzas``, and of what they need: with them unpacked, dpkg runs."""
    needs: dict[str, set[str]] = {}
    providers: dict[str, set[str]] = {}
    chosen: list[str] = []
    for stanza in stanzas:
        name = _names(_field(stanza, "Package"))[0]
        needs[name] = set(_names(_field(stanza, "Depends"))) | set(_names(_field(stanza, "Pre-Depends")))
        for provided in (name, *_names(_field(stanza, "Provides"))):
            providers.setdefault(provided, set()).add(name)
        if _field(stanza, "Essential") == "yes":
            chosen.append(name)
    found: set[str] = set()
    while chosen:
        name = chosen.pop()
        if name not in found:
            found.add(name)
            chosen += [p for need in needs[name] for p in providers.get(need, ())]
    return frozenset(found)


def _field(stanza: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*)$", stanza, re.MULTILINE)
    return match[1].strip() if match else ""


def _names(relation: str) -> list[str]:
    """The names in a relationship field (Debian policy, section 7.1), alternatives included."""
    return [re.split(r"[\s(:\[]", part.strip(), maxsplit=1)[0] for part in re.split(r"[,|]", relation) if part.strip()]


@contextmanager
def data_archive(deb: Path) -> Iterator[tarfile.TarFile]:
    """The data tar of ``deb``, opened as a stream: its members can be read once, in order.

    Raises:
        FetchError: when the file is not a Debian package, also while the members are read.
    """
    with _readable(deb), deb.open("rb") as file:
        stream, _ = _member(file, "data.tar")
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
            yield archive


@contextmanager
def _readable(deb: Path) -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        EOFError,
        tarfile.TarError,
        lzma.LZMAError,
        zlib.error,
        zstd.ZstdError,
        gzip.BadGzipFile,
    ) as error:
        raise FetchError(
            f"{deb} is not a readable Debian package: {error}",
            hint="remove the file and build again: it is fetched anew",
        ) from error


def _member(file: BinaryIO, prefix: str) -> tuple[IO[bytes], int]:
    """The decompressed member of an ``ar`` archive whose name starts with ``prefix``, and its compressed size."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no ar archive")
    while True:
        header = file.read(60)
        if len(header) < 60 or header[58:] != b"`\n":
            raise ValueError(f"it has no {prefix}")
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        if size < 0:
            raise ValueError(f"{name} has size {size}")
        if name.startswith(prefix):
            return _decompressed(_Part(file, size), name.removeprefix(prefix)), size
        file.seek(size + size % 2, io.SEEK_CUR)


def _decompressed(part: BinaryIO, suffix: str) -> IO[bytes]:
    if suffix == ".xz":
        return lzma.open(part, "rb")
    if suffix == ".zst":
        return cast(IO[bytes], zstd.ZstdFile(part))
    if suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=part, mode="rb"))
    if suffix == "":
        return part
    raise ValueError(f"its compression `{suffix}` is not known")


class _Part(io.RawIOBase, BinaryIO):
    """The next ``size`` bytes of a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        data = self._file.read(wanted)
        self._left -= len(data)
        return data
