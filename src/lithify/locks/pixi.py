"""``pixi.lock``: pixi's lock for several environments and platforms, read by rattler, written as version 6.

rattler's own writer makes version 7, which only the newest pixi reads, and cannot be told a wheel's sha256.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from lithify.addresses import split_address, without_credentials
from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks.foreign import BY_SUBDIR, ForeignLock, Found, gathered
from lithify.locks.writing import Places
from lithify.locks.yaml_lines import line
from lithify.platforms import Platform
from lithify.read.files import read_text
from lithify.read.yaml import nearest, shortened

if TYPE_CHECKING:
    from rattler.lock.package import LockedPackage

DEFAULT = "default"


def read_pixi(path: Path, environment: str = DEFAULT) -> ForeignLock:
    """Read one environment of the ``pixi.lock`` at ``path``.

    Raises:
        InputError: for a lock that rattler does not read, with its words; for an environment or a package that is not
            there; for a package built from source.
    """
    from rattler import LockFile

    read_text(path)  # what cannot be read is named as everywhere
    try:
        lock = LockFile.from_path(path)
        environments = dict(lock.environments())
    except Exception as error:
        raise InputError(
            f"{path} is no pixi.lock that can be read", details=without_credentials(str(error)), hint="`pixi lock`"
        ) from error
    if environment not in environments:
        raise InputError(
            f"{path} has no environment `{shortened(environment)}`", hint=nearest(environment, environments)
        )
    chosen = environments[environment]
    found: list[Found] = []
    foreign: Counter[str] = Counter()
    platforms = []
    for locked, packages in chosen.packages_by_platform().items():
        platform = BY_SUBDIR.get(str(locked))
        if platform is None:
            foreign[str(locked)] += len(packages)
            continue
        platforms.append(platform)
        found += [_found(package, platform, str(path)) for package in packages]
    others = sorted(environments.keys() - {environment})
    return gathered(
        path,
        "pixi",
        sorted(found, key=lambda one: (one.platform, one.kind, one.name)),
        foreign,
        channels=[without_credentials(str(channel)).rstrip("/") for channel in chosen.channels()],
        notes=[f"{path.name}: the environment{'s' if len(others) > 1 else ''} {', '.join(others)} left out"]
        if others
        else [],
        platforms=platforms,
    )


def _found(package: LockedPackage, platform: Platform, where: str) -> Found:
    from rattler.lock.package import CondaLockedBinaryPackage, PypiLockedPackage

    location = str(package.location)
    hashes = package.hashes if package.hashes is not None and package.hashes._hashes is not None else None
    sha256 = hashes.sha256.hex() if hashes is not None and hashes.sha256 is not None else ""
    if isinstance(package, PypiLockedPackage):
        address, _, fragment = location.partition("#")
        address = without_credentials(address)
        file = unquote(urlsplit(address).path.rpartition("/")[2])
        if match := re.fullmatch(r"sha256=([0-9a-f]{64})", fragment):
            sha256 = sha256 or match[1]
        if not file.endswith(".whl") or not sha256:
            raise InputError(
                f"{where}: {package.name} is locked as `{shortened(address)}`, which is no wheel with a sha256",
                hint="only wheels of an index can be installed",
            )
        return Found(
            kind="pypi",
            name=canonicalize_name(package.name),
            version=str(package.version),
            platform=platform,
            file=file,
            where=where,
            address=address,
            sha256=sha256,
        )
    record = package.package_record if isinstance(package, CondaLockedBinaryPackage) else None
    if record is None:
        raise InputError(
            f"{where}: {package.name} is built from source, and only packages of a channel can be installed"
        )
    try:
        place = split_address(location)
    except InputError as error:
        raise InputError(f"{where}: {package.name}: {error.message}", hint=error.hint) from error
    return Found(
        kind="conda",
        name=place.file.name.lower(),
        version=place.file.version,
        platform=platform,
        file=place.path,
        where=where,
        channel=place.channel,
        sha256=sha256,
        md5=hashes.md5.hex() if hashes is not None and hashes.md5 is not None else "",
        size=record.size or 0,
        depends=tuple(record.depends),
        constrains=tuple(record.constrains),
        site_packages=record.python_site_packages_path or "",
    )


def write_pixi(packages: Iterable[Package], places: Places, *, channels: Sequence[str], index: str = "") -> str:
    """The text of a ``pixi.lock`` with one environment, ``default``.

    ``channels`` are addresses; ``index`` is that of the Python package index, where wheels are among the packages.

    Raises:
        InputError: for a package whose address is not known.
    """
    chosen = sorted(packages, key=lambda package: (package.kind, package.name))
    text = ["version: 6\nenvironments:\n  default:\n"]
    text.append("    channels:\n" if channels else "    channels: []\n")
    text += [f"    - {line('url', without_credentials(channel).rstrip('/') + '/', 6)[6:]}" for channel in channels]
    if any(package.kind == "pypi" for package in chosen) and index:
        text += ["    indexes:\n", f"    - {line('x', without_credentials(index), 4)[7:]}"]
    platforms = sorted({package.platform for package in chosen}, key=lambda platform: platform.subdir)
    text.append("    packages:\n" if platforms else "    packages: {}\n")
    for platform in platforms:
        text.append(f"      {platform.subdir}:\n")
        text += [f"      - {_address(p, places, 8)}" for p in chosen if p.platform == platform]
    entries = {_address(package, places, 2): package for package in chosen}
    text.append("packages:\n" if entries else "packages: []\n")
    for address in sorted(entries):
        package = entries[address]
        text += [f"- {address}", *(_wheel(package) if package.kind == "pypi" else _conda(package))]
    return "".join(text)


def _address(package: Package, places: Places, indent: int) -> str:
    return line(package.kind, places.of(package), indent)[indent:]


def _wheel(package: Package) -> list[str]:
    return [line(key, value, 2) for key, value in _pairs(package) if key != "md5"]


def _pairs(package: Package) -> list[tuple[str, str]]:
    return [("name", package.name), ("version", package.version), ("sha256", package.sha256), ("md5", package.md5)]


def _conda(package: Package) -> list[str]:
    lines = []
    if package.file.startswith("noarch/") and any(re.match(r"python(\s|$)", depend) for depend in package.depends):
        lines.append("  noarch: python\n")
    lines += [line(key, value, 2) for key, value in _pairs(package)[2:] if value]
    for key, values in (("depends", package.depends), ("constrains", package.constrains)):
        if values:
            lines.append(f"  {key}:\n")
            lines += [f"  - {line('x', value, 2)[5:]}" for value in values]
    if package.site_packages:
        lines.append(line("python_site_packages_path", package.site_packages, 2))
    if package.size:
        lines.append(f"  size: {package.size}\n")
    return lines
