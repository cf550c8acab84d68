"""``pylock.toml``: the lock of Python packages that every installer knows (PEP 751)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tomli
from packaging.markers import InvalidMarker, Marker
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from lithify.addresses import without_credentials
from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks.foreign import ForeignLock, Found, gathered
from lithify.locks.hashed import markers
from lithify.locks.writing import Places, of_kind
from lithify.platforms import PLATFORMS, Platform
from lithify.read.files import read_text
from lithify.read.yaml import shortened

_GLIBC = (2, 28)


def read_pylock(path: Path, python: str = "") -> ForeignLock:
    """Read the ``pylock.toml`` at ``path``.

    ``python`` is the minor version ("3.13") that wheels and markers are chosen for. Without it a package of several
    wheels has the hashes of all, and markers about Python's version are true.

    Raises:
        InputError: naming the package that is wrong, or is no wheel of an index.
    """
    try:
        document = tomli.loads(read_text(path))
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error
    version = document.get("lock-version")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise InputError(f"{path}: lock-version {version!r}, and 1.0 is read", hint="see PEP 751")
    entries = document.get("packages", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: `packages` is not a list of tables")
    found = [
        one
        for entry in entries
        for platform in PLATFORMS.values()
        if (one := _found(entry, platform, python, str(path))) is not None
    ]
    return gathered(path, "pylock", found, {})


def _found(entry: dict[str, Any], platform: Platform, python: str, where: str) -> Found | None:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}: a package has no `name`")
    shown = f"{where}: {shortened(name)}"
    if not _applies(entry.get("marker"), platform, python, shown):
        return None
    wheels = list(_wheels(entry, shown))
    if not wheels:
        kinds = [kind for kind in ("vcs", "directory", "archive", "sdist") if kind in entry]
        raise InputError(
            f"{shown} has no wheel" + (f", but a {kinds[0]}" if kinds else ""),
            hint="only wheels of an index can be installed",
        )
    usable = _usable(wheels, platform, python)
    if not usable:
        raise InputError(f"{shown} has no wheel for {platform}{f' and Python {python}' if python else ''}")
    file, address, sha256, size = usable[0]
    single = len(usable) == 1 or bool(python)
    return Found(
        kind="pypi",
        name=canonicalize_name(name),
        version=str(entry.get("version", "")) or file.split("-")[1],
        platform=platform,
        file=file if single else "",
        where=where,
        address=address if single else "",
        sha256=sha256 if single else "",
        hashes=() if single else tuple(wheel[2] for wheel in usable),
        size=size if single else 0,
    )


def _applies(marker: object, platform: Platform, python: str, shown: str) -> bool:
    if marker is None:
        return True
    try:
        parsed = Marker(str(marker))
        known = markers(platform)
        if python:
            known |= {"python_version": python, "python_full_version": f"{python}.0"}
        elif "python_" in str(marker):
            return True
        return parsed.evaluate(known)
    except InvalidMarker as error:
        raise InputError(f"{shown}: `{shortened(str(marker))}` is no marker: {str(error).splitlines()[0]}") from error


_Wheel = tuple[str, str, str, int]


def _wheels(entry: Mapping[str, Any], shown: str) -> Iterator[_Wheel]:
    """Name, address, sha256 and size of each wheel."""
    wheels = entry.get("wheels", [])
    if not isinstance(wheels, list) or not all(isinstance(wheel, dict) for wheel in wheels):
        raise InputError(f"{shown}: `wheels` is not a list of tables")
    for wheel in wheels:
        address = without_credentials(str(wheel.get("url", ""))).partition("#")[0]
        place = str(wheel.get("name") or urlsplit(address).path or wheel.get("path", ""))
        hashes = wheel.get("hashes")
        sha256 = hashes.get("sha256") if isinstance(hashes, dict) else None
        size = wheel.get("size", 0)
        if not isinstance(sha256, str) or len(sha256) != 64 or not isinstance(size, int):
            raise InputError(f"{shown}: the wheel `{shortened(place)}` has no sha256")
        yield unquote(place.rpartition("/")[2]), address, sha256, size


def _usable(wheels: Iterable[_Wheel], platform: Platform, python: str) -> list[_Wheel]:
    """The wheels that fit, the best first where ``python`` says what fits."""
    from lithify.sources.pypi import wheel_tags

    ranks = {tag: rank for rank, tag in enumerate(wheel_tags(platform, python, _GLIBC))} if python else {}
    usable: list[tuple[int, _Wheel]] = []
    for wheel in wheels:
        try:
            tags = parse_wheel_filename(wheel[0])[3]
        except InvalidWheelFilename:
            continue
        if python:
            fitting = [ranks[tag] for tag in tags if tag in ranks]
        else:
            fitting = [0 for tag in tags if tag.platform == "any" or tag.platform.endswith(f"_{platform.machine}")]
            fitting = [] if all(tag.platform.startswith(("macosx", "musllinux", "win")) for tag in tags) else fitting
        if fitting:
            usable.append((min(fitting), wheel))
    return [wheel for _, wheel in sorted(usable)]


def write_pylock(packages: Iterable[Package], places: Places, *, python: str = "") -> str:
    """The Python packages among ``packages``; ``python`` is the minor version they were chosen for.

    A version that only some platforms have gets a marker. conda packages are not in it.

    Raises:
        InputError: for a wheel whose address is not known, which PEP 751 asks for.
    """
    chosen = of_kind(packages, "pypi")
    everywhere = {package.platform for package in chosen}
    lines = ['lock-version = "1.0"', 'created-by = "lithify"']
    if python:
        lines.append(f'requires-python = ">={python}"')
    by_version: dict[tuple[str, str], list[Package]] = {}
    for package in chosen:
        by_version.setdefault((package.name, package.version), []).append(package)
    for (name, version), members in sorted(by_version.items()):
        lines += ["", "[[packages]]", f"name = {json.dumps(name)}", f"version = {json.dumps(version)}"]
        machines = sorted({member.platform.machine for member in members})
        if len(machines) < len(everywhere):
            marker = " or ".join(f"platform_machine == '{machine}'" for machine in machines)
            lines.append(f"marker = {json.dumps(marker)}")
        lines.append("wheels = [")
        for file in sorted({member.file: member for member in members}.values(), key=lambda member: member.file):
            size = f", size = {file.size}" if file.size else ""
            lines.append(
                f"    {{ name = {json.dumps(file.file)}, url = {json.dumps(places.of(file))}{size}, "
                f'hashes = {{ sha256 = "{file.sha256}" }} }},'
            )
        lines.append("]")
    return "\n".join(lines) + "\n"
