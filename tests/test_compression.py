"""Compressed layers: frames can be joined, any tool reads them, and damage is an error of ours."""

from __future__ import annotations

import gzip
import io
import random
import re
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lithify.errors import InputError
from lithify.store.compression import GZIP, ZSTD, Compression, compress, compressor, decompressed, parse_compression

both = pytest.mark.parametrize("compression", [ZSTD, GZIP], ids=lambda compression: compression.name)


def _all(data: bytes, media_type: str) -> bytes:
    return b"".join(decompressed(io.BytesIO(data), media_type))


@both
@given(parts=st.lists(st.binary(max_size=5000), min_size=1, max_size=5))
def test_frames_may_be_joined(compression: Compression, parts: list[bytes]) -> None:
    joined = b"".join(compress(part, compression) for part in parts)

    assert _all(joined, compression.media_type) == b"".join(parts)


def test_the_standard_gzip_reads_what_we_write() -> None:
    assert gzip.decompress(compress(b"one", GZIP) + compress(b"two", GZIP)) == b"onetwo"


def test_the_zstd_program_reads_what_we_write() -> None:
    try:
        result = subprocess.run(["zstd", "-dc"], input=compress(b"one", ZSTD) + compress(b"two", ZSTD), stdout=-1)
    except FileNotFoundError:
        pytest.skip("no zstd program here")
    assert result.stdout == b"onetwo"


@both
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_the_bytes_do_not_depend_on_the_pieces(compression: Compression, data: st.DataObject, seed: int) -> None:
    source = random.Random(seed)
    content = b"".join(source.randbytes(40) * source.randint(1, 200) for _ in range(source.randint(1, 500)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    frame = compressor(compression)
    pieces = b"".join(frame.compress(content[start:end]) for start, end in pairwise([0, *cuts, len(content)]))

    assert pieces + frame.flush() == compress(content, compression)


def test_gzip_holds_neither_name_nor_time() -> None:
    assert compress(b"x", GZIP)[3:8] == bytes(5)


@both
@given(data=st.data())
def test_damage_is_an_error_or_other_bytes_but_never_a_traceback(compression: Compression, data: st.DataObject) -> None:
    blob = bytearray(compress(b"some text " * 500, compression))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        _all(bytes(blob), compression.media_type)
    except InputError as error:
        assert "does not decompress" in error.message


@both
def test_a_cut_layer_is_an_error(compression: Compression) -> None:
    with pytest.raises(InputError, match="does not decompress"):
        _all(compress(b"some text " * 500, compression)[:-5], compression.media_type)


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        ("application/vnd.oci.image.layer.v1.tar", None),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar", None),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", ZSTD),
    ],
)
def test_the_media_types_of_others(media_type: str, compression: Compression | None) -> None:
    assert _all(compress(b"data", compression) if compression else b"data", media_type) == b"data"


def test_another_media_type_is_refused() -> None:
    with pytest.raises(InputError, match="not a layer's media type"):
        _all(b"", "application/json")


def test_an_unknown_compression_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        parse_compression("xz")
    assert caught.value.hint == "known are zstd, gzip"


@both
def test_the_identity_names_library_version_and_level(compression: Compression) -> None:
    assert re.fullmatch(rf"{compression.name}-\S*\d\S*-{compression.level}", compression.identity)
