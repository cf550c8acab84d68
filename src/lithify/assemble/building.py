"""Build: locks into images in the store.

The cost follows the change. Every image has a key over all that it is made of; where that key is known and its
blobs are there, building is a look at their status. Else every layer has a key, and only the missing ones are made;
for those every package has a key, and only the missing fragments are made; for those only the missing artefacts are
fetched.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lithify import runtime
from lithify.assemble import contract
from lithify.errors import InputError, LithifyError
from lithify.plan import PlannedLayer, lineage_levels, plan_layers
from lithify.platforms import Platform, host_platform, parse_platform
from lithify.progress import Event, Report, silent
from lithify.read.family import DebianBase, Family, Image, read_family
from lithify.read.requirements import documents, image_files
from lithify.read.settings import Settings, read_settings
from lithify.resolve.lockfile import LOCK_FILE, Lock, Package, fingerprint, parse_lock
from lithify.store import oci
from lithify.store.compression import Compression, parse_compression
from lithify.store.store import Store, open_store

# Raise it when the same locks must give another image.
FORMAT = 1

DEFAULT_COMMAND = ("/bin/bash",)
NOTEBOOK_COMMAND = ("jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser")


@dataclass(frozen=True)
class PlatformResult:
    """One platform's image. ``size`` and ``new_bytes`` are compressed bytes, of all layers and of those made now."""

    platform: Platform
    digest: str
    size: int
    layers: int
    layers_reused: int
    fragments_built: int
    fragments_reused: int
    new_bytes: int


@dataclass(frozen=True)
class BuildResult:
    """An image in the store: ``image`` in the family, ``name`` in the store, ``digest`` of its index."""

    image: str
    name: str
    digest: str
    platforms: tuple[PlatformResult, ...]
    seconds: float
    unchanged: bool


def build(
    family: Path | str = ".",
    images: Sequence[str] = (),
    *,
    platforms: Sequence[str] = (),
    compression: str = "zstd",
    locked: bool = False,
    labels: Mapping[str, str] | None = None,
    settings: Settings | None = None,
    report: Report = silent,
) -> tuple[BuildResult, ...]:
    """Build images of a family (all of them, where none is named) for its platforms (or those given).

    The locks are taken as they are. Where the requirement files changed since, that is a warning, and with
    ``locked`` an error. ``labels`` are added to every image's own.

    Raises:
        InputError: for a wrong family, lock or argument.
        FetchError: when an artefact cannot be had.
        HostError: when this machine lacks what the build needs.
        LithifyError: for packages that cannot be installed together.
    """
    described = read_family(Path(family))
    settings = settings or read_settings()
    chosen = tuple(parse_platform(platform) for platform in platforms) or described.platforms
    for platform in chosen:
        if platform not in described.platforms:
            names = ", ".join(str(known) for known in described.platforms)
            raise InputError(f"family `{described.name}` is not locked for {platform}", hint=f"its platforms are {names}")
    build = _Build(
        family=described,
        settings=settings,
        store=open_store(settings.store),
        compression=parse_compression(compression),
        labels=dict(labels or {}),
        report=report,
    )
    return tuple(build.image(name, chosen, locked) for name in described.select(tuple(images)))


@dataclass(frozen=True)
class _Inputs:
    """All that an image is made of, as bytes; `key` identifies it."""

    lineage: tuple[Image, ...]
    files: tuple[Mapping[str, bytes], ...]  # of each image of the lineage
    locks: tuple[bytes, ...]
    fingerprint: str
    key: str


