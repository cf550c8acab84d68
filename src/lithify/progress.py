"""Progress, reported as values: the library calls back, whoever called it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Stage = Literal["read", "resolve", "fetch", "fragment", "plan", "assemble", "use"]


@dataclass(frozen=True)
class Event:
    """One thing that happened in a stage.

    ``task`` names what is being done and identifies it (``"fetch"``, ``"lock base-notebook linux/arm64"``);
    a task is started, advances to ``done`` of ``total`` (``unit`` says of what; ``total`` may be unknown) and
    finishes. ``note`` and ``warning`` carry a ``message`` and need no start.
    """

    stage: Stage
    kind: Literal["start", "advance", "finish", "note", "warning"]
    task: str = ""
    message: str = ""
    done: int = 0
    total: int | None = None
    unit: Literal["items", "bytes"] = "items"


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Report to nobody: the default of every call."""
