"""Damage: whatever is changed in a store is repaired or reported by the next build, and never built in."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import families
import judge
import lithify
from lithify.errors import LithifyError
from lithify.platforms import LINUX_AMD64
from lithify.read.settings import Settings
from lithify.store.store import open_store


@dataclass(frozen=True)
class Scene:
    """A family, built once in ``store``; ``address`` is the index that serves its wheels."""

    family: Path
    store: Path
    digest: str
    address: str

    def settings(self, store: Path) -> Settings:
        return Settings(store=store, jobs=2, sources={"pypi": self.address})

    def build(self, store: Path) -> str:
        return lithify.build(self.family, settings=self.settings(store))[-1].digest


@pytest.fixture(scope="session")
def scene(
    shared: Path, python_layout: Path, every_wheel: tuple[families.Wheel, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with families.index(tmp_path_factory.mktemp("index"), every_wheel) as address:
        with families.made_once(shared, "damage") as (folder, empty):
            family, store = folder / "family", folder / "store"
            if empty:
                families.write_small(family, python_layout, every_wheel, platforms=(LINUX_AMD64,))
                settings = Settings(store=store, jobs=2, sources={"pypi": address})
                digest = lithify.build(family, settings=settings)[-1].digest
                (folder / "digest").write_text(digest)
        yield Scene(family, store, (folder / "digest").read_text(), address)


@pytest.fixture
def copy(scene: Scene, tmp_path: Path) -> Path:
    """A copy of the scene's store, with times."""
    subprocess.run(["cp", "-a", scene.store, tmp_path / "store"], check=True)
    return tmp_path / "store"


