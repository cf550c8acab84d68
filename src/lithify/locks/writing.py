"""What every writer of a foreign lock needs: where packages are, and which comes before which."""

from __future__ import annotations

import graphlib
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lithify.addresses import CondaFile, split_file_name, without_credentials
from lithify.errors import InputError
from lithify.lockfile import Package


@dataclass(frozen=True)
class Places:
    """Where packages are served from: ``channels`` are addresses by source (``conda/conda-forge``), ``files`` those of
    wheels. No credentials reach a file.
    """

    channels: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[Package, str] = field(default_factory=dict)

    def of(self, package: Package) -> str:
        """The address of a package's file.

        Raises:
            InputError: where it is not known.
        """
        if package.kind == "conda" and package.source in self.channels:
            return f"{without_credentials(self.channels[package.source]).rstrip('/')}/{package.file}"
        if package in self.files:
            return without_credentials(self.files[package])
        raise InputError(f"it is not known where {package.file} ({package.source}) is served from")


def file_of(package: Package) -> CondaFile:
    """The parts of a conda package's file name."""
    return split_file_name(package.file.rpartition("/")[2])


def of_kind(packages: Iterable[Package], kind: str) -> list[Package]:
    """The packages from sources of one kind, sorted by name."""
    return sorted((package for package in packages if package.kind == kind), key=lambda package: package.name)


def topological(packages: Iterable[Package]) -> list[Package]:
    """Conda packages of one platform, each after those it depends on, by name where that leaves a choice.

    Where packages depend on each other in a circle, they stand side by side, as conda puts up with it.
    """
    by_name = {package.name: package for package in sorted(packages, key=lambda package: package.name)}
    needs = {
        name: {n for n in map(_name, package.depends) if n in by_name} - {name} for name, package in by_name.items()
    }
    ordered: list[Package] = []
    while True:
        sorter = graphlib.TopologicalSorter(needs)
        try:
            sorter.prepare()
        except graphlib.CycleError as error:
            # Any edge of the circle may go. As in conda, Python does not wait for what is installed with it (pip);
            # else the least by name goes, so that the order stays the same.
            circle = error.args[1]
            edges = [(after, before) for before, after in itertools.pairwise(circle)]
            after, before = min(edges, key=lambda edge: (edge[0] != "python", edge))
            needs[after] = needs[after] - {before}
            continue
        while sorter.is_active():
            ready = sorted(sorter.get_ready())
            ordered += [by_name[name] for name in ready]
            sorter.done(*ready)
        return ordered


def _name(depend: str) -> str:
    return re.split(r"[\s\[=<>!~]", depend.strip().rpartition("::")[2], maxsplit=1)[0].lower()
