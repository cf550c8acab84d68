"""The whole way of a conda environment once, for `make demo-conda`: channel, lock, build, JupyterLab.

conda-forge takes part only in name: the packages come from a channel made here, of real distributions (this machine's
Python, JupyterLab, Dask, conda itself), served over HTTP on the loopback, where the tests have theirs, too.

Exits with 1 where any of it fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from demo import guarded, say, started

import lithify
from lithify.cli import display, results
from lithify.cli.commands import Options

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import channel_server
import conda_channel
import conda_families

IMAGE = "base-notebook"


def demonstrate() -> None:
    """Make the channel, lock, build, ask JupyterLab, each told on stdout."""
    began = time.monotonic()
    say("Making a channel of conda packages (the first time, some 170 wheels are downloaded)")
    channels = conda_channel.base_notebook()
    say(f"{channels}, {time.monotonic() - began:.0f} s")
    with tempfile.TemporaryDirectory(prefix="demo-conda-") as folder, channel_server.serving(channels) as server:
        family = conda_families.write_pangeo(Path(folder))
        settings = conda_families.served_from(Options().settings(), server.channel(conda_channel.CHANNEL))
        say((family / IMAGE / "environment.yml").read_text())
        began = time.monotonic()
        with display.progress(Options()) as report:
            locked = lithify.lock(family, settings=settings, report=report)
        for line in results.lock_lines(locked):
            say(line)
        say(f"locked in {time.monotonic() - began:.1f} s\n")
        with display.progress(Options()) as report:
            built = lithify.build(family, locked=True, settings=settings, report=report)
        for line in results.build_lines(built):
            say(line)
        answered = started(built[-1], settings)
    (image,) = built[-1].platforms
    say(f"size    {display.size(image.size)} compressed, in {image.layers} layers")
    say(f"time    {built[-1].seconds:.1f} s to build, {answered:.1f} s until JupyterLab answered")
    say(f"digest  {built[-1].digest}")
    say(f"\nTo keep it running: .venv/bin/lithify run {built[-1].name}")


if __name__ == "__main__":
    sys.exit(guarded(demonstrate))
