"""Export: what skopeo and podman take, and what is left when it cannot be done."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import images
from engines import engine_folder, podman, podman_environment, podman_run, skopeo
from images import file, folder, symlink
from lithify.errors import HostError, InputError, LithifyError
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, host_platform
from lithify.read.settings import Settings
from lithify.store import oci
from lithify.store.compression import GZIP, ZSTD, Compression
from lithify.store.store import Store, open_store
from lithify.use.exporting import export, reference

NAME = "family/notebook"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def settings(store: Store) -> Settings:
    return Settings(store.root, 2)


@pytest.fixture
def engine() -> Iterator[Path]:
    with engine_folder() as path:
        yield path


def _image(store: Store, name: str = NAME, compression: Compression | None = ZSTD, extra: str = "") -> oci.Descriptor:
    layers = [
        images.layer(
            store,
            [
                *images.programs("sh", "cat", "id"),
                folder("tmp", 0o1777),
                folder("home/jovyan", 0o755, uid=1000, gid=1000),
                file("home/jovyan/text", "hello", 0o600, uid=1000, gid=1000),
                file("etc/passwd", "root:x:0:0::/root:/bin/sh\njovyan:x:1000:1000::/home/jovyan:/bin/sh\n"),
            ],
            compression,
        ),
        images.layer(
            store, [symlink("home/jovyan/link", "text", uid=1000, gid=1000), file("extra", extra)], compression
        ),
    ]
    config = {"User": "jovyan", "Env": ["GREETING=hi"], "Cmd": ["sh", "-c", "id -u; echo $GREETING; cat ~/link"]}
    return images.image(store, layers, name, config, [LINUX_AMD64, LINUX_ARM64])


def _names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_layout_holds_the_image_with_all_platforms_under_its_name(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    image = _image(store)
    export("notebook", oci_layout=tmp_path / "layout", settings=settings)
    raw = skopeo("inspect", "--raw", f"oci:{tmp_path}/layout:{NAME}")

    assert oci.digest_of(raw.encode()) == image.digest
    skopeo("copy", "--all", "--preserve-digests", f"oci:{tmp_path}/layout:{NAME}", f"dir:{tmp_path}/copy")
    assert {entry["platform"]["architecture"] for entry in json.loads(raw)["manifests"]} == {"amd64", "arm64"}


@pytest.mark.parametrize("compression", [ZSTD, GZIP, None], ids=["zstd", "gzip", "plain"])
def test_skopeo_reads_the_archives_and_finds_the_same_layers(
    store: Store, settings: Settings, tmp_path: Path, compression: Compression | None
) -> None:
    _image(store, compression=compression)
    export(NAME, oci_archive=tmp_path / "oci.tar", docker_archive=tmp_path / "docker.tar", settings=settings)
    for kind in ("oci", "docker"):
        skopeo("copy", f"{kind}-archive:{tmp_path}/{kind}.tar", f"oci:{tmp_path}/{kind}:x")
    configs = [json.loads(skopeo("inspect", "--config", f"oci:{tmp_path}/{kind}:x")) for kind in ("oci", "docker")]

    assert configs[0] == configs[1]
    assert skopeo("inspect", "--format", "{{.Name}}", f"docker-archive:{tmp_path}/docker.tar").strip() == ""
    with tarfile.open(tmp_path / "docker.tar") as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json") or pytest.fail())
        for layer, diff_id in zip(manifest["Layers"], configs[0]["rootfs"]["diff_ids"], strict=True):
            content = archive.extractfile(layer)
            assert content is not None
            assert f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}" == diff_id  # type: ignore[arg-type]
    assert manifest["RepoTags"] == ["family/notebook:latest"]


def test_the_same_image_gives_the_same_archives(store: Store, settings: Settings, tmp_path: Path) -> None:
    _image(store)
    for number in range(2):
        export(NAME, oci_archive=tmp_path / f"o{number}", docker_archive=tmp_path / f"d{number}", settings=settings)
    assert (tmp_path / "o0").read_bytes() == (tmp_path / "o1").read_bytes()
    assert (tmp_path / "d0").read_bytes() == (tmp_path / "d1").read_bytes()


def test_one_platform_of_several(store: Store, settings: Settings, tmp_path: Path) -> None:
    _image(store)
    export(NAME, oci_layout=tmp_path / "layout", platform="linux/arm64", settings=settings)
    config = json.loads(skopeo("inspect", "--config", f"oci:{tmp_path}/layout:{NAME}"))

    assert config["architecture"] == "arm64"
    assert len(_names(tmp_path / "layout/blobs/sha256")) == 4


def test_an_existing_layout_gets_what_it_lacks_and_keeps_the_rest(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    place = tmp_path / "layout"
    _image(store)
    export(NAME, oci_layout=place, settings=settings)
    before = {path: path.stat().st_ino for path in (place / "blobs/sha256").iterdir()}
    _image(store, "family/other", extra="more")
    export("other", oci_layout=place, settings=settings)
    export(NAME, oci_layout=place, settings=settings)

    for name in (NAME, "family/other"):
        skopeo("inspect", f"oci:{place}:{name}")
    assert all(path.stat().st_ino == inode for path, inode in before.items())
    assert len(json.loads((place / "index.json").read_bytes())["manifests"]) == 2


def test_a_damaged_blob_of_an_existing_layout_is_replaced(store: Store, settings: Settings, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    image = _image(store)
    export(NAME, oci_layout=place, settings=settings)
    blob = place / "blobs/sha256" / image.digest.removeprefix("sha256:")
    blob.write_bytes(b"x" * blob.stat().st_size)
    export(NAME, oci_layout=place, settings=settings)

    skopeo("inspect", f"oci:{place}:{NAME}")


def test_a_folder_has_the_images_files_and_for_root_its_owners(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    _image(store)
    (tmp_path / "root").mkdir()
    export(NAME, rootfs=tmp_path / "root", settings=settings)
    text = tmp_path / "root/home/jovyan/text"

    assert text.read_text() == "hello"
    assert text.stat().st_uid == (1000 if os.geteuid() == 0 else os.geteuid())
    assert (tmp_path / "root/home/jovyan/link").readlink() == Path("text")


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci"])
def test_podman_runs_every_form(store: Store, settings: Settings, tmp_path: Path, engine: Path, form: str) -> None:
    _image(store)
    place = tmp_path / "image"
    match form:
        case "oci-archive":
            export(NAME, oci_archive=place, settings=settings)
        case "docker-archive":
            export(NAME, docker_archive=place, settings=settings)
        case _:
            export(NAME, oci_layout=place, settings=settings)
    identifier = podman(engine, "pull", "--quiet", f"{form}:{place}").split()[-1]

    assert podman_run(engine, identifier) == "1000\nhi\nhello"


def test_into_podman(store: Store, settings: Settings, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(store)
    podman(engine, "--version")
    for key, value in podman_environment(engine).items():
        monkeypatch.setenv(key, value)
    export(NAME, podman=True, settings=settings)

    assert podman_run(engine, "localhost/family/notebook:latest") == "1000\nhi\nhello"
    names = podman(engine, "images", "--format", "{{.Repository}}:{{.Tag}}")
    assert names.split() == ["localhost/family/notebook:latest"]
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["podman", "docker"])
def test_an_engine_that_is_not_there_is_an_error_that_says_so(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _image(store)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match=f"no `{name}` on this machine"):
        export(NAME, podman=name == "podman", docker=name == "docker", settings=settings)


def test_an_engine_that_refuses_is_shown_with_its_own_words(
    store: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _image(store)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text('#!/bin/sh\necho "$@" >&2; echo cannot connect >&2; exit 3\n')
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with pytest.raises(HostError) as caught:
        export(NAME, docker=True, settings=settings)
    assert "cannot connect" in (caught.value.details or "")
    assert "load --quiet --input" in (caught.value.details or "")
    assert list((store.root / "tmp").iterdir()) == []


# -- what cannot be done -----------------------------------------------------------------------------------------


def test_no_place_is_an_error(settings: Settings, store: Store) -> None:
    _image(store)
    with pytest.raises(InputError, match="nothing says where to"):
        export(NAME, settings=settings)


@pytest.mark.parametrize("form", ["oci_layout", "rootfs"])
def test_a_folder_of_something_else_is_left_alone(store: Store, settings: Settings, tmp_path: Path, form: str) -> None:
    _image(store)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        export(NAME, settings=settings, **{form: tmp_path / "mine"})  # type: ignore[arg-type]
    assert _names(tmp_path / "mine") == ["file"]


@pytest.mark.parametrize("form", ["oci_layout", "oci_archive", "docker_archive", "rootfs"])
def test_a_place_without_a_parent_is_an_error(store: Store, settings: Settings, tmp_path: Path, form: str) -> None:
    _image(store)
    with pytest.raises(InputError, match="there is no folder"):
        export(NAME, settings=settings, **{form: tmp_path / "none/place"})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["oci_layout", "oci_archive", "docker_archive", "rootfs"])
def test_a_damaged_layer_is_found_and_nothing_is_left(
    store: Store, settings: Settings, tmp_path: Path, form: str
) -> None:
    _image(store)
    largest = max((store.root / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    status = largest.stat()
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    os.utime(largest, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(LithifyError, match="not what its digest says"):
        export(NAME, settings=settings, **{form: tmp_path / "place"})  # type: ignore[arg-type]
    assert _names(tmp_path) == ["store"]
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize("form", ["oci_layout", "oci_archive", "docker_archive", "rootfs"])
def test_a_missing_layer_is_found_and_nothing_is_left(
    store: Store, settings: Settings, tmp_path: Path, form: str
) -> None:
    _image(store)
    max((store.root / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).unlink()
    with pytest.raises(LithifyError, match="is missing from the store"):
        export(NAME, settings=settings, **{form: tmp_path / "place"})  # type: ignore[arg-type]
    assert _names(tmp_path) == ["store"]


def test_a_failed_export_keeps_the_file_that_was_there(store: Store, settings: Settings, tmp_path: Path) -> None:
    _image(store)
    export(NAME, oci_archive=tmp_path / "image.tar", settings=settings)
    before = (tmp_path / "image.tar").read_bytes()
    max((store.root / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).unlink()
    with pytest.raises(LithifyError):
        export(NAME, oci_archive=tmp_path / "image.tar", settings=settings)
    assert (tmp_path / "image.tar").read_bytes() == before


def test_a_platform_that_the_image_lacks_is_an_error_that_names_those_it_has(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    layer = images.layer(store, [file("a")])
    other = next(one for one in (LINUX_AMD64, LINUX_ARM64) if one != host_platform())
    images.image(store, [layer], NAME, platforms=[other])

    with pytest.raises(InputError, match=f"not made for {host_platform()}: it is for {other}"):
        export(NAME, rootfs=tmp_path / "root", settings=settings)
    with pytest.raises(InputError, match="unknown platform"):
        export(NAME, rootfs=tmp_path / "root", platform="linux/s390x", settings=settings)
    export(NAME, oci_layout=tmp_path / "layout", settings=settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("family/notebook", "family/notebook:latest"),
        ("My Images/Note Book", "my-images/note-book:latest"),
        ("-a-/b__c..d", "a/b_c.d:latest"),
        ("é/x", "image/x:latest"),
    ],
)
def test_a_name_becomes_a_reference_that_engines_accept(name: str, expected: str) -> None:
    assert reference(name) == expected
