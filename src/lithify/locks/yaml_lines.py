"""YAML as PyYAML writes it (block style, keys in the order given), line by line.

Byte for byte what ``yaml.dump(..., sort_keys=False)`` gives, which takes five seconds for the lock of a large image:
texts of one plain word are written directly, and only the others by PyYAML's own emitter.
"""

from __future__ import annotations

import functools
import re

from lithify.read.yaml import kind_of

# What begins with no indicator and has none inside (YAML 1.1, sections 5.3 and 9.1.3).
_PLAIN = re.compile(r"[A-Za-z0-9_./](?:[A-Za-z0-9_./+=<>!,*|~@%^$()-]|:(?=[A-Za-z0-9/]))*")
_QUOTED = re.compile(r"[A-Za-z0-9_./+=<>!,*|~@%^$()-]*")
_SHORT = 60


def line(key: str, value: str, indent: int) -> str:
    """The line(s) for ``key: value``, ``indent`` columns from the margin, with the line end."""
    if key and (len(key) + len(value) + indent <= _SHORT or (" " not in value and len(key) < _SHORT)):
        short = _scalar(key), _scalar(value)
        if None not in short:
            return f"{' ' * indent}{short[0]}: {short[1]}\n"
    return _dumped(key, value, indent)


@functools.lru_cache(maxsize=1 << 16)
def _scalar(text: str) -> str | None:
    """A text in the style that PyYAML chooses for it, where that is easily said."""
    if text.startswith("..."):
        return None
    if _PLAIN.fullmatch(text):
        return text if kind_of(text) == "text" else f"'{text}'"
    # Words with a space between are plain, or quoted for how the first begins: `1.2.* *_cp312`, `>=3 *_cp312`.
    words = text.split(" ")
    simple = all(words) and all(_QUOTED.fullmatch(word) for word in words) and kind_of(text) == "text"
    if simple and _PLAIN.fullmatch(words[0]):
        return text
    return f"'{text}'" if not text or (simple and text[0] in ">*!|%@") else None


@functools.lru_cache(maxsize=1 << 12)
def _dumped(key: str, value: str, indent: int) -> str:
    import yaml

    # As deep as it will stand: where a long text is folded depends on the column.
    document: object = {key: value}
    for _ in range(indent // 2):
        document = {"x": document}
    text = yaml.dump(document, sort_keys=False, Dumper=yaml.SafeDumper)
    return text.split("\n", indent // 2)[indent // 2]
