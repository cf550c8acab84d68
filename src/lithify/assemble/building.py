"""Build: locks into images in the store.

The cost follows the change. Every image has a key over all that it is made of; where that key is known and its
blobs are there, building is a look at their status. Else every layer has a key, and only the missing ones are made;
for those every package has a key, and only the missing fragments are made; for those only the missing artefacts are
fetched.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lithify import runtime
from lithify.assemble import contract
from lithify.assemble.environments import (
    closure,
    conda_name,
    environment_target,
    packages_of,
    python_of,
    requested_specs,
    requested_variables,
)
from lithify.errors import InputError
from lithify.lockfile import NOTEBOOK, Lock, Package, fingerprint, parse_lock
from lithify.plan import lineage_levels, plan_layers
from lithify.platforms import Platform, host_platform, parse_platform
from lithify.progress import Event, Report, silent
from lithify.read.family import NOTEBOOK_ENVIRONMENT, DebianBase, Family, Image, LayoutBase, lock_path, read_family
from lithify.read.requirements import Indexes, Requirements, documents, read_requirements
from lithify.read.settings import Settings, read_settings
from lithify.store import oci
from lithify.store.compression import Compression, parse_compression
from lithify.store.store import Store, open_store

if TYPE_CHECKING:
    from lithify.assemble.packages import Laid, Laying
    from lithify.assemble.system import SystemLayer
    from lithify.fragment.bytecode import Interpreter
    from lithify.sources import FragmentSource, Source, Target
    from lithify.sources.conda.source import CondaSource
    from lithify.sources.pypi import PypiSource

# Raise it when the same locks must give another image.
FORMAT = 2

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
    chosen = tuple(parse_platform(platform) for platform in platforms)
    for platform in chosen:
        if platform not in described.platforms:
            names = ", ".join(str(known) for known in described.platforms)
            raise InputError(
                f"family `{described.name}` is not locked for {platform}", hint=f"its platforms are {names}"
            )
    build = _Build(
        family=described,
        settings=settings,
        store=open_store(settings.store),
        compression=parse_compression(compression),
        labels=dict(labels or {}),
        report=report,
    )
    wanted = [
        (name, _platforms(described, name, chosen, named=name in images)) for name in described.select(tuple(images))
    ]
    for name, of_image in wanted:
        if not of_image:
            only = ", ".join(map(str, described.platforms_of(name)))
            report(Event("read", "note", message=f"`{name}` is left out: it is for {only} only"))
    return tuple(build.image(name, of_image, locked) for name, of_image in wanted if of_image)


def _platforms(family: Family, name: str, chosen: Sequence[Platform], *, named: bool) -> tuple[Platform, ...]:
    """The platforms to build an image for: its own, or those ``chosen`` of them."""
    own = family.platforms_of(name)
    missing = [platform for platform in chosen if platform not in own]
    if missing and named:
        raise InputError(
            f"image `{name}` is not for {missing[0]}", hint=f"its platforms are {', '.join(map(str, own))}"
        )
    return tuple(platform for platform in chosen if platform in own) if chosen else own


@dataclass(frozen=True)
class _Inputs:
    """All that an image is made of, as bytes; `key` identifies it."""

    lineage: tuple[Image, ...]
    requirements: tuple[Requirements, ...]
    files: tuple[Mapping[str, bytes], ...]  # of each image of the lineage
    locks: tuple[bytes, ...]
    fingerprint: str
    key: str


_NO_INDEXES = Indexes()


@dataclass(frozen=True)
class _Build:
    """What the steps of one `build` call share."""

    family: Family
    settings: Settings
    store: Store
    compression: Compression
    labels: Mapping[str, str]
    report: Report
    # What the requirement files of the image at work say of where packages are.
    indexes: Indexes = _NO_INDEXES
    channels: CondaSource | None = None

    def image(self, name: str, platforms: tuple[Platform, ...], locked: bool) -> BuildResult:
        started = time.monotonic()
        inputs = self.inputs(name, platforms)
        store_name = f"{self.family.name}/{name}"
        known = self.known(inputs.key)
        if known is None:
            locks = tuple(
                parse_lock(_text(data, image), str(lock_path(image)))
                for image, data in zip(inputs.lineage, inputs.locks, strict=True)
            )
            self.check_fingerprint(name, inputs, locks[-1].fingerprint, locked)
            results, index = self.told_where(inputs).make(inputs, locks, platforms)
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
        requirements = tuple(read_requirements(image) for image in lineage)
        files = tuple(_own_files(one) for one in requirements)
        locks = tuple(_lock_bytes(image) for image in lineage)
        facts = {
            "format": FORMAT,
            "compression": self.compression.identity,
            "platforms": [str(platform) for platform in platforms],
            "maximum": self.family.maximum_layers,
            "base": self.base_facts(),
            "labels": self.image_labels(lineage),
            "lineage": [[image.name, list(image.cmd or ()), dict(image.environment)] for image in lineage],
            **self.rules(lineage[-1], requirements),
        }
        parts: dict[str, bytes] = {"facts": oci.canonical(facts)}
        for number, (own, lock) in enumerate(zip(files, locks, strict=True)):
            parts[f"{number}/lock"] = lock
            parts |= {f"{number}/files/{path}": data for path, data in own.items()}
        documented = fingerprint(documents(self.family, lineage, requirements))
        return _Inputs(lineage, requirements, files, locks, documented, fingerprint(parts).partition(":")[2])

    def rules(self, image: Image, requirements: Sequence[Requirements]) -> dict[str, Any]:
        """What the family says of conda and of files, and what the requirement files say beside the lock."""
        facts: dict[str, Any] = {}
        files, conda = self.family.files, self.family.conda
        if files.exclude:
            facts["files"] = [list(files.exclude), list(files.keep)]
        if conda:
            facts["conda"] = {
                "link-scripts": sorted(conda.link_scripts),
                "owners": dict(conda.owners),
                "channels": list(conda.channels),
                "require": list(conda.require),
                "environments": [[e.name, e.prefix, e.file, e.kernel] for e in image.environments],
                "documents": [
                    fingerprint(
                        {
                            f"{name} {p}": file.document
                            for name, read in one.environments.items()
                            for p, file in read.items()
                        }
                    )
                    for one in requirements
                ],
            }
        return facts

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
        or_parent = ", or its parent's lock," if self.family.image(name).extends else ""
        message = f"the requirement files of `{name}`{or_parent} changed since its lock was made"
        hint = f"`lithify lock {name}` brings it up to date"
        if locked:
            raise InputError(message, hint=hint)
        self.report(Event("read", "warning", message=f"{message}; {hint}"))

    def base_facts(self) -> dict[str, Any]:
        base = self.family.base
        if isinstance(base, DebianBase):
            return {"debian": base.suite, "packages": list(base.packages)}
        return {"image": self.base_digest(base), "python": base.python}

    def base_digest(self, base: LayoutBase) -> str:
        """What identifies a base that is an image: its digest, wherever it lies and whatever it is called."""
        from lithify.assemble.system import base_descriptor

        return base_descriptor(self.store, base).digest

    def image_labels(self, lineage: Sequence[Image]) -> dict[str, str]:
        labels: dict[str, str] = {"org.opencontainers.image.title": lineage[-1].name}
        if self.family.source:
            labels["org.opencontainers.image.source"] = self.family.source
        for image in lineage:
            labels |= image.labels
        return {**labels, **self.labels}

    def base_environment(self, platform: Platform) -> Mapping[str, str]:
        """The variables of a base that is somebody's image."""
        from lithify.assemble.system import base_image

        base = self.family.base
        return base_image(self.store, base, platform).environment if isinstance(base, LayoutBase) else {}

    def told_where(self, inputs: _Inputs) -> _Build:
        from lithify.sources.pypi import indexes_of

        told = replace(self, indexes=indexes_of(inputs.requirements))
        family, image = self.family, inputs.lineage[-1]
        if family.conda is None:
            return told
        from lithify.sources.conda.resolve import channels_of
        from lithify.sources.conda.source import CondaSource

        platforms = family.platforms_of(image.name)
        channels = channels_of(family.conda, image, inputs.requirements, platforms, family.root)
        return replace(told, channels=CondaSource(self.settings, channels))

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
        conda = self.family.conda
        system = self.system(inputs.lineage, locks, platform)
        python = self.family.base.python
        below = contract.conda_layer(NOTEBOOK_ENVIRONMENT) if conda else contract.environment_layer(python, merged)
        levels = lineage_levels([tuple(p for p in lock.of(platform) if p.kind != "debian") for lock in locks])
        # Each level may have a layer of what link scripts change.
        fixed = len(system) + 2 + (len(levels) if conda and conda.link_scripts else 0)
        planned = plan_layers(levels, self.family.maximum_layers - fixed)
        if fixed + len(planned) > self.family.maximum_layers:
            raise InputError(
                f"image `{name}` needs {fixed + len(planned)} layers and may have {self.family.maximum_layers}",
                hint="raise `maximum` in [layers] of lithify.toml",
            )
        made = self.laying(inputs, locks, platform).layers(planned)
        layers: list[oci.Layer] = [one.layer for one in system if one.level == 0]
        new = [one.layer for one in system if not one.reused] + list(made.new)
        key, layer = write_contents(self.store, below, self.compression)
        layers.append(describe(layer, key, below.name))
        for number, image in enumerate(inputs.lineage):
            layers += [one.layer for one in system if one.level == number + 1]
            for one, (key, layer) in zip(planned, made.layers, strict=True):
                if one.level == number:
                    layers.append(describe(layer, key, f"{image.name}: {one.name}", one.packages))
            layers += self.link_scripts(made, image, levels[number], layers, platform, new)
        activation, more = self.environments(inputs, locks, platform, made, merged)
        own = contract.image_layer(name, merged, inputs.locks[-1], more)
        key, layer = write_contents(self.store, own, self.compression)
        layers.append(describe(layer, key, own.name))
        command = next((image.cmd for image in reversed(inputs.lineage) if image.cmd), None)
        names = {package.name for package in packages_of(locks[-1], platform, NOTEBOOK)}
        created = locks[-1].created
        facts = Facts(
            created=created,
            environment=contract.image_environment(
                name, self.base_environment(platform), activation, self.variables(inputs.lineage)
            ),
            command=command or (NOTEBOOK_COMMAND if "jupyterlab" in names else DEFAULT_COMMAND),
            labels={
                **self.image_labels(inputs.lineage),
                "org.opencontainers.image.created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        )
        manifest = write_image(self.store, platform, layers, facts)
        digests = {layer.descriptor.digest for layer in new}
        result = PlatformResult(
            platform=platform,
            digest=manifest.digest,
            size=sum(layer.descriptor.size for layer in layers),
            layers=len(layers),
            layers_reused=sum(layer.descriptor.digest not in digests for layer in layers),
            fragments_built=made.built,
            fragments_reused=sum(len(one.packages) for one in planned) - made.built,
            new_bytes=sum({layer.descriptor.digest: layer.descriptor.size for layer in new}.values()),
        )
        return result, manifest

    def variables(self, lineage: Sequence[Image]) -> dict[str, str]:
        """The variables that lithify.toml sets in an image."""
        return {key: value for image in lineage for key, value in image.environment.items()}

    # -- packages ----------------------------------------------------------------------------------------------

    def laying(self, inputs: _Inputs, locks: Sequence[Lock], platform: Platform) -> Laying:
        """How the packages of an image are laid out on one platform."""
        from lithify.assemble.packages import Laying

        return Laying(
            store=self.store,
            compression=self.compression,
            targets=self.targets(inputs.lineage[-1], locks, platform),
            sources=self.fragment_sources(inputs),
            owners=self.family.conda.owners if self.family.conda else {},
            link_scripts=self.family.conda.link_scripts if self.family.conda else (),
            fetched=self.fetched,
            interpreter=functools.partial(self.interpreter, inputs, locks),
            jobs=self.settings.jobs,
            report=self.report,
        )

    def targets(self, image: Image, locks: Sequence[Lock], platform: Platform) -> dict[str, Target]:
        """What packages are laid out for, by environment."""
        if self.family.conda:
            files = self.family.files
            return {e.name: environment_target(e, locks[-1], platform, files) for e in image.environments}
        from lithify.sources import Target

        user, files = runtime.JOVYAN, self.family.files
        build = self.python_build(locks, platform)
        python = self.family.base.python
        target = Target(
            platform, runtime.PREFIX, user.uid, user.gid, python, build, exclude=files.exclude, keep=files.keep
        )
        return {NOTEBOOK: target}

    def link_scripts(
        self,
        made: Laid,
        image: Image,
        level: Sequence[Package],
        below: Sequence[oci.Layer],
        platform: Platform,
        new: list[oci.Layer],
    ) -> list[oci.Layer]:
        """The layer of what the link scripts of one level change, if there is one; added to ``new`` where it is."""
        own = frozenset(level)
        scripts = [script for script in made.scripts if script.package in own]
        if not scripts:
            return []
        from lithify.assemble.layers import describe
        from lithify.assemble.linking import script_layer

        key, layer, known = script_layer(self.store, scripts, below, platform, self.compression, self.report)
        if layer is None:
            return []
        if not known:
            new.append(layer)
        return [describe(layer, key, f"{image.name}: link scripts")]

    def environments(
        self, inputs: _Inputs, locks: Sequence[Lock], platform: Platform, made: Laid, files: Mapping[str, bytes]
    ) -> tuple[dict[str, str], contract.Files]:
        """The variables that reach every process of the image, and the files that tell of its environments."""
        if self.family.conda is None:
            return {"VIRTUAL_ENV": runtime.PREFIX}, ()
        from lithify.assemble.activation import activation_variables, conda_variables

        image = inputs.lineage[-1]
        start = contract.image_environment(image.name, self.base_environment(platform), {}, {})
        records = []
        for environment in image.environments:
            packages = packages_of(locks[-1], platform, environment.name)
            variables = requested_variables(inputs.requirements, environment, platform)
            added: dict[str, str] = {}
            if environment.name in made.activating:
                fragments = list(made.fragments(packages).values())
                base = functools.partial(self.host_base, locks)
                added = activation_variables(self.store, environment, fragments, base, start, self.compression)
            records.append(
                contract.EnvironmentRecord(
                    environment,
                    [conda_name(package) for package in packages if package.kind == "conda"],
                    requested_specs(inputs.requirements, self.family.conda, environment, platform),
                    variables,
                    {**conda_variables(environment), **added, **variables},
                    python_of(packages) is not None,
                )
            )
        notebook = next((dict(one.activation) for one in records if one.environment.name == NOTEBOOK), {})
        return notebook, contract.conda_files(records, locks[-1].created, files)

    # -- layers of the system ------------------------------------------------------------------------------------

    def system(self, lineage: Sequence[Image], locks: Sequence[Lock], platform: Platform) -> Sequence[SystemLayer]:
        """The base's layers and those of the lineage's ``apt.txt``; made where they are not there."""
        from lithify.assemble.system import system_layers

        host = host_platform()
        levels = debian_levels(lineage, locks, platform)
        twins = levels if platform == host else debian_levels(lineage, locks, host)
        return system_layers(
            self.store,
            self.family.base,
            levels,
            twins,
            platform,
            self.compression,
            fetched=self.fetched,
            report=self.report,
        )

    def host_base(self, locks: Sequence[Lock]) -> Path:
        """The base's root file system for this machine's architecture."""
        from lithify.store.rootfs import root_filesystem

        host = host_platform()
        eldest = self.family.lineage(next(iter(self.family.images)))[:1]
        layers = [one.layer for one in self.system(eldest, locks[:1], host) if one.level == 0]
        return root_filesystem(self.store, layers, report=self.report)

    def interpreter(self, inputs: _Inputs, locks: Sequence[Lock], name: str) -> Interpreter:
        """The Python of the environment ``name`` on this machine's architecture, which compiles for every platform."""
        from lithify.assemble.environments import interpreter_tree
        from lithify.fragment.bytecode import Interpreter

        base = self.host_base(locks)
        if self.family.conda is None:
            return Interpreter((base,), f"/usr/bin/python{self.family.base.python}")
        target = self.targets(inputs.lineage[-1], locks, host_platform())[name]
        packages = closure(packages_of(locks[-1], host_platform(), name), "python")
        source = self.fragment_sources(inputs)["conda"]
        tree = interpreter_tree(self.store, packages, target, source, self.fetched)
        return Interpreter((tree, base), f"{target.prefix}/bin/python{target.python}")

    def python_build(self, locks: Sequence[Lock], platform: Platform) -> str:
        """What identifies the interpreter that compiles, and that must be the platform's own."""
        from lithify.sources.debian import interpreter_build

        base = self.family.base
        if not isinstance(base, DebianBase):
            # Of all platforms' images at once, so that every host gives the same answer.
            return f"image {self.base_digest(base)}"
        builds = {one: interpreter_build(locks[-1].of(one)) for one in {platform, host_platform()}}
        if len(set(builds.values())) > 1:
            found = ", ".join(f"{build} on {one}" for one, build in sorted(builds.items()))
            raise InputError(
                f"the lock has different Pythons for different platforms: {found}",
                hint="`lithify lock --upgrade` locks all platforms from the same moment",
            )
        return builds[platform]

    # -- artefacts -------------------------------------------------------------------------------------------------

    def fetched(self, packages: Sequence[Package]) -> Mapping[Package, Path]:
        from lithify.fetch import fetch
        from lithify.sources.debian import DebianSource

        known: dict[str, Source] = {"debian": DebianSource(self.settings), "pypi": self.wheels()}
        if self.channels is not None:
            known["conda"] = self.channels
        sources = {package.source: known[package.kind] for package in packages if package.kind in known}
        return fetch(
            self.store,
            packages,
            sources,
            offline=self.settings.offline,
            jobs=self.settings.jobs,
            report=self.report,
        )

    def fragment_sources(self, inputs: _Inputs) -> dict[str, FragmentSource]:
        """The sources of packages that become fragments, by kind."""
        sources: dict[str, FragmentSource] = {"pypi": self.wheels()}
        if self.channels is not None:
            sources["conda"] = self.channels
        return sources

    def wheels(self) -> PypiSource:
        from lithify.sources.pypi import PypiSource

        return PypiSource(self.settings, self.family.base.python, self.indexes)


def debian_levels(lineage: Sequence[Image], locks: Sequence[Lock], platform: Platform) -> list[tuple[Package, ...]]:
    """The Debian packages of the base, then those that each image of the lineage adds.

    Raises:
        InputError: when a child was locked on other packages than its parent has now.
    """
    debian = [[p for p in lock.of(platform) if p.source.startswith("debian")] for lock in locks]
    base = [p for p in debian[-1] if p.base]
    levels = lineage_levels([[p for p in packages if not p.base] for packages in debian])
    for number, packages in enumerate(debian[:-1]):
        below = {p for level in levels[: number + 1] for p in level} | set(base)
        if set(packages) != below:
            child, parent = lineage[-1].name, lineage[number].name
            raise InputError(
                f"the lock of `{child}` was made on other Debian packages than the lock of `{parent}` has now",
                hint=f"`lithify lock {child}` brings it up to date",
            )
    return [tuple(base), *levels]


def _own_files(requirements: Requirements) -> dict[str, bytes]:
    """What an image's folder puts into the image as it is, by the names that `contract` knows."""
    files = {
        "start": requirements.start,
        "jupyter_notebook_config.py": requirements.jupyter_config,
        "dask_config.yml": requirements.dask_config,
        "condarc.yml": requirements.condarc,
    }
    return {name: data for name, data in files.items() if data is not None}


def _lock_bytes(image: Image) -> bytes:
    path = lock_path(image)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"image `{image.name}` has no lock: {path} does not exist", hint=f"`lithify lock {image.name}` makes it"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _text(data: bytes, image: Image) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{lock_path(image)} is not UTF-8: {error}") from error
