"""What one image is locked to: every source asked, on every platform, at the same time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from lithify.errors import InputError
from lithify.lockfile import NOTEBOOK, Lock, Package
from lithify.platforms import Platform
from lithify.progress import Event, Report
from lithify.read.family import DebianBase, Family, Image
from lithify.read.requirements import Indexes, Requirements
from lithify.read.settings import Settings

if TYPE_CHECKING:
    from lithify.read.environment import CondaSpec
    from lithify.sources.conda import resolve as conda_resolve
    from lithify.sources.conda.channel import Channel
    from lithify.sources.conda.child import Started

# The C library of a base, which decides what packages it runs.
_GLIBC = {"bookworm": (2, 36), "trixie": (2, 41)}


@dataclass(frozen=True)
class Ask:
    """What is asked for besides an answer to the requirement files: which of the locked packages may change though
    they need not, how new packages may be, and which other tools' locks are taken over.
    """

    upgrade: bool = False
    packages: frozenset[str] = frozenset()
    newest: datetime | None = None
    foreign: tuple[Path, ...] = ()

    @property
    def anything(self) -> bool:
        """Whether a lock that answers its requirement files is to be made anew all the same."""
        return bool(self.upgrade or self.packages or self.newest or self.foreign)

    def of(self, packages: Iterable[Package]) -> tuple[Package, ...]:
        """Those of ``packages`` that are to stay as they are."""
        if self.upgrade:
            return ()
        return tuple(package for package in packages if canonicalize_name(package.name) not in self.packages)


@dataclass(frozen=True)
class Job:
    """One image: all that a resolver may look at."""

    family: Family
    image: Image
    lineage: tuple[Requirements, ...]
    ask: Ask
    old: Lock | None
    parent: Lock | None
    settings: Settings
    report: Report
    started: Started | None = None

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """Those that the image is made for."""
        return self.family.platforms_of(self.image.name)

    @property
    def glibc(self) -> tuple[int, int]:
        """The version of the base's C library."""
        from lithify.sources.pypi import OLDEST_GLIBC

        base = self.family.base
        return _GLIBC[base.suite] if isinstance(base, DebianBase) else OLDEST_GLIBC

    def kept(self, platform: Platform) -> tuple[Package, ...]:
        """What the image's own lock holds and is to keep."""
        return self.ask.of(self.old.of(platform)) if self.old else ()

    def inherited(self, platform: Platform) -> tuple[Package, ...]:
        """What the parent's lock holds."""
        return self.parent.of(platform) if self.parent else ()


def resolved(job: Job) -> tuple[Package, ...]:
    """All packages of an image: every source and platform at the same time."""
    answers: list[Future[tuple[Package, ...]]] = []
    resolvers = [_resolve_debian] if job.family.conda else [_resolve_pypi, _resolve_debian]
    with ThreadPoolExecutor(max_workers=2 * len(job.platforms) + 1) as pool:
        if job.ask.foreign:
            resolvers = [_resolve_debian]
            answers.append(pool.submit(_imported, job))
        if job.family.conda:
            answers.append(pool.submit(_resolve_conda, job))
        for platform in job.platforms:
            answers += [pool.submit(_reported, resolver, job, platform) for resolver in resolvers]
        try:
            return tuple(sorted(package for answer in answers for package in answer.result()))
        except BaseException as error:
            for answer in answers:
                answer.cancel()
            if not isinstance(error, Exception) and job.family.conda:
                # Interrupted: the threads wait for their solvers, which may wait long for a server.
                from lithify.sources.conda.child import stop_all

                stop_all()
            raise


def _reported(
    resolver: Callable[[Job, Platform], tuple[Package, ...]], job: Job, platform: Platform
) -> tuple[Package, ...]:
    task = f"lock {job.image.name} {platform} {resolver.__name__.rpartition('_')[2]}"
    job.report(Event("resolve", "start", task))
    try:
        return resolver(job, platform)
    finally:
        job.report(Event("resolve", "finish", task))


