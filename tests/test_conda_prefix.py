"""Placeholders and prefixes: in text, in first lines, in binaries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lithify.sources.conda.prefix import (
    PrefixTooLongError,
    find,
    replace_binary,
    replace_text,
    shebang,
)

OLD = b"/old/place"


def text(data: bytes, prefix: bytes = b"/new", old: bytes = OLD) -> bytes:
    return b"".join(replace_text(memoryview(data), old, prefix))


def binary(data: bytes, prefix: bytes = b"/new", old: bytes = OLD) -> bytes:
    return b"".join(replace_binary(memoryview(data), old, prefix))


# Pieces that meet, overlap and are nearly the placeholder.
CONTENT = st.lists(st.sampled_from([OLD, b"/old", b"/place", b"/old/plac", b"\0", b"\n", b"x", b"#!", b" "])).map(
    b"".join
)
LONG = st.integers(0, 20_000).flatmap(lambda n: CONTENT.map(lambda content: b"." * n + content * 3))


@given(CONTENT | LONG)
def test_a_text_is_as_if_replaced_in_one_go(data: bytes) -> None:
    if not data.startswith(b"#!"):
        assert text(data) == data.replace(OLD, b"/new")


@given(CONTENT | LONG)
def test_a_binary_is_as_if_each_string_were_replaced_and_filled(data: bytes) -> None:
    strings = []
    for one in data.split(b"\0"):
        strings.append(one.replace(OLD, b"/new").ljust(len(one), b"\0"))
    assert binary(data) == b"\0".join(strings)
    assert len(binary(data)) == len(data)


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=3), st.integers(0, 300))
def test_finding_is_bytes_finding(data: bytes, wanted: bytes, start: int) -> None:
    assert find(memoryview(data), wanted, start) == (data.find(wanted, start) if start < len(data) else -1)


@pytest.mark.parametrize("at", [4095 - 5, 4096, 4095, (4 << 10) + (16 << 10) - 3, 2_000_000])
def test_what_lies_across_two_windows_is_found(at: int) -> None:
    data = b"." * at + OLD + b"." * 100
    assert find(memoryview(data), OLD, 0) == at


def test_a_longer_prefix_does_not_fit_into_a_binary() -> None:
    with pytest.raises(PrefixTooLongError):
        binary(b"a" + OLD + b"\0", OLD + b"x")
    assert binary(b"nothing of it", OLD + b"x") == b"nothing of it"
    assert text(OLD, OLD + b"x") == OLD + b"x"


LONG_PREFIX = b"/" + b"p" * 130


@pytest.mark.parametrize(
    ("line", "prefix", "expected"),
    [
        (b"#!/old/place/bin/sh", b"/new", b"#!/new/bin/sh"),
        (b"#! /old/place/bin/perl -w", LONG_PREFIX, b"#!/usr/bin/env perl -w"),
        (b"#!/old/place/bin/Rscript --vanilla", b"/a b", b"#!/usr/bin/env Rscript --vanilla"),
        (
            b"#!/old/place/bin/python3.11 -s",
            b"/a b",
            b"#!/bin/sh\n'''exec' \"/a b/bin/python3.11\" -s \"$0\" \"$@\" #'''",
        ),
        (
            b"#!/old/place/bin/python",
            LONG_PREFIX,
            b"#!/bin/sh\n'''exec' \"" + LONG_PREFIX + b'/bin/python" "$0" "$@" #\'\'\'',
        ),
        (b"#!/bin/sh", b"/a b", b"#!/bin/sh"),
        (b"#!", b"/new", b"#!"),
        (b"#!relative " + OLD * 20, b"/new/place", b"#!relative " + b"/new/place" * 20),
    ],
)
def test_a_first_line_still_leads_to_its_interpreter(line: bytes, prefix: bytes, expected: bytes) -> None:
    assert shebang(line, OLD, prefix) == expected
    rest = b"\nprint('/old/place')\n"
    assert text(line + rest, prefix) == expected + rest.replace(OLD, prefix)


def test_a_text_of_one_line_only_is_replaced() -> None:
    assert text(b"#!/old/place/bin/sh") == b"#!/new/bin/sh"
