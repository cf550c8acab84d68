"""The same lock gives the same bytes: wherever, whenever, by whomever and in whatever order it is built."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import families
import judge
import lithify
from lithify.fragment import fragment
from lithify.platforms import PLATFORMS
from lithify.read.settings import Settings
from lithify.store.compression import GZIP, ZSTD
from lithify.store.store import open_store


@pytest.fixture(scope="session")
def reference(
    shared: Path, python_layout: Path, every_wheel: tuple[families.Wheel, ...]
) -> tuple[Path, Path, dict[str, str]]:
    """A family, a store with nothing but its wheels, and the digests that building it once gave."""
    with families.made_once(shared, "reference") as (folder, empty):
        family, wheels = folder / "family", folder / "wheels"
        if empty:
            families.write_small(family, python_layout, every_wheel)
            families.provide(open_store(wheels), every_wheel)
            store = families.clone(wheels, folder / "store")
            built = families.build(family, Settings(store, jobs=2))
            (folder / "digests.json").write_text(json.dumps({"index": built.digest, **built.platforms}))
    return family, wheels, json.loads((folder / "digests.json").read_text())


@pytest.fixture
def cold(reference: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> Settings:
    """A store with the wheels and nothing else."""
    return Settings(families.clone(reference[1], tmp_path / "store"), jobs=2)


def digests(built: families.Built | lithify.BuildResult) -> dict[str, str]:
    if isinstance(built, families.Built):
        return {"index": built.digest, **built.platforms}
    return {"index": built.digest, **{str(one.platform): one.digest for one in built.platforms}}


SURROUNDINGS = {
    "another time zone": {"TZ": "Pacific/Chatham"},
    "another locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a locale that is not there": {"LC_ALL": "tr_TR.ISO-8859-9"},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 77": {"PYTHONHASHSEED": "77"},
    "variables that Python heeds": {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONOPTIMIZE": "2",
        "SOURCE_DATE_EPOCH": "1234567890",
        "PYTHONPYCACHEPREFIX": "/nowhere",
    },
    "an empty home": {"HOME": "/nonexistent"},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_surroundings_do_not_matter(
    reference: tuple[Path, Path, dict[str, str]], cold: Settings, name: str
) -> None:
    family, _, expected = reference
    assert digests(families.build(family, cold, **SURROUNDINGS[name])) == expected


@pytest.mark.parametrize("umask", ["000", "077"])
def test_the_umask_does_not_matter(reference: tuple[Path, Path, dict[str, str]], cold: Settings, umask: str) -> None:
    family, _, expected = reference
    prefix = ["sh", "-c", f'umask {umask}; exec "$@"', "sh"]
    assert digests(families.build(family, cold, prefix=prefix)) == expected


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_number_of_jobs_does_not_matter(
    reference: tuple[Path, Path, dict[str, str]], cold: Settings, jobs: int
) -> None:
    family, _, expected = reference
    assert digests(families.build(family, replace(cold, jobs=jobs))) == expected


def test_the_family_s_place_and_times_do_not_matter(
    reference: tuple[Path, Path, dict[str, str]], cold: Settings, tmp_path: Path
) -> None:
    family, _, expected = reference
    elsewhere = tmp_path / "a longer place" / "with spaces"
    shutil.copytree(family, elsewhere, copy_function=shutil.copyfile)
    for path in elsewhere.rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    built = families.build(elsewhere, cold)
    assert digests(built) == expected


def test_a_warm_cache_does_not_matter(reference: tuple[Path, Path, dict[str, str]], cold: Settings) -> None:
    family, _, expected = reference
    assert digests(families.build(family, cold)) == expected
    assert digests(families.build(family, cold)) == expected  # all known
    for forgotten in ("records/images", "records/layers", "records/together", "rootfs"):
        shutil.rmtree(cold.store / forgotten)
        assert digests(families.build(family, cold)) == expected


def test_the_order_of_building_does_not_matter(reference: tuple[Path, Path, dict[str, str]], cold: Settings) -> None:
    family, _, expected = reference
    for platform in reversed(PLATFORMS):
        built = families.build(family, cold, "child", "--platform", platform)
        assert built.platforms == {platform: expected[platform]}
    assert digests(families.build(family, cold)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_work_does_not_matter(
    reference: tuple[Path, Path, dict[str, str]],
    cold: Settings,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    family, _, expected = reference
    chance = random.Random(seed)
    make_fragments = fragment.make_fragments
    done: list[str] = []

    def shuffled(store: object, recipes: Sequence[fragment.Recipe], **options: object) -> None:
        left = list(recipes)
        chance.shuffle(left)
        while left:  # in lots of any size, each with compilers of its own
            count = chance.randint(1, 4)
            make_fragments(store, left[:count], **options)  # type: ignore[arg-type]
            done.extend(recipe.package.name for recipe in left[:count])
            del left[:count]

    class Backwards(ThreadPoolExecutor):
        def map(self, function: Any, *iterables: Any, **options: Any) -> Any:  # type: ignore[override]
            calls = list(zip(*iterables, strict=True))
            order = list(range(len(calls)))
            chance.shuffle(order)
            results = {number: function(*calls[number]) for number in order}
            return iter([results[number] for number in range(len(calls))])

    monkeypatch.setattr("lithify.assemble.packages.make_fragments", shuffled)
    monkeypatch.setattr("lithify.assemble.packages.ThreadPoolExecutor", Backwards)
    assert digests(lithify.build(family, settings=replace(cold, jobs=1))[-1]) == expected
    assert len(done) > 10


@pytest.fixture(scope="session")
def unprivileged() -> Iterator[list[str]]:
    """The beginning of a command line that runs Lithify as a user who is not root, but has subordinate ids."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    try:
        names = [line.split(":")[0] for line in Path("/etc/subuid").read_text().splitlines()]
    except FileNotFoundError:
        names = []
    users = [user for user in pwd.getpwall() if user.pw_name in names and user.pw_uid != 0]
    if not users:
        pytest.skip("/etc/subuid gives no user subordinate ids (`adduser builder` does)")
    here = [str(Path(lithify.__file__).parents[1]), str(Path(click.__file__).parents[1])]
    paths = ":".join(here)
    for python in (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin") or sys.executable):
        user = users[0]
        line = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "env"]
        line += [f"HOME={user.pw_dir}", f"USER={user.pw_name}", f"PYTHONPATH={paths}", "LITHIFY_CONFIG="]
        probe = [*line, python, "-c", "import sys, lithify, zlib_ng; print('%d.%d' % sys.version_info[:2])"]
        result = subprocess.run(probe, capture_output=True, text=True, check=False, cwd="/")
        if result.returncode == 0 and result.stdout.strip() == families.HOST_PYTHON:
            yield [*line, python]
            return
    pytest.skip(f"user {users[0].pw_name} can read neither this Python nor another {families.HOST_PYTHON}")


