"""Asking the solver, which runs in a process of its own: see `lithify.sources.conda.solver`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lithify.addresses import without_credentials
from lithify.errors import HostError, LithifyError
from lithify.progress import Event, Report, silent

# By its path: the interpreter that solves need not find Lithify, and imports nothing of it.
COMMAND: tuple[str, ...] = (sys.executable, "-P", str(Path(__file__).with_name("solver.py")))
# A crash passes: it comes of how a solve's threads end, not of what is solved.
_ATTEMPTS = 2
_REINSTALL = "`pip install --force-reinstall py-rattler`"
_RUNNING: weakref.WeakSet[Started] = weakref.WeakSet()


class Started:
    """A solver's process that waits for its job, and loads rattler meanwhile. Close it, or ask it once."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        # A file without a name: what is complained of cannot block the solver, and ends with it.
        self.complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  `close` does
        self.process = subprocess.Popen(
            command or COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True
        )
        self.stopped = False
        _RUNNING.add(self)

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.complaints):
            with contextlib.suppress(BrokenPipeError):
                if file:
                    file.close()

    def stop(self) -> None:
        """End the process for good: whoever waits for its answer gets none, and does not ask again."""
        self.stopped = True
        self.process.kill()

    def answer(self, job: str, report: Report) -> tuple[dict[str, Any] | None, str]:
        """The last line that the solver prints, nothing where it dies before; and the end of what it complains of."""
        assert self.process.stdin and self.process.stdout
        answer = None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(job)
            self.process.stdin.close()
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if "progress" in said:
                report(Event("resolve", "start" if said["state"] == "start" else "finish", said["progress"]))
            else:
                answer = said
        status = self.process.wait()
        self.complaints.seek(0)
        complaint = "\n".join(self.complaints.read().splitlines()[-20:])
        return answer, complaint if answer else f"{complaint}\n{_ending(status)}".strip()


def _ending(status: int) -> str:
    """How a process ended, by its status."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def stop_all() -> None:
    """End all solvers that run. A thread that waits for one cannot be interrupted otherwise."""
    for one in list(_RUNNING):
        one.stop()


def ask(job: Mapping[str, Any], report: Report = silent, started: Started | None = None) -> dict[str, Any]:
    """The answer to ``job``; what is said on the way is reported. ``started`` is asked first, if there is one.

    Raises:
        HostError: when the solver ends without an answer, twice, or rattler cannot be loaded.
        LithifyError: when it says that it cannot answer, or was stopped.
    """
    complaint = ""
    for _ in range(_ATTEMPTS):
        with started or Started() as solver:
            answer, complaint = solver.answer(json.dumps(job), report)
        if solver.stopped:
            raise LithifyError("the solver of conda packages was stopped")
        started = None
        if answer is None:
            continue
        if "failure" in answer:
            failure = without_credentials(str(answer["failure"]))
            if failure.startswith(("ImportError:", "ModuleNotFoundError:")):
                raise HostError(
                    "py-rattler, which chooses conda packages, cannot be loaded", details=failure, hint=_REINSTALL
                )
            raise LithifyError("conda packages cannot be chosen", details=failure)
        return dict(answer["answer"])
    raise HostError(
        f"the solver of conda packages ended {_ATTEMPTS} times without an answer",
        details=without_credentials(complaint) or None,
        hint=f"see whether the machine has memory left (a large channel takes some 2 GB); then {_REINSTALL}",
    )
