"""From conda packages to layers: ourselves beside py-rattler, on one core, and on two beside one. Prints a table.

Both sides begin with the same artefacts and no cache. Ours ends with layers in a store. Theirs is rattler's
installation into a folder, and GNU tar and zstd of that folder, by a pipe. No `.pyc` is made on either side.
Each side is a process of its own that may use so many cores, and both are measured in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import measured
from run import machine, row, say

from lithify.assemble.layers import join_fragments, layer_key
from lithify.fragment.fragment import Recipe, find_fragment, make_fragments
from lithify.lockfile import Package
from lithify.plan import PlannedLayer, plan_layers
from lithify.platforms import host_platform
from lithify.sources import File, Target
from lithify.sources.conda.archive import read_index
from lithify.sources.conda.link import conda_files, narrowed
from lithify.store.compression import ZSTD
from lithify.store.store import digest_of_file, open_store, remove_tree

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lithify.progress import Report

TESTS = Path(__file__).resolve().parent.parent / "tests"
PREFIX = "/srv/conda/envs/notebook"
# Two packages for one path: which wins is decided elsewhere. A folder of its own: rattler 0.28 fails at it.
LEFT_OUT = {"clobber-same-b", "clobber-different-b", "clobber-folder", "empty-folder"}


@dataclass(frozen=True)
class Files:
    """The source of a channel's packages, as far as making fragments asks."""

    def addresses(self, packages: Sequence[Package], report: Report) -> Mapping[Package, str]:
        raise NotImplementedError

    def narrowed(self, package: Package, target: Target) -> Target:
        return narrowed(package, target)

    def files(self, package: Package, artefact: Path, target: Target) -> Iterator[File]:
        return conda_files(package, artefact, target)


