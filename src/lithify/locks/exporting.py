"""A lock of ours in another tool's format."""

from __future__ import annotations

import os
from pathlib import Path

from lithify.errors import InputError
from lithify.lockfile import NOTEBOOK, Package, read_lock
from lithify.locks import Places, write_foreign
from lithify.platforms import Platform, parse_platform
from lithify.read.environment import EnvironmentFile
from lithify.read.family import Family, Image, lock_path, read_family
from lithify.read.requirements import Requirements, read_requirements
from lithify.read.settings import Settings, read_settings

# The formats that say where wheels are served from.
_WITH_ADDRESSES = ("conda-lock", "explicit", "pixi", "pylock")


def export_lock(
    family: str | os.PathLike[str] = ".",
    image: str | None = None,
    form: str = "conda-lock",
    *,
    platform: str | Platform | None = None,
    environment: str = NOTEBOOK,
    name: str = "conda-lock.yml",
    settings: Settings | None = None,
) -> str:
    """The lock of ``image`` (the family's only one, where none is named) as text in the format ``form``.

    The formats are `lithify.locks.FORMATS`. ``platform`` is needed for those of one platform, where the family has
    several. ``name`` is what a ``conda-lock.yml`` is to be called.

    Raises:
        InputError: for an image without a lock, an unknown format, or what the format cannot say.
        FetchError: where a format wants the addresses of wheels, and the index does not tell them.
    """
    settings = settings or read_settings()
    read = read_family(Path(family))
    if image is None and len(read.images) > 1:
        raise InputError("one image's lock is exported at a time", hint=f"name one of {', '.join(read.images)}")
    chosen = read.image(image or next(iter(read.images)))
    lock = read_lock(lock_path(chosen))
    packages = [p for p in lock.packages if p.environment == environment and p.kind in ("conda", "pypi")]
    lineage = tuple(read_requirements(member) for member in read.lineage(chosen.name))
    if isinstance(platform, str):
        platform = parse_platform(platform)
    if platform is None and len(read.platforms_of(chosen.name)) == 1:
        platform = read.platforms_of(chosen.name)[0]
    listed = [p for p in packages if platform is None or p.platform == platform or form not in ("explicit", "packages")]
    python = next((p.version for p in packages if p.name == "python" and p.kind == "conda"), read.base.python)
    channels, sources, hashes = _conda(read, chosen, lineage, environment)
    return write_foreign(
        form,
        packages,
        Places(_channel_addresses(read, chosen, lineage, packages), _wheel_addresses(form, lineage, listed, settings)),
        platform=platform,
        channels=_addresses(read, chosen, lineage, channels) if form == "pixi" else channels,
        sources=sources,
        content_hash=hashes,
        python=".".join(python.split(".")[:2]),
        index=settings.sources.get("pypi", ""),
        name=name,
    )


def _conda(
    family: Family, image: Image, lineage: tuple[Requirements, ...], environment: str
) -> tuple[list[str], list[str], dict[str, str]]:
    """The channels, the files (relative to the lock) and conda-lock's hash by subdir, of an environment."""
    if family.conda is None:
        return [], [], {}
    from lithify.locks.conda_lock_writer import content_hash, joined_channels
    from lithify.sources.conda.resolve import files_of

    folder = lock_path(image).parent
    files: tuple[EnvironmentFile, ...] = ()
    hashes = {}
    for platform in family.platforms_of(image.name):
        files = files_of(lineage, environment, platform)
        virtual = next((r.virtual_packages for r in reversed(lineage) if r.virtual_packages is not None), None)
        hashes[platform.subdir] = content_hash(files, platform.subdir, virtual)
    channels = list(joined_channels(files)) or list(family.conda.channels)
    return channels, [Path(os.path.relpath(file.path, folder)).as_posix() for file in files], hashes


def _channel_addresses(
    family: Family, image: Image, lineage: tuple[Requirements, ...], packages: list[Package]
) -> dict[str, str]:
    """What may be said of where the channels of ``packages`` are."""
    sources = {package.source for package in packages if package.kind == "conda"}
    if family.conda is None or not sources:
        return {}
    from lithify.sources.conda.channel import canonical_address, channel_of
    from lithify.sources.conda.resolve import channels_of

    named = channels_of(family.conda, image, lineage, family.platforms_of(image.name), family.root)
    return {source: canonical_address(channel_of(source, named)) for source in sources}


def _addresses(family: Family, image: Image, lineage: tuple[Requirements, ...], channels: list[str]) -> list[str]:
    from lithify.sources.conda.channel import canonical_address, parse_channels

    return [canonical_address(channel) for channel in parse_channels(channels, str(family.root / image.name))]


def _wheel_addresses(
    form: str, lineage: tuple[Requirements, ...], packages: list[Package], settings: Settings
) -> dict[Package, str]:
    wheels = [package for package in packages if package.kind == "pypi"]
    if not wheels or form not in _WITH_ADDRESSES:
        return {}
    from lithify.sources import pypi

    return dict(pypi.PypiSource(settings, indexes=pypi.indexes_of(lineage)).addresses(wheels))
