"""The documents of an image: configuration, manifest, index (OCI image specification 1.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lithify import runtime
from lithify.platforms import Platform
from lithify.store import oci
from lithify.store.store import Store

ENTRYPOINT = ("/srv/start",)
PORT = "8888/tcp"


@dataclass(frozen=True)
class Facts:
    """What an image's configuration says besides its layers."""

    created: datetime
    environment: Mapping[str, str]
    command: Sequence[str]
    labels: Mapping[str, str]


def write_image(store: Store, platform: Platform, layers: Sequence[oci.Layer], facts: Facts) -> oci.Descriptor:
    """Write configuration and manifest of one platform's image; the manifest's descriptor."""
    created = _moment(facts.created)
    config: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": created,
        "config": {
            "User": runtime.JOVYAN.name,
            "ExposedPorts": {PORT: {}},
            "Env": [f"{key}={value}" for key, value in sorted(facts.environment.items())],
            "Entrypoint": list(ENTRYPOINT),
            "Cmd": list(facts.command),
            "WorkingDir": runtime.HOME,
            "Labels": dict(facts.labels),
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [
            {
                "created": created,
                "created_by": f"lithify: {layer.descriptor.annotations.get(oci.LAYER_NAME, 'base')}",
            }
            for layer in layers
        ],
    }
    config_descriptor = store.write_document(config, oci.CONFIG)
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": config_descriptor.document(),
        "layers": [layer.descriptor.document() for layer in layers],
        "annotations": {"org.opencontainers.image.created": created},
    }
    descriptor = store.write_document(manifest, oci.MANIFEST)
    return oci.Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, platform=platform)


def write_index(store: Store, manifests: Sequence[oci.Descriptor], created: datetime) -> oci.Descriptor:
    """Write the index over an image's platforms."""
    ordered = sorted(manifests, key=lambda manifest: str(manifest.platform))
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": oci.INDEX,
        "manifests": [manifest.document() for manifest in ordered],
        "annotations": {"org.opencontainers.image.created": _moment(created)},
    }
    return store.write_document(document, oci.INDEX)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
