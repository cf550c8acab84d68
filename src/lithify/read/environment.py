"""``environment.yml``: what a conda environment asks for, as conda, mamba and conda-lock read it.

One file gives one answer a platform: selectors such as ``# [linux64]`` choose lines before the YAML is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lithify.platforms import Platform


@dataclass(frozen=True)
class CondaSpec:
    """One conda package that is asked for.

    ``text`` is the match spec as it was written, without a channel; ``channel`` is the one that ``channel::spec``
    names. ``where`` is ``FILE:LINE``.
    """

    name: str
    text: str
    where: str
    channel: str | None = None


@dataclass(frozen=True)
class PipLine:
    """One line of the ``pip:`` section, in the format of ``requirements.txt``, and where it was written."""

    text: str
    where: str


@dataclass(frozen=True)
class EnvironmentFile:
    """What one file asks for on one platform.

    ``channels`` are as written, without ``nodefaults``. ``platforms`` are conda's subdirs that the file names (none:
    any). ``document`` is the content in one spelling, comments gone: what a lock's fingerprint covers.
    """

    path: Path
    name: str | None = None
    channels: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    specs: tuple[CondaSpec, ...] = ()
    pip: tuple[PipLine, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    document: bytes = b""


def read_environment(path: Path, platform: Platform) -> EnvironmentFile:
    """Read the environment file at ``path`` for ``platform``.

    Raises:
        InputError: naming the file and the line of what is wrong.
    """
    raise NotImplementedError
