"""Lithify: from a folder that says what a notebook environment needs to a locked, reproducible OCI image.

Every command is a call of the same name::

    import lithify

    lithify.init("my-images")
    lithify.lock("my-images")
    lithify.build("my-images")
    lithify.run("my-notebook")

The names are loaded at first use: importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lithify.assemble.building import build
    from lithify.locks.exporting import export_lock
    from lithify.resolve import lock
    from lithify.scaffold import init
    from lithify.use.exporting import export
    from lithify.use.inspecting import inspect, list_images
    from lithify.use.running import run

__version__ = "0.1.0"
__all__ = ["build", "export", "export_lock", "init", "inspect", "list_images", "lock", "run"]

_HOME = {
    "build": "lithify.assemble.building",
    "export": "lithify.use.exporting",
    "export_lock": "lithify.locks.exporting",
    "init": "lithify.scaffold",
    "inspect": "lithify.use.inspecting",
    "list_images": "lithify.use.inspecting",
    "lock": "lithify.resolve",
    "run": "lithify.use.running",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lithify' has no attribute {name!r}")
