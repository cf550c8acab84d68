"""``lithify lock``: requirement files in, ``lithify.lock`` out, for every platform of the family.

A lock changes as little as it can: what is locked stays while the requirements allow it, and a child takes its
parents' choices, so that it shares their layers. `created` moves only when a package does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.utils import canonicalize_name

from lithify.errors import HostError, InputError
from lithify.lockfile import Lock, Package, fingerprint, read_lock, write_lock
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.family import DebianBase, Family, Image, read_family
from lithify.read.requirements import Requirements, documents, lock_path, read_requirements
from lithify.read.settings import Settings, read_settings

# The C library of a base, which decides what wheels it runs.
_GLIBC = {"bookworm": (2, 36), "trixie": (2, 41)}


@dataclass(frozen=True)
class LockResult:
    """What locking one image gave: the lock, and how it differs from the one before.

    ``changed`` pairs a platform's old package with its new one. ``written`` is false where nothing had to be.
    """

    image: str
    path: Path
    lock: Lock
    added: tuple[Package, ...]
    removed: tuple[Package, ...]
    changed: tuple[tuple[Package, Package], ...]
    written: bool


def lock(
    family: str | os.PathLike[str] = ".",
    images: Sequence[str] = (),
    *,
    upgrade: bool = False,
    upgrade_packages: Sequence[str] = (),
    check: bool = False,
    settings: Settings | None = None,
    report: Report = silent,
) -> tuple[LockResult, ...]:
    """Lock ``images`` (all of the family where none is named), and their parents that have no lock yet.

    ``upgrade`` chooses the newest versions that the requirements allow; ``upgrade_packages`` does so for the packages
    named. ``check`` writes nothing, needs no network, and raises where a lock does not answer its requirement files.

    Raises:
        InputError: for wrong requirement files, a parent's lock that is out of date, or a failed ``check``.
        UnsatisfiableError: where no versions fit, with the resolver's explanation.
        FetchError: where an index or a mirror does not answer.
    """
    settings = settings or read_settings()
    read = read_family(Path(family))
    names = read.select(tuple(images))
    if check:
        return tuple(_checked(read, read.images[name]) for name in names)
    wanted = [name for name in read.images if name in names or _is_missing_parent(read, name, names)]
    _refuse_stale_parents(read, wanted)
    _note_parents_own(read, wanted, upgrade_packages, report)
    keep = _Keep(upgrade, frozenset(canonicalize_name(name) for name in upgrade_packages))
    return tuple(_locked(read, read.images[name], keep, settings, report) for name in wanted)


def stale(family: Family, image: Image, lock: Lock) -> bool:
    """Whether the image's requirement files, or its parent's lock, are others than those that ``lock`` answers.

    Raises:
        InputError: for a requirement file that is wrong.
    """
    return lock.fingerprint != fingerprint_of(family, image)


def fingerprint_of(family: Family, image: Image) -> str:
    """The fingerprint that a lock of ``image`` made now would have; see `lithify.read.requirements.documents`.

    Raises:
        InputError: for a requirement file that is wrong.
    """
    return fingerprint(documents(family, family.lineage(image.name)))


@dataclass(frozen=True)
class _Keep:
    """Which of the locked packages may change though they need not."""

    upgrade: bool
    packages: frozenset[str]

    def of(self, packages: Iterable[Package]) -> tuple[Package, ...]:
        """Those of ``packages`` that are to stay as they are."""
        if self.upgrade:
            return ()
        return tuple(package for package in packages if canonicalize_name(package.name) not in self.packages)


# -- before ------------------------------------------------------------------------------------------------


def _is_missing_parent(family: Family, name: str, names: Sequence[str]) -> bool:
    is_parent = any(name in (image.name for image in family.lineage(child)) for child in names)
    return is_parent and not lock_path(family.images[name]).exists()


def _refuse_stale_parents(family: Family, wanted: Sequence[str]) -> None:
    for name in wanted:
        for parent in family.lineage(name)[:-1]:
            if parent.name in wanted:
                continue
            if stale(family, parent, read_lock(lock_path(parent))):
                raise InputError(
                    f"the lock of `{parent.name}`, which `{name}` extends, does not answer its requirement files",
                    hint=f"lock both: `lithify lock {parent.name} {name}`",
                )


def _note_parents_own(family: Family, wanted: Sequence[str], names: Sequence[str], report: Report) -> None:
    """Say so where a package to upgrade belongs to a parent, whose choice holds."""
    parents = {parent.name for name in wanted for parent in family.lineage(name)[:-1]} - set(wanted)
    for parent in sorted(parents):
        locked = {canonicalize_name(package.name) for package in read_lock(lock_path(family.images[parent])).packages}
        for name in names:
            if canonicalize_name(name) in locked:
                message = f"`{name}` is locked by `{parent}`, and stays: name that image too to upgrade it"
                report(Event("resolve", "warning", message=message))


def _checked(family: Family, image: Image) -> LockResult:
    path = lock_path(image)
    locked = read_lock(path)
    covered = {package.platform for package in locked.packages}
    missing = [str(platform) for platform in family.platforms if locked.packages and platform not in covered]
    if missing or stale(family, image, locked):
        raise InputError(
            f"{path} does not answer the requirement files of `{image.name}` and its parents as they are now",
            hint=f"`lithify lock {image.name}`, and commit what it writes",
        )
    return LockResult(image.name, path, locked, (), (), (), False)


# -- one image ---------------------------------------------------------------------------------------------


def _locked(family: Family, image: Image, keep: _Keep, settings: Settings, report: Report) -> LockResult:
    path = lock_path(image)
    old = _old_lock(path, report)
    parent = read_lock(lock_path(family.images[image.extends])) if image.extends else None
    lineage = tuple(read_requirements(member) for member in family.lineage(image.name))
    answers: list[Future[tuple[Package, ...]]] = []
    with ThreadPoolExecutor(max_workers=2 * len(family.platforms)) as pool:
        for platform in family.platforms:
            kept = keep.of(old.of(platform)) if old else ()
            inherited = parent.of(platform) if parent else ()
            for resolver in (_resolve_pypi, _resolve_debian):
                job = _Job(family, lineage, platform, kept, inherited, keep.upgrade, settings, report)
                answers.append(pool.submit(_reported, resolver, job))
        try:
            packages = tuple(sorted(package for answer in answers for package in answer.result()))
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
    if parent:
        _note_departures(image, parent.packages, packages, report)
    before = old.packages if old else ()
    created = old.created if old and packages == before else _now()
    made = Lock(fingerprint_of(family, image), created, packages)
    text = write_lock(made)
    written = not path.exists() or path.read_bytes() != text.encode()
    if written:
        _write(path, text)
    return LockResult(image.name, path, made, *differences(before, packages), written)


def _note_departures(image: Image, parent: Iterable[Package], own: Iterable[Package], report: Report) -> None:
    """Say so where a child cannot take its parent's choice: the two share less than they might."""
    _, _, changed = differences(parent, own)
    for name, theirs, ours in sorted({(old.name, old.version, new.version) for old, new in changed}):
        message = (
            f"`{image.name}` has {name} {ours}, its parent `{image.extends}` {theirs}: a constraint in the parent that "
            "suits both would let them share its layer"
        )
        report(Event("resolve", "warning", message=message))


