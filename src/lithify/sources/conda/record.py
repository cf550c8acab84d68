"""``conda-meta/NAME-VERSION-BUILD.json``: what conda, mamba and pixi know of an installed package.

It is a function of the artefact, the lock and the target: no time, host, cache or path of whoever builds is in it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lithify.lockfile import Package
from lithify.sources import Target

HARDLINK, SOFTLINK, ENTRY_POINT, COMPILED = "hardlink", "softlink", "unix_python_entry_point", "pyc_file"


@dataclass(frozen=True)
class Laid:
    """A file as it was laid out, below the prefix.

    ``original`` and ``sha256`` are the digests in the artefact and in the prefix, empty where there is none to tell;
    ``size`` is in bytes, in the prefix. ``placeholder`` and ``mode`` say what was replaced, and how.
    """

    path: str
    kind: str
    original: str = ""
    sha256: str = ""
    size: int = 0
    placeholder: str = ""
    mode: str = ""

    def document(self) -> dict[str, Any]:
        """The entry of ``paths_data``, by conda's names."""
        entry: dict[str, Any] = {"_path": self.path, "path_type": self.kind}
        if self.original:
            entry["sha256"] = self.original
        # None for a symbolic link: conda would follow it, and what it finds may be another package's.
        if self.sha256:
            entry["sha256_in_prefix"] = self.sha256
        if self.kind != SOFTLINK:
            entry["size_in_bytes"] = self.size
        if self.placeholder:
            entry["prefix_placeholder"], entry["file_mode"] = self.placeholder, self.mode
        return entry


def receipt(
    package: Package, index: Mapping[str, Any], laid: Sequence[Laid], size: int, target: Target
) -> Callable[[Mapping[str, bytes]], bytes]:
    """What makes the record, once it is known which ``.pyc`` files were compiled (by path in the image).

    ``index`` is the artefact's ``info/index.json``, ``size`` its own size in bytes. What the lock says of dependencies
    is preferred to what the artefact says: a channel corrects them after the fact, and the lock was solved with that.
    """
    subdir, _, file = package.file.rpartition("/")
    document: dict[str, Any] = {
        **index,
        "subdir": subdir,
        "fn": file,
        "sha256": package.sha256,
        "size": size,
        "link": {"source": "", "type": 1},
    }
    if package.depends or package.constrains:
        document["depends"], document["constrains"] = list(package.depends), list(package.constrains)
    for key in ("depends", "constrains"):
        document.setdefault(key, [])
    if package.md5:
        document["md5"] = package.md5
    if target.address:
        document["channel"] = target.address
        document["url"] = f"{target.address.rstrip('/')}/{package.file}"
    else:
        document["channel"] = package.source.partition("/")[2]
    return functools.partial(_written, document, tuple(laid), f"{target.prefix.strip('/')}/")


def _written(document: dict[str, Any], laid: tuple[Laid, ...], prefix: str, compiled: Mapping[str, bytes]) -> bytes:
    pyc = [
        Laid(path.removeprefix(prefix), COMPILED, "", hashlib.sha256(data).hexdigest(), len(data))
        for path, data in compiled.items()
    ]
    everything = sorted([*laid, *pyc], key=lambda one: one.path)
    whole = {
        **document,
        "files": [one.path for one in everything],
        "paths_data": {"paths": [one.document() for one in everything], "paths_version": 1},
    }
    return (json.dumps(whole, sort_keys=True, separators=(",", ":")) + "\n").encode()
