"""`make bench`: how long Lithify takes, beside buildah and beside itself. Prints a table in Markdown.

Both sides of a ratio are measured in this run, with a warm base, warm downloads, and `.pyc` files made on both sides.
`--image base-notebook` is quick; the default, pangeo-notebook, takes some ten minutes and 10 GB below `--work`.
"""

from __future__ import annotations

import argparse
import os
import platform as host
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from baseline import Buildah
from many import add_image
from measure import Measured, measured

import lithify
from lithify.cli.display import size
from lithify.lockfile import LOCK_FILE, Lock, Package, read_lock, write_lock
from lithify.platforms import Platform, host_platform
from lithify.read.family import Family, read_family
from lithify.read.settings import Settings, read_settings
from lithify.store.store import Store, open_store, remove_tree

FAMILY = Path(__file__).resolve().parent.parent / "families" / "pypi"
BASE = "base-image"
PROGRAM = [sys.executable, "-m", "lithify"]
REPEATS = 5


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", default="pangeo-notebook", help="which image of families/pypi to build")
    parser.add_argument("--work", type=Path, help="an empty folder on a real disk (default: a temporary one)")
    parser.add_argument("--numbers", type=int, nargs="*", default=[50, 100, 200, 400], help="how many packages")
    parser.add_argument("--only", choices=["image", "many", "help"], action="append", help="measure these cases only")
    wishes = parser.parse_args()
    cases = wishes.only or ["help", "image", "many"]
    work = Path(tempfile.mkdtemp(prefix="lithify-bench-")) if wishes.work is None else wishes.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    try:
        rows = [] if "help" not in cases else measure_help()
        if "image" in cases or "many" in cases:
            family, store = prepare(work, wishes.image)
            if "image" in cases:
                rows += measure_image(work, family, store, wishes.image)
            if "many" in cases:
                rows += measure_many(work, family, store, wishes.numbers)
        print(f"\n{machine()}\n")
        print("| case | Lithify | against | ratio |\n|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
    finally:
        if wishes.work is None:
            # Last: deleting many files makes some disks slow for minutes.
            remove_tree(work)


Row = tuple[str, str, str, str]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """What the figures were taken on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    buildah = subprocess.run(["buildah", "--version"], capture_output=True, text=True, check=False).stdout.split()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        host.machine(),
    )
    version = buildah[2] if len(buildah) > 2 else "not there"
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, {size(memory)} of memory, Linux {host.release()}, "
        f"Python {host.python_version()}, Lithify {lithify.__version__}, buildah {version}"
    )


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def row(case: str, ours: float, theirs: float) -> Row:
    return case, seconds(ours), seconds(theirs), f"{ours / theirs:.3f}"


def middle(results: Sequence[Measured]) -> float:
    return median(result.seconds for result in results)


# -- the command itself -----------------------------------------------------------------------------------------


def measure_help() -> list[Row]:
    """`lithify --help` beside an interpreter that does nothing."""
    say("lithify --help")
    ours = middle([measured([*PROGRAM, "--help"]) for _ in range(2 * REPEATS)])
    theirs = middle([measured([sys.executable, "-c", "pass"]) for _ in range(2 * REPEATS)])
    return [row("`lithify --help`, against `python3 -c pass`", ours, theirs)]


# -- one image ---------------------------------------------------------------------------------------------------


def build(family: Path, store: Path, image: str, *more: str | Path, memory: bool = False) -> Measured:
    """`lithify build IMAGE`, for this machine's platform, in a process of its own."""
    command: list[str | Path] = [*PROGRAM, "build", image, "--family", family, "--store", store, "--quiet", "--offline"]
    return measured([*command, "--platform", str(host_platform()), *more], memory=memory)


def prepare(work: Path, image: str) -> tuple[Path, Path]:
    """A copy of the family, and a store that holds its base image and all downloads, and nothing else."""
    family, full, store = work / "family", work / "full", work / "store"
    shutil.copytree(FAMILY, family)
    say(f"Preparing: downloads, and {BASE}")
    command: list[str | Path] = [*PROGRAM, "build", image, BASE, "--family", family, "--store", full, "--quiet"]
    measured([*command, "--platform", str(host_platform())])
    open_store(store)
    shutil.copytree(full / "artefacts", store / "artefacts", copy_function=os.link)
    build(family, store, BASE)
    measured([*PROGRAM, "run", BASE, "--store", store, "--quiet", "--", "true"])  # buildah has it unpacked, too
    return family, store


def own_wheels(described: Family, image: str, platform: Platform) -> tuple[Package, ...]:
    """The wheels that an image has beyond the base image's."""
    base = {package.sha256 for package in read_lock(described.image(BASE).folder / LOCK_FILE).packages}
    packages = read_lock(described.image(image).folder / LOCK_FILE).of(platform, "pypi")
    return tuple(package for package in packages if package.sha256 not in base)


def own_debs(described: Family, image: str, platform: Platform, store: Store) -> list[tuple[Package, Path]]:
    """The Debian packages that an image has beyond the base image's, and where they lie."""
    base = {package.sha256 for package in read_lock(described.image(BASE).folder / LOCK_FILE).packages}
    packages = read_lock(described.image(image).folder / LOCK_FILE).of(platform)
    return [
        (package, store.artefact_path(package.sha256))
        for package in packages
        if package.source != "pypi" and package.sha256 not in base
    ]


def measure_image(work: Path, family: Path, root: Path, image: str) -> list[Row]:
    """Cold, unchanged, and with one package more: three times, another package each time."""
    platform, store = host_platform(), open_store(root)
    described = read_family(family)
    path = described.image(image).folder / LOCK_FILE
    whole = read_lock(path)
    wheels, debs = own_wheels(described, image, platform), own_debs(described, image, platform, store)
    parent = described.image(image).extends
    inherited = {p.name for p in read_lock(described.image(parent or image).folder / LOCK_FILE).packages}
    added = middle_sized([wheel for wheel in wheels if wheel.name not in inherited], 3)
    path.write_text(write_lock(without(whole, added)))

    buildah = Buildah(work / "buildah")
    buildah.work.mkdir()
    say("Preparing: buildah's base and uv's cache")
    lithify.export(BASE, oci_layout=work / "base", platform=platform, settings=replace_store(store))
    buildah.take_base(work / "base")
    buildah.warm(wheels, described.base.python, platform)

    def rest(left: int) -> list[Package]:
        late = {package.name for package in added[left:]}
        return [wheel for wheel in wheels if wheel.name not in late]

    say(f"{image}: cold")
    ours, theirs = [build(family, root, image)], [buildah.build(rest(0), debs, cached=False)]
    rows = [row(f"cold build of {image}, {len(rest(0))} wheels, against `buildah bud`", middle(ours), middle(theirs))]
    pushed = buildah.push(work / "pushed")
    rows.append(row("the same, with a compressed OCI layout in both", middle(ours), middle(theirs) + pushed.seconds))
    say(f"{image}: unchanged")
    ours = [build(family, root, image) for _ in range(REPEATS)]
    theirs = [buildah.build(rest(0), debs, cached=True) for _ in range(REPEATS)]
    rows.append(row("unchanged, against the same", middle(ours), middle(theirs)))
    say(f"{image}: one package more")
    ours, theirs = [], []
    for number in range(1, len(added) + 1):
        path.write_text(write_lock(without(whole, added[number:])))
        ours.append(build(family, root, image))
        theirs.append(buildah.build(rest(number), debs, cached=True))
    rows.append(row("one package more, against the same", middle(ours), middle(theirs)))
    say(f"{image}: counting files")
    count = ("sh", "-c", "find /srv/conda -name '*.pyc' | wc -l; find /srv/conda -name '*.py' | wc -l")
    inside = measured([*PROGRAM, "run", image, "--store", root, "--quiet", "--", *count]).output
    compiled, sources = inside.split()[-2:]
    theirs_compiled = buildah.inside(*count).split()[0]
    rows.append((f"`.pyc` files, of {sources} modules", compiled, theirs_compiled, "-"))
    return rows


def replace_store(store: Store) -> Settings:
    """This machine's settings with another store."""
    return replace(read_settings(), store=store.root)


def middle_sized(packages: Sequence[Package], number: int) -> list[Package]:
    """``number`` packages around the median of size."""
    ordered = sorted(packages, key=lambda package: package.size)
    first = max(0, (len(ordered) - number) // 2)
    return ordered[first : first + number]


def without(lock: Lock, packages: Sequence[Package]) -> Lock:
    """The lock without some packages, on any platform."""
    names = {package.name for package in packages}
    return replace(lock, packages=tuple(p for p in lock.packages if p.source != "pypi" or p.name not in names))


# -- many packages -----------------------------------------------------------------------------------------------


def measure_many(work: Path, family: Path, root: Path, numbers: Sequence[int]) -> list[Row]:
    """Cold builds of 50, 100, ... packages of one kind, none of which was seen before; against the first of them."""
    platform, store, first = host_platform(), open_store(root), 0
    rows: list[Row] = []
    smallest: tuple[int, float] | None = None
    for number in numbers:
        name = f"many-{number}"
        add_image(family, BASE, name, range(first, first + number), platform, store)
        first += number
        say(name)
        result = build(family, root, name, memory=True)
        smallest = smallest or (number, result.seconds)
        ratio = f"{result.seconds / number / (smallest[1] / smallest[0]):.2f} a package"
        rows.append((f"{number} packages", seconds(result.seconds), f"peak memory {size(result.peak)}", ratio))
    return rows


if __name__ == "__main__":
    main()
