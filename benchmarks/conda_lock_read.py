"""Reading a conda-lock.yml of 5,000 entries, against PyYAML's C loader on the same file, in the same run.

    python benchmarks/conda_lock_read.py [CHANNEL.tar.xz]

The records are real ones where there is a channel (``../shared/data/conda-forge-channel.tar.xz``), invented ones else.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lithify.locks import conda_lock

ENTRIES = 5_000
ROUNDS = 5
_CHANNEL = Path(__file__).resolve().parent.parent.parent / "shared/data/conda-forge-channel.tar.xz"
_PLATFORMS = ("linux-64", "linux-aarch64", "osx-64", "osx-arm64", "win-64")


def main(archive: Path) -> None:
    """Print both times and their ratio."""
    document = lock_of(real_records(archive) if archive.exists() else invented_records())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conda-lock.yml"
        path.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper, sort_keys=False))
        size = path.stat().st_size
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(ROUNDS):
            conda_lock._scalar.cache_clear()
            ours.append(seconds(lambda: conda_lock.read_conda_lock(path)))
            theirs.append(seconds(lambda: yaml.load(path.read_text(), Loader=yaml.CSafeLoader)))
    mine, base = statistics.median(ours), statistics.median(theirs)
    print(f"conda-lock.yml, {len(document['package']):,} entries, {size / 1e6:.1f} MB, median of {ROUNDS}")
    print(f"lithify {mine:.3f} s, PyYAML's C loader {base:.3f} s, ratio {mine / base:.2f} (goal: 0.50 at most)")


def seconds(call: Callable[[], object]) -> float:
    """The wall-clock seconds of one call."""
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def real_records(archive: Path) -> dict[str, dict[str, Any]]:
    """The channel's records by subdir and file name."""
    found: dict[str, dict[str, Any]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith("/repodata.json") and (file := tar.extractfile(member)):
                data = json.load(file)
                found[Path(member.name).parent.name] = {**data["packages"], **data["packages.conda"]}
    return found


def invented_records() -> dict[str, dict[str, Any]]:
    """Records with eight dependencies each."""
    depends = [f"package-{i} >=1.{i},<2.0a0" for i in range(8)]
    return {
        subdir: {
            f"package-{i}-1.{i}-h{i:07x}_0.conda": {
                "name": f"package-{i}",
                "version": f"1.{i}",
                "depends": depends,
                "md5": f"{i:032x}",
                "sha256": f"{i:064x}",
            }
            for i in range(ENTRIES // len(_PLATFORMS) + 1)
        }
        for subdir in _PLATFORMS
    }


def lock_of(records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What conda-lock would write of each platform's (and noarch's) names, each once, `ENTRIES` of them."""
    packages: list[dict[str, Any]] = []
    for platform in _PLATFORMS:
        names: set[str] = set()
        for subdir in (platform, "noarch"):
            for file, record in records.get(subdir, {}).items():
                if record["name"] in names:
                    continue
                names.add(record["name"])
                dependencies = dict(text.partition(" ")[::2] for text in record["depends"])
                packages.append(
                    {
                        "name": record["name"],
                        "version": record["version"],
                        "manager": "conda",
                        "platform": platform,
                        "dependencies": dict(sorted(dependencies.items())),
                        "url": f"https://conda.example.org/conda-forge/{subdir}/{file}",
                        "hash": {key: record[key] for key in ("md5", "sha256") if key in record},
                        "category": "main",
                        "optional": False,
                    }
                )
    packages = sorted(packages, key=lambda package: (package["name"], package["platform"]))[:ENTRIES]
    return {
        "version": 1,
        "metadata": {
            "content_hash": dict.fromkeys(_PLATFORMS, "0" * 64),
            "channels": [{"url": "conda-forge", "used_env_vars": []}],
            "platforms": list(_PLATFORMS),
            "sources": ["environment.yml"],
        },
        "package": packages,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _CHANNEL)
