"""``lithify lock``: requirement files in, ``lithify.lock`` out, for every platform of the family.

A lock changes as little as it can: one that answers its requirement files stays as it is, what is locked stays while
the requirements allow it, and a child takes its parents' choices, so that it shares their layers. `created` moves only
when a package does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from lithify.errors import HostError, InputError
from lithify.lockfile import NOTEBOOK, Lock, Package, fingerprint, read_lock, write_lock
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.family import DebianBase, Family, Image, read_family
from lithify.read.requirements import Indexes, Requirements, documents, lock_path, read_requirements
from lithify.read.settings import Settings, read_settings
from lithify.versions import is_newer

if TYPE_CHECKING:
    from lithify.read.environment import CondaSpec
    from lithify.sources.conda import resolve as conda_resolve
    from lithify.sources.conda.channel import Channel
    from lithify.sources.conda.child import Started

# How many packages a warning names.
_NAMED = 8
# The C library of a base, which decides what wheels it runs.
_GLIBC = {"bookworm": (2, 36), "trixie": (2, 41)}


@dataclass(frozen=True)
class LockResult:
    """What locking one image gave: the lock, and how it differs from the one before.

    ``up``, ``down`` and ``rebuilt`` pair a platform's old package with its new one, of a newer, an older and the same
    version. ``new_bytes`` is what is to be downloaded anew, by platform, as far as sizes are known. ``written`` is
    false where nothing had to be.
    """

    image: str
    path: Path
    lock: Lock
    added: tuple[Package, ...] = ()
    removed: tuple[Package, ...] = ()
    up: tuple[tuple[Package, Package], ...] = ()
    down: tuple[tuple[Package, Package], ...] = ()
    rebuilt: tuple[tuple[Package, Package], ...] = ()
    new_bytes: Mapping[str, int] = field(default_factory=dict)
    written: bool = False

    @property
    def changed(self) -> tuple[tuple[Package, Package], ...]:
        """All pairs of an old package and its new one."""
        return tuple(sorted((*self.up, *self.down, *self.rebuilt)))


def lock(
    family: str | os.PathLike[str] = ".",
    images: Sequence[str] = (),
    *,
    upgrade: bool = False,
    upgrade_packages: Sequence[str] = (),
    exclude_newer: str | datetime | None = None,
    import_file: str | os.PathLike[str] | None = None,
    check: bool = False,
    settings: Settings | None = None,
    report: Report = silent,
) -> tuple[LockResult, ...]:
    """Lock ``images`` (all of the family where none is named), and their parents that have no lock yet.

    A lock that answers its requirement files stays as it is unless something is asked for: ``upgrade`` chooses the
    newest versions that the requirements allow; ``upgrade_packages`` does so for the packages named, and moves what
    they need moved; ``exclude_newer`` leaves out what was published after that moment (see `moment`).

    ``import_file`` is another tool's lock, to be taken over as that of the one image named; without a lock of ours, one
    that lies beside the requirement files (``conda-lock.yml``, or else ``conda-linux-64.lock``) is taken over, too.

    ``check`` writes nothing, needs no network, and raises where a lock does not answer its requirement files.

    Raises:
        InputError: for wrong requirement files, a parent's lock that is out of date, or a failed ``check``.
        UnsatisfiableError: where no versions fit, with the resolver's explanation.
        FetchError: where an index, a channel or a mirror does not answer.
        HostError: where a solver dies.
    """
    settings = settings or read_settings()
    newest = moment(exclude_newer) if isinstance(exclude_newer, str) else exclude_newer
    if newest is not None and newest.tzinfo is None:
        raise InputError(f"{newest.isoformat()} has no time zone", hint="add one, such as UTC")
    read = read_family(Path(family))
    names = read.select(tuple(images))
    if check:
        return tuple(_checked(read, read.images[name]) for name in names)
    wanted = [name for name in read.images if name in names or _is_missing_parent(read, name, names)]
    _refuse_stale_parents(read, wanted)
    _note_parents_own(read, wanted, upgrade_packages, report)
    ask = _Ask(upgrade, frozenset(canonicalize_name(name) for name in upgrade_packages), newest)
    if import_file is None:
        return tuple(_locked(read, read.images[name], ask, settings, report) for name in wanted)
    if len(names) != 1:
        raise InputError(f"{import_file} is the lock of one image, and {len(names)} are to be locked", hint="name one")
    if ask.anything:
        raise InputError(f"{import_file} is taken over as it is: nothing can be upgraded at the same time")
    file = Path(import_file)
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    return tuple(
        _locked(read, read.images[name], replace(ask, foreign=(file,) if name in names else ()), settings, report)
        for name in wanted
    )


def moment(text: str) -> datetime:
    """The moment that ``text`` names, in UTC: an ISO 8601 time with its zone, or a date, which is the end of that day.

    Raises:
        InputError: for anything else, such as a time without a zone: it would be another moment on another machine.
    """
    try:
        if len(text) <= 10:
            return datetime.combine(date.fromisoformat(text), time(), UTC) + timedelta(days=1)
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InputError(
            f"`{text}` is no moment", hint="write a date, 2026-01-31, or a time with its zone, 2026-01-31T12:00:00Z"
        ) from None
    if found.tzinfo is None:
        raise InputError(f"`{text}` has no time zone", hint=f"write {text}Z for UTC, or {text}+01:00")
    return found.astimezone(UTC)


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
class _Ask:
    """What is asked for besides an answer to the requirement files: which of the locked packages may change though
    they need not, how new packages may be, and which other tools' locks are taken over.
    """

    upgrade: bool = False
    packages: frozenset[str] = frozenset()
    newest: datetime | None = None
    foreign: tuple[Path, ...] = ()

    @property
    def anything(self) -> bool:
        return bool(self.upgrade or self.packages or self.newest or self.foreign)

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
    if stale(family, image, locked) or not _covers(locked, family.platforms_of(image.name)):
        raise InputError(
            f"{path} does not answer the requirement files of `{image.name}` and its parents as they are now",
            hint=f"`lithify lock {image.name}`, and commit what it writes",
        )
    return LockResult(image.name, path, locked)


def _covers(lock: Lock, platforms: Iterable[Platform]) -> bool:
    """Whether a lock has packages for every platform of an image, or none at all."""
    covered = {package.platform for package in lock.packages}
    return not covered or covered >= set(platforms)


# -- one image ---------------------------------------------------------------------------------------------


def _locked(family: Family, image: Image, ask: _Ask, settings: Settings, report: Report) -> LockResult:
    path = lock_path(image)
    if family.conda and not path.exists() and not ask.anything:
        ask = replace(ask, foreign=_foreign_locks(path.parent, family.platforms_of(image.name)))
        for file in ask.foreign:
            report(Event("resolve", "note", message=f"`{image.name}` takes over {file}; later locks start from that"))
    with contextlib.ExitStack() as stack:
        started = None
        if family.conda and not ask.foreign and (ask.anything or not path.exists()):
            # It loads rattler while the requirement files are read.
            from lithify.sources.conda.child import Started

            started = stack.enter_context(Started())
        old = _old_lock(path, report)
        lineage = tuple(read_requirements(member) for member in family.lineage(image.name))
        made_of = fingerprint(documents(family, family.lineage(image.name), lineage))
        if old and not ask.anything and old.fingerprint == made_of and _covers(old, family.platforms_of(image.name)):
            return LockResult(image.name, path, old)
        parent = read_lock(lock_path(family.images[image.extends])) if image.extends else None
        packages = _resolved(_Job(family, image, lineage, ask, old, parent, settings, report, started))
    if parent:
        _note_departures(image, parent.packages, packages, report)
    before = old.packages if old else ()
    created = old.created if old and packages == before else _now()
    made = Lock(made_of, created, packages)
    text = write_lock(made)
    written = not path.exists() or path.read_bytes() != text.encode()
    if written:
        _write(path, text)
    return _result(image.name, path, before, made, written)


def _foreign_locks(folder: Path, platforms: Iterable[Platform]) -> tuple[Path, ...]:
    """The other tools' locks that lie in an image's folder and are to be taken over: one, or one a platform."""
    if (folder / "conda-lock.yml").is_file():
        return (folder / "conda-lock.yml",)
    explicit = (folder / f"conda-{platform.subdir}.lock" for platform in platforms)
    return tuple(path for path in explicit if path.is_file())


def _resolved(job: _Job) -> tuple[Package, ...]:
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
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise


def _result(image: str, path: Path, before: Iterable[Package], lock: Lock, written: bool) -> LockResult:
    before = tuple(before)
    added, removed, changed = differences(before, lock.packages)
    up: list[tuple[Package, Package]] = []
    down: list[tuple[Package, Package]] = []
    rebuilt: list[tuple[Package, Package]] = []
    for pair in changed:
        old, new = pair
        if old.version == new.version:
            rebuilt.append(pair)
        else:
            (up if is_newer(old.version, new.version, new.kind) else down).append(pair)
    had = {package.sha256 for package in before}
    new_bytes: dict[str, int] = {}
    for package in {package.sha256: package for package in lock.packages if package.sha256 not in had}.values():
        new_bytes[str(package.platform)] = new_bytes.get(str(package.platform), 0) + package.size
    return LockResult(image, path, lock, added, removed, tuple(up), tuple(down), tuple(rebuilt), new_bytes, written)


def _note_departures(image: Image, parent: Iterable[Package], own: Iterable[Package], report: Report) -> None:
    """Say so where a child cannot take its parent's choices: the two share less than they might."""
    _, _, changed = differences(parent, own)
    found = sorted({(old.name, old.version, new.version) for old, new in changed})
    if not found:
        return
    listed = ", ".join(
        f"{name} {ours} ({theirs})" if ours != theirs else f"{name} {ours} (another build)"
        for name, theirs, ours in found[:_NAMED]
    )
    rest = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    packages = "1 package" if len(found) == 1 else f"{len(found)} packages"
    message = (
        f"`{image.name}` has {packages} otherwise than its parent `{image.extends}`: {listed}{rest}; a constraint in "
        "the parent that suits both would let them share its layers"
    )
    report(Event("resolve", "warning", message=message))


