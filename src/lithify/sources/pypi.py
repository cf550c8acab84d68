"""The source ``pypi``: resolving by uv, exact wheels, their addresses, their files.

Which index that is, is configuration: ``[sources] pypi`` of Lithify's, or else whatever uv is configured for. uv runs
as a program, in an empty folder, so that nothing but the requirement files and that configuration decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from lithify.errors import FetchError, HostError, LithifyError, UnsatisfiableError
from lithify.lockfile import Package
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.requirements import Indexes, Requirements
from lithify.read.settings import Settings
from lithify.sources import File, Target

if TYPE_CHECKING:
    from lithify.sources.conda.distributions import Distribution

SOURCE = "pypi"
# What a base has whose C library is not known: every distribution that is still maintained.
OLDEST_GLIBC = (2, 28)
# The newest that uv has a `--python-platform` for.
_NEWEST_UV_GLIBC = 40
# The oldest glibc that manylinux wheels know, and the names from before they were numbered (PEP 600).
_FIRST_GLIBC = {"x86_64": 5, "aarch64": 17}
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
# Variables of uv that change what is chosen: the requirement files are to do that, alike on every machine.
_IGNORED_VARIABLES = (
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_CUSTOM_COMPILE_COMMAND",
    "UV_EXCLUDE",
    "UV_FORK_STRATEGY",
    "UV_NO_BINARY",
    "UV_NO_BINARY_PACKAGE",
    "UV_OVERRIDE",
    "UV_PRERELEASE",
    "UV_PYTHON",
    "UV_RESOLUTION",
    "UV_TORCH_BACKEND",
    "VIRTUAL_ENV",
)


@dataclass(frozen=True)
class PypiSource:
    """Wheels from the configured index; implements `lithify.sources.FragmentSource`.

    ``indexes`` is what the requirement files add to the configuration; see `indexes_of`.
    """

    settings: Settings
    python: str = "3.13"
    indexes: Indexes = field(default_factory=Indexes)

    def addresses(self, packages: Sequence[Package], report: Report = silent) -> Mapping[Package, str]:
        """The URL of each package's wheel, asked of the index now, matched by file name and sha256.

        Raises:
            FetchError: naming the wheels that the index does not serve any more, or when it does not answer.
        """
        found: dict[Package, str] = {}
        for generation in _of_one_version(packages):
            served = _served(generation, self, report)
            for package in generation:
                if address := served.get((package.file, package.sha256)):
                    found[package] = address
        missing = sorted(package for package in packages if package not in found)
        if missing:
            listed = "\n".join(f"  {p.name} {p.version}: {p.file} (sha256 {p.sha256})" for p in missing)
            raise FetchError(
                f"{len(missing)} locked wheel{'s are' if len(missing) > 1 else ' is'} not served any more, "
                "by this name and hash, by the package index",
                details=listed,
                hint="`lithify lock --upgrade-package NAME` chooses from what is served now",
            )
        return found

    def narrowed(self, package: Package, target: Target) -> Target:
        """A wheel's files depend on all of the target but what is said of conda channels."""
        return replace(target, address="") if target.address else target

    def files(self, package: Package, artefact: Path, target: Target) -> Iterator[File]:
        """See `lithify.sources.wheel.wheel_files`."""
        from lithify.sources.wheel import wheel_files

        return wheel_files(package, artefact, target)


def indexes_of(lineage: Iterable[Requirements]) -> Indexes:
    """What the requirement files of a lineage say of where to look, the eldest's first."""
    total = Indexes()
    for requirements in lineage:
        total = total.joined(requirements.indexes)
    return total


