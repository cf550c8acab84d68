"""The Python distributions that conda packages bring: what pip would find installed, and never installs again.

They are read from the artefacts themselves, as a package's name says little of the distributions in it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from lithify.errors import LithifyError
from lithify.lockfile import Package
from lithify.sources import Fetched

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from lithify.store.store import Store

_KIND = "distributions"
_METADATA = re.compile(
    r"(?:lib/python3\.\d+/)?site-packages/([^/]+)\.(?:dist-info/METADATA|egg-info(?:/PKG-INFO)?)|"
    r"(?:lib/python3\.\d+/)?site-packages/[^/]+\.egg/(EGG-INFO)/PKG-INFO"
)
# No list of a package's files is longer, in bytes.
_LONGEST = 256 << 20


@dataclass(frozen=True)
class Distribution:
    """A distribution by its normalized name, and the conda package that brings it.

    ``metadata`` is the place of its METADATA in the artefact.
    """

    name: str
    version: str
    package: Package
    metadata: str


def distributions(packages: Sequence[Package], store: Store, fetched: Fetched) -> dict[str, Distribution]:
    """What conda packages bring, by name. Artefacts that were not read before are ``fetched``.

    Raises:
        FetchError: when an artefact cannot be had.
        LithifyError: for a broken one.
    """
    asked = [package for package in packages if _may_bring(package)]
    known = {package: store.record(_KIND, package.sha256) for package in asked}
    unknown = [package for package, record in known.items() if record is None]
    artefacts = fetched(unknown) if unknown else {}
    for package in unknown:
        paths = sorted(path for path in listed_files(package, artefacts[package]) if _METADATA.fullmatch(path))
        known[package] = {"paths": paths}
        store.write_record(_KIND, package.sha256, {"paths": paths})
    found: dict[str, Distribution] = {}
    for package in asked:
        for path in (known[package] or {})["paths"]:
            if distribution := _distribution(package, str(path)):
                found[distribution.name] = distribution
    return found


def extras_of(distribution: Distribution, fetched: Fetched) -> list[str]:
    """The lines of a distribution's metadata that say what its extras require.

    Raises:
        LithifyError: for an artefact that cannot be had or read.
    """
    package = distribution.package
    artefact = fetched([package])[package]
    with _broken(package), _tar(artefact, package, "pkg-") as archive:
        for member in archive:
            if member.name.removeprefix("./") == distribution.metadata and (file := archive.extractfile(member)):
                headers = BytesHeaderParser().parsebytes(file.read(_LONGEST))
                lines = [f"Provides-Extra: {extra}" for extra in headers.get_all("Provides-Extra", [])]
                required = [str(text) for text in headers.get_all("Requires-Dist", [])]
                return lines + [f"Requires-Dist: {text}" for text in required if "extra" in text.partition(";")[2]]
    return []


def listed_files(package: Package, artefact: Path) -> list[str]:
    """The paths that a conda package's own list has, below the prefix.

    Raises:
        LithifyError: for a broken artefact.
    """
    with _broken(package), _tar(artefact, package, "info-") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in ("info/paths.json", "info/files") and (file := archive.extractfile(member)):
                data = file.read(_LONGEST)
                if name == "info/files":
                    return data.decode("utf-8").splitlines()
                return [str(entry["_path"]) for entry in json.loads(data)["paths"]]
    raise LithifyError(f"{package.file} of {package.source} has no list of its files")


def own_index(package: Package, artefact: Path) -> dict[str, Any]:
    """What a conda package says of itself: its ``info/index.json``.

    Raises:
        LithifyError: for a broken artefact.
    """
    with _broken(package), _tar(artefact, package, "info-") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "info/index.json" and (file := archive.extractfile(member)):
                return dict(json.loads(file.read(_LONGEST)))
    raise LithifyError(f"{package.file} of {package.source} has no index.json")


def _may_bring(package: Package) -> bool:
    """Whether a package may hold a Python distribution: it needs Python."""
    names = {re.split(r"[\s=<>!~\[]", depend.strip(), maxsplit=1)[0] for depend in package.depends}
    return bool(names & {"python", "python_abi", "pypy"})


def _distribution(package: Package, path: str) -> Distribution | None:
    match = _METADATA.fullmatch(path)
    if match is None or match[1] is None:
        return None
    # NAME-VERSION, and of an egg maybe -pyX.Y.
    name, _, version = match[1].partition("-")
    version = version.partition("-py")[0].partition("-")[0]
    try:
        return Distribution(canonicalize_name(name), str(Version(version)), package, path)
    except InvalidVersion:
        return None


_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zstd.ZstdError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    NotImplementedError,
)


@contextlib.contextmanager
def _broken(package: Package) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise LithifyError(f"{package.file} of {package.source} cannot be read: {error}") from error


@contextlib.contextmanager
def _tar(artefact: Path, package: Package, part: str) -> Iterator[tarfile.TarFile]:
    """The tar archive of a package that holds ``part`` (``info-`` or ``pkg-``), to be read once from front to end."""
    with contextlib.ExitStack() as stack:
        if package.file.endswith(".conda"):
            outer = stack.enter_context(zipfile.ZipFile(artefact))
            names = [name for name in outer.namelist() if name.startswith(part) and name.endswith(".tar.zst")]
            if len(names) != 1:
                raise ValueError(f"{len(names)} members {part}*.tar.zst")
            stream = cast(IO[bytes], stack.enter_context(zstd.ZstdFile(stack.enter_context(outer.open(names[0])))))
            yield stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        else:
            yield stack.enter_context(tarfile.open(artefact, mode="r|bz2"))


def stand_in(distribution: Distribution, extras: Iterable[str], folder: Path) -> Path:
    """A wheel in ``folder`` that says a distribution's name and version, what its extras require, and nothing else."""
    stem = f"{distribution.name.replace('-', '_')}-{distribution.version}"
    metadata = [f"Metadata-Version: 2.1\nName: {distribution.name}\nVersion: {distribution.version}", *extras]
    path = folder / f"{stem}-py3-none-any.whl"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path
