"""A new family: a commented ``lithify.toml``, and one image folder to be edited or the folders that are there."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from lithify.errors import HostError, InputError
from lithify.progress import Event, Report, silent
from lithify.read.family import FAMILY_FILE


def init(
    folder: Path | str | None = None,
    *,
    name: str | None = None,
    conda: bool = False,
    from_: Path | str | None = None,
    report: Report = silent,
) -> Path:
    """Write a small family into ``folder``, which is made where it is missing; returns its ``lithify.toml``.

    ``name`` is the family's, the first part of its images' names; by default the folder's. ``conda`` makes it a family
    of conda environments. ``from_`` is a repository whose images the family takes over as they are: only
    ``lithify.toml`` is written, into it where no ``folder`` is given. What could not be taken over is reported as
    warnings, and stands in the file.

    Raises:
        InputError: when a file that would be written is there already (nothing is written then), for a name that
            no family can have, or for a repository with nothing to take over.
        HostError: when the folder cannot be written.
    """
    if folder is None:
        folder = from_ if from_ is not None else "."
    folder = Path(folder).expanduser().absolute()
    if name is None:
        named = folder if from_ is None else Path(from_).expanduser().absolute()
        name = re.sub(r"[^a-z0-9._-]+", "-", named.resolve().name.lower()).strip("._-") or "images"
    if not re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name):
        raise InputError(
            f"`{name}` cannot be a family's name",
            hint="use lower-case letters and digits, with single `-`, `_` or `.` between them",
        )
    notes: tuple[str, ...] = ()
    if from_ is None:
        texts = {path: text.replace("{name}", name) for path, text in _template(_templates(conda))}
    else:
        from lithify.scaffold.takeover import take_over

        taken_over = take_over(Path(from_).expanduser().absolute(), folder, name)
        texts, notes = {FAMILY_FILE: taken_over.text}, taken_over.notes
    _write(folder, texts)
    for note in notes:
        report(Event("read", "warning", message=note))
    return folder / FAMILY_FILE


def _write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write new files into ``folder``: all of them, or none."""
    taken = [path for path in texts if os.path.lexists(folder / path)]
    if taken:
        raise InputError(
            f"{folder / taken[0]} is there already, and is left as it is",
            hint="`lithify init OTHER-FOLDER` starts a family elsewhere",
        )
    # lithify.toml last: a folder that has it is a whole family.
    written: list[Path] = []
    try:
        for path in sorted(texts, key=lambda path: (path == FAMILY_FILE, path)):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                written.append(target)
                file.write(texts[path])
    except OSError as error:
        for target in written:
            target.unlink(missing_ok=True)
        raise HostError(f"a new family cannot be written to {folder}: {error.strerror or error}") from error


def _templates(conda: bool) -> Traversable:
    return resources.files("lithify.scaffold") / "templates" / ("conda" if conda else "wheels")


def _template(folder: Traversable, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _template(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_text(encoding="utf-8")))
    return found
