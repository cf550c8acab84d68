"""The committed family of conda environments: its locks answer its files, and real records give them again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import lithify
from conda_families import served_from
from lithify.lockfile import NOTEBOOK, read_lock
from lithify.locks.packages_txt import read_packages_txt
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.read.family import read_family
from lithify.read.requirements import read_requirements
from lithify.read.settings import Settings
from lithify.sources.conda.resolve import resolve, wanted_of

FAMILY = Path(__file__).resolve().parent.parent / "families" / "conda-forge"
SHARED = FAMILY.parent.parent.parent / "shared" / "data" / "conda-forge-channel.tar.xz"
# What the solver finds in the real records (and what Pangeo's own locks of that day hold, but for a few).
RECORDS = {"base-notebook": (286, 284), "pangeo-notebook": (815, 793), "ml-notebook": (888, 0)}


@pytest.mark.parametrize("image", ["base-image", *RECORDS])
def test_a_lock_answers_its_requirement_files(image: str) -> None:
    lithify.lock(FAMILY, [image], check=True)


@pytest.mark.parametrize("image", RECORDS)
def test_a_lock_names_no_server_and_hashes_everything(image: str) -> None:
    path = FAMILY / image / "lithify.lock"
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    for package in read_lock(path).packages:
        assert package.sha256 and (package.kind != "conda" or package.md5)


@pytest.mark.parametrize("image", RECORDS)
def test_packages_txt_lists_what_is_locked(image: str) -> None:
    lock = read_lock(FAMILY / image / "lithify.lock")
    listed = read_packages_txt(FAMILY / image / "packages.txt")
    held = sorted((package.name, package.version) for package in lock.of(LINUX_AMD64, "conda"))
    assert sorted((str(one[0]), str(one[1])) for one in listed) == held


@pytest.mark.parametrize("image", RECORDS)
def test_every_image_has_the_versions_that_pangeo_notebook_pins(image: str) -> None:
    for platform in read_family(FAMILY).platforms_of(image):
        held = {package.name: package for package in read_lock(FAMILY / image / "lithify.lock").of(platform, "conda")}
        for spec in held["pangeo-dask"].depends:
            name, _, version = spec.partition(" ")
            assert held[name].version.startswith(version.removesuffix(".*")), spec


@pytest.mark.skipif(not SHARED.exists(), reason="no archive of real records beside the clone")
@pytest.mark.parametrize("image", RECORDS)
def test_real_records_are_solved_to_as_many_packages_as_are_locked(
    image: str, settings: Settings, tmp_path: Path
) -> None:
    with tarfile.open(SHARED) as archive:
        archive.extractall(tmp_path, filter="data")
    family = read_family(FAMILY)
    lineage = tuple(read_requirements(member) for member in family.lineage(image))
    wanted = [
        wanted_of(family.conda, family.images[image], lineage, environment, platform, (2, 41), FAMILY)
        for environment in family.images[image].environments
        for platform in family.platforms_of(image)
        if family.conda
    ]
    found = resolve(wanted, image, settings=served_from(settings, (tmp_path / "channel").as_uri()))
    lock = read_lock(FAMILY / image / "lithify.lock")
    for platform, expected in zip((LINUX_AMD64, LINUX_ARM64), RECORDS[image], strict=True):
        assert len(found.get((NOTEBOOK, platform), ())) == expected
        assert len(lock.of(platform, "conda")) == expected