def resolve(
    lineage: Sequence[Requirements],
    platform: Platform,
    python: str,
    *,
    glibc: tuple[int, int] = OLDEST_GLIBC,
    preferred: Mapping[str, str] | None = None,
    provided: Provided | None = None,
    exclude_newer: datetime | None = None,
    settings: Settings,
    report: Report = silent,
) -> tuple[Package, ...]:
    """Exact wheels for all that the images of ``lineage`` ask for together, on ``platform``, sorted by name.

    ``preferred`` are versions by name that are kept wherever the requirements allow them. ``glibc`` is the C library's
    version in the base. ``provided`` is there already, in one version each, and is not in the result.
    ``exclude_newer`` leaves out what was uploaded after that moment.

    Raises:
        UnsatisfiableError: with uv's explanation, or naming a package that has no wheel for the platform.
        FetchError: when the index does not answer.
    """
    wanted = [requirement for requirements in lineage for requirement in requirements.python]
    if not wanted:
        return ()
    source = PypiSource(settings, python, indexes_of(lineage))
    minor = min(glibc[1], _NEWEST_UV_GLIBC)
    line = ["requirements.in", "--python-platform", f"{platform.machine}-manylinux_{glibc[0]}_{minor}"]
    documents = {"requirements.in": "".join(f"{requirement.text}\n" for requirement in wanted)}
    if preferred:
        documents["pylock.toml"] = _preferences(preferred)
    constraints = [requirement for requirements in lineage for requirement in requirements.constraints]
    if constraints:
        documents["constraints.txt"] = "".join(f"{requirement.text}\n" for requirement in constraints)
        line += ["--constraints", "constraints.txt"]
    if source.indexes.prereleases:
        line += ["--prerelease", "allow"]
    if exclude_newer is not None:
        line += ["--exclude-newer", exclude_newer.astimezone(UTC).isoformat().replace("+00:00", "Z")]
    asked = _Asked(lineage, platform, provided)
    if provided is None:
        document = _compile(line, documents, source, report, asked)
    else:
        document = _compiled_beside(provided, line, documents, source, report, asked)
    tags = {tag: rank for rank, tag in enumerate(wheel_tags(platform, python, glibc))}
    packages = tuple(sorted(_package(entry, platform, tags) for entry in document))
    _check_hashes(packages, lineage)
    return packages


def _compiled_beside(
    provided: Provided,
    line: Sequence[str],
    documents: Mapping[str, str],
    source: PypiSource,
    report: Report,
    asked: _Asked,
) -> list[dict[str, Any]]:
    """The packages beside those that are provided, which uv sees as wheels that require nothing.

    A constraint that is an address makes uv take that wheel and no other, without asking an index for it, and tell of
    a conflict where a requirement wants another version. What an extra of a provided package requires is wanted all
    the same: uv warns where one is asked for, and is asked again, with the extras that the package really has.
    """
    from lithify.sources.conda.distributions import stand_in

    extras: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="lithify-provided-") as name:
        folder = Path(name)
        wheels = {d.name: stand_in(d, (), folder) for d in provided.distributions.values()}
        constraints = documents.get("constraints.txt", "")
        constraints += "".join(f"{name} @ {path.as_uri()}\n" for name, path in sorted(wheels.items()))
        documents = {**documents, "constraints.txt": constraints}
        line = [*line, *([] if "--constraints" in line else ["--constraints", "constraints.txt"])]
        while True:
            warned: list[Event] = []
            document = _compile(line, documents, source, warned.append, asked)
            lacking = {
                canonicalize_name(match[1]) for event in warned if (match := _EXTRALESS.search(event.message))
            } & wheels.keys() - extras.keys()
            if not lacking:
                break
            for one in sorted(lacking):
                distribution = provided.distributions[one]
                extras[one] = provided.extras(distribution)
                stand_in(distribution, extras[one], folder)
        for event in warned:
            report(event)
    return [entry for entry in document if canonicalize_name(entry["name"]) not in wheels]


# What uv warns of, where a package is asked for with an extra that it has not.
_EXTRALESS = re.compile(r"The package `([A-Za-z0-9._-]+)[^`]*` does not have an extra named")


@dataclass(frozen=True)
class Provided:
    """Distributions that something else than an index brings, by name, and what their extras require (as METADATA)."""

    distributions: Mapping[str, Distribution]
    extras: Callable[[Distribution], list[str]]


