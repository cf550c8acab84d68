"""A base that is somebody's image: brought into the store as it is, with our user on top."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import families
import images
from lithify.assemble.system import SystemLayer, base_image, system_layers
from lithify.errors import InputError, LithifyError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.read.family import LayoutBase
from lithify.store import oci
from lithify.store.compression import GZIP, ZSTD
from lithify.store.store import Store, open_store


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    families.plain_base(tmp_path / "layout", (LINUX_AMD64, LINUX_ARM64))
    return tmp_path / "layout"


@pytest.fixture
def base(layout: Path) -> LayoutBase:
    return LayoutBase(layout, "test/base", "3.13")


def no_packages(packages: Sequence[Package]) -> Mapping[Package, Path]:
    raise AssertionError(f"asked for {packages}")


def layers(store: Store, base: LayoutBase, platform: Platform = LINUX_ARM64) -> tuple[SystemLayer, ...]:
    return system_layers(store, base, [(), ()], [(), ()], platform, ZSTD, fetched=no_packages)


@pytest.mark.parametrize("platform", [LINUX_AMD64, LINUX_ARM64], ids=str)
def test_its_layers_are_brought_as_they_are_and_the_user_is_added(
    store: Store, base: LayoutBase, layout: Path, platform: Platform
) -> None:
    made = layers(store, base, platform)
    assert [(one.level, one.reused) for one in made] == [(0, True), (0, False)]
    blob = made[0].layer.descriptor.digest
    assert store.blob_path(blob).read_bytes() == open_store(layout).blob_path(blob).read_bytes()
    assert all(store.has_blob(one.layer.descriptor) for one in made)
    assert [one.reused for one in layers(store, base, platform)] == [True, True]


def test_the_layout_is_not_needed_again_but_for_its_documents(store: Store, base: LayoutBase, layout: Path) -> None:
    (blob, _) = (one.layer.descriptor.digest for one in layers(store, base))
    open_store(layout).blob_path(blob).unlink()
    assert [one.reused for one in layers(store, base)] == [True, True]


def test_an_image_of_our_own_store_can_be_the_base(store: Store) -> None:
    families.plain_base(store.root, (LINUX_AMD64,))
    made = layers(store, LayoutBase(None, "base", "3.13"), LINUX_AMD64)
    assert len(made) == 2


def test_its_layers_may_be_of_any_compression_and_of_dockers_type(store: Store, tmp_path: Path) -> None:
    source = open_store(tmp_path / "docker")
    layer = images.layer(source, [images.file("usr/bin/python3.13", "x", 0o755)], GZIP)
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    images.image(source, [replace(layer, descriptor=replace(layer.descriptor, media_type=docker))], "theirs")
    made = layers(store, LayoutBase(source.root, "theirs", "3.13"), LINUX_AMD64)
    assert made[0].layer.descriptor.media_type == GZIP.media_type
    assert made[0].layer.descriptor.digest == layer.descriptor.digest


def test_its_environment_is_known(store: Store, tmp_path: Path) -> None:
    source = open_store(tmp_path / "theirs")
    layer = images.layer(source, [images.file("usr/bin/python3.13", "x", 0o755)])
    images.image(source, [layer], "theirs", config={"Env": ["PATH=/opt/bin:/usr/bin", "OPTIONS=a=b", "ODD"]})
    image = base_image(store, LayoutBase(source.root, "theirs", "3.13"), LINUX_AMD64)
    assert image.environment == {"PATH": "/opt/bin:/usr/bin", "OPTIONS": "a=b"}


# -- what may be wrong ---------------------------------------------------------------------------------------------


def refused(store: Store, base: LayoutBase, platform: Platform = LINUX_AMD64) -> InputError:
    with pytest.raises(InputError) as caught:
        layers(store, base, platform)
    assert caught.value.hint is not None
    return caught.value


def test_a_folder_that_is_no_layout(store: Store, tmp_path: Path) -> None:
    assert "is not an OCI image layout" in str(refused(store, LayoutBase(tmp_path / "none", "x", "3.13")))


def test_an_image_that_is_not_in_the_layout(store: Store, layout: Path) -> None:
    error = refused(store, LayoutBase(layout, "test/bass", "3.13"))
    assert "no image `test/bass`" in error.message
    assert "test/base" in (error.hint or "")


def test_a_layout_of_two_images_and_no_name(store: Store, layout: Path) -> None:
    source = open_store(layout)
    images.image(source, [images.layer(source, [images.file("a", "a")])], "other")
    error = refused(store, LayoutBase(layout, "", "3.13"))
    assert "holds 2 images" in error.message
    assert "other, test/base" in (error.hint or "")


def test_a_platform_that_the_image_is_not_made_for(store: Store, tmp_path: Path) -> None:
    families.plain_base(tmp_path / "one", (LINUX_AMD64,))
    error = refused(store, LayoutBase(tmp_path / "one", "test/base", "3.13"), LINUX_ARM64)
    assert "not there for linux/arm64" in error.message
    assert "linux/amd64" in error.message


def test_a_base_without_its_python(store: Store, base: LayoutBase) -> None:
    assert "has no /usr/bin/python2.7" in refused(store, replace(base, python="2.7")).message


def test_a_blob_that_is_missing_or_changed_is_not_brought(store: Store, base: LayoutBase, layout: Path) -> None:
    whole = Path(shutil.copytree(layout, layout.parent / "whole"))
    digest = base_image(open_store(layout.parent / "other"), base, LINUX_AMD64).layers[0].descriptor.digest
    blob = open_store(layout).blob_path(digest)
    data = blob.read_bytes()
    blob.unlink()
    assert "is missing" in refused(store, base).message
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "is not what its digest says" in refused(store, base).message
    assert not list((store.root / "blobs/sha256").iterdir())
    assert layers(store, replace(base, layout=whole), LINUX_AMD64)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"manifests": [{}]}', '{"manifests": 3}', "{"])
def test_an_index_that_is_none(store: Store, base: LayoutBase, layout: Path, text: str) -> None:
    (layout / "index.json").write_text(text)
    with pytest.raises(LithifyError):
        layers(store, base, LINUX_AMD64)


@pytest.mark.parametrize(
    "config", [{}, {"rootfs": {"diff_ids": []}}, {"rootfs": None}, {"architecture": "amd64", "os": "linux"}]
)
def test_a_configuration_that_does_not_fit_its_layers(store: Store, tmp_path: Path, config: dict[str, object]) -> None:
    source = open_store(tmp_path / "broken")
    layer = images.layer(source, [images.file("usr/bin/python3.13", "x", 0o755)])
    document = {"os": "linux", "architecture": "amd64"} | config
    described = source.write_document(document, oci.CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": described.document(),
        "layers": [layer.descriptor.document()],
    }
    source.name_image("broken", source.write_document(manifest, oci.MANIFEST))
    assert json.loads((source.root / "index.json").read_text())
    with pytest.raises(InputError):
        layers(store, LayoutBase(source.root, "broken", "3.13"), LINUX_AMD64)
