"""Sources of packages. A new one (conda, part of no other module) implements the protocol below.

A source is named in the lock (``pypi``, ``debian/trixie``); where it is served from is configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lithify.lockfile import Package
from lithify.platforms import Platform
from lithify.progress import Report


@dataclass(frozen=True)
class Target:
    """What a package's files are made for: with the artefact's sha256, all that a fragment may depend on.

    ``python`` is the interpreter's minor version ("3.13"); ``python_build`` identifies the exact interpreter
    that compiles (Debian's version of it, say).
    """

    platform: Platform
    prefix: str
    uid: int
    gid: int
    python: str
    python_build: str


@dataclass(frozen=True)
class File:
    """One file at its final place. ``path`` is relative to the image's root; ``link`` makes it a symbolic link.

    ``size`` bytes come from ``content()``; ``compile`` says that a ``.pyc`` belongs beside it. ``sha256`` is the
    content's, in hexadecimal, where the source checks the content against it while it is read: it saves hashing twice.
    """

    path: str
    mode: int
    size: int
    content: Content
    link: str = ""
    compile: bool = False
    sha256: str | None = None


class Content(Protocol):
    """Opens a file's bytes, once or more."""

    def __call__(self) -> BinaryIO:
        """A new stream of the bytes."""
        ...


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
