"""A conda environment as an image: Lithify beside `buildah bud` with a prefix that py-rattler made copied in.

The packages are those of the tests' channel (real distributions, `tests/conda_channel.py`), the same on both sides, and
on this disk already: nothing is downloaded. Both have a warm base, and `.pyc` files: Lithify makes them as it always
does, the other side by the prefix's own `compileall` on all cores. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from baseline import BASE as BUILDAH_BASE
from baseline import Buildah
from measure import Measured, measured
from run import PROGRAM, REPEATS, Row, machine, middle, row, say

import lithify
from lithify import runtime
from lithify.lockfile import read_lock
from lithify.platforms import host_platform
from lithify.read.settings import Settings
from lithify.store.store import open_store, remove_tree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

_INSTALL = """\
import asyncio, json, sys
from rattler import MatchSpec, VirtualPackage, install, solve

async def main(channel, prefix, cache, lock):
    specs = [MatchSpec(spec) for spec in json.load(open(lock))]
    records = await solve([channel], specs, platforms=[sys.argv[5], "noarch"],
                          virtual_packages=VirtualPackage.detect())
    await install(records, target_prefix=prefix, cache_dir=cache, show_progress=False,
                  alternative_target_prefix="{prefix}")
    print(len(records))

asyncio.run(main(*sys.argv[1:5]))
"""
_CONTAINERFILE = """\
FROM {base}
COPY --chown={uid}:{gid} prefix {prefix}
"""


def main() -> None:
    """Measure, and print the table."""
    import channel_server
    import conda_channel
    import conda_families

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channel", choices=["small", "base_notebook", "pangeo_notebook"], default="base_notebook")
    parser.add_argument("--work", type=Path, help="an empty folder on a real disk (default: a temporary one)")
    wishes = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="lithify-bench-")) if wishes.work is None else wishes.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    try:
        say(f"Preparing: the channel {wishes.channel}")
        channels: Path = getattr(conda_channel, wishes.channel)()
        with channel_server.serving(channels) as server:
            family = conda_families.write_pangeo(work / "family", notebook=specs_of(channels))
            settings = conda_families.served_from(
                Settings(open_store(work / "full").root, jobs=2), server.channel(conda_channel.CHANNEL)
            )
            lithify.lock(family, settings=settings)
            lithify.build(family, settings=settings)
        rows = measure(work, family, channels / conda_channel.CHANNEL)
        print(f"\n{machine()}\n")
        print("| case | Lithify | against | ratio |\n|---|---|---|---|")
        for one in rows:
            print("| " + " | ".join(one) + " |")
    finally:
        if wishes.work is None:
            remove_tree(work)


def specs_of(channels: Path) -> list[str]:
    """What to ask for: all distributions that a set of wheels was made of, by its metapackages' names or its own."""
    import conda_families

    names = ["pangeo-notebook"] if list(channels.glob("*/noarch/pangeo-notebook-*")) else ["click", "rich"]
    return [f"python={conda_families.HOST_PYTHON}", *names]


def build(family: Path, store: Path) -> Measured:
    """`lithify build base-notebook`, in a process of its own."""
    command: list[str | Path] = [*PROGRAM, "build", "base-notebook", "--family", family, "--store", store]
    return measured([*command, "--quiet", "--offline", "--platform", str(host_platform())])


def measure(work: Path, family: Path, channel: Path) -> list[Row]:
    """Cold and unchanged, of the environment that the family's base-notebook has."""
    import json

    lock = read_lock(family / "base-notebook/lithify.lock")
    packages = [p for p in lock.of(host_platform(), "conda") if p.environment == "notebook"]
    specs = [
        f"{p.name} =={p.version} {p.file.removesuffix('.conda').removesuffix('.tar.bz2').rpartition('-')[2]}"
        for p in packages
    ]
    (work / "specs.json").write_text(json.dumps(specs))
    store = open_store(work / "store").root
    shutil.copytree(work / "full/artefacts", store / "artefacts")
    measured([*PROGRAM, "build", "base-image", "--family", family, "--store", store, "--quiet", "--offline"])
    measured([*PROGRAM, "run", "base-image", "--store", store, "--quiet", "--", "true"])
    buildah = Buildah(work / "buildah")
    (buildah.work / "context").mkdir(parents=True)
    lithify.export("base-image", oci_layout=work / "base", platform=host_platform(), settings=Settings(store, 2))
    buildah.take_base(work / "base")
    say(f"{len(packages)} packages: cold")
    ours = build(family, store)
    installed, compiled, built = theirs(work, buildah, channel)
    total = installed.seconds + compiled.seconds + built.seconds
    rows = [
        row(
            f"image of {len(packages)} conda packages, against rattler's install, compileall, `buildah bud`",
            ours.seconds,
            total,
        )
    ]
    pushed = buildah.push(work / "pushed")
    rows.append(row("the same, with a compressed OCI layout in both", ours.seconds, total + pushed.seconds))
    rows.append(
        (
            "of which theirs",
            "",
            f"install {installed.seconds:.1f} s, compile {compiled.seconds:.1f} s, "
            f"bud {built.seconds:.1f} s, push {pushed.seconds:.1f} s",
            "-",
        )
    )
    say("unchanged")
    rows.append(
        row(
            "unchanged, against `buildah bud` with its cache",
            middle([build(family, store) for _ in range(REPEATS)]),
            bud(buildah, cached=True).seconds,
        )
    )
    return rows


def theirs(work: Path, buildah: Buildah, channel: Path) -> tuple[Measured, Measured, Measured]:
    """The prefix by py-rattler, its `.pyc` files, the image by buildah."""
    prefix, context = buildah.work / "context/prefix", buildah.work / "context"
    script = work / "install.py"
    script.write_text(_INSTALL.replace("{prefix}", runtime.PREFIX))
    installed = measured(
        [
            sys.executable,
            script,
            channel.as_uri(),
            prefix,
            work / "rattler-cache",
            work / "specs.json",
            host_platform().subdir,
        ]
    )
    # Laid out for another place, its Python runs where it lies all the same: it looks for its library beside itself.
    compiled = measured(
        [
            "sh",
            "-c",
            '"$0/bin/python" -m compileall -q -j 0 -s "$0" -p "$1" "$0/lib" >/dev/null 2>&1 || true',
            prefix,
            runtime.PREFIX,
        ]
    )
    user = runtime.JOVYAN
    (context / "Containerfile").write_text(
        _CONTAINERFILE.format(base=BUILDAH_BASE, uid=user.uid, gid=user.gid, prefix=runtime.PREFIX)
    )
    return installed, compiled, bud(buildah, cached=False)


def bud(buildah: Buildah, *, cached: bool) -> Measured:
    """`buildah bud` of the context."""
    command = [*buildah.program, "bud", "-q", "--isolation", "chroot", "--tag", "localhost/image", "--layers"]
    return measured([*command, *([] if cached else ["--no-cache"]), buildah.work / "context"])


if __name__ == "__main__":
    main()