def _resolve_pypi(job: Job, platform: Platform) -> tuple[Package, ...]:
    from lithify.sources import pypi

    # The parents' choices come last: they hold against the image's own old ones.
    packages = (*job.kept(platform), *job.inherited(platform))
    return pypi.resolve(
        job.lineage,
        platform,
        job.family.base.python,
        glibc=job.glibc,
        preferred={package.name: package.version for package in packages if package.source == pypi.SOURCE},
        exclude_newer=job.ask.newest,
        settings=job.settings,
        report=job.report,
    )


def _resolve_conda(job: Job) -> tuple[Package, ...]:
    """The conda packages of all environments on all platforms, and the wheels beside them."""
    from lithify.sources.conda import resolve as conda

    rules, root = job.family.conda, job.family.root
    assert rules is not None
    wanted, found = [], []
    for environment in job.image.environments:
        if environment.name == NOTEBOOK and job.ask.foreign:
            continue
        for platform in job.platforms:
            one = conda.wanted_of(rules, job.image, job.lineage, environment, platform, job.glibc, root)
            if _is_parents(job, one):
                found += [p for p in job.inherited(platform) if p.environment == one.environment and _is_inside(p)]
            else:
                wanted.append(one)

    def preferred(one: conda.Wanted) -> conda.Preferred:
        def of(packages: Iterable[Package]) -> tuple[Package, ...]:
            return tuple(p for p in packages if p.kind == "conda" and p.environment == one.environment)

        old = job.old.of(one.platform) if job.old and not job.ask.upgrade else ()
        return conda.Preferred(of(old), of(job.inherited(one.platform)), job.ask.packages)

    answers = conda.resolve(
        wanted,
        job.image.name,
        preferred={(one.environment, one.platform): preferred(one) for one in wanted},
        exclude_newer=job.ask.newest,
        started=job.started,
        settings=job.settings,
        report=job.report,
    )
    answers = _with_hashes(job, wanted, answers)
    for packages in answers.values():
        found += packages
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        beside = [
            pool.submit(_resolve_beside, job, one, asked, answers.get((one.environment, one.platform), ()))
            for one in wanted
            if (asked := conda.python_requirements(job.lineage, one))
        ]
        for wheels in beside:
            found += wheels.result()
    return tuple(found)


def _imported(job: Job) -> tuple[Package, ...]:
    """The packages of the notebook environment, as other tools have locked them."""
    from lithify.locks.importing import imported

    specs: dict[Platform, tuple[CondaSpec, ...]] = {}
    channels: Mapping[str, Channel] = {}
    family, image = job.family, job.image
    if family.conda:
        from lithify.sources.conda import resolve as conda

        channels = conda.channels_of(family.conda, image, job.lineage, job.platforms, family.root)
        for platform in job.platforms:
            one = conda.wanted_of(
                family.conda, image, job.lineage, image.environments[0], platform, job.glibc, family.root
            )
            specs[platform] = one.specs
    return imported(
        job.ask.foreign,
        image.name,
        job.platforms,
        specs,
        channels,
        job.settings,
        job.report,
        python=family.base.python,
        glibc=job.glibc,
    )


def _with_hashes(
    job: Job, wanted: Sequence[conda_resolve.Wanted], answers: Mapping[tuple[str, Platform], tuple[Package, ...]]
) -> dict[tuple[str, Platform], tuple[Package, ...]]:
    """The answers with the sha256 of files whose channel's index does not say it (some old ones do not)."""
    if all(package.sha256 for packages in answers.values() for package in packages):
        return dict(answers)
    from lithify.fetch import completed
    from lithify.sources.conda.source import CondaSource
    from lithify.store.store import open_store

    store, settings = open_store(job.settings.store), job.settings
    source = CondaSource(settings, {name: channel for one in wanted for name, channel in one.every_channel.items()})
    return {
        key: completed(
            store, packages, {p.source: source for p in packages}, offline=settings.offline, report=job.report
        )
        for key, packages in answers.items()
    }


def _is_inside(package: Package) -> bool:
    """Whether a package belongs to a conda environment."""
    return package.kind in ("conda", "pypi")


