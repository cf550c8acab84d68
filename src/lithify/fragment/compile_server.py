"""Compiles Python sources. Runs under the image's own interpreter, inside the sandbox; imports nothing of Lithify.

Standard input carries requests, standard output answers, each with its lengths first (big-endian)::

    request   4 bytes: length of the path   8 bytes: length of the source   path   source
    greeting  4 bytes: the interpreter's magic number, once
    answer    8 bytes: length of the code   code, marshalled; nothing for a source that does not compile

The code does not depend on what the process compiled before. That takes one measure: CPython merges equal
constants of a module, and whether it merges two equal frozensets (``x in {"a", "b"}``) varies with the state of the
process. So all frozensets of a module are replaced by one of each. Compiling every file in a forked child is the
other way to get there; it takes eight times as long. Figures: docs/decisions/040-bytecode.md.
"""

from __future__ import annotations

import marshal
import sys
import types
import warnings
from importlib.util import MAGIC_NUMBER
from typing import Any, BinaryIO


def canonical(code: types.CodeType, known: dict[Any, frozenset[Any]]) -> types.CodeType:
    """``code`` with equal frozensets replaced by one object, ``known`` being those met so far."""
    constants: list[Any] = []
    changed = False
    for constant in code.co_consts:
        kind = type(constant)
        replaced: Any
        if kind is types.CodeType:
            replaced = canonical(constant, known)
        elif kind is frozenset or kind is tuple:
            replaced = canonical_constant(constant, known)
        else:
            replaced = constant
        changed = changed or replaced is not constant
        constants.append(replaced)
    return code.replace(co_consts=tuple(constants)) if changed else code


def canonical_constant(constant: Any, known: dict[Any, frozenset[Any]]) -> Any:
    """A frozenset, or a tuple that may hold some, by the same rule."""
    if type(constant) is frozenset:
        # By type and value: 1, 1.0 and True are equal, and so are the sets that hold them. Written in an order
        # of its own, since a set's order may depend on how it was filled.
        items = sorted(((type(item).__name__, repr(item), item) for item in constant), key=lambda item: item[:2])
        key = tuple(item[:2] for item in items)
        if key not in known:
            known[key] = frozenset([canonical_constant(item[2], known) for item in items])
        return known[key]
    if type(constant) is tuple and any(type(item) in (frozenset, tuple) for item in constant):
        replaced = tuple([canonical_constant(item, known) for item in constant])
        return replaced if any(new is not old for new, old in zip(replaced, constant, strict=True)) else constant
    return constant


def compiled(path: str, source: bytes) -> bytes:
    """The marshalled code of a module, or nothing where it has no valid code (templates, other Pythons' syntax)."""
    try:
        # Two statements: no name of ours may hold the code while it is marshalled, since marshal writes a
        # reference for whatever is referred to more than once.
        return marshal.dumps(canonical(compile(source, path, "exec", dont_inherit=True), {}))
    except (SyntaxError, ValueError, RecursionError, OverflowError, MemoryError):
        return b""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while True:
        head = requests.read(12)
        if len(head) < 12:
            return
        path = requests.read(int.from_bytes(head[:4], "big"))
        source = requests.read(int.from_bytes(head[4:], "big"))
        code = compiled(path.decode("utf-8", "surrogateescape"), source)
        answers.write(len(code).to_bytes(8, "big") + code)
        answers.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.buffer.write(MAGIC_NUMBER)
    sys.stdout.buffer.flush()
    serve(sys.stdin.buffer, sys.stdout.buffer)
