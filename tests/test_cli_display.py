from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lithify.cli import display, results
from lithify.platforms import LINUX_ARM64
from lithify.progress import Event


@dataclass
class Wishes:
    quiet: bool = False
    verbose: bool = False
    debug: bool = False


EVENTS = [
    Event("fetch", "start", "fetch", total=2_500_000, unit="bytes"),
    Event("fetch", "advance", "fetch", done=1_000_000, total=2_500_000, unit="bytes"),
    Event("fetch", "warning", "numpy", message="numpy: the server answered 503"),
    Event("fetch", "note", message="[red]no markup[/red]"),
    Event("fetch", "finish", "fetch", done=2_500_000, total=2_500_000, unit="bytes"),
    Event("fragment", "start", "packages", total=3),
    Event("fragment", "finish", "packages", message="2 reused"),
    Event("assemble", "finish", "never started"),
]

DRAW = """
import sys
sys.path.insert(0, {tests!r})
from test_cli_display import EVENTS, Wishes
from lithify.cli import display
with display.progress(Wishes({wishes})) as report:
    for event in EVENTS:
        report(event)
print("result")
"""


def drawn(wishes: str = "") -> tuple[str, str]:
    code = DRAW.format(tests=str(Path(__file__).parent), wishes=wishes)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def on_a_terminal(**environment: str) -> str:
    """What the events draw on a terminal."""
    code = DRAW.format(tests=str(Path(__file__).parent), wishes="verbose=True")
    surroundings = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR")}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**surroundings, "TERM": "xterm-256color", "COLUMNS": "100", **environment},
    ):
        os.close(theirs)
        seen = b""
        while True:
            try:
                chunk = os.read(ours, 4096)
            except OSError:  # the other end has been closed
                break
            if not chunk:
                break
            seen += chunk
    os.close(ours)
    return seen.decode()


def test_elsewhere_a_step_is_one_plain_line_on_stderr() -> None:
    out, err = drawn()
    assert out == "result\n"
    assert re.sub(r"\d+\.\d s", "T s", err).splitlines() == [
        "warning: numpy: the server answered 503",
        "[red]no markup[/red]",
        "fetch: 2.5 MB, T s",
        "packages: 3, T s (2 reused)",
        "never started: T s",
    ]


def test_verbose_tells_beginnings_too() -> None:
    assert "fetch ..." in drawn("verbose=True")[1]


def test_quiet_leaves_warnings() -> None:
    assert drawn("quiet=True") == ("result\n", "warning: numpy: the server answered 503\n")


def test_a_terminal_gets_bars_and_colours_unless_no_color() -> None:
    coloured = on_a_terminal()
    assert "\x1b[1;33m" in coloured
    assert "\x1b[?25l" in coloured  # a bar hides the cursor ...
    assert "\x1b[?25h" in coloured  # ... and shows it again
    assert "[red]no markup[/red]" in coloured
    plain = on_a_terminal(NO_COLOR="1")
    assert "numpy: the server answered 503" in plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)


def test_ci_gets_lines_even_on_a_terminal() -> None:
    assert "\x1b[?25l" not in on_a_terminal(CI="true")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (999_499_999, "999 MB"),
        (999_600_000, "1 GB"),
        (46_000_000_000, "46 GB"),
        (4_600_000_000_000, "4600 GB"),
    ],
)
def test_sizes_are_decimal_with_three_digits(count: int, text: str) -> None:
    assert display.size(count) == text


def test_results_become_plain_json() -> None:
    value = (Wishes(), {"at": datetime(2026, 1, 2, tzinfo=UTC)}, LINUX_ARM64, Path("a"), None)
    assert results.plain(value) == [
        {"quiet": False, "verbose": False, "debug": False},
        {"at": "2026-01-02T00:00:00Z"},
        "linux/arm64",
        "a",
        None,
    ]
