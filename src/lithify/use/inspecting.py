"""What is in the store: its images, and what one of them consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lithify.errors import InputError, LithifyError
from lithify.lockfile import LOCK_FILE, parse_lock
from lithify.platforms import PLATFORMS, Platform, host_platform, parse_platform
from lithify.read.settings import Settings, read_settings
from lithify.store import oci
from lithify.store.manifests import Manifest, manifests
from lithify.store.rootfs import read_files
from lithify.store.store import Store, open_store

LOCK_INSIDE = f"usr/share/lithify/{LOCK_FILE}"


@dataclass(frozen=True)
class ImageSummary:
    """An image in a line. ``size`` (of its layers, compressed, in bytes), ``layers`` and ``created`` are those of one
    platform: this machine's where the image has it, else its first. ``problem`` says why they could not be read.
    """

    name: str
    digest: str
    platforms: tuple[str, ...]
    size: int
    layers: int
    created: str
    problem: str = ""

    def document(self) -> dict[str, Any]:
        """The same as JSON's values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LayerDetails:
    """A layer, the lowest being the first. ``size`` is compressed, in bytes; ``packages`` are `SOURCE:NAME=VERSION`."""

    digest: str
    size: int
    diff_id: str
    name: str
    packages: tuple[str, ...]


@dataclass(frozen=True)
class PackageDetails:
    """A package of the image, as its lock has it. ``size`` is the artefact's, in bytes.

    ``environment`` is the one that it is in; nothing for a package of the system.
    """

    source: str
    name: str
    version: str
    sha256: str
    size: int
    environment: str


@dataclass(frozen=True)
class ImageDetails:
    """All about an image on one ``platform``.

    ``digest`` is that of the named entry (an index over platforms), ``manifest`` that of the platform's manifest.
    ``config`` is how it is run: OCI's ``config`` (``Env``, ``Entrypoint``, ``Cmd``, ``User``, ``Labels``, ...).
    """

    name: str
    digest: str
    platforms: tuple[str, ...]
    platform: str
    manifest: str
    created: str
    size: int
    config: Mapping[str, Any]
    layers: tuple[LayerDetails, ...]
    packages: tuple[PackageDetails, ...]

    def document(self) -> dict[str, Any]:
        """The same as JSON's values."""
        return dataclasses.asdict(self)


def list_images(*, settings: Settings | None = None) -> tuple[ImageSummary, ...]:
    """The images of the store, by name. A damaged one is listed with its problem.

    Raises:
        LithifyError: when the store itself cannot be read.
    """
    store = open_store((settings or read_settings()).store)
    return tuple(_summary(store, name, descriptor) for name, descriptor in sorted(store.images().items()))


def inspect(image: str, *, platform: Platform | str | None = None, settings: Settings | None = None) -> ImageDetails:
    """What the image called ``image`` consists of, on ``platform`` (by default as for `ImageSummary`).

    Raises:
        InputError: for an unknown image or platform.
        LithifyError: for an image that is damaged.
    """
    store = open_store((settings or read_settings()).store)
    descriptor = store.image(image)
    found = manifests(store, descriptor)
    if isinstance(platform, str):
        platform = parse_platform(platform)
    if platform is None:
        manifest = _shown(found, image)
    else:
        wanted = [one for one in found if one.platform == platform]
        if not wanted:
            there = ", ".join(str(one.platform) for one in found)
            raise InputError(f"image `{image}` is not made for {platform}: it is for {there}")
        manifest = wanted[0]
    return ImageDetails(
        name=descriptor.annotations.get(oci.REF_NAME, image),
        digest=descriptor.digest,
        platforms=_platforms(found),
        platform=str(manifest.platform or ""),
        manifest=manifest.descriptor.digest,
        created=str(manifest.config.get("created", "")),
        size=_size(manifest),
        config=manifest.runtime,
        layers=tuple(
            LayerDetails(
                layer.descriptor.digest,
                layer.descriptor.size,
                layer.diff_id,
                layer.descriptor.annotations.get(oci.LAYER_NAME, ""),
                tuple(layer.descriptor.annotations.get(oci.LAYER_PACKAGES, "").split()),
            )
            for layer in manifest.layers
        ),
        packages=_packages(store, manifest),
    )


def _summary(store: Store, name: str, descriptor: oci.Descriptor) -> ImageSummary:
    try:
        found = manifests(store, descriptor)
        manifest = _shown(found, name)
    except LithifyError as error:
        return ImageSummary(name, descriptor.digest, (), 0, 0, "", problem=error.message)
    return ImageSummary(
        name=name,
        digest=descriptor.digest,
        platforms=_platforms(found),
        size=_size(manifest),
        layers=len(manifest.layers),
        created=str(manifest.config.get("created", "")),
    )


def _shown(found: tuple[Manifest, ...], image: str) -> Manifest:
    if not found:
        raise InputError(f"image `{image}` is for no platform that Lithify knows", hint=f"known are {[*PLATFORMS]}")
    host = host_platform()
    return next((one for one in found if one.platform == host), found[0])


def _platforms(found: tuple[Manifest, ...]) -> tuple[str, ...]:
    return tuple(str(one.platform) for one in found if one.platform)


def _size(manifest: Manifest) -> int:
    return sum({layer.descriptor.digest: layer.descriptor.size for layer in manifest.layers}.values())


def _packages(store: Store, manifest: Manifest) -> tuple[PackageDetails, ...]:
    # Looking for the lock in an image of somebody else's would mean to read all of it.
    ours = any(oci.LAYER_NAME in layer.descriptor.annotations for layer in manifest.layers)
    text = read_files(store, manifest.layers, [LOCK_INSIDE]).get(LOCK_INSIDE) if ours else None
    if text is None or manifest.platform is None:
        return ()
    lock = parse_lock(text.decode("utf-8", "replace"), f"{LOCK_FILE} inside the image")
    return tuple(
        PackageDetails(
            one.source, one.name, one.version, one.sha256, one.size, "" if one.kind == "debian" else one.environment
        )
        for one in lock.of(manifest.platform)
    )
