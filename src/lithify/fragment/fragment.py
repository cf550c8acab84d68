"""Fragments: a package's slice in the store, made once and kept for ever.

A fragment depends on the artefact's sha256, the target and the rules by which slices are made: its key. It never
depends on other packages, the clock or the host. What is read back is checked against its record, so a changed file is
made anew and never built in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lithify import progress
from lithify.errors import FetchError, HostError, LithifyError
from lithify.fragment import bytecode
from lithify.fragment.bytecode import Compiler, Interpreter
from lithify.fragment.slice import write_slice
from lithify.lockfile import Package
from lithify.sources import FragmentSource, Target
from lithify.store import oci
from lithify.store.compression import Compression
from lithify.store.store import Store, checked, digest_of_file, parse_checked

# Raise it when the same artefact must give another slice.
FORMAT = 1


@dataclass(frozen=True)
class Fragment:
    """A slice in the store. ``sha256`` and ``size`` are the compressed file's; the rest is as in `Slice`."""

    key: str
    file: Path
    sha256: str
    size: int
    alone: str
    paths: Mapping[str, str]


@dataclass(frozen=True)
class Recipe:
    """One fragment to make: what it is made of. Can be sent to another process."""

    package: Package
    target: Target
    compression: Compression
    source: FragmentSource
    artefact: Path
    interpreter: Interpreter | None

    @property
    def key(self) -> str:
        """The fragment's key."""
        return fragment_key(self.package, self.target, self.compression)


def fragment_key(package: Package, target: Target, compression: Compression) -> str:
    """What a fragment depends on, as a digest."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "bytecode": bytecode.RULES,
        "source": package.source,
        "artefact": package.sha256,
        # The file's name says what the artefact claims to be (a wheel's version and tags): installing checks it.
        "file": package.file,
        "target": {**_told(target), "platform": str(target.platform)},
        "compression": compression.identity,
    }
    # What a conda package's own record repeats of the lock. No part of other packages' keys.
    record = {"md5": package.md5, "depends": package.depends, "constrains": package.constrains}
    if any(record.values()):
        document["record"] = record
    return hashlib.sha256(oci.canonical(document)).hexdigest()


def _told(target: Target) -> dict[str, Any]:
    """What a target says: fields at their defaults left out, so that a new one changes no key."""
    return {field.name: value for field in fields(target) if (value := getattr(target, field.name)) != field.default}


def fragment_path(store: Store, key: str) -> Path:
    """Where the fragment with ``key`` lies, whether or not it is there."""
    return store.root / "fragments" / key[:2] / key


def find_fragment(store: Store, key: str) -> Fragment | None:
    """The fragment with ``key``, or None where it has to be made. Looks at its size only: readers check the bytes."""
    path = fragment_path(store, key)
    try:
        record = parse_checked(path.with_suffix(".json").read_bytes())
        if record is None or path.stat().st_size != record["size"]:
            return None
        return Fragment(key, path, record["sha256"], record["size"], record["alone"], record["paths"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def forget_fragment(store: Store, key: str) -> None:
    """Remove a fragment that is not what its record says."""
    path = fragment_path(store, key)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def make_fragment(store: Store, recipe: Recipe, compiler: Compiler | None) -> Fragment:
    """Make one fragment and keep it.

    Raises:
        LithifyError: naming the package, when its artefact is not what was locked or cannot be installed.
    """
    package, key = recipe.package, recipe.key
    if digest_of_file(recipe.artefact) != f"sha256:{package.sha256}":
        with suppress(OSError):
            recipe.artefact.unlink()
        raise FetchError(
            f"{package.file} was changed in the cache {store.root}: it is not what was locked",
            hint="it has been removed; the same command fetches it again",
        )
    path = fragment_path(store, key)
    try:
        files = recipe.source.files(package, recipe.artefact, recipe.target)
        with store.writing(path, durable=False) as output:
            done = write_slice(files, recipe.target, recipe.compression, compiler, output)
    except LithifyError as error:
        if package.name not in error.message:
            error.message = f"{package.name} {package.version}: {error.message}"
        raise
    record = {**vars(done), "package": package.name}
    with store.writing(path.with_suffix(".json"), durable=False) as output:
        output.write(checked(record))
    return Fragment(key, path, done.sha256, done.size, done.alone, done.paths)


def make_fragments(
    store: Store, recipes: Sequence[Recipe], *, jobs: int, report: progress.Report = progress.silent
) -> None:
    """Make fragments in parallel, the largest first; each is in the store as soon as it is done.

    Raises:
        LithifyError: the first failure; what is done by then is kept.
    """
    ordered = sorted(recipes, key=lambda recipe: (-recipe.package.size, recipe.key))
    total = sum(recipe.package.size for recipe in ordered)
    done = 0
    report(progress.Event("fragment", "start", "install", total=total, unit="bytes"))

    def finished(recipe: Recipe) -> None:
        nonlocal done
        done += recipe.package.size
        report(
            progress.Event("fragment", "advance", "install", recipe.package.name, done=done, total=total, unit="bytes")
        )

    # A pool costs more than it gives for a few small packages.
    if jobs == 1 or len(ordered) == 1 or total < 4_000_000:
        _here(store, ordered, finished)
    else:
        _in_processes(store, ordered, min(jobs, len(ordered)), finished)
    report(
        progress.Event(
            "fragment",
            "finish",
            "install",
            f"{len(ordered)} package{'' if len(ordered) == 1 else 's'}",
            done=total,
            total=total,
        )
    )


def _here(store: Store, recipes: Iterable[Recipe], finished: Callable[[Recipe], None]) -> None:
    compilers: dict[Interpreter, Compiler] = {}
    try:
        for recipe in recipes:
            make_fragment(store, recipe, _compiler(recipe, compilers))
            finished(recipe)
    finally:
        for compiler in compilers.values():
            compiler.close()


def _compiler(recipe: Recipe, compilers: dict[Interpreter, Compiler]) -> Compiler | None:
    if recipe.interpreter is None:
        return None
    return compilers.setdefault(recipe.interpreter, Compiler(recipe.interpreter))


def _in_processes(store: Store, recipes: Sequence[Recipe], jobs: int, finished: Callable[[Recipe], None]) -> None:
    # "spawn": the parent draws progress in a thread, and a fork would copy its locks.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        running: dict[Future[None], Recipe] = {pool.submit(_in_worker, store, recipe): recipe for recipe in recipes}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                recipe = running.pop(future)
                future.result()
                finished(recipe)
    except BrokenProcessPool as error:
        raise HostError(
            "a process that installs packages was killed",
            hint="if it was for want of memory, `--jobs 1` needs less; what is done is kept. A script that calls "
            'Lithify must do so below `if __name__ == "__main__":`, for these processes import it',
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_compilers: dict[Interpreter, Compiler] = {}  # of a worker process; its sandbox dies with it


def _in_worker(store: Store, recipe: Recipe) -> None:
    make_fragment(store, recipe, _compiler(recipe, _compilers))
