"""Plan: which packages share a layer. A pure function of names and sizes.

The words: a **level** is what one image of the lineage adds to its parents; a **layer** is a set of packages of one
level. A child's layers begin with its parent's, so the plan of a level never depends on the levels above it.

The plan is stateless: no history, no memory. Within a level,

1. every package of at least `ALONE` bytes has a layer of its own, the largest first, as long as there is room;
2. the others are spread over a power of two of buckets by a hash of their names. A package that comes, goes or changes
   touches its own bucket only; when the level grows past a threshold, buckets are halved and never reshuffled.

Layers of their own come before the buckets: a large package is released less often than any of the dozens that share
a bucket. A level takes at most half of the layers that are left, so that children always find room.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from lithify.lockfile import Package

ALONE = 4_000_000  # bytes of artefact: below, a layer's own cost (a request, a mount) outweighs its reuse
BUCKET = 8_000_000  # bytes of artefacts that a bucket should hold
UNKNOWN = 1_000_000  # bytes that an artefact is taken to have where its channel does not say (on average 2 MB)


@dataclass(frozen=True)
class PlannedLayer:
    """The packages of one layer, sorted by name; ``level`` counts from the eldest image."""

    level: int
    name: str
    packages: tuple[Package, ...]


def plan_layers(levels: Sequence[Sequence[Package]], room: int) -> tuple[PlannedLayer, ...]:
    """The layers of ``levels``, in order; at most ``room`` of them where each level can have one."""
    layers: list[PlannedLayer] = []
    for number, packages in enumerate(levels):
        if packages:
            share = max(1, (room - len(layers)) // 2)
            layers += _plan_level(number, packages, share)
    return tuple(layers)


def _plan_level(level: int, packages: Sequence[Package], room: int) -> list[PlannedLayer]:
    by_size = sorted(packages, key=lambda package: (-_size(package), package.source, package.name, package.environment))
    large = [package for package in by_size if _size(package) >= ALONE]
    # A quarter of the room is for buckets, which also take the large packages that find no room alone.
    limit = max(1, room // 4)
    alone = large if len(large) == len(by_size) <= room else large[: room - limit]
    rest = by_size[len(alone) :]
    layers = [PlannedLayer(level, package.name, (package,)) for package in alone]
    buckets = _bucket_count(sum(map(_size, rest)), limit)
    filled: dict[int, list[Package]] = {}
    for package in rest:
        filled.setdefault(_bucket(package, buckets), []).append(package)
    for number in sorted(filled):
        members = tuple(sorted(filled[number]))
        layers.append(PlannedLayer(level, f"bucket {number + 1} of {buckets}", members))
    return layers


def _size(package: Package) -> int:
    return package.size or UNKNOWN


def _bucket_count(size: int, limit: int) -> int:
    count = 1
    while count * 2 <= limit and count * BUCKET < size:
        count *= 2
    return count


def _bucket(package: Package, buckets: int) -> int:
    name = f"{package.source}:{package.name}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") % buckets


def lineage_levels(locks: Sequence[Sequence[Package]]) -> tuple[tuple[Package, ...], ...]:
    """Split the last lock's packages by the image of the lineage that brought them.

    ``locks`` are the packages of the lineage's locks for one platform, the eldest first. A package belongs to the
    eldest image from which on every lock holds the very same artefact; so a child that locks another version of a
    parent's package carries that version in a level of its own.
    """
    held = [frozenset(packages) for packages in locks]
    levels: list[list[Package]] = [[] for _ in locks]
    for package in locks[-1]:
        level = len(locks) - 1
        while level > 0 and package in held[level - 1]:
            level -= 1
        levels[level].append(package)
    return tuple(tuple(sorted(level)) for level in levels)
