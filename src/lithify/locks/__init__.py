"""Other tools' locks, read and written.

They are conda-lock.yml, ``@EXPLICIT`` lists, pixi.lock, pylock.toml, requirements with hashes and packages.txt.

One module a format; this one knows which is which. What was read is a `ForeignLock`; `complete` makes packages of a
lock of ours out of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks.foreign import ForeignLock, Found, Lookup, complete, source_name
from lithify.locks.writing import Places
from lithify.platforms import Platform
from lithify.read.files import read_text

__all__ = [
    "FORMATS",
    "ForeignLock",
    "Found",
    "Lookup",
    "Places",
    "complete",
    "read_foreign",
    "source_name",
    "write_foreign",
]

FORMATS = ("conda-lock", "explicit", "pixi", "pylock", "requirements", "packages")


def read_foreign(path: Path, *, python: str = "") -> ForeignLock:
    """Read another tool's lock, whichever it is.

    ``python`` is the minor version ("3.13") that wheels are chosen for, where the lock leaves a choice.

    Raises:
        InputError: naming the file and the line of what is wrong, or for a file that is no lock that can be read.
    """
    text = read_text(path)
    kind = recognised(path.name, text)
    if kind == "conda-lock":
        from lithify.locks.conda_lock import parse_conda_lock

        return parse_conda_lock(text, path)
    if kind == "explicit":
        from lithify.locks.explicit import parse_explicit

        return parse_explicit(text, path)
    if kind == "pixi":
        from lithify.locks.pixi import read_pixi

        return read_pixi(path)
    if kind == "pylock":
        from lithify.locks.pylock import read_pylock

        return read_pylock(path, python)
    if kind == "requirements":
        from lithify.locks.hashed import read_hashed

        return read_hashed(path)
    if kind == "packages":
        raise InputError(
            f"{path} lists names and versions, and no files with hashes",
            hint="import the lock that it was made from: conda-lock.yml or conda-linux-64.lock",
        )
    raise InputError(
        f"{path} is no lock that can be read",
        hint="conda-lock.yml, @EXPLICIT lists, pixi.lock, pylock.toml and requirements with --hash can",
    )


def recognised(name: str, text: str) -> str | None:
    """The format of a file by its content, or else by its name; nothing for none of `FORMATS`."""
    if re.search(r"^@EXPLICIT\s*$", text, re.MULTILINE):
        return "explicit"
    if re.search(r"^lock-version\s*=", text, re.MULTILINE):
        return "pylock"
    if re.search(r"^environments:", text, re.MULTILINE) and re.search(r"^version:", text, re.MULTILINE):
        return "pixi"
    if re.search(r"^metadata:", text, re.MULTILINE) and re.search(r"^package:", text, re.MULTILINE):
        return "conda-lock"
    if re.search(r"^\s*--hash[= ]|\s--hash[= ]", text, re.MULTILINE):
        return "requirements"
    by_name = {"conda-lock.yml": "conda-lock", "pixi.lock": "pixi", "packages.txt": "packages"}
    return "pylock" if re.fullmatch(r"pylock(\.[^.]+)?\.toml", name) else by_name.get(name)


def write_foreign(
    kind: str,
    packages: Iterable[Package],
    places: Places,
    *,
    platform: Platform | None = None,
    channels: Sequence[str] = (),
    sources: Sequence[str] = (),
    content_hash: Mapping[str, str] | None = None,
    python: str = "",
    index: str = "",
    name: str = "conda-lock.yml",
) -> str:
    """The packages of one environment in another tool's format, one of `FORMATS`.

    ``platform`` is whose packages ``explicit`` and ``packages`` list. ``channels`` are names or addresses as the
    requirement files give them (for ``pixi``: addresses); ``sources``, ``content_hash`` and ``name`` are for
    ``conda-lock`` (see `lithify.locks.conda_lock_writer`), ``python`` for ``pylock``, ``index`` for ``pixi``.

    Raises:
        InputError: for an unknown format, a missing platform, or a package that lacks what the format wants.
    """
    chosen = list(packages)
    if kind in ("explicit", "packages"):
        if platform is None:
            raise InputError(f"`{kind}` lists one platform's packages, and none is named", hint="name one")
        if kind == "packages":
            from lithify.locks.packages_txt import write_packages_txt

            return write_packages_txt(chosen, platform)
        from lithify.locks.explicit import write_explicit

        return write_explicit(chosen, places, platform)
    if kind == "conda-lock":
        from lithify.locks.conda_lock_writer import write_conda_lock

        return write_conda_lock(
            chosen, places, channels=channels, sources=sources, content_hash=content_hash or {}, name=name
        )
    if kind == "pixi":
        from lithify.locks.pixi import write_pixi

        return write_pixi(chosen, places, channels=channels, index=index)
    if kind == "pylock":
        from lithify.locks.pylock import write_pylock

        return write_pylock(chosen, places, python=python)
    if kind == "requirements":
        from lithify.locks.hashed import write_hashed

        return write_hashed(chosen)
    raise InputError(f"unknown format `{kind}`", hint=f"formats are {', '.join(FORMATS)}")