def differences(
    before: Iterable[Package], after: Iterable[Package]
) -> tuple[tuple[Package, ...], tuple[Package, ...], tuple[tuple[Package, Package], ...]]:
    """What was added, what was removed, and what changed (old, new) between two locks' packages."""

    def by_key(packages: Iterable[Package]) -> dict[tuple[str, str, Platform], Package]:
        # Debian's sources are one: a package that moves from the suite to its updates is the same package.
        return {
            (package.source.partition("/")[0].partition("-")[0], package.name, package.platform): package
            for package in packages
        }

    old, new = by_key(before), by_key(after)
    return (
        tuple(sorted(new[key] for key in new.keys() - old.keys())),
        tuple(sorted(old[key] for key in old.keys() - new.keys())),
        tuple(sorted((old[key], new[key]) for key in old.keys() & new.keys() if old[key] != new[key])),
    )


@dataclass(frozen=True)
class _Job:
    """One image on one platform: all that a resolver may look at."""

    family: Family
    lineage: tuple[Requirements, ...]
    platform: Platform
    kept: tuple[Package, ...]
    inherited: tuple[Package, ...]
    upgrade: bool
    settings: Settings
    report: Report

    @property
    def image(self) -> str:
        return self.lineage[-1].image


def _reported(resolver: Callable[[_Job], tuple[Package, ...]], job: _Job) -> tuple[Package, ...]:
    task = f"lock {job.image} {job.platform} {resolver.__name__.rpartition('_')[2]}"
    job.report(Event("resolve", "start", task))
    try:
        return resolver(job)
    finally:
        job.report(Event("resolve", "finish", task))


def _resolve_pypi(job: _Job) -> tuple[Package, ...]:
    from lithify.sources import pypi

    base = job.family.base
    # The parents' choices come last: they hold against the image's own old ones.
    preferred = {p.name: p.version for p in (*job.kept, *job.inherited) if p.source == pypi.SOURCE}
    return pypi.resolve(
        job.lineage,
        job.platform,
        base.python,
        glibc=_GLIBC[base.suite] if isinstance(base, DebianBase) else pypi.OLDEST_GLIBC,
        preferred=preferred,
        settings=job.settings,
        report=job.report,
    )


def _resolve_debian(job: _Job) -> tuple[Package, ...]:
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

    kept, found = of_debian(job.kept), of_debian(job.inherited)
    if not found:
        found = debian.resolve(
            base.suite,
            debian.base_packages(base),
            job.platform,
            essential=True,
            previous=tuple(package for package in kept if package.base),
            upgrade=job.upgrade,
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
        job.platform,
        kept=found,
        previous=tuple(package for package in kept if package.name not in have),
        upgrade=job.upgrade,
        asked_at={package.name: package.where for package in names},
        settings=job.settings,
        report=job.report,
    )
    return (*found, *more)


def _old_lock(path: Path, report: Report) -> Lock | None:
    if not path.exists():
        return None
    try:
        return read_lock(path)
    except InputError as error:
        message = f"the old lock counts for nothing: {error.message}"
        report(Event("resolve", "warning", message=message))
        return None


# -- files -------------------------------------------------------------------------------------------------


def _now() -> datetime:
    """Now, or the moment that SOURCE_DATE_EPOCH names (https://reproducible-builds.org/specs/source-date-epoch/)."""
    value = os.environ.get("SOURCE_DATE_EPOCH")
    if value is None:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        moment = datetime.fromtimestamp(int(value), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(f"SOURCE_DATE_EPOCH is {value!r}, not seconds since 1970") from error
    if moment.year < 1980:
        raise InputError(f"SOURCE_DATE_EPOCH is {value!r}: a lock cannot be older than 1980, where zip's time begins")
    return moment


def _write(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}") from error
