"""Documents of the OCI image specification 1.1, as values and as canonical JSON.

Canonical: keys sorted, no white space, so that equal documents have equal digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lithify.errors import InputError
from lithify.platforms import Platform

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
REF_NAME = "org.opencontainers.image.ref.name"

# Annotations of ours on a layer's descriptor: what it was built from, and which packages it holds.
LAYER_KEY = "dev.lithify.layer.key"
LAYER_NAME = "dev.lithify.layer.name"
LAYER_PACKAGES = "dev.lithify.layer.packages"
# The digest of a layer's uncompressed tar: the same whatever the compression.
LAYER_DIFF_ID = "dev.lithify.layer.diff-id"


@dataclass(frozen=True)
class Descriptor:
    """A typed reference to content (OCI image specification, descriptor.md). ``size`` is in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None

    def document(self) -> dict[str, Any]:
        """The descriptor as JSON's values."""
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            document["annotations"] = dict(self.annotations)
        if self.platform:
            document["platform"] = {"os": self.platform.os, "architecture": self.platform.architecture}
        return document


@dataclass(frozen=True)
class Layer:
    """A layer blob: its descriptor, and the digest of its uncompressed tar (OCI config.md, "Layer DiffID")."""

    descriptor: Descriptor
    diff_id: str


def canonical(document: Mapping[str, Any]) -> bytes:
    """``document`` as JSON with one spelling."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(data: bytes) -> str:
    """The OCI digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_descriptor(document: Any, where: str) -> Descriptor:
    """The descriptor that a JSON document of somebody's holds.

    Raises:
        InputError: where a field is missing or is not what the specification says.
    """
    from lithify.platforms import PLATFORMS

    try:
        media_type, digest, size = document["mediaType"], document["digest"], document["size"]
        algorithm, _, encoded = digest.partition(":")
        if algorithm != "sha256" or len(encoded) != 64 or set(encoded) - set("0123456789abcdef"):
            raise ValueError(f"digest {digest!r}")
        if not isinstance(media_type, str) or not isinstance(size, int) or size < 0:
            raise ValueError(f"descriptor {document!r}")
        platform = document.get("platform") or {}
        return Descriptor(
            media_type,
            digest,
            size,
            dict(document.get("annotations") or {}),
            PLATFORMS.get(f"{platform.get('os')}/{platform.get('architecture')}"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} holds no valid OCI descriptor: {error}") from error
