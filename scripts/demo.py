"""The whole way once, for `make demo`: build base-notebook from its lock, start JupyterLab in it, see that it answers.

Exits with 1 where any of it fails.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import lithify
from lithify.assemble.building import BuildResult
from lithify.cli import display, results
from lithify.cli.commands import Options
from lithify.errors import LithifyError
from lithify.platforms import host_platform
from lithify.read.settings import Settings
from lithify.use.running import Server, serving

FAMILY = Path(__file__).resolve().parent.parent / "families" / "pypi"
IMAGE = "base-notebook"


def guarded(demonstration: Callable[[], None]) -> int:
    """Run a demonstration; the process's exit code."""
    try:
        demonstration()
    except LithifyError as error:
        display.tell(error.message, details=error.details, hint=error.hint)
        return 1
    except KeyboardInterrupt:
        display.tell("interrupted", "")
        return 130
    return 0


def demonstrate() -> None:
    """Build, start, ask, stop, each told on stdout."""
    settings = Options().settings()
    platform = host_platform()
    say(f"Building {IMAGE} for {platform} from {FAMILY}")
    with display.progress(Options()) as report:
        built = lithify.build(
            FAMILY, (IMAGE,), platforms=(str(platform),), locked=True, settings=settings, report=report
        )
    for line in results.build_lines(built):
        say(line)
    result = built[-1]
    answered = started(result, settings)
    (image,) = result.platforms
    say(f"size    {display.size(image.size)} compressed, in {image.layers} layers")
    done = "to see that nothing changed" if result.unchanged else "to build"
    say(f"time    {result.seconds:.1f} s {done}, {answered:.1f} s until JupyterLab answered")
    say(f"digest  {result.digest}")
    say(f"store   {settings.store}")
    say(f"\nTo keep it running: .venv/bin/lithify run {IMAGE}")


def started(result: BuildResult, settings: Settings) -> float:
    """Start JupyterLab of an image, ask it, stop it; the seconds until it answered."""
    say("Starting JupyterLab in the sandbox (the first time, the image is unpacked for it)")
    began = time.monotonic()
    with display.progress(Options()) as report, serving(result.name, settings=settings, report=report) as server:
        status = status_of(server)
        seconds = time.monotonic() - began
        say(f"JupyterLab answers: {json.dumps(status)}")
    say("JupyterLab is stopped.\n")
    return seconds


def status_of(server: Server) -> object:
    """What JupyterLab's /api/status says to whoever has the token."""
    request = urllib.request.Request(f"{server.url}api/status", headers={"Authorization": f"token {server.token}"})
    # Not through a proxy: it is this machine's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return json.load(response)
    except (OSError, ValueError) as error:
        raise LithifyError(f"JupyterLab does not answer at {server.url}api/status: {error}") from error


def say(line: str) -> None:
    """Print at once: progress on stderr must stand in its place between."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(demonstrate))
