"""Wheels made into conda packages, as conda-forge's recipes do: names, dependencies, scripts, entry points."""

from __future__ import annotations

import base64
import configparser
import csv
import email
import email.message
import hashlib
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from making_conda import LINUX_64, LINUX_AARCH64, NOARCH, PLACEHOLDER, CondaPackage, File, Member, text

# conda-forge's names where they are not the index's.
NAMES = {
    "blosc": "python-blosc",
    "build": "python-build",
    "dask": "dask-core",
    "duckdb": "python-duckdb",
    "eccodes": "python-eccodes",
    "fastjsonschema": "python-fastjsonschema",
    "geopandas": "geopandas-base",
    "graphviz": "python-graphviz",
    "jupyterhub": "jupyterhub-base",
    "kubernetes": "python-kubernetes",
    "lmdb": "python-lmdb",
    "matplotlib": "matplotlib-base",
    "msgpack": "msgpack-python",
    "tables": "pytables",
    "torch": "pytorch",
    "xxhash": "python-xxhash",
}
_UNDERSCORES = """
async_generator cf_xarray importlib_resources ipython_pygments_lexers jupyter_client jupyter_core jupyter_events
jupyter_leaflet jupyter_server jupyter_server_fileid jupyter_server_terminals jupyter_server_ydoc jupyter_telemetry
jupyter_ydoc jupyterlab_pygments jupyterlab_server jupyterlab_widgets line_profiler memory_profiler msal_extensions
mypy_extensions nest_asyncio numpy_groupies prometheus_client pure_eval pyproject_hooks pyviz_comms stack_data
typing_extensions
"""
NAMES |= {name.replace("_", "-"): name for name in _UNDERSCORES.split()}


def conda_name(name: str) -> str:
    """The package's name in the channel for a distribution's."""
    canonical = canonicalize_name(name)
    return NAMES.get(canonical, canonical.replace("backports-", "backports.").replace("ruamel-yaml", "ruamel.yaml"))


@dataclass(frozen=True)
class Target:
    """What packages are made for: the Python's full version, and the platform of those that are not noarch."""

    python: str
    subdir: str = LINUX_64

    @property
    def minor(self) -> str:
        """``3.11`` of ``3.11.7``."""
        return ".".join(self.python.split(".")[:2])

    @property
    def tag(self) -> str:
        """``py311``."""
        return "py" + self.minor.replace(".", "")

    @property
    def site_packages(self) -> str:
        """Where distributions are, below the prefix."""
        return f"lib/python{self.minor}/site-packages"

    def markers(self, extra: str = "") -> dict[str, str]:
        """What markers of requirements are evaluated with."""
        return {
            "python_version": self.minor,
            "python_full_version": self.python,
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_release": "",
            "platform_version": "",
            "os_name": "posix",
            "platform_machine": {LINUX_AARCH64: "aarch64"}.get(self.subdir, "x86_64"),
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "platform_python_implementation": "CPython",
            "extra": extra,
        }


# -- wheels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WheelFiles:
    """A wheel's content: each path's bytes and whether it is a program."""

    name: str
    version: str
    pure: bool
    files: Mapping[str, tuple[bytes, bool]]

    @property
    def metadata(self) -> email.message.Message:
        """The headers of METADATA."""
        return _headers(next(data for path, (data, _) in self.files.items() if _is_metadata(path)))


def _is_metadata(path: str) -> bool:
    return path.count("/") == 1 and path.endswith(".dist-info/METADATA")


def _headers(metadata: bytes) -> email.message.Message:
    return email.message_from_bytes(metadata)


def read_wheel(path: Path) -> WheelFiles:
    """The content of a wheel."""
    name, version, _, tags = parse_wheel_filename(path.name)
    with zipfile.ZipFile(path) as archive:
        files = {
            member.filename: (archive.read(member), bool((member.external_attr >> 16) & 0o111))
            for member in archive.infolist()
            if not member.is_dir()
        }
    return WheelFiles(name, str(version), all(tag.platform == "any" for tag in tags), files)


def read_metadata(path: Path) -> email.message.Message:
    """The headers of a wheel's METADATA, without its other files."""
    with zipfile.ZipFile(path) as archive:
        return _headers(archive.read(next(name for name in archive.namelist() if _is_metadata(name))))