def main() -> None:
    """Measure and print the table; or be one of the sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channel", type=Path, help="a channel's folder (default: the tests' channel `base_notebook`)")
    parser.add_argument("--work", type=Path, help="an empty folder on a real disk (default: a temporary one)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured; the median counts")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    if wishes.side:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: wishes.cores])
        go = (ours if wishes.side == "ours" else theirs)(wishes.channel, wishes.work, wishes.cores)
        began, used = time.perf_counter(), processor_time()
        go()
        print(time.perf_counter() - began, processor_time() - used)
        return
    channel = wishes.channel or base_notebook()
    work = Path(tempfile.mkdtemp(prefix="lithify-bench-")) if wishes.work is None else wishes.work.absolute()
    try:
        print_table(channel.absolute(), work, wishes.repeats)
    finally:
        if wishes.work is None:
            remove_tree(work)


def processor_time() -> float:
    """What this process and the children that it waited for used, in seconds."""
    return sum(os.times()[:4])


def base_notebook() -> Path:
    sys.path.insert(0, str(TESTS))
    import conda_channel

    return conda_channel.base_notebook() / conda_channel.CHANNEL


def print_table(channel: Path, work: Path, repeats: int) -> None:
    taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
    sides = [("ours", 1), ("theirs", 1), *([("ours", 2)] if len(os.sched_getaffinity(0)) > 1 else [])]
    for _ in range(repeats):
        for side, cores in sides:
            folder = work / f"{side}-{cores}"
            folder.mkdir(parents=True)
            command = [sys.executable, __file__, "--side", side, "--cores", str(cores)]
            wall, used = measured([*command, "--channel", channel, "--work", folder]).output.split()[-2:]
            taken.setdefault((side, cores), []).append((float(wall), float(used)))
            say(f"{side} on {cores}: {float(wall):.2f} s, {float(used):.2f} s of processor time")
            remove_tree(folder)
    middle = {which: median(wall for wall, _ in times) for which, times in taken.items()}
    used_by = {which: median(used for _, used in times) for which, times in taken.items()}
    packages = locked(channel)
    print(f"\n{machine()}\n\n{len(packages)} packages, {sum(p.size for p in packages):,} bytes of artefacts\n")
    print("| case | Lithify | against | ratio |\n|---|---|---|---|")
    rows = [
        row(
            "conda packages to layers, one core, against rattler's installation, tar and zstd -3",
            middle["ours", 1],
            middle["theirs", 1],
        ),
        row("the same, processor time", used_by["ours", 1], used_by["theirs", 1]),
    ]
    if ("ours", 2) in middle:
        rows.append(row("on two cores, against ours on one", middle["ours", 2], middle["ours", 1]))
    for one in rows:
        print("| " + " | ".join(one) + " |")


# -- the sides -----------------------------------------------------------------------------------------------------


def artefacts(channel: Path) -> list[Path]:
    """One artefact for each name, and those only that go together."""
    chosen: dict[str, Path] = {}
    for subdir in (host_platform().subdir, "noarch"):
        for path in sorted((channel / subdir).iterdir()):
            if path.name.endswith((".conda", ".tar.bz2")):
                name = path.name.rsplit("-", 2)[0]
                if name not in LEFT_OUT and not (name in chosen and path.name.endswith(".tar.bz2")):
                    chosen[name] = path
    return [path for _, path in sorted(chosen.items())]


def locked(channel: Path) -> list[Package]:
    """A lock of those artefacts."""
    packages = []
    for path in artefacts(channel):
        index = read_index(path)
        packages.append(
            Package(
                f"conda/{channel.name}",
                index["name"],
                host_platform(),
                index["version"],
                f"{path.parent.name}/{path.name}",
                digest_of_file(path).removeprefix("sha256:"),
                path.stat().st_size,
                depends=tuple(index.get("depends", ())),
            )
        )
    return packages


def ours(channel: Path, work: Path, jobs: int) -> Callable[[], None]:
    """All of the way: fragments, and layers of them."""
    packages, store = locked(channel), open_store(work / "store")
    python = next(package.version for package in packages if package.name == "python")
    target = Target(host_platform(), PREFIX, 1000, 1000, ".".join(python.split(".")[:2]), python)
    source = Files()
    recipes = [
        Recipe(package, narrowed(package, target), ZSTD, source, channel / package.file, None) for package in packages
    ]

    def go() -> None:
        make_fragments(store, recipes, jobs=jobs)
        made = {recipe.package: find_fragment(store, recipe.key) for recipe in recipes}
        fragments = {package: fragment for package, fragment in made.items() if fragment is not None}
        assert len(fragments) == len(packages)

        def join(layer: PlannedLayer) -> None:
            key = layer_key([fragments[package].key for package in layer.packages], ZSTD)
            join_fragments(store, layer, fragments, key, ZSTD)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(join, plan_layers([packages], 100)))

    return go


def theirs(channel: Path, work: Path, jobs: int) -> Callable[[], None]:
    """An environment in a folder, and one layer of that."""
    import rattler
    from rattler import Channel, RepoData

    wanted = {path.name for path in artefacts(channel)}
    records = []
    for subdir in (host_platform().subdir, "noarch"):
        data = RepoData.from_path(channel / subdir / "repodata.json")
        records += [
            record
            for record in data.into_repo_data(Channel(channel.as_uri()))
            if str(record.url).rpartition("/")[2] in wanted
        ]

    async def install() -> None:
        await rattler.install(
            records,
            work / "prefix",
            cache_dir=work / "cache",
            show_progress=False,
            alternative_target_prefix=PREFIX,
        )

    def go() -> None:
        asyncio.run(install())
        options = ["--sort=name", "--owner=1000", "--group=1000", "--mtime=@315619200", "-C", str(work / "prefix"), "."]
        with (work / "layer.tar.zst").open("wb") as layer:
            packing = subprocess.Popen(["tar", "-c", *options], stdout=subprocess.PIPE)
            subprocess.run(["zstd", "-3", "-q", f"-T{jobs}"], stdin=packing.stdout, stdout=layer, check=True)
            assert packing.wait() == 0

    return go


if __name__ == "__main__":
    main()
