"""Channels of real conda packages, made here: this machine's Python, distributions of the package index as conda
packages, conda itself, and small packages with what makes installing hard.

A folder of channels has the channel `CHANNEL` in it, and is what `channel_server` serves. They are kept below
``LITHIFY_TEST_CACHE``, or else ``XDG_CACHE_HOME/lithify-tests``, under names that their content gives, so that all
processes and later runs share them; whoever comes second waits for the first. An empty cache makes new ones. A channel
that is handed out must not be changed: take `copied`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

import conda_itself
from conda_python import HOST_SUBDIR, foreign, host_target, python_packages
from conda_special import compiler, specials
from conda_wheels import (
    Target,
    conda_name,
    installed,
    match_spec,
    read_metadata,
    read_wheel,
    wanted_requirements,
    wheel_package,
)
from making_conda import CONDA, LINUX_AARCH64, NOARCH, TAR_BZ2, CondaPackage, File

CHANNEL = "conda-forge"
# A second channel, of a few packages that the first has too.
OTHER_CHANNEL = "other"
# Of the index's distributions in `small`, those that the tests' own environment has.
INSTALLED = (
    "pip",
    "setuptools",
    "wheel",
    "click",
    "packaging",
    "rich",
    "Pygments",
    "markdown-it-py",
    "mdurl",
    "PyYAML",
)
BASE_NOTEBOOK = (
    "dask[complete]",
    "dask-gateway",
    "dask-labextension",
    "distributed",
    "ipywidgets",
    "jupyter-resource-usage",
    "jupyter-server-proxy",
    "jupyterhub",
    "jupyterlab",
    "jupyterlab-git",
    "nbgitpuller",
    "notebook",
    "pip",
    "setuptools",
    "wheel",
)
_PANGEO = Path(__file__).parents[1] / "families" / "pypi" / "pangeo-notebook" / "requirements.txt"
# conda-forge has the whole under the distribution's name, and the distribution under another.
_WHOLES = {
    "dask": ("bokeh", "distributed", "jinja2", "lz4", "numpy", "pandas", "pyarrow"),
    "geopandas": ("folium", "mapclassify", "matplotlib", "pyogrio", "pyproj", "xyzservices"),
    "matplotlib": (),
    "jupyterhub": (),
}
_PANGEO_DASK = ("dask", "dask-gateway", "distributed")
_PANGEO_NOTEBOOK = (
    "dask-labextension",
    "ipywidgets",
    "jupyter-server-proxy",
    "jupyterhub-singleuser",
    "jupyterlab",
    "nbgitpuller",
)
_PANGEO_VERSION = "2026.01.21"


# -- the channels --------------------------------------------------------------------------------------------------


def small() -> Path:
    """Python, `conda_special.specials` and some noarch packages, for both platforms; made in seconds, without network.

    Machine code for the platform that is not this machine's does not run.
    """
    return _channels("small", _small_key(), _make_small)


def with_conda() -> Path:
    """`small`, and conda with what it needs; some 30 wheels are downloaded."""
    return _wheel_channels("conda", (), (HOST_SUBDIR,))


def base_notebook(subdirs: Sequence[str] = (HOST_SUBDIR,)) -> Path:
    """`with_conda`, JupyterLab, JupyterHub and Dask, and `pangeo-notebook`, which pins them: some 170 wheels."""
    return _wheel_channels("base-notebook", BASE_NOTEBOOK, subdirs)


def pangeo_notebook(subdirs: Sequence[str] = (HOST_SUBDIR,)) -> Path:
    """`base_notebook` and what the committed family's pangeo-notebook asks for: some 370 wheels, 1 GB."""
    lines = (line.partition("#")[0].strip() for line in _PANGEO.read_text().splitlines())
    asked = [line for line in lines if line and not line.startswith("-")]
    return _wheel_channels("pangeo-notebook", (*BASE_NOTEBOOK, *asked), subdirs)


def copied(channels: Path, target: Path) -> Path:
    """A folder of channels that may be changed, in ``target``. Packages are hard links: replace, never rewrite them."""

    def copy(source: str, destination: str) -> None:
        if source.endswith((CONDA, TAR_BZ2)):
            os.link(source, destination)
        else:
            shutil.copy2(source, destination)

    shutil.copytree(channels, target, copy_function=copy, dirs_exist_ok=True)
    return target


def index(channel: Path) -> None:
    """(Re)write the repodata of a channel's folder: plain, zstd and sharded."""
    from rattler.index import index_fs

    (channel / NOARCH).mkdir(parents=True, exist_ok=True)
    asyncio.run(index_fs(channel, write_zst=True, write_shards=True, force=True))
    shutil.rmtree(channel / ".tmp", ignore_errors=True)


def write_channel(channel: Path, packages: Iterable[CondaPackage | tuple[CondaPackage, str]]) -> Path:
    """Write packages (with their containers) into a channel's folder and index it."""
    for one in packages:
        package, container = one if isinstance(one, tuple) else (one, CONDA)
        package.write(channel, container)
    index(channel)
    return channel


