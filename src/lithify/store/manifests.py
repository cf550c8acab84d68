"""From an image's name to what it consists of, for a platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lithify.errors import InputError
from lithify.platforms import PLATFORMS, Platform
from lithify.store import oci
from lithify.store.store import Store

# OCI's media types, and Docker's of the same meaning.
INDEXES = (oci.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (oci.MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")


@dataclass(frozen=True)
class Manifest:
    """An image for one platform: its configuration (OCI config.md, as JSON) and its layers, the lowest first."""

    descriptor: oci.Descriptor
    platform: Platform | None
    config_descriptor: oci.Descriptor
    config: Mapping[str, Any]
    layers: tuple[oci.Layer, ...]

    @property
    def runtime(self) -> Mapping[str, Any]:
        """How to run it: the configuration's ``config`` (``Env``, ``Cmd``, ``User``, ...)."""
        runtime = self.config.get("config")
        return runtime if isinstance(runtime, dict) else {}


def read_manifest(store: Store, descriptor: oci.Descriptor) -> Manifest:
    """The image that the manifest ``descriptor`` describes.

    Raises:
        LithifyError: for documents that are missing or damaged.
        InputError: for documents that are not a container image's.
    """
    document = store.read_document(descriptor)
    where = f"the manifest {descriptor.digest}"
    config_descriptor = oci.parse_descriptor(document.get("config"), where)
    config = store.read_document(config_descriptor)
    rootfs = config.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    layers = document.get("layers")
    if not isinstance(layers, list) or not isinstance(diff_ids, list) or len(layers) != len(diff_ids):
        raise InputError(f"{where} is no container image: it needs as many layers as its configuration has diffIDs")
    return Manifest(
        descriptor,
        PLATFORMS.get(f"{config.get('os')}/{config.get('architecture')}"),
        config_descriptor,
        config,
        tuple(
            oci.Layer(oci.parse_descriptor(layer, where), str(diff_id))
            for layer, diff_id in zip(layers, diff_ids, strict=True)
        ),
    )


def manifests(store: Store, image: oci.Descriptor) -> tuple[Manifest, ...]:
    """The image for each of its platforms: those of an index, or the one manifest that ``image`` is.

    What an index holds for platforms that we do not know (attestations among them) is left out.

    Raises:
        LithifyError: for documents that are missing, damaged, or not an image's.
    """
    if image.media_type not in INDEXES:
        return (read_manifest(store, image),)
    entries = store.read_document(image).get("manifests")
    if not isinstance(entries, list):
        raise InputError(f"the index {image.digest} has no list of manifests")
    parsed = [oci.parse_descriptor(entry, f"the index {image.digest}") for entry in entries]
    return tuple(read_manifest(store, one) for one in parsed if one.platform is not None)


def manifest_for(store: Store, name: str, platform: Platform) -> Manifest:
    """The image called ``name`` (see `Store.image`) for ``platform``.

    Raises:
        InputError: when there is no such image, or when it is for other platforms only.
        LithifyError: for documents that are missing or damaged.
    """
    found = manifests(store, store.image(name))
    for manifest in found:
        if manifest.platform == platform:
            return manifest
    there = ", ".join(str(one.platform) for one in found) or "no platform that Lithify knows"
    raise InputError(
        f"image `{name}` is not made for {platform}: it is for {there}",
        hint=f'add "{platform}" to `platforms` in lithify.toml, then `lithify lock` and `lithify build`',
    )
