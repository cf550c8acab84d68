"""Compression whose bytes are the same wherever and whenever they are made.

zstd frames (RFC 8878, section 3) and gzip members (RFC 1952, section 2.2) may be joined, so a package is
compressed once and a layer is a concatenation. The bytes depend on the library, its version and its
parameters, never on the machine: `Compression.identity` holds the three and belongs in every cache key.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

from lithify.errors import InputError

if sys.version_info >= (3, 14):  # pragma: no cover
    from compression import zstd
else:
    from backports import zstd

Name = Literal["zstd", "gzip"]
CHUNK = 1 << 20


class Compressor(Protocol):
    """Turns a stream into one compressed frame: what both libraries' compression objects do."""

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        """Compress ``data``; what comes back may be empty."""
        ...

    def flush(self) -> bytes:
        """End the frame."""
        ...


@dataclass(frozen=True)
class Compression:
    """A way to compress layers: its name, OCI's media type for it, and its level."""

    name: Name
    media_type: str
    level: int

    @property
    def identity(self) -> str:
        """What the compressed bytes depend on besides the data."""
        return f"{self.name}-{_library_version(self.name)}-{self.level}"


# Level 3: three quarters of level 1's speed for a tenth fewer bytes; level 10 is four times slower for
# another tenth. Measured figures: docs/explanation/performance.md.
ZSTD = Compression("zstd", "application/vnd.oci.image.layer.v1.tar+zstd", 3)
GZIP = Compression("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", 6)
_BY_NAME: dict[str, Compression] = {ZSTD.name: ZSTD, GZIP.name: GZIP}


def parse_compression(name: str) -> Compression:
    """The compression called ``name``.

    Raises:
        InputError: for a name other than ``zstd`` and ``gzip``.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise InputError(f"unknown compression `{name}`", hint=f"known are {', '.join(_BY_NAME)}") from None


def compressor(compression: Compression) -> Compressor:
    """A new frame of ``compression``."""
    if compression.name == "zstd":
        return zstd.ZstdCompressor(level=compression.level)
    from zlib_ng import zlib_ng

    # wbits 31: a gzip header with no name, mtime 0 and a fixed OS byte.
    return _Even(zlib_ng.compressobj(compression.level, zlib_ng.DEFLATED, 31))


class _Even:
    """Feeds a compressor pieces of one size: what zlib-ng makes depends on the pieces it gets, zstd's does not."""

    def __init__(self, compressor: Compressor) -> None:
        self._compressor = compressor
        self._waiting = bytearray()

    def compress(self, data: bytes | bytearray | memoryview, /) -> bytes:
        self._waiting += data
        whole = len(self._waiting) // CHUNK * CHUNK
        if not whole:
            return b""
        with memoryview(self._waiting) as view:
            parts = [self._compressor.compress(view[at : at + CHUNK]) for at in range(0, whole, CHUNK)]
        del self._waiting[:whole]
        return b"".join(parts)

    def flush(self) -> bytes:
        return self._compressor.compress(self._waiting) + self._compressor.flush()


def compress(data: bytes, compression: Compression) -> bytes:
    """``data`` as one frame."""
    frame = compressor(compression)
    return frame.compress(data) + frame.flush()


class Decompressor(Protocol):
    """Turns one compressed frame back into a stream."""

    def decompress(self, data: bytes, /) -> bytes:
        """The uncompressed bytes that ``data`` completes."""
        ...


def decompressor(compression: Compression) -> Decompressor:
    """A decompressor of one frame of ours."""
    if compression.name == "zstd":
        return zstd.ZstdDecompressor()
    from zlib_ng import zlib_ng

    return zlib_ng.decompressobj(31)


def decompressed(file: BinaryIO, media_type: str) -> Iterator[bytes]:
    """The uncompressed bytes of a layer blob, in chunks; ``media_type`` says how it is compressed.

    Knows OCI's and Docker's layer types: plain tar, gzip and zstd, of one frame or many.

    Raises:
        InputError: for a media type that is no layer's, or for data that does not decompress.
    """
    from zlib_ng import zlib_ng

    zlib_error: type[Exception] = zlib_ng.error  # type: ignore[assignment]  # an instance, say its stubs
    try:
        if media_type.endswith(("+zstd", ".zstd")):
            with zstd.ZstdFile(file) as stream:
                while chunk := stream.read(CHUNK):
                    yield chunk
        elif media_type.endswith(("+gzip", ".gzip")):
            from zlib_ng import gzip_ng, zlib_ng

            try:
                with gzip_ng.GzipNGFile(fileobj=file, mode="rb") as stream:  # type: ignore[no-untyped-call]
                    while chunk := stream.read(CHUNK):
                        yield chunk
            except zlib_ng.error as error:  # type: ignore[misc]
                raise OSError(str(error)) from error
        elif media_type.endswith(".tar"):
            while chunk := file.read(CHUNK):
                yield chunk
        else:
            raise InputError(f"`{media_type}` is not a layer's media type")
    except (zstd.ZstdError, zlib_error, EOFError, OSError) as error:
        raise InputError(f"a layer does not decompress: {error}") from error


def _library_version(name: Name) -> str:
    if name == "zstd":
        return zstd.zstd_version
    from zlib_ng import zlib_ng

    return str(zlib_ng.ZLIBNG_VERSION)
