"""Running a command and measuring it: wall-clock seconds, and peak memory of the whole process tree."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """``seconds`` of wall clock; ``peak`` in bytes (0 where it was not asked for); what was printed."""

    seconds: float
    peak: int
    output: str


def measured(
    command: Sequence[str | Path],
    *,
    memory: bool = False,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Measured:
    """Run ``command`` to its end, and measure it.

    Raises:
        RuntimeError: with its output, when it fails.
    """
    os.sync()  # what was written before is not to be paid for now
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=folder,
    )
    watch = _Watch(process.pid) if memory else None
    output, complaint = process.communicate()
    seconds = time.perf_counter() - began
    peak = watch.stop() if watch else 0
    if process.returncode:
        words = " ".join(str(word) for word in command)
        raise RuntimeError(f"{words} failed with exit code {process.returncode}:\n{output}{complaint}")
    return Measured(seconds, peak, output)


class _Watch:
    """Looks at the memory of a process and all its descendants, ten times a second."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.stopping.wait(0.1):
            self.peak = max(self.peak, sum(_proportional(pid) for pid in _descendants(self.pid)))

    def stop(self) -> int:
        self.stopping.set()
        self.thread.join()
        return self.peak


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue
    return found


def _proportional(pid: int) -> int:
    """Memory in bytes, what is shared counted in parts (proc(5), smaps_rollup, Pss)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
