"""What we say a conda package installs to, against what py-rattler's own installation makes: paths, modes, bytes.

What differs, and why:

- ``conda-meta/*.json``: theirs names the cache it came from, and is for its owner only. Compared field by field.
- ``conda-meta/history``, ``CACHEDIR.TAG``, ``.rattler*``: of an environment, not of a package.
- ``__pycache__``: theirs is what the package ships, ours what its own Python makes (the tests of bytecode).
- a package that is only folders, and a setuid bit: see `test_conda_link`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import conda_channel
from conda_oracle import install
from conda_python import HOST_SUBDIR, host_target
from lithify.lockfile import Package
from lithify.platforms import host_platform
from lithify.sources import Target
from lithify.sources.conda.link import conda_files, narrowed

if TYPE_CHECKING:
    from rattler import RepoDataRecord

PYTHON = host_target().minor
SHORT = "/srv/conda/envs/notebook"
LONG = "/srv/" + "a-long-prefix/" * 9 + "env"
SPACED = "/srv/with a space"

# One mode, one link target or one content: what a path is.
Tree = dict[str, tuple[int, str, str]]


def locked(record: RepoDataRecord) -> Package:
    """The package of a lock that a channel's record becomes."""
    subdir, _, file = str(record.url).rpartition("/")
    assert record.sha256 is not None
    return Package(
        "conda/test",
        record.name.normalized,
        host_platform(),
        str(record.version),
        f"{subdir.rpartition('/')[2]}/{file}",
        record.sha256.hex(),
        record.size or 0,
        md5=record.md5.hex() if record.md5 else "",
        depends=tuple(record.depends),
        constrains=tuple(record.constrains),
        site_packages=record.python_site_packages_path or "",
    )


def target_of(prefix: str) -> Target:
    return Target(
        host_platform(), prefix, 1000, 1000, PYTHON, "build", address="https://conda.example/test", exclude=()
    )


def records_of(channel: Path, leave_out: Iterable[str] = ()) -> list[RepoDataRecord]:
    """One record for each name of a channel: the newest; a ``.conda`` where there is one."""
    from rattler import Channel, RepoData

    chosen: dict[str, RepoDataRecord] = {}
    for subdir in (HOST_SUBDIR, "noarch"):
        data = RepoData.from_path(channel / subdir / "repodata.json")
        for record in data.into_repo_data(Channel(channel.as_uri())):
            name = record.name.normalized
            known = chosen.get(name)
            rank = (record.version, record.build_number, str(record.url).endswith(".conda"))
            if known is None or rank > (known.version, known.build_number, str(known.url).endswith(".conda")):
                chosen[name] = record
    return [record for name, record in sorted(chosen.items()) if name not in set(leave_out)]


def theirs(prefix: Path) -> Tree:
    found: Tree = {}
    for folder, folders, names in os.walk(prefix):
        for name in [*names, *folders]:
            path = Path(folder, name)
            place = str(path.relative_to(prefix))
            if path.is_symlink():
                found[place] = (0o777, str(path.readlink()), "")
            elif path.is_file():
                with path.open("rb") as file:
                    found[place] = (
                        stat.S_IMODE(path.stat().st_mode),
                        "",
                        hashlib.file_digest(file, "sha256").hexdigest(),
                    )
    return found


def ours(packages: Iterable[Package], channel: Path, prefix: str) -> tuple[Tree, dict[str, dict[str, Any]]]:
    found: Tree = {}
    records = {}
    for package in packages:
        for file in conda_files(package, channel / package.file, narrowed(package, target_of(prefix))):
            assert file.path.startswith(f"{prefix.strip('/')}/")
            place = file.path.removeprefix(f"{prefix.strip('/')}/")
            assert place not in found, place
            if file.receipt is not None:
                records[place] = json.loads(file.receipt({}))
                continue
            with file.content() as stream:
                content = stream.read()
            digest = hashlib.sha256(content).hexdigest()
            assert len(content) == file.size, place
            assert file.link or digest == file.sha256, place
            found[place] = (file.mode, file.link, "" if file.link else digest)
    return found, records


def is_theirs_alone(path: str) -> bool:
    return path.startswith(("conda-meta/", ".rattler")) or path == "CACHEDIR.TAG" or "__pycache__/" in path


# Two packages, one path: which wins is decided before files are made. Folders only: rattler 0.28 fails at it.
CLASHING = ("clobber-same-b", "clobber-different-b", "clobber-folder", "empty-folder")


