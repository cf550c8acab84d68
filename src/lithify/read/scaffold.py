"""A new family: a commented ``lithify.toml`` and one image folder, to be edited."""

from __future__ import annotations

import os
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from lithify.errors import HostError, InputError
from lithify.read.family import FAMILY_FILE


def init(folder: Path | str = ".", *, name: str | None = None) -> Path:
    """Write a small family into ``folder``, which is made where it is missing; returns its ``lithify.toml``.

    ``name`` is the family's, the first part of its images' names; by default the folder's.

    Raises:
        InputError: when a file that would be written is there already (nothing is written then), or for a name that
            no family can have.
        HostError: when the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    if name is None:
        name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("._-") or "images"
    if not re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name):
        raise InputError(
            f"`{name}` cannot be a family's name",
            hint="use lower-case letters and digits, with single `-`, `_` or `.` between them",
        )
    texts = dict(_template(resources.files("lithify.read") / "template"))
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
                file.write(texts[path].replace("{name}", name))
    except OSError as error:
        for target in written:
            target.unlink(missing_ok=True)
        raise HostError(f"a new family cannot be written to {folder}: {error.strerror or error}") from error
    return folder / FAMILY_FILE


def _template(folder: Traversable, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _template(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_text(encoding="utf-8")))
    return found
