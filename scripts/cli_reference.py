"""Writes docs/reference/cli.md from the commands' own help. A test compares the two."""

from __future__ import annotations

from pathlib import Path

import click

from lithify.cli.commands import lithify

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"

_HEAD = """\
# Commands

Made from `lithify --help` by `scripts/cli_reference.py`.

Every command takes `--store`, `--jobs`, `--quiet`, `--verbose` and `--debug`, before or after its name. Results go to
stdout, progress and messages to stderr. [Settings](settings.md) hold what is the same for every call.

`--json` prints a command's result as the fields of its [Python](python-api.md) value.

Exit codes: 0 done, 1 failed, 2 wrong input, 3 no solution, 4 something could not be fetched, 5 the machine lacks
something, 70 a bug of Lithify's, 130 interrupted. `lithify run` exits as the command inside does.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    shape = {**lithify.context_settings, "terminal_width": 100}
    parent = click.Context(lithify, info_name="lithify", **shape)
    for name in ("", *lithify.commands):
        command = lithify.commands[name] if name else lithify
        context = click.Context(command, info_name=name, parent=parent, **shape) if name else parent
        title = f"lithify {name}".rstrip()
        parts.append(f"## {title}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