@pytest.fixture(scope="module")
def small() -> Path:
    return conda_channel.small() / conda_channel.CHANNEL


def compare(channel: Path, records: Sequence[RepoDataRecord], prefix: str, folder: Path) -> Tree:
    umask = os.umask(0o022)
    try:
        install(records, folder / "prefix", final=prefix, cache=folder / "cache")
    finally:
        os.umask(umask)
    expected = theirs(folder / "prefix")
    found, metadata = ours(map(locked, records), channel, prefix)
    assert {path for path in expected if not is_theirs_alone(path)} == {
        path for path in found if not is_theirs_alone(path)
    }
    for path, what in found.items():
        if not is_theirs_alone(path):
            mode, link, digest = expected[path]
            assert what == (mode & 0o777, link, digest), path
    compare_metadata(metadata, folder / "prefix")
    return found


# Where the package came from here, what only the channel's index says, and what is of the environment.
OF_THE_BUILDER = {"link", "extracted_package_dir", "package_tarball_full_path", "channel", "url"}
OF_THE_BUILDER |= {"indexed_timestamp", "run_exports", "requested_specs"}


def compare_metadata(metadata: dict[str, dict[str, Any]], prefix: Path) -> None:
    expected = {f"conda-meta/{path.name}": json.loads(path.read_bytes()) for path in prefix.glob("conda-meta/*.json")}
    assert metadata.keys() == expected.keys()
    for path, record in metadata.items():
        known = {key: value for key, value in expected[path].items() if key not in OF_THE_BUILDER}
        shared = {key: record.get(key) for key in known}
        paths, known_paths = record["paths_data"]["paths"], known.pop("paths_data")["paths"]
        del shared["paths_data"], shared["files"], known["files"]
        # Fields that are null there are in the artefact's index, and kept.
        assert shared == known, path
        own = {entry["_path"]: entry for entry in paths}
        assert record["files"] == sorted(own), path
        for entry in known_paths:
            if "__pycache__/" in entry["_path"]:
                continue
            one = own.pop(entry["_path"])
            assert one["path_type"] == entry["path_type"], entry
            for key in ("prefix_placeholder", "file_mode"):
                assert one.get(key) == entry.get(key), entry
            if entry["path_type"] != "softlink":
                assert one["sha256_in_prefix"] == entry.get("sha256_in_prefix", entry.get("sha256")), entry
                assert one["size_in_bytes"] == entry["size_in_bytes"], entry
        assert not own, path


@pytest.mark.parametrize("prefix", [SHORT, LONG, SPACED])
def test_files_are_those_of_rattler(small: Path, prefix: str, tmp_path: Path) -> None:
    found = compare(small, records_of(small, CLASHING), prefix, tmp_path)
    assert len(found) > 2000


@pytest.mark.slow
@pytest.mark.network
def test_files_of_a_notebook_are_those_of_rattler(tmp_path: Path) -> None:
    channel = conda_channel.base_notebook() / conda_channel.CHANNEL
    found = compare(channel, records_of(channel, CLASHING), SHORT, tmp_path)
    assert len(found) > 15_000


def test_another_prefix_changes_nothing_but_the_prefix(small: Path) -> None:
    packages = [locked(record) for record in records_of(small, CLASHING)]
    shorter, longer = "/srv/conda/envs/notebook", "/opt/elsewhere/of/another/length"
    first, second = contents(packages, small, shorter), contents(packages, small, longer)
    assert first.keys() == second.keys()
    changed = {path for path in first if first[path] != second[path]}
    assert {path for path in changed if shorter.encode() not in first[path][1]} == set()
    for path in changed:
        mode, content = first[path]
        other_mode, other = second[path]
        assert mode == other_mode
        without = content.replace(shorter.encode(), b"@").replace(b"\0", b"")
        assert without == other.replace(longer.encode(), b"@").replace(b"\0", b""), path
    assert {"bin/text-prefix", "share/binary-prefix/table.bin"} <= changed


def contents(packages: Iterable[Package], channel: Path, prefix: str) -> dict[str, tuple[int, bytes]]:
    found = {}
    for package in packages:
        for file in conda_files(package, channel / package.file, target_of(prefix)):
            if file.receipt is None:
                with file.content() as stream:
                    found[file.path.removeprefix(f"{prefix.strip('/')}/")] = (file.mode, stream.read())
    return found
