"""Putting the prefix where a conda package has its placeholder.

A conda package is built below a long path, the placeholder, and whoever installs it replaces that by the real one:
in text anywhere, in binaries inside of strings that end with a NUL and keep their length. The rules are those of
conda and rattler, byte for byte.

Content is taken and given in pieces: what does not change is a view of the original, so a large library costs no
memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Piece = bytes | memoryview
# What Linux reads of a script's first line (execve(2)).
LONGEST_SHEBANG = 127
_SHEBANG = re.compile(rb"(#! *)(/(?:\\ |[^ \n\r\t])*)(.*)")
_PYTHON = re.compile(rb"python(?:\d+(?:\.\d+)?)?")
_SMALL, _LARGE = 4 << 10, 1 << 20


class PrefixTooLongError(ValueError):
    """The prefix is longer than the placeholder, and the file is a binary, which cannot grow."""


def replace_text(data: memoryview, placeholder: bytes, prefix: bytes) -> Iterator[Piece]:
    """A text with ``prefix`` for each ``placeholder``; its first line, where that names an interpreter, still works."""
    at = 0
    if bytes(data[:2]) == b"#!":
        end = find(data, b"\n", 0)
        at = len(data) if end < 0 else end
        yield shebang(bytes(data[:at]), placeholder, prefix)
    while (hit := find(data, placeholder, at)) >= 0:
        yield data[at:hit]
        yield prefix
        at = hit + len(placeholder)
    yield data[at:]


def replace_binary(data: memoryview, placeholder: bytes, prefix: bytes) -> Iterator[Piece]:
    """A binary with ``prefix`` for each ``placeholder``, of the same length: what a string loses, NULs fill.

    Raises:
        PrefixTooLongError: when it holds the placeholder, and the prefix is longer.
    """
    at = 0
    while (hit := find(data, placeholder, at)) >= 0:
        if len(prefix) > len(placeholder):
            raise PrefixTooLongError(f"{len(prefix)} bytes do not fit where {len(placeholder)} are")
        end = find(data, b"\0", hit + len(placeholder))
        end = len(data) if end < 0 else end
        yield data[at:hit]
        yield bytes(data[hit:end]).replace(placeholder, prefix).ljust(end - hit, b"\0")
        at = end
    yield data[at:]


def shebang(line: bytes, placeholder: bytes, prefix: bytes) -> bytes:
    """A script's first line, ``#!...``: where a kernel could not follow it, another way to the same interpreter."""
    if b" " in prefix:
        return _roundabout(line).replace(placeholder, prefix) if placeholder in line else line
    line = line.replace(placeholder, prefix)
    return line if len(line) <= LONGEST_SHEBANG else _roundabout(line)


def _roundabout(line: bytes) -> bytes:
    match = _SHEBANG.fullmatch(line)
    if match is None:
        return line
    path, options = match[2], match[3]
    name = path.rpartition(b"/")[2]
    if _PYTHON.fullmatch(name):
        # To sh, two empty strings and a command; to Python, the beginning of a string that nobody reads.
        return b"#!/bin/sh\n'''exec' \"%b\"%b \"$0\" \"$@\" #'''" % (path, options)
    return b"#!/usr/bin/env %b%b" % (name, options)


def find(data: memoryview, wanted: bytes, start: int) -> int:
    """Where ``wanted`` is in ``data``, from ``start`` on, or -1. Copies no more than a window of it at once."""
    size = _SMALL
    while start < len(data):
        found = bytes(data[start : start + size + len(wanted) - 1]).find(wanted)
        if found >= 0:
            return start + found
        start += size
        size = min(4 * size, _LARGE)
    return -1
