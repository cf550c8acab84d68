"""Layers: fragments joined into one archive, in which no path occurs twice and every folder comes first."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

import families
from lithify.assemble.contract import environment_layer
from lithify.assemble.layers import (
    DamagedFragment,
    describe,
    find_layer,
    join_fragments,
    layer_key,
    write_contents,
)
from lithify.fragment.fragment import Fragment, Recipe, find_fragment, make_fragment
from lithify.lockfile import Package
from lithify.plan import PlannedLayer
from lithify.platforms import LINUX_AMD64
from lithify.read.settings import Settings
from lithify.sources import Target
from lithify.sources.pypi import PypiSource
from lithify.store import oci
from lithify.store.compression import GZIP, ZSTD, Compression, decompressed
from lithify.store.store import Store

TARGET = Target(LINUX_AMD64, "/srv/conda/envs/notebook", 1000, 1000, "3.13", "build")


def fragments(
    store: Store, wheels: tuple[families.Wheel, ...], compression: Compression = ZSTD
) -> dict[Package, Fragment]:
    families.provide(store, wheels)
    source = PypiSource(Settings(store.root, jobs=1))
    made = {}
    for wheel in wheels:
        recipe = Recipe(wheel.package(), TARGET, compression, source, store.artefact_path(wheel.sha256), None)
        made[wheel.package()] = make_fragment(store, recipe, None)
    return made


def join(store: Store, made: dict[Package, Fragment], compression: Compression = ZSTD) -> oci.Layer:
    planned = PlannedLayer(0, "x", tuple(sorted(made)))
    key = layer_key([made[package].key for package in planned.packages], compression)
    return join_fragments(store, planned, made, key, compression)


def unpacked(store: Store, layer: oci.Layer) -> bytes:
    with store.blob_path(layer.descriptor.digest).open("rb") as file:
        return b"".join(decompressed(file, layer.descriptor.media_type))


@pytest.mark.parametrize("compression", [ZSTD, GZIP], ids=lambda one: one.name)
@pytest.mark.parametrize("count", [1, 2, 13])
def test_a_layer_is_one_archive(
    store: Store, wheels: tuple[families.Wheel, ...], compression: Compression, count: int
) -> None:
    made = fragments(store, wheels[:count], compression)
    layer = join(store, made, compression)
    data = unpacked(store, layer)
    assert layer.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    names = [member.name for member in members]
    assert len(names) == len(set(names))
    assert {name for fragment in made.values() for name in fragment.paths} == {m.name for m in members if m.isfile()}
    seen: set[str] = set()
    for member in members:
        above = member.name.rpartition("/")[0]
        assert not above or above in seen, f"{member.name} comes before its folder"
        seen.add(member.name)
    assert data.endswith(b"\0" * 1024)


def test_the_same_bytes_under_one_path_come_once(store: Store, wheels: tuple[families.Wheel, ...]) -> None:
    spaces = tuple(wheel for wheel in wheels if wheel.name.startswith("space"))
    layer = join(store, fragments(store, spaces))
    with tarfile.open(fileobj=io.BytesIO(unpacked(store, layer))) as archive:
        assert sum(name.endswith("space/shared.txt") for name in archive.getnames()) == 1


def test_the_diff_id_does_not_depend_on_the_compression(store: Store, wheels: tuple[families.Wheel, ...]) -> None:
    ids = [join(store, fragments(store, wheels, compression), compression).diff_id for compression in (ZSTD, GZIP)]
    assert ids[0] == ids[1]


def test_a_layer_is_found_by_its_key_while_its_blob_is_whole(store: Store, wheels: tuple[families.Wheel, ...]) -> None:
    made = fragments(store, wheels[:2])
    key = layer_key([made[package].key for package in sorted(made)], ZSTD)
    assert find_layer(store, key) is None
    layer = join(store, made)
    assert find_layer(store, key) == layer
    blob = store.blob_path(layer.descriptor.digest)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert find_layer(store, key) is None
    assert join(store, made) == layer


@pytest.mark.parametrize("record", [{}, {"descriptor": {}, "diff_id": ""}, {"descriptor": 3}])
def test_a_layer_s_record_that_is_none_counts_as_none(store: Store, record: dict[str, object]) -> None:
    store.write_record("layers", "key", record)
    assert find_layer(store, "key") is None


def test_the_key_knows_order_and_compression() -> None:
    keys = [
        layer_key(["a", "b"], ZSTD),
        layer_key(["b", "a"], ZSTD),
        layer_key(["a", "b"], GZIP),
        layer_key(["ab"], ZSTD),
    ]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("name", ["tool", "space-two"])
def test_a_damaged_fragment_is_thrown_away(store: Store, wheels: tuple[families.Wheel, ...], name: str) -> None:
    made = fragments(store, wheels)
    victim = next(fragment for package, fragment in made.items() if package.name == name)
    data = bytearray(victim.file.read_bytes())
    data[len(data) // 2] ^= 1
    victim.file.write_bytes(data)
    blobs = set((store.root / "blobs/sha256").iterdir())
    with pytest.raises(DamagedFragment):
        join(store, made)
    assert set((store.root / "blobs/sha256").iterdir()) == blobs
    assert find_fragment(store, victim.key) is None


def test_a_layer_says_what_it_holds(store: Store, wheels: tuple[families.Wheel, ...]) -> None:
    made = fragments(store, wheels[:2])
    described = describe(join(store, made), "key", "a name", sorted(made))
    assert described.descriptor.annotations == {
        oci.LAYER_KEY: "key",
        oci.LAYER_NAME: "a name",
        oci.LAYER_DIFF_ID: described.diff_id,
        oci.LAYER_PACKAGES: "pypi:plain=1.0 pypi:tool=1.0",
    }


def test_contents_of_ours_are_written_once(store: Store) -> None:
    contents = environment_layer("3.13", {})
    first, second = write_contents(store, contents, ZSTD), write_contents(store, contents, ZSTD)
    assert first == second
    data = unpacked(store, first[1])
    assert first[1].diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert len(archive.getnames()) == len(contents.members)
