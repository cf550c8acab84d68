"""Families of conda environments for the tests and the demonstration, on the channels that `conda_channel` makes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lithify.read.settings import Settings

HOST_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SOURCE = "conda/conda-forge"

_PANGEO = """\
[family]
name = "local"
platforms = [{platforms}]

[base]
debian = "trixie"
packages = ["ca-certificates", "tzdata"]

[conda]
require = ["pangeo-notebook"]

[files]
exclude = ["*.a", "*.js.map", "lib/python*/site-packages/bokeh/server/static/*.js"]
keep = ["lib/python*/site-packages/bokeh/server/static/*.min.js"]

[images.base-image]
notebook = false

# conda, beside the notebook environment, as Pangeo has it.
[images.base-image.environments.base]
prefix = "/srv/conda"

[images.base-notebook]
extends = "base-image"
cmd = ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser"]
"""


def write_pangeo(
    root: Path,
    *,
    platforms: Sequence[str] = ("linux/amd64",),
    notebook: Iterable[str] = (f"python={HOST_PYTHON}", "pip"),
    more: Mapping[str, str] | None = None,
) -> Path:
    """Pangeo's base-image and base-notebook, for a channel with conda and JupyterLab.

    ``notebook`` is what base-notebook asks for beside ``pangeo-notebook``; ``more`` are files by path.
    """
    write(
        root,
        {
            "lithify.toml": _PANGEO.format(platforms=", ".join(f'"{platform}"' for platform in platforms)),
            "base-image/environment-base.yml": environment(["python", "conda"], name="base"),
            "base-notebook/environment.yml": environment(notebook),
            **(more or {}),
        },
    )
    return root


def write_small(
    root: Path,
    layout: Path,
    specs: Iterable[str],
    *,
    platforms: Sequence[str] = ("linux/amd64",),
    conda: str = "",
    image: str = "",
    more: Mapping[str, str] | None = None,
) -> Path:
    """A family of one image ``notebook`` on the image ``test/base`` of ``layout``.

    ``conda`` and ``image`` are lines of ``[conda]`` and of ``[images.notebook]``.
    """
    toml = (
        f"[family]\nname = 'small'\nplatforms = [{', '.join(repr(platform) for platform in platforms)}]\n"
        f"[base]\noci-layout = '{layout}'\nimage = 'test/base'\n"
        f"[conda]\n{conda}\n[images.notebook]\n{image}\n"
    )
    write(root, {"lithify.toml": toml, "notebook/environment.yml": environment(specs), **(more or {})})
    return root


def environment(specs: Iterable[str], *, name: str = "notebook", channels: Sequence[str] = ("conda-forge",)) -> str:
    """An ``environment.yml`` that asks for ``specs``."""
    lines = [f"name: {name}", "channels:", *(f"  - {channel}" for channel in channels), "dependencies:"]
    return "\n".join([*lines, *(f"  - {spec}" for spec in specs)]) + "\n"


def write(root: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def served_from(settings: Settings, address: str) -> Settings:
    """``settings`` in which the channel conda-forge is served from ``address``."""
    return Settings(settings.store, settings.jobs, settings.offline, {**settings.sources, SOURCE: address})
