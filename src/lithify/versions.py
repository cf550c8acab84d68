"""Which of two versions is the newer, for telling what a lock changed; resolvers have rules of their own."""

from __future__ import annotations

import re

from packaging.version import InvalidVersion, Version

_PARTS = re.compile(r"\d+|[a-z]+|~")


def is_newer(old: str, new: str, kind: str) -> bool:
    """Whether ``new`` comes after ``old``; ``kind`` is that of their source (``pypi``, ``conda``, ``debian``)."""
    if kind != "debian":
        try:
            return Version(new) > Version(old)
        except InvalidVersion:
            pass
    return _key(new) > _key(old)


def _key(version: str) -> list[tuple[int, int, str]]:
    """Numbers by value after letters, an epoch first; ``~`` comes before the end (Debian policy, section 5.6.12)."""
    epoch, colon, rest = version.lower().rpartition(":")
    parts: list[tuple[int, int, str]] = [(2, int(epoch) if colon and epoch.isdecimal() else 0, "")]
    for part in _PARTS.findall(rest):
        if part == "~":
            parts.append((-1, 0, ""))
        else:
            parts.append((2, int(part), "") if part.isdecimal() else (1, 0, part))
    return [*parts, (0, 0, "")]