@dataclass(frozen=True)
class _Build:
    """What the steps of one `build` call share."""

    family: Family
    settings: Settings
    store: Store
    compression: Compression
    labels: Mapping[str, str]
    report: Report

    def image(self, name: str, platforms: tuple[Platform, ...], locked: bool) -> BuildResult:
        started = time.monotonic()
        inputs = self.inputs(name, platforms)
        store_name = f"{self.family.name}/{name}"
        known = self.known(inputs.key)
        if known is None:
            locks = tuple(
                parse_lock(_text(data, image), str(image.folder / LOCK_FILE))
                for image, data in zip(inputs.lineage, inputs.locks, strict=True)
            )
            self.check_fingerprint(name, inputs, locks[-1].fingerprint, locked)
            results, index = self.make(inputs, locks, platforms)
            self.remember(inputs.key, index, results, locks[-1].fingerprint)
        else:
            index, results, locked_fingerprint = known
            self.check_fingerprint(name, inputs, locked_fingerprint, locked)
        self.store.name_image(store_name, index)
        seconds = time.monotonic() - started
        return BuildResult(name, store_name, index.digest, results, seconds, known is not None)

    # -- an unchanged image ----------------------------------------------------------------------------------

    def inputs(self, name: str, platforms: tuple[Platform, ...]) -> _Inputs:
        lineage = self.family.lineage(name)
        files = tuple(image_files(image) for image in lineage)
        locks = tuple(_lock_bytes(image) for image in lineage)
        facts = {
            "format": FORMAT,
            "compression": self.compression.identity,
            "platforms": [str(platform) for platform in platforms],
            "maximum": self.family.maximum_layers,
            "base": _base_facts(self.family),
            "labels": self.image_labels(lineage),
            "lineage": [[image.name, list(image.cmd or ()), dict(image.environment)] for image in lineage],
        }
        parts: dict[str, bytes] = {"facts": oci.canonical(facts)}
        for number, (own, lock) in enumerate(zip(files, locks, strict=True)):
            parts[f"{number}/lock"] = lock
            parts |= {f"{number}/files/{path}": data for path, data in own.items()}
        return _Inputs(
            lineage, files, locks, fingerprint(documents(self.family, lineage)), fingerprint(parts).partition(":")[2]
        )

    def known(self, key: str) -> tuple[oci.Descriptor, tuple[PlatformResult, ...], str] | None:
        record = self.store.record("images", key)
        if record is None:
            return None
        try:
            blobs = [oci.parse_descriptor(blob, key) for blob in record["blobs"]]
            index = oci.parse_descriptor(record["index"], key)
            results = tuple(
                PlatformResult(
                    parse_platform(entry["platform"]),
                    entry["digest"],
                    entry["size"],
                    entry["layers"],
                    layers_reused=entry["layers"],
                    fragments_built=0,
                    fragments_reused=entry["fragments"],
                    new_bytes=0,
                )
                for entry in record["platforms"]
            )
            locked_fingerprint = str(record["fingerprint"])
        except (KeyError, TypeError, InputError):
            return None
        if not all(self.store.has_blob(blob) for blob in blobs):
            return None
        return index, results, locked_fingerprint

    def remember(
        self, key: str, index: oci.Descriptor, results: Sequence[PlatformResult], locked_fingerprint: str
    ) -> None:
        blobs = [index]
        for manifest in self.store.read_document(index)["manifests"]:
            descriptor = oci.parse_descriptor(manifest, index.digest)
            document = self.store.read_document(descriptor)
            blobs += [descriptor, oci.parse_descriptor(document["config"], descriptor.digest)]
            blobs += [oci.parse_descriptor(layer, descriptor.digest) for layer in document["layers"]]
        plain = {(b.digest, b.size): oci.Descriptor(b.media_type, b.digest, b.size).document() for b in blobs}
        record: dict[str, Any] = {
            "index": index.document(),
            "fingerprint": locked_fingerprint,
            "blobs": list(plain.values()),
            "platforms": [
                {
                    "platform": str(result.platform),
                    "digest": result.digest,
                    "size": result.size,
                    "layers": result.layers,
                    "fragments": result.fragments_built + result.fragments_reused,
                }
                for result in results
            ],
        }
        self.store.write_record("images", key, record)

    def check_fingerprint(self, name: str, inputs: _Inputs, locked_fingerprint: str, locked: bool) -> None:
        if inputs.fingerprint == locked_fingerprint:
            return
        message = f"the requirement files of `{name}` changed since its lock was made"
        hint = f"`lithify lock {name}` brings it up to date"
        if locked:
            raise InputError(message, hint=hint)
        self.report(Event("read", "warning", message=f"{message}; {hint}"))

    def image_labels(self, lineage: Sequence[Image]) -> dict[str, str]:
        labels: dict[str, str] = {"org.opencontainers.image.title": lineage[-1].name}
        if self.family.source:
            labels["org.opencontainers.image.source"] = self.family.source
        for image in lineage:
            labels |= image.labels
        return labels | self.labels

    # -- a changed one ---------------------------------------------------------------------------------------

    def make(
        self, inputs: _Inputs, locks: Sequence[Lock], platforms: Sequence[Platform]
    ) -> tuple[tuple[PlatformResult, ...], oci.Descriptor]:
        from lithify.assemble.image import write_index

        made = [self.platform(inputs, locks, platform) for platform in platforms]
        index = write_index(self.store, [manifest for _, manifest in made], locks[-1].created)
        return tuple(result for result, _ in made), index

    def platform(
        self, inputs: _Inputs, locks: Sequence[Lock], platform: Platform
    ) -> tuple[PlatformResult, oci.Descriptor]:
        from lithify.assemble.image import Facts, write_image
        from lithify.assemble.layers import describe, write_contents

        name = inputs.lineage[-1].name
        merged = {path: data for files in inputs.files for path, data in files.items()}
        python = self.family.base.python
        system = self.system(inputs.lineage, locks, platform)
        environment = contract.environment_layer(python, merged)
        own = contract.image_layer(name, merged, inputs.locks[-1])
        levels = lineage_levels([lock.of(platform, "pypi") for lock in locks])
        fixed = len(system.layers) + 2
        planned = plan_layers(levels, self.family.maximum_layers - fixed)
        if fixed + len(planned) > self.family.maximum_layers:
            raise InputError(
                f"image `{name}` needs {fixed + len(planned)} layers and may have {self.family.maximum_layers}",
                hint="raise `maximum` in [layers] of lithify.toml",
            )
        packages = self.packages(planned, locks, platform)
        layers: list[oci.Layer] = [layer for level, layer in system.layers if level == 0]
        key, layer = write_contents(self.store, environment, self.compression)
        layers.append(describe(layer, key, environment.name))
        for number, image in enumerate(inputs.lineage):
            layers += [layer for level, layer in system.layers if level == number + 1]
            for one, (key, layer) in zip(planned, packages.layers, strict=True):
                if one.level == number:
                    layers.append(describe(layer, key, f"{image.name}: {one.name}", one.packages))
        key, layer = write_contents(self.store, own, self.compression)
        layers.append(describe(layer, key, own.name))
        command = next((image.cmd for image in reversed(inputs.lineage) if image.cmd), None)
        names = {package.name for package in locks[-1].of(platform, "pypi")}
        environment_variables = {k: v for image in inputs.lineage for k, v in image.environment.items()}
        created = locks[-1].created
        facts = Facts(
            created=created,
            environment=contract.image_environment(name, environment_variables),
            command=command or (NOTEBOOK_COMMAND if "jupyterlab" in names else DEFAULT_COMMAND),
            labels={
                **self.image_labels(inputs.lineage),
                "org.opencontainers.image.created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        )
        manifest = write_image(self.store, platform, layers, facts)
        new = {layer.descriptor.digest for layer in (*system.new, *packages.new)}
        result = PlatformResult(
            platform=platform,
            digest=manifest.digest,
            size=sum(layer.descriptor.size for layer in layers),
            layers=len(layers),
            layers_reused=sum(layer.descriptor.digest not in new for layer in layers),
            fragments_built=packages.built,
            fragments_reused=sum(len(one.packages) for one in planned) - packages.built,
            new_bytes=sum({layer.descriptor.digest: layer.descriptor.size for layer in layers
                           if layer.descriptor.digest in new}.values()),
        )  # fmt: skip
        return result, manifest
