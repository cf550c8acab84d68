"""``lithify lock``: requirement files in, ``lithify.lock`` out, for every platform of the family.

A lock changes as little as it can: one that answers its requirement files stays as it is, what is locked stays while
the requirements allow it, and a child takes its parents' choices, so that it shares their layers. `created` moves only
when a package does.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from lithify.errors import HostError, InputError
from lithify.lockfile import Lock, Package, fingerprint, read_lock, write_lock
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.family import Family, Image, lock_path, read_family
from lithify.read.settings import Settings, read_settings

if TYPE_CHECKING:
    from lithify.resolve.image import Ask
    from lithify.sources.conda.child import Started

# How many packages a warning names.
_NAMED = 8


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
    anything = bool(upgrade or upgrade_packages or newest)
    with contextlib.ExitStack() as stack:
        solver = None
        if (first := _first_to_solve(read, wanted, anything)) and import_file is None:
            # It loads rattler while all that follows is loaded and read here.
            from lithify.sources.conda.child import Started

            solver = stack.enter_context(Started())
        from packaging.utils import canonicalize_name

        from lithify.resolve.image import Ask

        _refuse_stale_parents(read, wanted)
        _note_parents_own(read, wanted, upgrade_packages, report)
        ask = Ask(upgrade, frozenset(canonicalize_name(name) for name in upgrade_packages), newest)
        foreign = _foreign(import_file, names, anything)
        return tuple(
            _locked(
                read,
                read.images[name],
                replace(ask, foreign=foreign if name in names else ()),
                settings,
                report,
                solver if name == first else None,
            )
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
    from lithify.read.requirements import documents

    return fingerprint(documents(family, family.lineage(image.name)))


# -- before ------------------------------------------------------------------------------------------------


def _first_to_solve(family: Family, wanted: Sequence[str], anything: bool) -> str | None:
    """The first image whose conda packages will have to be solved, as far as a glance can tell."""
    for name in wanted:
        if (
            family.conda
            and family.images[name].environments
            and (anything or not lock_path(family.images[name]).exists())
        ):
            return name
    return None


def _foreign(import_file: str | os.PathLike[str] | None, names: Sequence[str], anything: bool) -> tuple[Path, ...]:
    """The other tool's lock that is to be taken over."""
    if import_file is None:
        return ()
    if len(names) != 1:
        raise InputError(f"{import_file} is the lock of one image, and {len(names)} are to be locked", hint="name one")
    if anything:
        raise InputError(f"{import_file} is taken over as it is: nothing can be upgraded at the same time")
    file = Path(import_file)
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    return (file,)


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
    from packaging.utils import canonicalize_name

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


def _locked(
    family: Family, image: Image, ask: Ask, settings: Settings, report: Report, solver: Started | None
) -> LockResult:
    from lithify.read.requirements import documents, read_requirements
    from lithify.resolve.image import Job, resolved

    path = lock_path(image)
    if family.conda and not path.exists() and not ask.anything:
        ask = replace(ask, foreign=_foreign_locks(path.parent, family.platforms_of(image.name)))
        for file in ask.foreign:
            report(Event("resolve", "note", message=f"`{image.name}` takes over {file}; later locks start from that"))
    old = _old_lock(path, report)
    lineage = tuple(read_requirements(member) for member in family.lineage(image.name))
    made_of = fingerprint(documents(family, family.lineage(image.name), lineage))
    if old and not ask.anything and old.fingerprint == made_of and _covers(old, family.platforms_of(image.name)):
        return LockResult(image.name, path, old)
    parent = read_lock(lock_path(family.images[image.extends])) if image.extends else None
    packages = resolved(Job(family, image, lineage, ask, old, parent, settings, report, solver))
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


def _result(image: str, path: Path, before: Iterable[Package], lock: Lock, written: bool) -> LockResult:
    from lithify.versions import is_newer

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