def wheel_tags(platform: Platform, python: str, glibc: tuple[int, int]) -> list[Tag]:
    """The tags of wheels that run on ``platform``, the best first (PEP 425, PEP 600)."""
    machine = platform.machine
    platforms = []
    for minor in range(glibc[1], _FIRST_GLIBC[machine] - 1, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in _LEGACY:
            platforms.append(f"{_LEGACY[minor]}_{machine}")
    platforms.append(f"linux_{machine}")
    major, minor = (int(part) for part in python.split(".")[:2])
    interpreter = f"cp{major}{minor}"
    return [
        *cpython_tags((major, minor), [interpreter], platforms),
        *compatible_tags((major, minor), interpreter, platforms),
    ]


# -- uv ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """Who asks, to say where a name that uv complains about was written."""

    lineage: Sequence[Requirements] = ()
    platform: Platform | None = None
    provided: Provided | None = None

    def conflicts(self, complaint: str) -> list[str]:
        """Of what uv complains about, the requirement files' lines and the conda packages that have a part in it."""
        words = {canonicalize_name(word) for word in re.findall(r"[A-Za-z0-9][A-Za-z0-9._-]*", complaint)}
        found = [
            f"{requirement.where}: {requirement.text}"
            for requirements in self.lineage
            for requirement in requirements.python
            if requirement.name in words
        ]
        for name, distribution in sorted(self.provided.distributions.items() if self.provided else ()):
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", complaint):
                package = distribution.package
                found.append(
                    f"the conda package {package.name} {package.version} provides {name} {distribution.version}"
                )
        return found

    def place(self, name: str) -> str | None:
        for requirements in self.lineage:
            for requirement in requirements.python:
                if requirement.name == canonicalize_name(name):
                    return requirement.where
        return None

    def version(self, name: str) -> str | None:
        """The one version of a package that is asked for, if it is one."""
        texts = [
            r.text for rs in self.lineage for r in (*rs.python, *rs.constraints) if r.name == canonicalize_name(name)
        ]
        pins = [pin for text in texts if (pin := re.search(r"==\s*([^*,;\s]+)(?![^,;\s])", text.partition(";")[0]))]
        return pins[0][1] if pins else None

    def error(self, complaint: str) -> LithifyError:
        """What uv's complaint means to whoever wrote the requirement files."""
        where = f" for {self.platform}" if self.platform else ""
        image = self.lineage[-1].image if self.lineage else "the lock"
        if "No solution found" in complaint:
            conflicts = self.conflicts(complaint) if self.provided else []
            if any(conflict.startswith("the conda package ") for conflict in conflicts):
                return UnsatisfiableError(
                    f"what `{image}` asks for of the package index{where} does not fit what conda installs:"
                    + "".join(f"\n  {conflict}" for conflict in conflicts),
                    details=complaint,
                    hint="loosen one of them, or ask conda for the other version",
                )
            if unknown := re.search(r"Because (\S+) was not found in the package registry", complaint):
                place = self.place(unknown[1])
                return UnsatisfiableError(
                    f"{place + ': ' if place else ''}the package index has no package `{unknown[1]}`",
                    details=complaint,
                    hint="look at its spelling",
                )
            if wheelless := _WHEELLESS.search(complaint):
                name = wheelless[1]
                place, version = self.place(name), self.version(name)
                return UnsatisfiableError(
                    f"{place + ': ' if place else ''}{name}{' ' + version if version else ''} has no wheel{where} "
                    "that this Python can use",
                    details=complaint,
                    hint="allow a version that has one, or restrict the requirement with a marker such as "
                    "`; platform_machine == 'x86_64'`",
                )
            return UnsatisfiableError(
                f"no versions satisfy all requirements of `{image}`{where}",
                details=complaint,
                hint="loosen one of the requirements named above",
            )
        if "offline" in complaint.lower() or "network was disabled" in complaint:
            return FetchError(
                "what is known offline is not enough to choose packages", details=complaint, hint="leave --offline out"
            )
        if re.search(
            r"[Ff]ailed to fetch|error sending request|Request failed|HTTP status|Could not connect", complaint
        ):
            return FetchError(
                "the package index does not answer",
                details=complaint,
                hint="try again later, or name another index: `[sources] pypi` in Lithify's configuration, or uv's own",
            )
        return LithifyError(f"uv failed to choose packages of `{image}`{where}", details=complaint)


# uv's hints where only a source distribution would do, and where wheels are for other machines or Pythons.
_WHEELLESS = re.compile(
    r"hint: (?:Wheels are required for|Wheels are available for|You require .* but we only found wheels for) `([^`]+)`"
)


def _compile(
    line: Sequence[str], documents: Mapping[str, str], source: PypiSource, report: Report, asked: _Asked
) -> list[dict[str, Any]]:
    """The packages of the ``pylock.toml`` that ``uv pip compile`` makes of ``documents``.

    An existing ``pylock.toml`` is where uv takes preferred versions from.
    """
    with tempfile.TemporaryDirectory(prefix="lithify-uv-") as name:
        folder = Path(name)
        for file, text in documents.items():
            (folder / file).write_text(text, encoding="utf-8")
        command = [_uv(), "pip", "compile", *line]
        command += ["--format", "pylock.toml", "--output-file", "pylock.toml", "--only-binary", ":all:"]
        command += ["--python", sys.executable, "--python-version", source.python]
        command += ["--color", "never", "--no-progress", "--no-header", "--no-annotate", *_index_options(source)]
        environment = {key: value for key, value in os.environ.items() if key not in _IGNORED_VARIABLES}
        environment["UV_PYTHON_DOWNLOADS"] = "never"
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        warnings, complaint = _warnings(result.stderr)
        if result.returncode != 0:
            raise asked.error(complaint)
        for warning in warnings:
            report(Event("resolve", "warning", message=f"uv: {warning}"))
        try:
            document = tomllib.loads((folder / "pylock.toml").read_text(encoding="utf-8"))
            entries = document.get("packages", [])
            for entry in entries:
                for wheel in entry.get("wheels", ()):
                    if "path" in wheel:
                        wheel["path"] = str((folder / wheel["path"]).resolve())
                    elif str(wheel.get("url", "")).startswith("file:"):
                        wheel["path"] = unquote(urlsplit(wheel["url"]).path)
            return list(entries)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise LithifyError(f"uv's pylock.toml is not readable: {error}") from error


_FINDING = threading.Lock()


def _uv() -> str:
    try:
        from uv import find_uv_bin

        # It asks `sysconfig`, whose first answer is half-made while another thread waits for the same.
        with _FINDING:
            return str(find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise HostError("uv is not installed, which resolves Python packages", hint="`pip install uv`") from error


def _index_options(source: PypiSource) -> list[str]:
    indexes, options = source.indexes, []
    main = indexes.index or source.settings.sources.get(SOURCE)
    if main:
        options += ["--default-index", main]
    for extra in indexes.extra:
        options += ["--index", extra]
    for links in indexes.links:
        options += ["--find-links", links]
    if indexes.no_index:
        options.append("--no-index")
    if source.settings.offline:
        options.append("--offline")
    return options


def _warnings(stderr: str) -> tuple[list[str], str]:
    """uv's warnings, each with what follows it, and the rest of what it said."""
    warnings: list[str] = []
    rest: list[str] = []
    inside = False
    for line in stderr.splitlines():
        if line.startswith("warning: "):
            inside = True
            warnings.append(line.removeprefix("warning: "))
        elif inside and line.startswith(" "):
            continue
        else:
            inside = False
            rest.append(line)
    # Which interpreter uv would build with does not matter: it builds nothing.
    return [w for w in warnings if "will be used to build" not in w], "\n".join(rest).strip()


def _preferences(versions: Mapping[str, str]) -> str:
    """A ``pylock.toml`` that tells uv which versions to keep."""
    lines = ['lock-version = "1.0"', 'created-by = "lithify"']
    for name, version in sorted(versions.items()):
        lines += ["[[packages]]", f"name = {json.dumps(name)}", f"version = {json.dumps(version)}"]
    return "\n".join(lines) + "\n"


# -- wheels ------------------------------------------------------------------------------------------------


def _package(entry: dict[str, Any], platform: Platform, tags: Mapping[Tag, int]) -> Package:
    """The best wheel of a pylock.toml's package."""
    name, version = canonicalize_name(entry["name"]), entry.get("version")
    if not version:
        raise UnsatisfiableError(f"{name} comes from no index, and only packages of an index can be locked")
    best: tuple[int, str, dict[str, Any]] | None = None
    for wheel in entry.get("wheels", ()):
        file = _file_name(wheel)
        try:
            ranks = [tags[tag] for tag in parse_wheel_filename(file)[3] if tag in tags]
        except InvalidWheelFilename:
            continue
        if ranks and (best is None or (min(ranks), file) < best[:2]):
            best = (min(ranks), file, wheel)
    if best is None:
        raise UnsatisfiableError(
            f"{name} {version} has no wheel for {platform}",
            hint="allow a version that has one, or restrict the requirement with a marker such as "
            "`; platform_machine == 'x86_64'`",
        )
    _, file, wheel = best
    sha256, size = wheel.get("hashes", {}).get("sha256"), wheel.get("size")
    if sha256 is None or size is None:
        sha256, size = _learned(wheel, sha256, f"{name} {version}")
    return Package(SOURCE, name, platform, str(version), file, str(sha256), int(size))


def _file_name(wheel: Mapping[str, Any]) -> str:
    place = str(wheel.get("name") or wheel.get("path") or urlsplit(str(wheel.get("url", ""))).path)
    return unquote(place.rpartition("/")[2])


def _learned(wheel: Mapping[str, Any], sha256: str | None, what: str) -> tuple[str, int]:
    """The sha256 and the size of a wheel of an index, or a folder, that does not say them."""
    if "path" in wheel:
        try:
            with open(wheel["path"], "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest(), Path(wheel["path"]).stat().st_size
        except OSError as error:
            raise FetchError(f"{what} cannot be read: {error}") from error
    import httpx

    try:
        with httpx.Client(follow_redirects=True, timeout=60) as client:
            if sha256 is not None:
                answer = client.head(wheel["url"], headers={"Accept-Encoding": "identity"})
                if answer.is_success and answer.headers.get("Content-Length", "").isdigit():
                    return sha256, int(answer.headers["Content-Length"])
            digest, size = hashlib.sha256(), 0
            with client.stream("GET", wheel["url"], headers={"Accept-Encoding": "identity"}) as stream:
                stream.raise_for_status()
                for chunk in stream.iter_raw(1 << 20):
                    digest.update(chunk)
                    size += len(chunk)
    except httpx.HTTPError as error:
        raise FetchError(f"the package index does not say how large {what} is: {error}") from error
    if sha256 not in (None, digest.hexdigest()):
        raise FetchError(f"{what} is not what the package index says it is", hint="try again later")
    return digest.hexdigest(), size


def _check_hashes(packages: Iterable[Package], lineage: Iterable[Requirements]) -> None:
    """Check the ``--hash`` of requirements, which uv does not look at while it resolves."""
    chosen = {package.name: package for package in packages}
    for requirements in lineage:
        for requirement in requirements.python:
            package = chosen.get(requirement.name)
            known = [digest for digest in requirement.hashes if digest.startswith("sha256:")]
            if package and known and f"sha256:{package.sha256}" not in known:
                raise UnsatisfiableError(
                    f"{requirement.where}: {package.file} is not among the hashes given for `{requirement.text}`",
                    details=f"it has sha256:{package.sha256}",
                    hint="remove the hashes: the lock has one for every file; or add this one",
                )


def _of_one_version(packages: Iterable[Package]) -> list[list[Package]]:
    """The packages in as few lots as possible, none of which has two versions of a name."""
    lots: list[dict[str, str]] = []
    grouped: list[list[Package]] = []
    for package in sorted(packages):
        for lot, members in zip(lots, grouped, strict=True):
            if lot.setdefault(package.name, package.version) == package.version:
                members.append(package)
                break
        else:
            lots.append({package.name: package.version})
            grouped.append([package])
    return grouped


def _served(packages: Sequence[Package], source: PypiSource, report: Report) -> dict[tuple[str, str], str]:
    """Addresses by file name and sha256 of all wheels of the versions in ``packages``.

    uv names only the first of what is missing, so a lot that fails is halved until the rest has been asked for.
    """
    versions = sorted({(package.name, package.version) for package in packages})
    documents = {"requirements.in": "".join(f"{name}=={version}\n" for name, version in versions)}
    try:
        entries = _compile(["requirements.in", "--no-deps", "--universal"], documents, source, silent, _Asked())
    except UnsatisfiableError:
        if len(versions) == 1:
            return {}
        middle = versions[len(versions) // 2]
        lower = [package for package in packages if (package.name, package.version) < middle]
        upper = [package for package in packages if (package.name, package.version) >= middle]
        return {**_served(lower, source, report), **_served(upper, source, report)}
    found: dict[tuple[str, str], str] = {}
    for entry in entries:
        for wheel in entry.get("wheels", ()):
            address = Path(wheel["path"]).as_uri() if "path" in wheel else str(wheel.get("url", ""))
            sha256 = wheel.get("hashes", {}).get("sha256")
            if sha256:
                found[_file_name(wheel), str(sha256)] = address
            else:  # an index without hashes: the file is checked against the lock when it comes
                found.update({(p.file, p.sha256): address for p in packages if p.file == _file_name(wheel)})
    return found
