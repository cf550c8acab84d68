"""Draws progress and messages on stderr.

On a terminal, a bar for each task that runs; elsewhere (a pipe, CI) a plain line for each that ends; with --quiet
warnings only. Colours are left out with NO_COLOR (https://no-color.org).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from lithify.progress import Event, Report

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Wishes(Protocol):
    """How much is to be shown."""

    quiet: bool
    verbose: bool
    debug: bool


_STYLES = {"error": "1;31", "internal error": "1;31", "warning": "1;33", "hint": "1;36", "note": "2"}


def tell(message: str, kind: str = "error", *, details: str | None = None, hint: str | None = None) -> None:
    """Print a message, another tool's explanation of it, and what to do, each with its mark."""
    lines = [f"{_marked(kind)}{message}"]
    if details:
        lines += [f"  {line}".rstrip() for line in details.rstrip().splitlines()]
    if hint:
        lines.append(f"{_marked('hint')}{hint}")
    with contextlib.suppress(BrokenPipeError):
        print("\n".join(lines), file=sys.stderr, flush=True)


def _marked(kind: str) -> str:
    if not kind:
        return ""
    if coloured():
        return f"\x1b[{_STYLES[kind]}m{kind}:\x1b[0m "
    return f"{kind}: "


def coloured() -> bool:
    """Whether stderr shows colours."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def progress(wishes: Wishes) -> Iterator[Report]:
    """A callback that draws what is reported to it until the block ends."""
    verbose = wishes.verbose or wishes.debug
    if wishes.quiet:
        yield _quiet
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI"):
        with _Bars(verbose) as bars:
            yield bars
    else:
        yield _Lines(verbose)


def _quiet(event: Event) -> None:
    if event.kind == "warning":
        tell(event.message, "warning")


class _Lines:
    """A line for each task when it ends, with how much and how long; for each start too where asked."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.started: dict[str, tuple[float, Event]] = {}
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.kind == "warning":
                tell(event.message, "warning")
            elif event.kind == "note":
                tell(event.message, "")
            elif event.kind == "start":
                self.started[event.task] = time.monotonic(), event
                if self.verbose:
                    tell(f"{event.task} ...", "")
            elif event.kind == "finish":
                began, first = self.started.pop(event.task, (time.monotonic(), event))
                tell(_summary(event, first, time.monotonic() - began), "")


def _summary(event: Event, first: Event, seconds: float) -> str:
    total = event.total or first.total or event.done
    amount = ""
    if total and first.unit == "bytes":
        amount = f" {size(total)},"
    elif total:
        amount = f" {total},"
    message = f" ({event.message})" if event.message else ""
    return f"{event.task}:{amount} {seconds:.1f} s{message}"


class _Bars:
    """A bar for each running task; a task that has ended leaves a line."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.tasks: dict[str, tuple[TaskID, float, Event]] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> _Bars:
        self.bars = _rich_progress()
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.kind == "start":
                amount = "" if event.total is None or event.unit == "bytes" else f"{event.total}"
                task = self.bars.add_task(event.task, total=event.total, unit=event.unit, amount=amount)
                self.tasks[event.task] = task, time.monotonic(), event
            elif event.kind in ("advance", "finish") and event.task in self.tasks:
                task, began, first = self.tasks[event.task]
                if event.kind == "advance":
                    self.bars.update(task, completed=event.done, total=event.total or first.total)
                    return
                self.bars.remove_task(task)
                del self.tasks[event.task]
                seconds = time.monotonic() - began
                if self.verbose or seconds > 0.2:
                    self.line(_summary(event, first, seconds))
            elif event.kind == "warning":
                self.line(event.message, "warning")
            elif event.kind == "note":
                self.line(event.message)

    def line(self, text: str, kind: str = "") -> None:
        from rich.text import Text

        line = Text(text)
        if kind:
            line = Text.assemble((f"{kind}: ", "bold yellow"), text)
        self.bars.console.print(line, soft_wrap=True)


def _rich_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        """How much of how much, in the task's own unit."""

        def render(self, task: Task) -> Text:
            shown = size if task.fields.get("unit") == "bytes" else str
            total = "" if task.total is None else f" / {shown(int(task.total))}"
            return Text(f"{shown(int(task.completed))}{total}" if task.completed or total else "")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        Amount(),
        TimeElapsedColumn(),
        console=Console(stderr=True, no_color=not coloured(), highlight=False),
        transient=True,
    )


def size(count: int) -> str:
    """A number of bytes for people: decimal units, as registries and disks have them."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value:.0f} GB"