def _is_parents(job: Job, wanted: conda_resolve.Wanted) -> bool:
    """Whether an environment is its parent's: the image adds nothing to it, and the parent's lock answers."""
    from lithify.sources.conda import resolve as conda

    if job.image.extends is None or job.parent is None or job.family.conda is None:
        return False
    parent, own = job.family.images[job.image.extends], job.lineage[-1]
    environment = next((one for one in parent.environments if one.name == wanted.environment), None)
    if environment is None or wanted.environment in own.environments:
        return False
    if wanted.environment == NOTEBOOK and (own.python or own.constraints or own.indexes != Indexes()):
        return False
    asked = conda.wanted_of(
        job.family.conda, parent, job.lineage[:-1], environment, wanted.platform, job.glibc, job.family.root
    )
    return asked == wanted


def _resolve_beside(
    job: Job, wanted: conda_resolve.Wanted, asked: tuple[Requirements, ...], installed: tuple[Package, ...]
) -> tuple[Package, ...]:
    """The wheels that an environment asks for beside its conda packages, which are ``installed``."""
    from lithify.fetch import fetch
    from lithify.sources import pypi
    from lithify.sources.conda import distributions
    from lithify.sources.conda.source import CondaSource
    from lithify.store.store import open_store

    python = next((package for package in installed if package.name == "python"), None)
    if python is None:
        where = next(requirement.where for requirements in asked for requirement in requirements.python)
        raise InputError(
            f"{where}: the environment `{wanted.environment}` has no Python on {wanted.platform}",
            hint="ask for `python` among the conda packages, too",
        )
    task = f"lock {job.image.name} {wanted.platform} pip"
    job.report(Event("resolve", "start", task))
    store, settings = open_store(job.settings.store), job.settings
    source = CondaSource(settings, wanted.every_channel)
    fetched = functools.partial(
        fetch,
        store,
        sources={package.source: source for package in installed},
        offline=settings.offline,
        jobs=settings.jobs,
        report=job.report,
    )
    provided = pypi.Provided(
        distributions.distributions(installed, store, fetched), lambda one: distributions.extras_of(one, fetched)
    )
    packages = (*job.kept(wanted.platform), *job.inherited(wanted.platform))
    wheels = pypi.resolve(
        asked,
        wanted.platform,
        ".".join(python.version.split(".")[:2]),
        glibc=job.glibc,
        preferred={
            package.name: package.version
            for package in packages
            if package.source == pypi.SOURCE
            and package.environment == wanted.environment
            and package.name not in provided.distributions
        },
        provided=provided,
        exclude_newer=job.ask.newest,
        settings=settings,
        report=job.report,
    )
    job.report(Event("resolve", "finish", task))
    return tuple(replace(wheel, environment=wanted.environment) for wheel in wheels)


def _resolve_debian(job: Job, platform: Platform) -> tuple[Package, ...]:
    base = job.family.base
    names = [package for requirements in job.lineage for package in requirements.apt]
    if not isinstance(base, DebianBase):
        if names:
            raise InputError(
                f"{names[0].where}: apt.txt needs a Debian base, and the base of {job.family.name} is an image",
                hint='use `debian = "trixie"` in [base], or put the package into the base image',
            )
        return ()
    from lithify.sources import debian

    def of_debian(packages: Iterable[Package]) -> tuple[Package, ...]:
        return tuple(package for package in packages if package.source.startswith("debian"))

    kept, found = of_debian(job.kept(platform)), of_debian(job.inherited(platform))
    if not found:
        found = debian.resolve(
            base.suite,
            debian.base_packages(base),
            platform,
            essential=True,
            previous=tuple(package for package in kept if package.base),
            upgrade=job.ask.upgrade,
            settings=job.settings,
            report=job.report,
        )
    have = {package.name for package in found}
    wanted = tuple(sorted({package.name for package in names} - have))
    if not wanted:
        return found
    more = debian.resolve(
        base.suite,
        wanted,
        platform,
        kept=found,
        previous=tuple(package for package in kept if package.name not in have),
        upgrade=job.ask.upgrade,
        asked_at={package.name: package.where for package in names},
        settings=job.settings,
        report=job.report,
    )
    return (*found, *more)
