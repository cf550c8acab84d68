"""Packages into layers: fragments made where they are missing, clobbering settled, layers joined.

The cost follows the change: where a layer's key is known nothing below it is looked at, and where all are known nothing
is made at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from lithify.assemble.activation import activation_files
from lithify.assemble.clobbering import linking_order, settle
from lithify.assemble.layers import DamagedFragment, find_layer, join_fragments, layer_key
from lithify.assemble.linking import LinkScript, check_allowed, link_scripts
from lithify.errors import InputError
from lithify.fragment.bytecode import Interpreter
from lithify.fragment.fragment import Fragment, Recipe, find_fragment, fragment_key, make_fragments
from lithify.lockfile import Package
from lithify.plan import PlannedLayer
from lithify.progress import Event, Report
from lithify.sources import Fetched, FragmentSource, Target
from lithify.store import oci
from lithify.store.compression import Compression
from lithify.store.store import Store

# Raise it when the same packages come to be put together otherwise.
FORMAT = 1


@dataclass(frozen=True)
class Laid:
    """Packages in layers: each layer with its key, those of them that are new, how many fragments were made.

    ``scripts`` are the link scripts to run, in order; ``activating`` the environments that have files to activate them.
    """

    layers: tuple[tuple[str, oci.Layer], ...]
    new: tuple[oci.Layer, ...]
    built: int
    scripts: tuple[LinkScript, ...]
    activating: frozenset[str]
    fragments: Callable[[Sequence[Package]], Mapping[Package, Fragment]]


@dataclass(frozen=True)
class Laying:
    """All that laying out packages for one platform depends on.

    ``targets`` are by environment, ``sources`` by kind of source. ``interpreter`` gives the Python that compiles for an
    environment; it is asked only where something is to be compiled.
    """

    store: Store
    compression: Compression
    targets: Mapping[str, Target]
    sources: Mapping[str, FragmentSource]
    owners: Mapping[str, str]
    link_scripts: Sequence[str]
    fetched: Fetched
    interpreter: Callable[[str], Interpreter]
    jobs: int
    report: Report
    _known: dict[str, Fragment] = field(default_factory=dict)
    _built: set[str] = field(default_factory=set)

    def layers(self, planned: Sequence[PlannedLayer]) -> Laid:
        """The layers of ``planned``; those that are not in the store are made.

        Raises:
            LithifyError: for packages that cannot be laid out, or not together.
            InputError: for a package that runs a script and may not.
        """
        every = [package for one in planned for package in one.packages]
        alone = {package: self._target(package) for package in every}
        together = self._together(alone)
        check_allowed([script.package.name for script in together.scripts], self.link_scripts)
        targets = {
            package: replace(target, without=together.without.get(package, ())) for package, target in alone.items()
        }
        layer_keys = [
            layer_key([self._key(package, targets[package]) for package in one.packages], self.compression)
            for one in planned
        ]
        found = [find_layer(self.store, key) for key in layer_keys]
        missing = [number for number, layer in enumerate(found) if layer is None]
        made: dict[int, oci.Layer] = {}
        if missing:
            needed = {package: targets[package] for number in missing for package in planned[number].packages}
            self._fragments(needed)
            made = self._joined({number: (planned[number], layer_keys[number]) for number in missing}, needed)
        layers = [layer or made[number] for number, layer in enumerate(found)]
        return Laid(
            tuple(zip(layer_keys, layers, strict=True)),
            tuple(made.values()),
            sum(self._key(package, target) in self._built for package, target in targets.items()),
            together.scripts,
            together.activating,
            lambda packages: self._fragments({package: targets[package] for package in packages}),
        )

    def _target(self, package: Package) -> Target:
        if package.environment not in self.targets or package.kind not in self.sources:
            raise InputError(
                f"the lock has {package.name} from {package.source} in the environment `{package.environment}`, which "
                "the image does not have",
                hint="`lithify lock` brings the lock up to date with lithify.toml",
            )
        return self.sources[package.kind].narrowed(package, self.targets[package.environment])

    def _key(self, package: Package, target: Target) -> str:
        return fragment_key(package, target, self.compression)

    # -- together --------------------------------------------------------------------------------------------------

    def _together(self, targets: Mapping[Package, Target]) -> _Together:
        """What is known of the packages only when all of them are: from the record of it, or found out now."""
        keys = {package: self._key(package, target) for package, target in targets.items()}
        facts = {"format": FORMAT, "fragments": sorted(keys.values()), "owners": dict(self.owners)}
        key = hashlib.sha256(oci.canonical(facts)).hexdigest()
        by_key = {key: package for package, key in keys.items()}
        if (record := self.store.record("together", key)) is not None:
            return _Together(
                {by_key[one]: tuple(paths) for one, paths in record["without"].items()},
                tuple(LinkScript(by_key[one], prefix, path) for one, prefix, path in record["scripts"]),
                frozenset(record["activating"]),
            )
        paths = {package: fragment.paths for package, fragment in self._fragments(targets).items()}
        found = self._settled(paths)
        record = {
            "without": {keys[package]: list(without) for package, without in found.without.items()},
            "scripts": [[keys[script.package], script.prefix, script.path] for script in found.scripts],
            "activating": sorted(found.activating),
        }
        self.store.write_record("together", key, record)
        return found

    def _settled(self, paths: Mapping[Package, Mapping[str, str]]) -> _Together:
        prefixes = {name: target.prefix for name, target in self.targets.items()}
        without: dict[Package, list[str]] = {}
        between: dict[tuple[Package, Package], list[str]] = {}
        for one in settle(paths, prefixes, self.owners):
            for loser in one.losers:
                without.setdefault(loser, []).append(one.path)
                between.setdefault((loser, one.winner), []).append(one.path)
        for (package, winner), lost in sorted(between.items()):
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            message = (
                f"{package.name} {package.version} does not bring /{lost[0]}{more}: "
                f"{winner.name} {winner.version} brings it, too, and its file stays; "
                "`owners` in [conda] of lithify.toml can say otherwise"
            )
            self.report(Event("assemble", "warning", message=message))
        scripts = link_scripts({package: paths[package] for package in linking_order(paths)}, prefixes)
        activating = frozenset(
            name
            for name, prefix in prefixes.items()
            if any(activation_files(own, prefix) for package, own in paths.items() if package.environment == name)
        )
        return _Together({package: tuple(lost) for package, lost in without.items()}, tuple(scripts), activating)

    # -- fragments -------------------------------------------------------------------------------------------------

    def _fragments(self, targets: Mapping[Package, Target]) -> dict[Package, Fragment]:
        """The fragments of all packages; what is missing is made, all of it at once."""
        keys = {package: self._key(package, target) for package, target in targets.items()}
        for key in keys.values():
            if key not in self._known and (fragment := find_fragment(self.store, key)) is not None:
                self._known[key] = fragment
        absent = {key: package for package, key in keys.items() if key not in self._known}
        if absent:
            artefacts = self.fetched(list(absent.values()))
            compiled = {package.environment for package in absent.values() if targets[package].python_build}
            interpreters = {name: self.interpreter(name) for name in sorted(compiled)}
            recipes = [
                Recipe(
                    package,
                    targets[package],
                    self.compression,
                    self.sources[package.kind],
                    artefacts[package],
                    interpreters[package.environment] if targets[package].python_build else None,
                )
                for package in absent.values()
            ]
            make_fragments(self.store, recipes, jobs=self.jobs, report=self.report)
            for key in absent:
                made = find_fragment(self.store, key)
                assert made is not None
                self._known[key] = made
            self._built.update(absent)
        return {package: self._known[key] for package, key in keys.items()}

    # -- layers ----------------------------------------------------------------------------------------------------

    def _joined(
        self, missing: Mapping[int, tuple[PlannedLayer, str]], targets: Mapping[Package, Target]
    ) -> dict[int, oci.Layer]:
        self.report(Event("assemble", "start", "layers", total=len(missing)))
        with ThreadPoolExecutor(self.jobs) as pool:
            layers = list(pool.map(lambda one: self._join(one[0], one[1], targets), missing.values()))
        count = len(missing)
        message = f"{count} new layer{'' if count == 1 else 's'}"
        self.report(Event("assemble", "finish", "layers", message, count, count))
        return dict(zip(missing, layers, strict=True))

    def _join(self, one: PlannedLayer, key: str, targets: Mapping[Package, Target]) -> oci.Layer:
        """A layer of fragments; those found damaged on the way are made anew, each once."""
        own = {package: targets[package] for package in one.packages}
        for _ in one.packages:
            try:
                return join_fragments(self.store, one, self._fragments(own), key, self.compression)
            except DamagedFragment as error:
                self.report(Event("assemble", "warning", message=f"{error.message}; it is made anew"))
                for package, target in own.items():
                    self._known.pop(self._key(package, target), None)
        return join_fragments(self.store, one, self._fragments(own), key, self.compression)


@dataclass(frozen=True)
class _Together:
    """What a set of packages is together: which paths which package leaves to another, the scripts to run, in order."""

    without: Mapping[Package, tuple[str, ...]]
    scripts: tuple[LinkScript, ...]
    activating: frozenset[str]
