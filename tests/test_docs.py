from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from lithify.cli.commands import Options, lithify

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)\s]+)\)")


def commands(page: Path) -> Iterator[str]:
    """Every `lithify ...` line of a page: in indented blocks, in shell blocks, in backquotes."""
    text = page.read_text(encoding="utf-8")
    for language, block in _BLOCK.findall(text):
        if language in ("", "sh", "console", "bash"):
            yield from (line for line in block.splitlines() if line.strip().removeprefix("$ ").startswith("lithify "))
    text = _BLOCK.sub("", text)
    yield from (line for line in text.splitlines() if line.startswith("    lithify "))
    text = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    yield from (code for code in re.findall(r"`([^`]+)`", text) if code.startswith("lithify "))


def one_command(line: str) -> list[str]:
    """The arguments of the (last) lithify command of a line, without what a shell takes."""
    line = line.strip().removeprefix("$ ")
    line = re.split(r" (?:\||&&) ", line)[0]
    words = shlex.split(line, comments=True)
    return words[len(words) - words[::-1].index("lithify") :]


EXAMPLES = [
    pytest.param(line, id=f"{page.relative_to(ROOT)}: {line.strip()}")
    for page in PAGES
    if page.name != "cli.md"
    for line in commands(page)
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_a_command_in_the_documentation_has_options_that_exist(line: str) -> None:
    arguments = one_command(line)
    context = lithify.make_context("lithify", list(arguments), obj=Options()) if arguments[0][0] != "-" else None
    if context is None:
        with pytest.raises(click.exceptions.Exit) as left:
            lithify.make_context("lithify", list(arguments), obj=Options())
        assert left.value.exit_code == 0
        return
    with context:
        name, command, rest = lithify.resolve_command(context, list(arguments))
        assert command is not None
        try:
            command.make_context(name, rest, parent=context)
        except click.exceptions.Exit as left:
            assert left.exit_code == 0
        except click.MissingParameter:
            assert len(arguments) == 1, "only a bare name may leave out what a command needs"


def test_there_are_commands_in_the_documentation() -> None:
    assert len(EXAMPLES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.relative_to(ROOT)} links to {target}"
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in headings}
            assert heading in slugs, f"{page.relative_to(ROOT)} links to {target}"


def test_the_command_reference_is_the_commands_help() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import cli_reference; sys.stdout.write(cli_reference.page())"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    page = ROOT / "docs" / "reference" / "cli.md"
    assert made.stdout == page.read_text(encoding="utf-8"), "run scripts/cli_reference.py"
