"""Sources of packages. A new one implements the protocol below, and no stage after `resolve` knows of it.

A source is named in the lock (``pypi``, ``debian/trixie``); where it is served from is configuration.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lithify.lockfile import Package
from lithify.platforms import Platform
from lithify.progress import Report

# Gives the artefacts of packages, where they lie on this machine, fetched if need be.
Fetched = Callable[[Sequence[Package]], Mapping[Package, Path]]


@dataclass(frozen=True)
class Target:
    """What a package's files are made for: with the artefact's sha256, all that a fragment may depend on.

    ``python`` is the interpreter's minor version ("3.13", or nothing where there is none); ``python_build`` identifies
    the exact interpreter that compiles (Debian's version of it, say). ``site_packages`` is where that interpreter looks
    for packages, below the prefix.

    ``exclude`` and ``keep`` are the family's rules of what to leave out: shell patterns of paths below the prefix, in
    which a ``*`` also matches ``/``; ``keep`` wins. ``without`` are exact paths, relative to the image's root, that
    another package owns. ``address`` is what a conda package's own record may say of where it came from.
    """

    platform: Platform
    prefix: str
    uid: int
    gid: int
    python: str
    python_build: str
    site_packages: str = ""
    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    address: str = ""

    @property
    def packages_folder(self) -> str:
        """Where Python packages are installed, relative to the image's root."""
        return f"{self.prefix.strip('/')}/{self.site_packages or f'lib/python{self.python}/site-packages'}"

    def wants(self, path: str) -> bool:
        """Whether a path, relative to the image's root, is to be in the image."""
        if not self.exclude and not self.without:
            return True
        return _wanted(self.prefix, self.exclude, self.keep, self.without)(path)


@functools.lru_cache(maxsize=64)
def _wanted(
    prefix: str, exclude: tuple[str, ...], keep: tuple[str, ...], without: tuple[str, ...]
) -> Callable[[str], bool]:
    below = f"{prefix.strip('/')}/"
    excluded, kept, owned = _either(exclude), _either(keep), frozenset(without)

    def wanted(path: str) -> bool:
        inside = path.removeprefix(below)
        return path not in owned and (not excluded(inside) or kept(inside))

    return wanted


def _either(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a path matches one of ``patterns``."""
    if not patterns:
        return lambda path: False
    match = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns)).match
    return lambda path: match(path) is not None


@dataclass(frozen=True)
class File:
    """One file at its final place. ``path`` is relative to the image's root; ``link`` makes it a symbolic link.

    ``size`` bytes come from ``content()``; ``compile`` says that a ``.pyc`` belongs beside it. ``sha256`` is the
    content's, in hexadecimal, where the source checks the content against it while it is read: it saves hashing twice.

    A file with a ``receipt`` tells of the package's other files: its content is what that makes of the ``.pyc`` files
    that were compiled, by path, and ``size`` and ``content`` count for nothing.
    """

    path: str
    mode: int
    size: int
    content: Content
    link: str = ""
    compile: bool = False
    sha256: str | None = None
    receipt: Callable[[Mapping[str, bytes]], bytes] | None = None


class Content(Protocol):
    """Opens a file's bytes, once or more."""

    def __call__(self) -> BinaryIO:
        """A new stream of the bytes."""
        ...


@dataclass(frozen=True)
class Held:
    """Content that is in memory, or in a mapped file, in pieces: whoever writes it need not copy it first."""

    pieces: tuple[bytes | memoryview, ...]

    def __call__(self) -> BinaryIO:
        """A stream of a copy."""
        return io.BytesIO(b"".join(self.pieces))


class Source(Protocol):
    """What every source of packages can do."""

    def addresses(self, packages: Sequence[Package], report: Report) -> Mapping[Package, str]:
        """Where each package can be fetched now: URLs, asked of the configured index or mirror.

        Raises:
            FetchError: naming the packages that the source no longer serves, with what to do.
        """
        ...


class FragmentSource(Source, Protocol):
    """A source whose packages become fragments: files at final places, no code run."""

    def narrowed(self, package: Package, target: Target) -> Target:
        """``target`` without what the files of ``package`` cannot depend on: the less, the more can be reused."""
        ...

    def files(self, package: Package, artefact: Path, target: Target) -> Iterator[File]:
        """The files that installing ``package`` from ``artefact`` for ``target`` gives, in any order.

        Raises:
            LithifyError: for an artefact that is broken, lies about itself, or would write outside the prefix.
        """
        ...


def by_source(packages: Iterable[Package]) -> dict[str, list[Package]]:
    """The packages of each source, by the source's name."""
    grouped: dict[str, list[Package]] = {}
    for package in packages:
        grouped.setdefault(package.source, []).append(package)
    return grouped
