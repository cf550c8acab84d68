"""What another tool's lock says, in one form whatever the tool; and how it becomes packages of a lock of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lithify.addresses import channel_name
from lithify.errors import FetchError, InputError
from lithify.lockfile import Package
from lithify.platforms import PLATFORMS, Platform

BY_SUBDIR = {platform.subdir: platform for platform in PLATFORMS.values()}


@dataclass(frozen=True)
class Found:
    """One package that another tool's lock names, for one platform.

    ``kind`` is ``conda`` or ``pypi``. ``file`` is as in `lithify.lockfile.Package`; nothing where the lock gives only
    hashes. ``channel`` is the address of a conda package's channel, ``address`` that of a wheel: both without
    credentials. ``sha256`` and ``md5`` are hexadecimal, nothing where the lock has none; ``hashes`` are the sha256 of
    which one is the file's, where the lock leaves the choice open. ``size`` is in bytes, 0 where it is not said.
    ``where`` is ``FILE:LINE``, or ``FILE`` where the reader knows no lines.
    """

    kind: str
    name: str
    version: str
    platform: Platform
    file: str
    where: str
    channel: str = ""
    address: str = ""
    sha256: str = ""
    md5: str = ""
    hashes: tuple[str, ...] = ()
    size: int = 0
    depends: tuple[str, ...] = field(default=(), compare=False)
    constrains: tuple[str, ...] = field(default=(), compare=False)
    site_packages: str = field(default="", compare=False)


@dataclass(frozen=True)
class ForeignLock:
    """Another tool's lock: its packages for the platforms that we build.

    ``channels`` are conda channels as the lock lists them, or else the addresses its packages come from, in the order
    of the list; without credentials. ``notes`` say what was left out. ``content_hash`` is conda-lock's, by conda's
    subdir; ``sources`` are the files that it was locked from, relative to it.
    """

    path: Path
    format: str
    platforms: tuple[Platform, ...]
    found: tuple[Found, ...]
    channels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    content_hash: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def of(self, platform: Platform) -> tuple[Found, ...]:
        """What the lock has for ``platform``."""
        return tuple(found for found in self.found if found.platform == platform)


# Finds what a lock does not say of its packages: the whole package for each, of the channel's index or learned from the
# file itself. What cannot be found is left out; the `source` is the lookup's to choose.
Lookup = Callable[[Sequence[Found]], Mapping[Found, Package]]


def complete(
    found: Iterable[Found], lookup: Lookup | None = None, source_of: Callable[[Found], str] | None = None
) -> tuple[Package, ...]:
    """The packages of a lock of ours, sorted: taken over where their sha256 is known, asked of ``lookup`` where not.

    ``source_of`` names a package's source (default: ``conda/`` and the path of the channel's address; ``pypi``).

    Raises:
        FetchError: naming the packages that ``lookup`` did not find, or that are not what the lock says they are.
    """
    named = source_of or source_name
    packages: list[Package] = []
    open_: list[Found] = []
    for one in found:
        if one.sha256 and one.file:
            packages.append(_package(one, named(one)))
        else:
            open_.append(one)
    answers = lookup(open_) if open_ and lookup else {}
    missing = [one for one in open_ if one not in answers]
    if missing:
        listed = "\n".join(f"  {one.where}: {one.file or f'{one.name} {one.version}'}" for one in missing)
        raise FetchError(
            f"the sha256 of {len(missing)} package{'s' if len(missing) > 1 else ''} could not be learned",
            details=listed,
            hint="the lock has none, and the channel has no such file any more; `lithify lock` chooses anew",
        )
    for one in open_:
        package = answers[one]
        if (one.md5 and package.md5 != one.md5) or (one.hashes and package.sha256 not in one.hashes):
            raise FetchError(
                f"{one.where}: {package.file} is not the file that was locked: its hash is another",
                hint="the file was exchanged in its channel; `lithify lock` chooses anew",
            )
        packages.append(package)
    return tuple(sorted(packages))


def source_name(found: Found) -> str:
    """The source of a package that a foreign lock names, by the path of its channel's address."""
    return f"conda/{channel_name(found.channel)}" if found.kind == "conda" else found.kind


def _package(found: Found, source: str) -> Package:
    return Package(
        source=source,
        name=found.name,
        platform=found.platform,
        version=found.version,
        file=found.file,
        sha256=found.sha256,
        size=found.size,
        md5=found.md5,
        depends=found.depends,
        constrains=found.constrains,
        site_packages=found.site_packages,
    )


def gathered(
    path: Path,
    kind: str,
    found: Iterable[Found],
    foreign: Mapping[str, int],
    *,
    channels: Sequence[str] = (),
    notes: Sequence[str] = (),
    platforms: Iterable[Platform] = (),
    content_hash: Mapping[str, str] | None = None,
    sources: Sequence[str] = (),
) -> ForeignLock:
    """The lock of what a reader found; ``foreign`` counts packages by platforms that we do not build.

    Raises:
        InputError: where there are packages, and none for a platform that we build; or one package twice.
    """
    packages = tuple(found)
    if foreign and not packages:
        raise InputError(
            f"{path} is for {', '.join(sorted(foreign))} only, which Lithify does not build",
            hint=f"its platforms are {', '.join(BY_SUBDIR)}",
        )
    seen: dict[tuple[str, str, Platform], Found] = {}
    for one in packages:
        before = seen.setdefault((one.kind, one.name, one.platform), one)
        if before is not one:
            raise InputError(f"{one.where}: {one.name} is locked twice for {one.platform}, first at {before.where}")
    left_out = [
        f"{path.name}: {count} package{'s' if count > 1 else ''} for {subdir} left out: it is not built here"
        for subdir, count in sorted(foreign.items())
    ]
    return ForeignLock(
        path=path,
        format=kind,
        platforms=tuple(sorted({one.platform for one in packages} | set(platforms))),
        found=packages,
        channels=tuple(channels) or tuple(dict.fromkeys(one.channel for one in packages if one.channel)),
        notes=(*notes, *left_out),
        content_hash=content_hash or {},
        sources=tuple(sources),
    )
