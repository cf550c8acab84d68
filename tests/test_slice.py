"""Slices: the same bytes, however a file's content is given."""

from __future__ import annotations

import functools
import hashlib
import io
import tarfile
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lithify.errors import LithifyError
from lithify.fragment.slice import Slice, folders, write_slice
from lithify.platforms import LINUX_AMD64
from lithify.sources import File, Held, Target
from lithify.store import tar
from lithify.store.compression import GZIP, ZSTD, Compression, decompressed

TARGET = Target(LINUX_AMD64, "/srv/env", 1000, 1000, "", "")


def written(files: list[File], compression: Compression = ZSTD) -> tuple[Slice, bytes]:
    output = io.BytesIO()
    return write_slice(files, TARGET, compression, None, output), output.getvalue()


def file(path: str, pieces: tuple[bytes | memoryview, ...], *, held: bool, sha256: str | None = None) -> File:
    content = b"".join(pieces)
    given = Held(pieces) if held else functools.partial(io.BytesIO, content)
    return File(path, 0o644, len(content), given, sha256=sha256)


# Some beyond what is gathered, and beyond a chunk.
SIZES = st.sampled_from([0, 1, 511, 512, 513, 100_000, (1 << 18) - 1, 1 << 18, (1 << 20) + 1])
CONTENTS = st.lists(st.lists(SIZES, max_size=3), max_size=4)


@settings(deadline=None, max_examples=40)
@given(CONTENTS)
def test_pieces_are_written_as_a_stream_is(contents: list[list[int]]) -> None:
    pieces = [tuple(memoryview(bytes([number + 1]) * size) for size in sizes) for number, sizes in enumerate(contents)]
    streamed = [file(f"srv/env/{number}", one, held=False) for number, one in enumerate(pieces)]
    held = [file(f"srv/env/{number}", one, held=True) for number, one in enumerate(pieces)]
    hashed = [replace(one, sha256=hashlib.sha256(one.content().read()).hexdigest()) for one in held]
    for compression in (ZSTD, GZIP):
        told, data = written(streamed, compression)
        assert written(held, compression) == (told, data)
        assert written(hashed, compression) == (told, data)
        whole = b"".join(decompressed(io.BytesIO(data), compression.media_type))
        alone = folders(told.paths) + whole + tar.END
        assert told.alone == f"sha256:{hashlib.sha256(alone).hexdigest()}"
        assert told.sha256 == hashlib.sha256(data).hexdigest()
        assert told.size == len(data)
        with tarfile.open(fileobj=io.BytesIO(alone)) as archive:
            found = {}
            for member in archive:
                if member.isreg():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    found[member.name] = stream.read()
        assert found == {one.path: one.content().read() for one in held}


def test_a_content_of_another_size_is_refused() -> None:
    lying = replace(file("srv/env/x", (b"abc",), held=True), size=4)
    with pytest.raises(LithifyError, match="4 bytes announced, 3 found"):
        written([lying])


def test_a_path_that_comes_twice_is_refused() -> None:
    with pytest.raises(LithifyError, match="twice"):
        written([file("srv/env/x", (), held=True)] * 2)
