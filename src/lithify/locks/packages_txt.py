"""``packages.txt``: what is in an image, a line a package, for people to read and to compare.

``name==version`` as Pangeo writes it today; ``name-version`` as in 2020.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.platforms import Platform
from lithify.read.files import read_text
from lithify.read.yaml import shortened

_TODAY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)\s*==?\s*([A-Za-z0-9_.!+-]+)(?:=[^=\s]+)?")
_IN_2020 = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)-([A-Za-z0-9_.!+]+)")


def read_packages_txt(path: Path) -> tuple[tuple[str, str], ...]:
    """The names and the versions that the ``packages.txt`` at ``path`` lists, in its order.

    Raises:
        InputError: naming the file and the line of what is neither spelling.
    """
    return tuple(parse_packages_txt(read_text(path), path))


def parse_packages_txt(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """What ``text``, the content of ``path``, lists; see `read_packages_txt`."""
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        match = _TODAY.fullmatch(word) or _IN_2020.fullmatch(word)
        if match is None:
            raise InputError(
                f"{path}:{number}: `{shortened(line.strip())}` is no package and version",
                hint="a line is `name==version`; before 2021 it was `name-version`",
            )
        yield match[1].lower(), match[2]


def write_packages_txt(packages: Iterable[Package], platform: Platform) -> str:
    """The conda and Python packages for one platform, a ``name==version`` a line, sorted by name."""
    lines = {
        f"{package.name}=={package.version}\n"
        for package in packages
        if package.platform == platform and package.kind in ("conda", "pypi")
    }
    return "".join(sorted(lines))
