"""What we say a wheel installs to, against what uv and pip install: paths, modes and bytes of real wheels."""

from __future__ import annotations

import csv
import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lithify.lockfile import Package
from lithify.platforms import host_platform
from lithify.read.requirements import Requirement, Requirements
from lithify.read.settings import Settings
from lithify.sources import Target
from lithify.sources.pypi import PypiSource, resolve
from lithify.sources.wheel import wheel_files

pytestmark = pytest.mark.network

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Data files, headers, compiled extensions, `#!python` scripts, binaries among the scripts, entry points, many files.
NAMES = ("bokeh", "greenlet", "jupyter-core", "jupyterlab", "markupsafe", "nbdime", "pandas", "psutil", "ruff", "s3cmd")

# Notes of what was asked for by name, and from where: they depend on other packages, and on the machine.
NOTES = ("REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[Package, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    settings = Settings(store=folder / "store", jobs=2)
    asked = Requirements("test", folder, tuple(Requirement(name, name, "here:1") for name in NAMES))
    chosen = [p for p in resolve([asked], host_platform(), PYTHON, settings=settings) if p.name in NAMES]
    addresses = PypiSource(settings, PYTHON).addresses(chosen)
    found = {}
    with httpx.Client(timeout=120, follow_redirects=True, transport=httpx.HTTPTransport(retries=3)) as client:
        for package in chosen:
            found[package] = folder / package.file
            found[package].write_bytes(client.get(addresses[package]).raise_for_status().content)
    return found


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                mode = stat.S_IMODE(path.stat().st_mode)
                found[str(path.relative_to(root))] = (mode, path.read_bytes())
    return found


def environment(root: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)


def run_uv(root: Path, files: list[str]) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", f"{root}/bin/python"]
    subprocess.run([*command, "--no-deps", "--no-index", "--link-mode", "copy", *files], check=True)


def run_pip(root: Path, files: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "venv", f"{root}-pip"], check=True)
    command = [
        f"{root}-pip/bin/python",
        "-m",
        "pip",
        "--isolated",
        "--python",
        f"{root}/bin/python",
        "install",
        "--quiet",
    ]
    subprocess.run([*command, "--no-deps", "--no-index", "--no-compile", *files], check=True)


@pytest.mark.parametrize("installer", [run_uv, run_pip])
def test_files_are_those_of_another_installer(installer, wheels: dict[Package, Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "env"
    environment(root)
    before = tree(root)
    umask = os.umask(0o022)
    try:
        installer(root, [str(path) for path in wheels.values()])
    finally:
        os.umask(umask)
    theirs = {path: found for path, found in tree(root).items() if path not in before}
    target = Target(host_platform(), str(root), 1000, 1000, PYTHON, "build")
    prefix = str(root).strip("/") + "/"
    ours = {}
    scripts = set()
    for package, path in wheels.items():
        for file in wheel_files(package, path, target):
            with file.content() as stream:
                ours[file.path.removeprefix(prefix)] = (file.mode, stream.read())
    for place, (_, content) in ours.items():
        if place.startswith("bin/") and b"# -*- coding: utf-8 -*-" in content[:300] and b"sys.exit(" in content:
            scripts.add(place)

    extra = {path for path in theirs if path.endswith(tuple(f".dist-info/{name}" for name in NOTES))}
    # uv leaves a lock of its own in the environment.
    extra |= {path for path in theirs if path in (".lock", "CACHEDIR.TAG")}
    assert theirs.keys() - extra == ours.keys()
    assert len(ours) > 3000
    assert scripts
    for place in sorted(ours):
        assert ours[place][0] == theirs[place][0], f"mode of {place}"
        if place.endswith(".dist-info/INSTALLER"):
            assert (ours[place][1], theirs[place][1].strip()) in ((b"lithify\n", b"uv"), (b"lithify\n", b"pip"))
        elif place.endswith(".dist-info/RECORD"):
            assert _record(ours[place][1], scripts) == _record(theirs[place][1], scripts), place
        elif place in scripts:
            # Each installer has its own template; what it starts, and with what, is the same.
            assert ours[place][1].splitlines()[0] == theirs[place][1].splitlines()[0], place
            imported = next(line for line in ours[place][1].splitlines() if line.startswith(b"from "))
            assert imported in theirs[place][1].splitlines(), place
        else:
            assert ours[place][1] == theirs[place][1], place


def _record(content: bytes, scripts: set[str]) -> dict[str, tuple[str, str]]:
    """RECORD's rows, but for the files that are known to differ."""
    found = {}
    for path, digest, size in csv.reader(content.decode().splitlines()):
        name = path.rpartition("/")[2]
        if name in NOTES and ".dist-info/" in path:
            continue
        if name == "INSTALLER" or any(path.endswith(f"/{script}") for script in scripts):
            digest = size = ""
        found[path] = (digest, size)
    return found
