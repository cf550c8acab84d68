"""How long `lithify lock` takes with conda packages, beside rattler's bare solve and beside itself. Prints a table.

It locks what the committed family's pangeo-notebook asks for, for both platforms, on the channel in the archive or
folder that is given: real records, no packages behind them.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path
from statistics import median

from measure import measured

from lithify.platforms import LINUX_AMD64
from lithify.read.family import read_family
from lithify.read.requirements import read_requirements

FAMILY = Path(__file__).resolve().parent.parent / "families" / "conda-forge"
REPEATS = 5
PROGRAM = [sys.executable, "-m", "lithify"]
# The bare solve: what rattler needs for both platforms, with nothing read and nothing written.
BARE = """
import asyncio, os, sys
from rattler import Channel, Gateway, GenericVirtualPackage, MatchSpec, PackageName, Version, solve
from rattler.package.build_string import BuildString
channel, *specs = sys.argv[1:]
virtual = {"__unix": "0", "__linux": "5.10", "__glibc": "2.28"}
virtual = [GenericVirtualPackage(PackageName(n), Version(v), BuildString("0")) for n, v in virtual.items()]
async def main():
    gateway = Gateway()
    solves = [
        solve([Channel(channel)], [MatchSpec(s) for s in specs], gateway, [p, "noarch"], virtual_packages=virtual)
        for p in ("linux-64", "linux-aarch64")
    ]
    return [len(records) for records in await asyncio.gather(*solves)]
print(asyncio.run(main()), flush=True)
os._exit(0)
"""
TOML = """\
[family]
platforms = ["linux/amd64", "linux/arm64"]
[base]
image = "no/base"
[conda]
channels = ["{channel}"]
require = ["pangeo-notebook"]
[images.pangeo-notebook]
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("channel", type=Path, help="a channel's folder, or a .tar.xz with the folder `channel` in it")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lithify-bench-") as name:
        work = Path(name)
        channel = wishes.channel.absolute()
        if channel.is_file():
            with tarfile.open(channel) as archive:
                archive.extractall(work, filter="data")
            channel = work / "channel"
        address, specs = channel.as_uri(), asked_for()
        family = write_family(work / "family", address, specs)
        lock = family / "pangeo-notebook" / "lithify.lock"
        command: list[str | Path] = [*PROGRAM, "lock", "--family", family, "--store", work / "store", "--quiet"]
        ours, theirs, again, one = [], [], [], []
        for _ in range(REPEATS):
            lock.unlink(missing_ok=True)
            ours.append(measured(command).seconds)
            bare = measured([sys.executable, "-c", BARE, address, "pangeo-notebook", *specs])
            theirs.append(bare.seconds)
            again.append(measured(command).seconds)
            one.append(measured([*command, "--upgrade-package", "numpy"]).seconds)
        locked = lock.read_text(encoding="utf-8").count("[[package]]")
    print(f"\n{len(specs) + 1} specs -> {bare.output.strip()} records, {locked} locked\n")
    print("| case | Lithify | rattler's bare solve | ratio |\n|---|---|---|---|")
    for case, times in (
        ("lock pangeo-notebook, two platforms", ours),
        ("lock it again, nothing to do", again),
        ("lock it again, `--upgrade-package numpy`", one),
    ):
        print(f"| {case} | {median(times):.2f} s | {median(theirs):.2f} s | {median(times) / median(theirs):.2f} |")


def asked_for() -> list[str]:
    """What the committed family's pangeo-notebook and its parents ask for."""
    family = read_family(FAMILY)
    lineage = family.lineage("pangeo-notebook")
    files = [read_requirements(image).environments.get("notebook", {}).get(LINUX_AMD64) for image in lineage]
    return [spec.text for file in files if file for spec in file.specs]


def write_family(folder: Path, address: str, specs: list[str]) -> Path:
    """A family whose one image asks for ``specs``."""
    (folder / "pangeo-notebook").mkdir(parents=True)
    (folder / "lithify.toml").write_text(TOML.format(channel=address), encoding="utf-8")
    text = "dependencies:\n" + "".join(f"  - {spec}\n" for spec in specs)
    (folder / "pangeo-notebook" / "environment.yml").write_text(text, encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
