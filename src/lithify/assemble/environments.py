"""Conda environments of an image: which Python each has, what its packages are laid out for, who compiles.

The Python of an environment is one of its packages. For the `.pyc` files it has to run here before there is an image:
it and what it needs are laid out in a folder of the store, over the base's root file system. A platform's files are
compiled by this machine's package of the very same version.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lithify import runtime
from lithify.errors import InputError, LithifyError
from lithify.lockfile import NOTEBOOK, Lock, Package
from lithify.platforms import Platform, host_platform
from lithify.read.family import CondaRules, Environment, FileRules
from lithify.read.requirements import Requirements
from lithify.sources import Fetched, FragmentSource, Target
from lithify.store import oci
from lithify.store.store import Store, friendly_disk_errors

# Raise it when the same packages come to be laid out otherwise.
FORMAT = 1


@dataclass(frozen=True)
class Python:
    """An environment's Python: its minor version, its exact one, and where it looks for packages, if not as usual."""

    minor: str
    version: str
    site_packages: str


def python_of(packages: Iterable[Package]) -> Python | None:
    """The Python among the conda packages of one environment, if there is one."""
    for package in packages:
        if package.kind == "conda" and package.name == "python":
            if match := re.match(r"3\.\d+", package.version):
                return Python(match[0], package.version, package.site_packages)
            raise InputError(
                f"the environment has Python {package.version}, and only Python 3 is supported",
                hint="ask for `python >=3.10` in environment.yml",
            )
    return None


def packages_of(lock: Lock, platform: Platform, environment: str) -> tuple[Package, ...]:
    """The conda packages and wheels that a lock has in one environment."""
    return tuple(p for p in lock.of(platform) if p.environment == environment and p.kind != "debian")


def environment_target(environment: Environment, lock: Lock, platform: Platform, files: FileRules) -> Target:
    """What the packages of ``environment`` are laid out for.

    Raises:
        InputError: when the lock has another Python for this machine, which compiles.
    """
    python = python_of(packages_of(lock, platform, environment.name))
    user = runtime.JOVYAN
    if python is None:
        return Target(platform, environment.prefix, user.uid, user.gid, "", "", "", files.exclude, files.keep)
    host = host_platform()
    here = python if host == platform else python_of(packages_of(lock, host, environment.name))
    if here is None or here.version != python.version:
        found = f"Python {here.version}" if here else "no Python"
        raise InputError(
            f"the lock has Python {python.version} for {platform}, and {found} for {host}, which this machine is and "
            "compiles with",
            hint=f'have "{host}" among `platforms` in lithify.toml and pin one `python` in environment.yml, '
            f"or build on a {platform} machine",
        )
    return Target(
        platform,
        environment.prefix,
        user.uid,
        user.gid,
        python.minor,
        f"conda python={python.version}",
        python.site_packages,
        files.exclude,
        files.keep,
    )


def requested_specs(
    requirements: Iterable[Requirements], rules: CondaRules, environment: Environment, platform: Platform
) -> list[str]:
    """What a lineage asks conda for, in one environment."""
    specs = [*rules.require] if environment.name == NOTEBOOK else []
    for one in requirements:
        if (files := one.environments.get(environment.name)) is not None:
            specs += [spec.text for spec in files[platform].specs]
    return list(dict.fromkeys(specs))


def requested_variables(
    requirements: Iterable[Requirements], environment: Environment, platform: Platform
) -> dict[str, str]:
    """The ``variables`` that the requirement files of a lineage set in one environment."""
    variables: dict[str, str] = {}
    for one in requirements:
        if (files := one.environments.get(environment.name)) is not None:
            variables.update(files[platform].variables)
    return variables


def conda_name(package: Package) -> str:
    """A conda package as an environment's history names it: ``CHANNEL/SUBDIR::NAME-VERSION-BUILD``."""
    subdir, _, file = package.file.rpartition("/")
    channel = package.source.partition("/")[2]
    return f"{channel}/{subdir}::{re.sub(r'[.](conda|tar[.]bz2)$', '', file)}"


def closure(packages: Iterable[Package], name: str) -> tuple[Package, ...]:
    """The package called ``name`` and all that it needs, directly or not; sorted."""
    by_name = {package.name: package for package in packages if package.kind == "conda"}
    found: dict[str, Package] = {}
    waiting = [name]
    while waiting:
        package = by_name.get(waiting.pop())
        if package is not None and package.name not in found:
            found[package.name] = package
            waiting += [spec.split(maxsplit=1)[0].lower() for spec in package.depends if spec.strip()]
    return tuple(sorted(found.values()))


def interpreter_tree(
    store: Store,
    packages: Sequence[Package],
    target: Target,
    source: FragmentSource,
    fetched: Fetched,
) -> Path:
    """A folder with ``packages`` laid out at their places, to run the Python among them. Made once.

    Raises:
        LithifyError: for a package that cannot be laid out.
    """
    document = {"format": FORMAT, "packages": [p.sha256 for p in packages], "prefix": target.prefix}
    key = hashlib.sha256(oci.canonical(document)).hexdigest()
    final = store.root / "interpreters" / key
    if final.is_dir():
        return final
    artefacts = fetched(packages)
    with store.lock(f"interpreter-{key}"):
        if final.is_dir():
            return final
        with store.scratch("interpreter") as scratch, friendly_disk_errors(store.root):
            root = scratch / "root"
            root.mkdir()
            for package in packages:
                _lay_out(source, package, artefacts[package], target, root)
            final.parent.mkdir(exist_ok=True)
            root.rename(final)
    return final


def _lay_out(source: FragmentSource, package: Package, artefact: Path, target: Target, root: Path) -> None:
    """Write a package's files below ``root``. Two packages may bring one path here: the later one's file stays."""
    made: set[Path] = set()
    for file in source.files(package, artefact, target):
        path = root / on_disk(file.path)
        if path.parent not in made:
            # A link of another package's may stand on the way, and this is the host.
            if not path.parent.resolve().is_relative_to(root.resolve()):
                raise LithifyError(
                    f"{package.name} {package.version} brings /{file.path}, below another package's link to elsewhere"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.unlink(missing_ok=True)
        if file.link:
            path.symlink_to(on_disk(file.link))
        elif file.receipt is None:
            with file.content() as stream, path.open("wb") as output:
                shutil.copyfileobj(stream, output, 1 << 20)
            os.chmod(path, file.mode | 0o400)  # noqa: PTH101


def on_disk(path: str) -> str:
    """A path of an image, which is UTF-8 there, as Python names it here: the same bytes in every locale."""
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))
