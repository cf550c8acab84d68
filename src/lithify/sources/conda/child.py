"""Asking the solver, which runs in a process of its own: see `lithify.sources.conda.solver`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
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


def ask(job: Mapping[str, Any], report: Report = silent, command: Sequence[str] = ()) -> dict[str, Any]:
    """The answer to ``job``; what is said on the way is reported.

    Raises:
        HostError: when the solver ends without an answer, twice.
        LithifyError: when it says that it cannot answer.
    """
    complaint = ""
    for _ in range(_ATTEMPTS):
        answer, complaint = _asked_once(json.dumps(job), report, command or COMMAND)
        if answer is None:
            continue
        if "failure" in answer:
            raise LithifyError("conda packages cannot be chosen", details=without_credentials(str(answer["failure"])))
        return dict(answer["answer"])
    raise HostError(
        f"the solver of conda packages ended {_ATTEMPTS} times without an answer",
        details=without_credentials(complaint) or None,
        hint="see whether the machine has memory left (a large channel takes some 2 GB); "
        "then `pip install --force-reinstall py-rattler`",
    )


def _asked_once(job: str, report: Report, command: Sequence[str]) -> tuple[dict[str, Any] | None, str]:
    """The last line that the solver prints, or nothing where it dies before; and the end of what it complained of."""
    answer = None
    # Files without a name: the job may hold the secrets of addresses, and neither can block the other side.
    with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+", errors="replace") as stderr:
        stdin.write(job)
        stdin.seek(0)
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            assert process.stdout
            for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if "progress" in said:
                    report(Event("resolve", "start" if said["state"] == "start" else "finish", said["progress"]))
                else:
                    answer = said
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        complaint = "\n".join(stderr.read().splitlines()[-20:])
    if answer is None:
        complaint = f"{complaint}\nexit status {process.returncode}".strip()
    return answer, complaint