# -- the cache -----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where channels, packages and wheels are kept."""
    given = os.environ.get("LITHIFY_TEST_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lithify-tests"


@contextlib.contextmanager
def _held(name: str) -> Iterator[None]:
    """Only one process at a time goes on for a ``name``."""
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / name, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """``path`` below the cache, made by ``make`` under another name if it is not there."""
    if not path.exists():
        with _held(path.name):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as new:
                    made = Path(new) / path.name
                    make(made)
                    made.rename(path)
    return path


def _channels(name: str, key: str, make: Callable[[Path], None]) -> Path:
    return _made(cache_folder() / "channels" / f"{name}-{key[:16]}", make)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _makers() -> str:
    """A digest of the code that makes packages, and of the Python that is one."""
    here = Path(__file__).parent
    modules = ("making_conda", "conda_wheels", "conda_python", "conda_special", "conda_itself", "conda_channel")
    program = Path(sys._base_executable).resolve().stat()  # type: ignore[attr-defined]
    code = [hashlib.sha256((here / f"{module}.py").read_bytes()).hexdigest() for module in modules]
    return _digest(code, sys.version, sys.base_prefix, program.st_size, program.st_mtime_ns, HOST_SUBDIR)


def _small_key() -> str:
    versions = {name: found.version if (found := installed(name)) else None for name in INSTALLED}
    return _digest(_makers(), versions, compiler())


# -- small ---------------------------------------------------------------------------------------------------------


def _make_small(channels: Path) -> None:
    target = host_target()
    packages = [(package, CONDA) for package in python_packages(target)]
    packages += [(special.package, special.container) for special in specials(target)]
    wheels = [wheel for name in INSTALLED if (wheel := installed(name)) is not None]
    here = {canonicalize_name(wheel.name) for wheel in wheels}
    requirements = wanted_requirements({canonicalize_name(one.name): one.metadata for one in wheels}, (), target)
    for wheel in wheels:
        wanted = [one for one in requirements[canonicalize_name(wheel.name)] if canonicalize_name(one.name) in here]
        packages.append((wheel_package(wheel, target, requirements=wanted), CONDA))
    packages += [(foreign(package), container) for package, container in packages if package.subdir == HOST_SUBDIR]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(lambda one: one[0].write(channels / CHANNEL, one[1]), packages))
    index(channels / CHANNEL)
    write_channel(channels / OTHER_CHANNEL, _other_packages())


def _other_packages() -> list[CondaPackage]:
    return [
        CondaPackage("upgrade", "2.0", {"share/upgrade/2.0": File(b"2.0\n")}, noarch="generic"),
        CondaPackage("generic", "0.9", {"share/generic/data.txt": File(b"other\n")}, noarch="generic"),
        CondaPackage("only-here", "1.0", {"share/only-here": File(b"only here\n")}, noarch="generic"),
    ]


# -- wheels of the package index -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Locked:
    """A wheel that a resolution chose, and where it was then."""

    name: str
    version: str
    file: str
    address: str
    sha256: str


def resolve(requirements: Sequence[str], target: Target, *, alone: bool = False) -> tuple[Locked, ...]:
    """The wheels that uv, as this machine has it configured, chooses for requirements and all that they need.

    ``alone`` leaves out what they need. A resolution is kept in the cache.
    """

    def ask(path: Path) -> None:
        path.write_text(_compile(requirements, target, alone))

    key = _digest(sorted(requirements), dataclasses.astuple(target), alone)
    path = _made(cache_folder() / "resolutions" / f"{key[:16]}.toml", ask)
    ranks = {tag: rank for rank, tag in enumerate(_tags(target))}
    locked = []
    for package in tomllib.loads(path.read_text())["packages"]:
        ranked: list[tuple[int, Locked]] = []
        for wheel in package.get("wheels", ()):
            file = wheel.get("name") or urllib.parse.unquote(wheel["url"].rsplit("/", 1)[1])
            fitting = [ranks[tag] for tag in parse_wheel_filename(file)[3] if tag in ranks]
            if fitting:
                one = Locked(package["name"], package["version"], file, wheel["url"], wheel["hashes"]["sha256"])
                ranked.append((min(fitting), one))
        assert ranked, f"{package['name']} {package['version']} has no wheel for {target}"
        locked.append(min(ranked, key=lambda pair: pair[0])[1])
    return tuple(locked)