def test_root_and_others_build_the_same(
    reference: tuple[Path, Path, dict[str, str]], tmp_path: Path, unprivileged: list[str]
) -> None:
    family, _, expected = reference
    with families.public_folder() as public:
        shutil.copytree(family.parent, public / "all", ignore=lambda _, names: [n for n in names if n == "store"])
        base = next(
            Path(line.split('"')[1])
            for line in (family / "lithify.toml").read_text().splitlines()
            if line.startswith("oci-layout")
        )
        shutil.copytree(base, public / "base")
        for path in [public, *public.rglob("*")]:
            path.chmod(0o777)
        copy = public / "all" / family.name
        text = (copy / "lithify.toml").read_text().replace(str(base), str(public / "base"))
        (copy / "lithify.toml").write_text(text)
        line = [*unprivileged, "-m", "lithify", "--store", str(public / "all/wheels"), "build"]
        result = subprocess.run(
            [*line, "--family", str(copy), "--json"], capture_output=True, text=True, check=False, cwd=public
        )
        assert result.returncode == 0, result.stderr
        built = families.Built(json.loads(result.stdout)[-1])
        assert (public / "all/wheels/index.json").stat().st_uid != 0
    assert digests(built) == expected


def test_gzip_and_zstd_hold_the_same_bytes(reference: tuple[Path, Path, dict[str, str]], cold: Settings) -> None:
    family, _, expected = reference
    first = families.build(family, cold, "--compression", "gzip")
    second = families.build(family, cold, "--compression", "zstd")
    assert digests(second) == expected
    gzip, zstd = judge.judge(cold.store, first.digest), judge.judge(cold.store, second.digest)
    for platform in PLATFORMS:
        assert gzip[platform].config == zstd[platform].config
        for judged, compression in ((gzip, GZIP), (zstd, ZSTD)):
            base, *ours = [layer["mediaType"] for layer in judged[platform].manifest["layers"]]
            assert base == GZIP.media_type  # somebody's layer stays as it is
            assert set(ours) == {compression.media_type}


# The digest of one image, made of stored wheels without Python code on a base that is the same on every machine. It
# changes only when what Lithify writes changes: then say why, and raise a FORMAT where old caches would be wrong.
GOLDEN_LIBZSTD = "1.5.7"
GOLDEN_ZLIB_NG = "2.3.3"
GOLDEN = {
    "zstd": "sha256:0a90220fbadab6cc415184f833b4acc3365df78bd07c9cadf1b775769a53dc3f",
    "gzip": "sha256:0913acce55af6839e703d995ef3a44c7c12b27243ef9dc7e0439cee65db768be",
}


@pytest.mark.parametrize("compression", [ZSTD, GZIP], ids=lambda one: one.name)
def test_the_golden_image(tmp_path: Path, settings: Settings, compression: object) -> None:
    name, version = compression.identity.split("-")[:2]  # type: ignore[attr-defined]
    known = GOLDEN_LIBZSTD if name == "zstd" else GOLDEN_ZLIB_NG
    if version != known:
        pytest.skip(f"the golden digest holds for {name} {known}, this is {version}")
    layout = tmp_path / "base"
    families.plain_base(layout)
    wheels = [
        families.wheel("data", {"data/table.txt": "row\n" * 10_000, "data-1.0.data/data/share/x": "x"}),
        families.wheel("code", {"code/lib.so": families.elf(62)}, tag="py3-none-manylinux_2_17_x86_64"),
        families.wheel("paths", {"привет/" + "long" * 60 + ".txt": "x"}),
    ]
    specs = [families.Spec("golden", wheels, lines=['labels = { a = "b" }'])]
    family = families.write_family(tmp_path / "family", specs, base=layout, python="3.13")
    families.provide(open_store(settings.store), wheels)
    (built,) = lithify.build(family, compression=name, settings=settings)
    judge.judge(settings.store, built.digest)
    assert built.platforms[0].digest == GOLDEN[name]