def installed(name: str) -> WheelFiles | None:
    """A distribution of the running Python as the wheel that it came from, or None if it is not here as one."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    files: dict[str, tuple[bytes, bool]] = {}
    for entry in distribution.files or ():
        path, kept = Path(str(entry.locate())), str(entry)
        made_by_installing = kept.endswith((".dist-info/RECORD", "/INSTALLER", "/REQUESTED", "/direct_url.json"))
        if kept.startswith("..") or "__pycache__" in kept or made_by_installing or not path.is_file():
            continue
        files[kept] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    if not any(_is_metadata(path) for path in files):
        return None
    wheel = next((data for path, (data, _) in files.items() if path.endswith(".dist-info/WHEEL")), b"")
    return WheelFiles(canonicalize_name(name), distribution.version, b"-any" in wheel, files)


# -- dependencies --------------------------------------------------------------------------------------------------


def wanted_requirements(
    metadata: Mapping[str, email.message.Message], asked: Iterable[Requirement], target: Target
) -> dict[str, list[Requirement]]:
    """What each distribution (by its canonical name) of a closure needs: its markers and the wanted extras decide."""
    requirements = {
        name: [Requirement(line) for line in headers.get_all("Requires-Dist") or []]
        for name, headers in metadata.items()
    }
    extras: dict[str, set[str]] = {name: {""} for name in metadata}
    for requirement in asked:
        extras[canonicalize_name(requirement.name)] |= set(requirement.extras)

    def holds(name: str, requirement: Requirement) -> bool:
        marker = requirement.marker
        return marker is None or any(marker.evaluate(target.markers(extra)) for extra in extras[name])

    changed = True
    while changed:
        changed = False
        for name, mine in requirements.items():
            for requirement in mine:
                other = canonicalize_name(requirement.name)
                if other in extras and requirement.extras - extras[other] and holds(name, requirement):
                    extras[other] |= requirement.extras
                    changed = True
    return {
        name: [
            requirement
            for requirement in mine
            if holds(name, requirement) and canonicalize_name(requirement.name) != name
        ]
        for name, mine in requirements.items()
    }


def match_spec(requirement: Requirement) -> str:
    """A requirement as a conda specification: ``name >=1,<2``."""
    return f"{conda_name(requirement.name)} {_specifiers(requirement.specifier)}".strip()


def _specifiers(specifiers: SpecifierSet) -> str:
    parts = []
    for one in sorted(specifiers, key=str):
        version = one.version
        if one.operator == "~=":
            *_, last = kept = list(Version(version).release[:-1])
            upper = ".".join(str(part) for part in [*kept[:-1], last + 1])
            parts += [f">={version}", f"<{upper}.0a0"]
        elif one.operator in ("==", "===") and version.endswith(".*"):
            parts.append(version)
        else:
            parts.append(("==" if one.operator == "===" else one.operator) + version)
    return ",".join(parts)


# -- packages ------------------------------------------------------------------------------------------------------


def wheel_package(
    wheel: WheelFiles,
    target: Target,
    *,
    requirements: Sequence[Requirement] | None = None,
    depends: Sequence[str] = (),
    name: str | None = None,
) -> CondaPackage:
    """The conda package of a wheel: noarch if it is pure, else of the target's platform.

    ``requirements`` replace what METADATA asks for without extras; ``depends`` are more.
    """
    site = "site-packages/" if wheel.pure else f"{target.site_packages}/"
    scripts = "python-scripts/" if wheel.pure else "bin/"
    headers = wheel.metadata
    files: dict[str, Member] = {}
    commands: list[tuple[str, str]] = []
    info = ""
    for path, (data, program) in wheel.files.items():
        mode = 0o755 if program else 0o644
        top, _, rest = path.partition("/")
        if top.endswith(".data"):
            kind, _, rest = rest.partition("/")
            if kind == "scripts":
                files[scripts + rest] = _script(data)
            else:
                where = {"data": "", "headers": f"include/python{target.minor}/{wheel.name}/"}.get(kind, site)
                files[where + rest] = File(data, mode)
            continue
        if top.endswith(".dist-info"):
            info = site + top
            if rest == "RECORD":
                continue
            if rest == "entry_points.txt":
                commands = _commands(data.decode())
        files[site + path] = File(data, mode)
    files[f"{info}/INSTALLER"] = File(b"conda\n")
    files[f"{info}/REQUESTED"] = File(b"")
    if not wheel.pure:
        files |= {f"bin/{command}": _entry_point(reference) for command, reference in commands}
    files[f"{info}/RECORD"] = _record(files, info, site, scripts)
    if requirements is None:
        found = [Requirement(line) for line in headers.get_all("Requires-Dist") or []]
        requirements = [one for one in found if one.marker is None or one.marker.evaluate(target.markers())]
    pythons = _specifiers(SpecifierSet(headers.get("Requires-Python") or ""))
    needs = {f"python {pythons}".strip()} if wheel.pure else python_depends(target)
    needs |= {match_spec(requirement) for requirement in requirements} | set(depends)
    package = CondaPackage(
        name or conda_name(wheel.name),
        wheel.version,
        files,
        subdir=NOARCH if wheel.pure else target.subdir,
        depends=sorted(needs),
        noarch="python" if wheel.pure else None,
        entry_points=[f"{command} = {reference}" for command, reference in commands] if wheel.pure else (),
        license=_license(headers),
    )
    return with_build(package, "pyh" if wheel.pure else f"{target.tag}h")


def python_depends(target: Target) -> set[str]:
    """What a package with machine code for a Python depends on."""
    major, minor = target.minor.split(".")
    abi = f"cp{major}{minor}"
    return {f"python >={target.minor},<{major}.{int(minor) + 1}.0a0", f"python_abi {target.minor}.* *_{abi}"}


def with_build(package: CondaPackage, before: str = "h") -> CondaPackage:
    """The package with a build string that its content gives, as conda-build's: ``pyh1a2b3c4_0``."""
    digest = hashlib.sha256(repr((package.depends, package.entry_points)).encode())
    for row in package.rows():
        digest.update(repr(sorted(row.items())).encode())
        digest.update(repr(member.target if hasattr(member := package.files[row["_path"]], "target") else "").encode())
    return replace(package, build=f"{before}{digest.hexdigest()[:7]}_{package.build_number}")


