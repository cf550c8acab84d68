"""Taking over another tool's lock: its packages as those of an image's notebook environment.

What such a lock does not say is asked of the channels' indexes, or learned from the files: sha256 where there is only
an md5, what a package depends on, its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lithify.errors import InputError, LithifyError
from lithify.lockfile import Package
from lithify.locks import ForeignLock, Found, complete, read_foreign, source_name
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.environment import CondaSpec
from lithify.read.requirements import Requirement, Requirements
from lithify.read.settings import Settings
from lithify.sources.conda.channel import Channel
from lithify.sources.conda.resolve import records_of


def imported(
    paths: Sequence[Path],
    image: str,
    platforms: Sequence[Platform],
    specs: Mapping[Platform, Sequence[CondaSpec]],
    channels: Mapping[str, Channel],
    settings: Settings,
    report: Report = silent,
    *,
    python: str = "",
    glibc: tuple[int, int] = (2, 28),
) -> tuple[Package, ...]:
    """The packages of other tools' locks at ``paths``, for all of ``platforms``.

    ``specs`` are what the image's requirement files and its family ask for, which the packages must answer;
    ``channels`` those that they name. ``python`` is the base's, where it has one.

    Raises:
        InputError: for a file that is no lock, or does not answer what is asked for, or is for other platforms.
        FetchError: for what must be learned and cannot be.
    """
    locks = [read_foreign(path, python=python) for path in paths]
    for lock in locks:
        for note in lock.notes:
            report(Event("resolve", "note", message=note))
    _check_platforms(locks, platforms)
    found = [one for lock in locks for one in lock.found if one.platform in platforms]
    wheels = [one for one in found if one.kind == "pypi"]
    conda = [one for one in found if one.kind == "conda"]
    named = {
        source_name(one): Channel(source_name(one).removeprefix("conda/"), one.channel, one.where) for one in conda
    }
    packages = _conda_packages(conda, named | dict(channels), settings, report)
    _check_answers(packages, specs, paths)
    for platform in platforms:
        own = [package for package in packages if package.platform == platform and package.name == "python"]
        minor = ".".join(own[0].version.split(".")[:2]) if own else python
        lookup = _Wheels(image, paths[0].parent, platform, minor, glibc, settings, report)
        packages += complete([one for one in wheels if one.platform == platform], lookup)
    return tuple(sorted(packages))


def _check_platforms(locks: Sequence[ForeignLock], platforms: Iterable[Platform]) -> None:
    there = {platform for lock in locks for platform in lock.platforms}
    missing = [str(platform) for platform in platforms if platform not in there]
    if missing:
        names = " and ".join(str(lock.path) for lock in locks)
        raise InputError(
            f"{names} has no packages for {', '.join(missing)}, which the family builds",
            hint="lock for it with the other tool, too; take it out of `platforms` in lithify.toml; or remove the file "
            "to have `lithify lock` choose anew",
        )


def _conda_packages(
    found: Sequence[Found], channels: Mapping[str, Channel], settings: Settings, report: Report
) -> list[Package]:
    """The packages, with what the channels' indexes say of them, as far as they know them."""
    from lithify.fetch import completed
    from lithify.sources.conda.source import CondaSource
    from lithify.store.store import open_store

    asked = [{"source": source_name(one), "file": one.file, "md5": one.md5, "sha256": one.sha256} for one in found]
    try:
        records = records_of(asked, channels, settings, report) if asked else []
    except LithifyError as error:
        if not all(one.sha256 and one.depends for one in found):
            raise
        records = [None] * len(found)
        report(Event("resolve", "warning", message=f"the channels were not asked about {len(found)} packages: {error}"))
    packages = []
    for one, record in zip(found, records, strict=True):
        package = Package(
            source_name(one),
            one.name,
            one.platform,
            one.version,
            one.file,
            one.sha256,
            one.size,
            md5=one.md5,
            depends=one.depends,
            constrains=one.constrains,
            site_packages=one.site_packages,
        )
        if record:
            package = replace(
                package,
                sha256=package.sha256 or record["sha256"],
                size=package.size or record["size"],
                md5=package.md5 or record["md5"],
                depends=tuple(record["depends"]),
                constrains=tuple(record["constrains"]),
                site_packages=record["site_packages"] or package.site_packages,
            )
        if not package.sha256:
            source = {package.source: CondaSource(settings, channels)}
            store = open_store(settings.store)
            (package,) = completed(store, [package], source, offline=settings.offline, report=report)
        if not record and not package.depends:
            package = _with_index(package, channels, settings, report)
        packages.append(package)
    return packages


def _with_index(package: Package, channels: Mapping[str, Channel], settings: Settings, report: Report) -> Package:
    """``package`` with what its own index says, for one that no channel's index knows."""
    from lithify.fetch import fetch
    from lithify.sources.conda.distributions import own_index
    from lithify.sources.conda.source import CondaSource
    from lithify.store.store import open_store

    sources = {package.source: CondaSource(settings, channels)}
    artefacts = fetch(open_store(settings.store), [package], sources, offline=settings.offline, report=report)
    index = own_index(package, artefacts[package])
    return replace(
        package,
        depends=tuple(str(text) for text in index.get("depends", ())),
        constrains=tuple(str(text) for text in index.get("constrains", ())),
    )


def _check_answers(
    packages: Iterable[Package], specs: Mapping[Platform, Sequence[CondaSpec]], paths: Sequence[Path]
) -> None:
    """Refuse packages that do not answer what is asked for: of another Python, say."""
    from rattler import MatchSpec, PackageRecord
    from rattler.package.build_string import BuildString

    held = {(package.platform, package.name): package for package in packages}
    names = " and ".join(map(str, paths))
    for platform, asked in specs.items():
        for spec in asked:
            package = held.get((platform, spec.name))
            if package is None:
                raise InputError(
                    f"{names} has no `{spec.name}` for {platform}, which {spec.where} asks for",
                    hint="make it anew with the tool that wrote it, or remove it to have `lithify lock` choose",
                )
            build = package.file.rpartition("-")[2].removesuffix(".conda").removesuffix(".tar.bz2")
            subdir = package.file.partition("/")[0]
            record = PackageRecord(package.name, package.version, BuildString(build), 0, subdir)
            if not record.matches(MatchSpec(spec.text)):
                what = "Python" if spec.name == "python" else spec.name
                raise InputError(
                    f"{names} holds {what} {package.version} for {platform}, and {spec.where} asks for `{spec.text}`",
                    hint="make it anew with the tool that wrote it, or remove it to have `lithify lock` choose",
                )


class _Wheels:
    """Finds the wheels of which a lock says name, version and hashes only."""

    def __init__(
        self,
        image: str,
        folder: Path,
        platform: Platform,
        python: str,
        glibc: tuple[int, int],
        settings: Settings,
        report: Report,
    ) -> None:
        self.image, self.folder, self.platform, self.python, self.glibc = image, folder, platform, python, glibc
        self.settings, self.report = settings, report

    def __call__(self, found: Sequence[Found]) -> Mapping[Found, Package]:
        """See `lithify.locks.Lookup`."""
        from lithify.sources import pypi

        asked = tuple(
            Requirement(
                one.name, f"{one.name}=={one.version}", one.where, tuple(f"sha256:{digest}" for digest in one.hashes)
            )
            for one in found
        )
        packages = pypi.resolve(
            [Requirements(self.image, self.folder, python=asked)],
            self.platform,
            self.python,
            glibc=self.glibc,
            settings=self.settings,
            report=self.report,
        )
        by_name = {package.name: package for package in packages}
        return {one: by_name[one.name] for one in found if one.name in by_name}