def _compile(requirements: Sequence[str], target: Target, alone: bool) -> str:
    from uv import find_uv_bin

    machine = "aarch64" if target.subdir == LINUX_AARCH64 else "x86_64"
    command = [find_uv_bin(), "pip", "compile", "-q", "--no-header", "--no-annotate", "--format", "pylock.toml"]
    command += ["--only-binary", ":all:", "--python-version", target.python, *(["--no-deps"] if alone else [])]
    command += ["--python-platform", f"{machine}-manylinux_2_28", "-"]
    asked = "".join(f"{line}\n" for line in requirements)
    result = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _tags(target: Target) -> Iterator[Tag]:
    machine = "aarch64" if target.subdir == LINUX_AARCH64 else "x86_64"
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for minor in range(28, 4 if machine == "x86_64" else 16, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in old:
            platforms.append(f"{old[minor]}_{machine}")
    python = tuple(int(part) for part in target.minor.split("."))
    yield from cpython_tags(python, platforms=[*platforms, f"linux_{machine}"])
    yield from compatible_tags(python, f"cp{target.minor.replace('.', '')}", [*platforms, f"linux_{machine}"])


def fetch(locked: Iterable[Locked]) -> dict[Locked, Path]:
    """The wheels' files, downloaded into the cache where they are not there."""
    import httpx

    wanted = list(dict.fromkeys(locked))
    transport = httpx.HTTPTransport(retries=3)
    with httpx.Client(follow_redirects=True, timeout=60, transport=transport) as client:

        def one(wheel: Locked) -> Path:
            def get(path: Path) -> None:
                data = client.get(wheel.address).raise_for_status().content
                assert hashlib.sha256(data).hexdigest() == wheel.sha256, f"another {wheel.file} is served"
                path.write_bytes(data)

            return _made(cache_folder() / "wheels" / wheel.sha256[:16] / wheel.file, get)

        with ThreadPoolExecutor(4) as threads:
            return dict(zip(wanted, threads.map(one, wanted), strict=True))


def _wheel_channels(name: str, requirements: Sequence[str], subdirs: Sequence[str]) -> Path:
    asked = (*requirements, *conda_itself.REQUIREMENTS)
    targets = [host_target(subdir) for subdir in subdirs]
    locked = {target: resolve(asked, target) for target in targets}
    (carrier,) = resolve([conda_itself.CARRIER], host_target(), alone=True)
    parts = [sorted(one.sha256 for one in wheels) for wheels in locked.values()]

    def make(channels: Path) -> None:
        copied(small(), channels)
        channel = channels / CHANNEL
        wheels = fetch([carrier, *(one for many in locked.values() for one in many)])
        for target, chosen in locked.items():
            made = _wheel_packages({one: wheels[one] for one in chosen}, asked, target)
            for package in [*made, _kept_conda(carrier, wheels[carrier], target)]:
                place = channel / package.parent.name / package.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                os.link(package, place)
        for meta in _metapackages(locked[targets[0]]):
            meta.write(channel)
        index(channel)

    return _channels(name, _digest(_small_key(), parts, carrier.sha256, list(subdirs)), make)


def _wheel_packages(wheels: Mapping[Locked, Path], asked: Sequence[str], target: Target) -> list[Path]:
    """The conda packages of wheels, in the cache, made on all cores."""
    metadata: dict[str, Message] = {canonicalize_name(one.name): read_metadata(path) for one, path in wheels.items()}
    roots = [Requirement(line) for line in asked]
    # An extra of what conda-forge publishes in two packages is the whole's.
    requirements = wanted_requirements(metadata, [one for one in roots if one.name not in _WHOLES], target)
    for name in _WHOLES.keys() & metadata.keys():
        requirements |= wanted_requirements({name: metadata[name]}, (), target)

    def one(wheel: Locked) -> Path:
        wanted = requirements[canonicalize_name(wheel.name)]

        def make(path: Path) -> None:
            wheel_package(read_wheel(wheels[wheel]), target, requirements=wanted).write(path)

        key = _digest(_makers(), wheel.sha256, dataclasses.astuple(target), [str(each) for each in wanted])
        (made,) = _made(cache_folder() / "packages" / key[:24], make).glob("*/*")
        return made

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(one, wheels))


def _kept_conda(carrier: Locked, wheel: Path, target: Target) -> Path:
    def make(path: Path) -> None:
        conda_itself.conda_package(read_wheel(wheel), target).write(path)

    key = _digest(_makers(), carrier.sha256, dataclasses.astuple(target))
    (made,) = _made(cache_folder() / "packages" / key[:24], make).glob("*/*")
    return made


def _metapackages(locked: Sequence[Locked]) -> list[CondaPackage]:
    """The packages without files that conda-forge has of these distributions, and Pangeo's."""
    versions: dict[str, str] = {canonicalize_name(one.name): one.version for one in locked}
    made = []

    def meta(name: str, version: str, depends: Iterable[str]) -> None:
        made.append(CondaPackage(name, version, build="hd8ed1ab_0", noarch="generic", depends=sorted(depends)))

    for name, others in _WHOLES.items():
        if name in versions:
            depends = [match_spec(Requirement(other)) for other in others if other in versions]
            meta(name, versions[name], [f"{conda_name(name)} =={versions[name]}", *depends])
    if "jupyterhub" in versions and "jupyterlab" in versions:
        exact = f"jupyterhub-base =={versions['jupyterhub']}"
        meta("jupyterhub-singleuser", versions["jupyterhub"], ["__unix", exact, "jupyterlab >=3.1"])
        versions["jupyterhub-singleuser"] = versions["jupyterhub"]
    for name, pinned in {"pangeo-dask": _PANGEO_DASK, "pangeo-notebook": _PANGEO_NOTEBOOK}.items():
        if all(one in versions for one in pinned):
            meta(name, _PANGEO_VERSION, [f"{one} {versions[one]}.*" for one in pinned])
            versions[name] = _PANGEO_VERSION
    return made
