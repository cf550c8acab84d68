"""Packages and files for the tests of other tools' locks: real records where there are some, invented ones else."""

from __future__ import annotations

import functools
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lithify.addresses import split_file_name
from lithify.lockfile import Package
from lithify.locks import Places
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, PLATFORMS, Platform

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CHANNEL = "https://conda.example.org/conda-forge"
PLACES = Places({"conda/conda-forge": CHANNEL})


def conda_package(
    name: str, version: str = "1.0", platform: Platform = LINUX_AMD64, subdir: str = "", **more: Any
) -> Package:
    more.setdefault("md5", f"{abs(hash((name, version))):032x}"[:32])
    file = f"{subdir or platform.subdir}/{name}-{version}-{more.pop('build', 'h1_0')}.conda"
    return Package("conda/conda-forge", name, platform, version, file, f"{len(name):064x}", 0, **more)


def wheel(name: str, version: str = "1.0", platform: Platform = LINUX_AMD64, sha256: str = "f" * 64) -> Package:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Package("pypi", name, platform, version, file, sha256, 1234)


@functools.cache
def records() -> dict[str, dict[str, dict[str, Any]]]:
    """The shared channel's records, by subdir and file name."""
    archive = SHARED / "conda-forge-channel.tar.xz"
    if not archive.exists():
        pytest.skip(f"there is no {archive.name} beside this repository")
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith("/repodata.json") and (file := tar.extractfile(member)):
                data = json.load(file)
                found[Path(member.name).parent.name] = {**data["packages"], **data["packages.conda"]}
    return found


@functools.cache
def real_packages() -> tuple[Package, ...]:
    """One package of every name that conda-forge has for our platforms, as a lock of ours would hold it."""
    found = []
    for platform in (LINUX_AMD64, LINUX_ARM64):
        names: set[str] = set()
        for subdir in (platform.subdir, "noarch"):
            for file, record in sorted(records()[subdir].items()):
                name = record["name"].lower()
                if name in names or "sha256" not in record or "md5" not in record:
                    continue
                names.add(name)
                found.append(
                    Package(
                        source="conda/conda-forge",
                        name=name,
                        platform=platform,
                        version=split_file_name(file).version,
                        file=f"{subdir}/{file}",
                        sha256=record["sha256"],
                        size=0,
                        md5=record["md5"],
                        depends=tuple(record["depends"]),
                    )
                )
    return tuple(sorted(found))


def both(name: str, **more: Any) -> list[Package]:
    """The noarch package ``name`` for both platforms."""
    return [conda_package(name, platform=platform, subdir="noarch", **more) for platform in PLATFORMS.values()]
