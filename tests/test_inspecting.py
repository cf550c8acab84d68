"""What is in the store, as values and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

import images
from images import file
from lithify.errors import InputError, LithifyError
from lithify.lockfile import Lock, Package, write_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, host_platform
from lithify.read.settings import Settings
from lithify.store import oci
from lithify.store.store import Store, open_store
from lithify.use.inspecting import LOCK_INSIDE, PackageDetails, inspect, list_images


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def settings(store: Store) -> Settings:
    return Settings(store.root, 2)


def _packages() -> tuple[Package, ...]:
    return tuple(
        Package("pypi", name, platform, "1.0", f"{name}-1.0.whl", digit * 64, 10)
        for name, digit in (("xarray", "a"), ("dask", "b"))
        for platform in (LINUX_AMD64, LINUX_ARM64)
    )


def _image(store: Store, name: str = "family/notebook") -> oci.Descriptor:
    lock = write_lock(Lock("sha256:0", datetime(2026, 1, 1, tzinfo=UTC), _packages()))
    layers = [
        images.layer(
            store,
            [file("lib/a", "x" * 1000)],
            annotations={oci.LAYER_NAME: "wheels", oci.LAYER_PACKAGES: "pypi:dask=1.0 pypi:xarray=1.0"},
        ),
        images.layer(store, [file(LOCK_INSIDE, lock)], annotations={oci.LAYER_NAME: "contract"}),
    ]
    return images.image(store, layers, name, {"Env": ["A=1"], "User": "jovyan"}, [LINUX_AMD64, LINUX_ARM64])


def test_an_empty_store_has_no_images(settings: Settings) -> None:
    assert list_images(settings=settings) == ()


def test_images_are_listed_by_name_with_platforms_and_size(store: Store, settings: Settings) -> None:
    image = _image(store, "b/two")
    _image(store, "a/one")
    one, two = list_images(settings=settings)

    assert (one.name, two.name) == ("a/one", "b/two")
    assert two.digest == image.digest
    assert two.platforms == ("linux/amd64", "linux/arm64")
    assert two.layers == 2
    assert two.created == "1980-01-02T00:00:00Z"
    assert two.size == sum(layer.size for layer in inspect("two", settings=settings).layers)
    assert json.loads(json.dumps(one.document()))["platforms"] == ["linux/amd64", "linux/arm64"]


def test_an_image_is_told_with_its_configuration_layers_and_packages(store: Store, settings: Settings) -> None:
    image = _image(store)
    details = inspect("notebook", settings=settings)

    assert (details.name, details.digest) == ("family/notebook", image.digest)
    assert details.platform == str(host_platform())
    assert details.config == {"Env": ["A=1"], "User": "jovyan"}
    assert [layer.name for layer in details.layers] == ["wheels", "contract"]
    assert details.layers[0].packages == ("pypi:dask=1.0", "pypi:xarray=1.0")
    assert details.packages == (
        PackageDetails("pypi", "dask", "1.0", "b" * 64, 10, "notebook"),
        PackageDetails("pypi", "xarray", "1.0", "a" * 64, 10, "notebook"),
    )
    document = json.loads(json.dumps(details.document()))
    assert document["layers"][0]["digest"] == details.layers[0].digest
    assert document["packages"][0]["name"] == "dask"


@pytest.mark.parametrize("platform", ["linux/arm64", LINUX_ARM64])
def test_another_platform_can_be_asked_for(store: Store, settings: Settings, platform: str) -> None:
    _image(store)
    assert inspect("notebook", platform=platform, settings=settings).platform == "linux/arm64"
    with pytest.raises(InputError, match="unknown platform"):
        inspect("notebook", platform="plan9/mips", settings=settings)


def test_a_foreign_image_of_one_manifest_has_no_packages(store: Store, settings: Settings) -> None:
    images.image(store, [images.layer(store, [file("a")])], "foreign/image", index=False)
    details = inspect("foreign/image", settings=settings)

    assert details.packages == ()
    assert details.platforms == (str(host_platform()),)
    assert details.digest == details.manifest


def test_an_unknown_image_is_an_error_that_helps(store: Store, settings: Settings) -> None:
    _image(store)
    with pytest.raises(InputError) as caught:
        inspect("notebok", settings=settings)
    assert caught.value.hint


def test_a_damaged_image_is_listed_with_its_problem_and_cannot_be_inspected(store: Store, settings: Settings) -> None:
    image = _image(store, "a/damaged")
    images.image(store, [images.layer(store, [file("a")])], "b/whole")
    store.blob_path(image.digest).unlink()
    damaged, whole = list_images(settings=settings)

    assert "missing" in damaged.problem
    assert whole.problem == ""
    with pytest.raises(LithifyError, match="missing"):
        inspect("a/damaged", settings=settings)


@pytest.mark.parametrize(
    "manifest",
    [{}, {"config": 3}, {"layers": []}, {"manifests": [{"digest": "sha256:x"}]}, {"manifests": 7}, {"manifests": []}],
)
@pytest.mark.parametrize("media_type", [oci.MANIFEST, oci.INDEX])
def test_nonsense_is_an_error_for_people(
    store: Store, settings: Settings, manifest: dict[str, object], media_type: str
) -> None:
    store.name_image("a/nonsense", store.write_document(manifest, media_type))
    with pytest.raises(LithifyError):
        inspect("a/nonsense", settings=settings)
    assert list_images(settings=settings)[0].problem
