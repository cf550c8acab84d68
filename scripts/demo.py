"""The whole way once, for `make demo`: build base-notebook from its lock, start JupyterLab in it, see that it answers.

Exits with 1 where any of it fails.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import lithify
from lithify.cli import display, results
from lithify.errors import LithifyError
from lithify.platforms import host_platform
from lithify.read.settings import read_settings

FAMILY = Path(__file__).resolve().parent.parent / "families" / "pypi"
IMAGE = "base-notebook"
PATIENCE = 180.0  # seconds until JupyterLab answers: a slow disk, and its first start

_ADDRESS = re.compile(r"http://(?:127\.0\.0\.1|localhost):\d+/\S*token=\S+")


@dataclass
class Wishes:
    """How progress is shown."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


@dataclass
class Server:
    """JupyterLab in the sandbox: its process, what it has said, and its address once it has said that."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    address: str = ""

    def listen(self) -> None:
        """Read what the server says, to its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            if not self.address and (match := _ADDRESS.search(line)):
                self.address = match[0]

    def failure(self, what: str) -> LithifyError:
        """The error that says ``what``, with the last lines that the server said."""
        return LithifyError(what, details="\n".join(self.said[-30:]), hint=f"see what `lithify run {IMAGE}` says")


def main() -> int:
    """Run the demonstration; the process's exit code."""
    try:
        demonstrate()
    except LithifyError as error:
        display.tell(error.message, details=error.details, hint=error.hint)
        return 1
    except KeyboardInterrupt:
        display.tell("interrupted", "")
        return 130
    return 0


def demonstrate() -> None:
    """Build, start, ask, stop, each told on stdout."""
    platform = host_platform()
    print(f"Building {IMAGE} for {platform} from {FAMILY}", flush=True)
    with display.progress(Wishes()) as report:
        built = lithify.build(FAMILY, (IMAGE,), platforms=(str(platform),), locked=True, report=report)
    result = built[-1]
    (image,) = result.platforms
    print("\n".join(results.build_lines(built)))
    with running() as server:
        began = time.monotonic()
        status = answer(server, began + PATIENCE)
        print(f"JupyterLab answers after {time.monotonic() - began:.1f} s: {json.dumps(status)}")
    print("JupyterLab is stopped.\n")
    print(f"size    {display.size(image.size)} compressed, in {image.layers} layers")
    print(f"time    {result.seconds:.1f} s to build")
    print(f"digest  {result.digest}")
    print(f"store   {read_settings().store}")
    print(f"\nTo keep it running: .venv/bin/lithify run {IMAGE}")


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """JupyterLab in the image, on a free port, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lithify", "run", IMAGE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    server = Server(process)
    listener = threading.Thread(target=server.listen, daemon=True)
    listener.start()
    try:
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise server.failure("JupyterLab did not stop when asked to") from None
    if server.address and listens(server.address):
        raise server.failure("JupyterLab still listens after its end")


def answer(server: Server, deadline: float) -> object:
    """What JupyterLab's /api/status says, once it does."""
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise server.failure(f"JupyterLab ended with exit code {server.process.returncode}")
        if server.address:
            parts = urlsplit(server.address)
            token = parse_qs(parts.query)["token"][0]
            request = urllib.request.Request(
                f"http://{parts.netloc}/api/status", headers={"Authorization": f"token {token}"}
            )
            # Not through a proxy: it is this machine's own.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with contextlib.suppress(OSError), opener.open(request, timeout=10) as response:
                return json.load(response)
        time.sleep(0.1)
    raise server.failure(f"JupyterLab did not answer within {PATIENCE:.0f} s")


def listens(address: str) -> bool:
    """Whether anything still accepts connections at the address."""
    parts = urlsplit(address)
    with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 0), timeout=2):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