def differences(
    before: Iterable[Package], after: Iterable[Package]
) -> tuple[tuple[Package, ...], tuple[Package, ...], tuple[tuple[Package, Package], ...]]:
    """What was added, what was removed, and what changed (old, new) between two locks' packages."""

    def by_key(packages: Iterable[Package]) -> dict[tuple[str, str, Platform, str], Package]:
        # The sources of a kind are one: a package that moves from Debian's suite to its updates is the same package.
        return {(package.kind, package.name, package.platform, package.environment): package for package in packages}

    old, new = by_key(before), by_key(after)
    return (
        tuple(sorted(new[key] for key in new.keys() - old.keys())),
        tuple(sorted(old[key] for key in old.keys() - new.keys())),
        tuple(sorted((old[key], new[key]) for key in old.keys() & new.keys() if old[key] != new[key])),
    )


@dataclass(frozen=True)
class _Job:
    """One image: all that a resolver may look at."""

    family: Family
    image: Image
    lineage: tuple[Requirements, ...]
    ask: _Ask
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


def _reported(
    resolver: Callable[[_Job, Platform], tuple[Package, ...]], job: _Job, platform: Platform
) -> tuple[Package, ...]:
    task = f"lock {job.image.name} {platform} {resolver.__name__.rpartition('_')[2]}"
    job.report(Event("resolve", "start", task))
    try:
        return resolver(job, platform)
    finally:
        job.report(Event("resolve", "finish", task))


def _resolve_pypi(job: _Job, platform: Platform) -> tuple[Package, ...]:
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


def _resolve_conda(job: _Job) -> tuple[Package, ...]:
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


def _imported(job: _Job) -> tuple[Package, ...]:
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
    job: _Job, wanted: Sequence[conda_resolve.Wanted], answers: Mapping[tuple[str, Platform], tuple[Package, ...]]
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


def _is_parents(job: _Job, wanted: conda_resolve.Wanted) -> bool:
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
    job: _Job, wanted: conda_resolve.Wanted, asked: tuple[Requirements, ...], installed: tuple[Package, ...]
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


def _resolve_debian(job: _Job, platform: Platform) -> tuple[Package, ...]:
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