def _commands(entry_points: str) -> list[tuple[str, str]]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(entry_points)
    found = [
        item
        for section in ("console_scripts", "gui_scripts")
        if parser.has_section(section)
        for item in parser[section].items()
    ]
    return [(command, re.sub(r"\s*\[.*", "", reference).replace(" ", "")) for command, reference in found]


def _entry_point(reference: str) -> File:
    """A script as conda-build writes it."""
    module, _, function = reference.partition(":")
    return text(
        f"#!{PLACEHOLDER}/bin/python\n"
        "# -*- coding: utf-8 -*-\n"
        "import re\n"
        "import sys\n\n"
        f"from {module} import {function.split('.')[0]}\n\n"
        "if __name__ == '__main__':\n"
        "    sys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])\n"
        f"    sys.exit({function}())\n",
        0o755,
    )


def _script(data: bytes) -> File:
    if data.startswith(b"#!python"):
        first, newline, rest = data.partition(b"\n")
        arguments = first.removeprefix(b"#!pythonw").removeprefix(b"#!python")
        line = b"#!" + PLACEHOLDER.encode() + b"/bin/python" + arguments
        return File(line + newline + rest, 0o755, PLACEHOLDER)
    return File(data, 0o755)


def _record(files: Mapping[str, Member], info: str, site: str, scripts: str) -> File:
    """RECORD's rows name files where they will be, from site-packages."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    for path, member in sorted(files.items()):
        if not isinstance(member, File):
            continue
        if path.startswith(site):
            where = path.removeprefix(site)
        elif path.startswith(scripts):
            where = "../../../bin/" + path.removeprefix(scripts)
        else:
            where = "../../../" + path
        digest = base64.urlsafe_b64encode(hashlib.sha256(member.data).digest()).rstrip(b"=").decode()
        writer.writerow((where, f"sha256={digest}", len(member.data)))
    writer.writerow((f"{info.removeprefix(site)}/RECORD", "", ""))
    return File(output.getvalue().encode())


def _license(headers: email.message.Message) -> str:
    found = str(headers.get("License-Expression") or headers.get("License") or "")
    return found.splitlines()[0][:60] if found.strip() else "LicenseRef-Unknown"