def flip(path: Path) -> None:
    """Change one bit in the middle, as anybody may who can write the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


def remove(path: Path) -> None:
    path.unlink()


def blobs(store: Path, kind: str) -> list[Path]:
    """The blobs of the named images that are layers, manifests, ..."""
    found: dict[str, set[str]] = {"index": set(), "manifest": set(), "config": set(), "layer": set()}

    def read(digest: str) -> dict[str, list[dict[str, str]]]:
        return json.loads((store / "blobs" / digest.replace(":", "/")).read_bytes())  # type: ignore[no-any-return]

    for image in json.loads((store / "index.json").read_bytes())["manifests"]:
        found["index"].add(image["digest"])
        for entry in read(image["digest"])["manifests"]:
            found["manifest"].add(entry["digest"])
            manifest = read(entry["digest"])
            found["config"].add(manifest["config"]["digest"])  # type: ignore[call-overload]
            found["layer"].update(layer["digest"] for layer in manifest["layers"])
    return [store / "blobs" / digest.replace(":", "/") for digest in sorted(found[kind])]


def below(store: Path, folder: str, suffix: str | None = None) -> list[Path]:
    paths = sorted(path for path in (store / folder).rglob("*") if path.is_file())
    return [path for path in paths if suffix is None or path.suffix == suffix]


def forget(store: Path, *parts: str) -> None:
    """Remove what lies above a cache, so that the next build has to use it."""
    for part in parts:
        shutil.rmtree(store / part)
        (store / part).mkdir()


IMAGES = ("blobs/sha256", "records")
PLACES: dict[str, tuple[Callable[[Path], list[Path]], tuple[str, ...]]] = {
    "artefact": (lambda store: below(store, "artefacts"), (*IMAGES, "fragments")),
    "fragment": (lambda store: below(store, "fragments", ""), IMAGES),
    "fragment's record": (lambda store: below(store, "fragments", ".json"), IMAGES),
    "layer": (lambda store: blobs(store, "layer"), ()),
    "layer, its image forgotten": (lambda store: blobs(store, "layer"), ("records/images",)),
    "configuration": (lambda store: blobs(store, "config"), ()),
    "manifest": (lambda store: blobs(store, "manifest"), ()),
    "index": (lambda store: blobs(store, "index"), ()),
    "image's record": (lambda store: below(store, "records/images"), ()),
    "layer's record": (lambda store: below(store, "records/layers"), ("records/images",)),
    "conflicts' record": (lambda store: below(store, "records/together"), ("records/images", "blobs/sha256")),
}


@pytest.mark.parametrize("damage", [flip, flip_last, truncate, empty, remove])
@pytest.mark.parametrize("place", PLACES)
def test_damage_is_repaired(scene: Scene, copy: Path, place: str, damage: Callable[[Path], None]) -> None:
    find, above = PLACES[place]
    victims = find(copy)
    assert victims
    for path in victims:
        if path.stat().st_size or damage is remove:
            damage(path)
    forget(copy, *above)
    assert scene.build(copy) == scene.digest
    judge.judge(copy, scene.digest)
    assert scene.build(copy) == scene.digest
    # What was damaged is whole again: another build that needs it finds nothing wrong.
    forget(copy, *IMAGES)
    assert scene.build(copy) == scene.digest


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove])
def test_a_damaged_list_of_images_is_repaired_or_reported(
    scene: Scene, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(copy / "index.json")
    try:
        assert scene.build(copy) == scene.digest
    except LithifyError as error:
        assert "index.json" in error.message and error.hint and "remove it" in error.hint
        (copy / "index.json").unlink()
        assert scene.build(copy) == scene.digest
    images = json.loads((copy / "index.json").read_bytes())["manifests"]
    assert scene.digest in {image["digest"] for image in images}


def test_an_artefact_that_changed_under_its_seal_is_reported_and_then_fetched_again(scene: Scene, copy: Path) -> None:
    victim = max(below(copy, "artefacts"), key=lambda path: path.stat().st_size)
    before = victim.stat()
    flip(victim)
    victim.chmod(0o444)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    forget(copy, *IMAGES, "fragments")
    with pytest.raises(LithifyError, match="was changed in the cache"):
        scene.build(copy)
    assert scene.build(copy) == scene.digest


def test_an_artefact_that_the_index_changed_is_refused(
    scene: Scene, tmp_path: Path, every_wheel: tuple[families.Wheel, ...]
) -> None:
    changed = [replace(one, data=one.data[:-1] + b"x") if one.name == "tool" else one for one in every_wheel]
    # An index without hashes, as some mirrors are: the lock alone knows what is right.
    with families.index(tmp_path / "index", changed, hashes=False) as address:
        with pytest.raises(LithifyError, match="tool") as caught:
            lithify.build(scene.family, settings=Settings(tmp_path / "store", 2, sources={"pypi": address}))
    assert caught.value.exit_code == 4
    assert not below(tmp_path / "store", "artefacts") or not (tmp_path / "store/index.json").exists()


def builder(scene: Scene, store: Path) -> subprocess.Popen[bytes]:
    config = store.parent / "config.toml"
    config.write_text(f'[sources]\npypi = "{scene.address}"\n')
    line = [sys.executable, "-m", "lithify", "--store", str(store), "-j", "2", "build", "--family", str(scene.family)]
    return subprocess.Popen(
        [*line, "--json"],
        env={**os.environ, "LITHIFY_CONFIG": str(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_two_builders_share_a_store(scene: Scene, tmp_path: Path) -> None:
    store = tmp_path / "store"
    processes = [builder(scene, store) for _ in range(2)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err.decode()
        assert json.loads(out)[-1]["digest"] == scene.digest
    judge.judge(store, scene.digest)


@pytest.mark.parametrize("seed", range(4))
def test_a_builder_that_was_killed_leaves_a_store_that_the_next_one_uses(
    scene: Scene, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    chance = random.Random(seed)
    for _ in range(3):
        process = builder(scene, store)
        time.sleep(chance.uniform(0.3, 2.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert scene.build(store) == scene.digest
    judge.judge(store, scene.digest)
    monkeypatch.setattr("lithify.store.store.GRACE", 0)
    open_store(store)
    assert [path for path in (store / "tmp").rglob("*") if path.name != "partial"] == []
