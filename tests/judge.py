"""An independent look at images in an OCI layout: the standard library, and none of Lithify's code."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@dataclass(frozen=True)
class Judged:
    """One platform's image, all of whose digests were found right: manifest, configuration, uncompressed layers."""

    manifest: dict[str, Any]
    config: dict[str, Any]
    tars: tuple[bytes, ...]

    @property
    def diff_ids(self) -> list[str]:
        return list(self.config["rootfs"]["diff_ids"])

    def members(self) -> dict[str, tarfile.TarInfo]:
        """The entries of all layers, the upper ones' over the lower ones'."""
        found: dict[str, tarfile.TarInfo] = {}
        for data in self.tars:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                found.update({member.name: member for member in archive})
        return found

    def elf_machines(self) -> dict[str, int]:
        """The machine (``e_machine``) that every ELF file in the layers is for."""
        found: dict[str, int] = {}
        for data in self.tars:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive:
                    if member.isfile() and (file := archive.extractfile(member)):
                        head = file.read(20)
                        if head.startswith(b"\x7fELF"):
                            found[member.name] = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
        return found

    def read(self, path: str) -> bytes:
        """The content of the file ``path`` in the uppermost layer that has it."""
        for data in reversed(self.tars):
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                if path in archive.getnames():
                    file = archive.extractfile(path)
                    assert file is not None, path
                    return file.read()
        raise AssertionError(f"no {path}")


def judge(layout: Path, digest: str) -> dict[str, Judged]:
    """The images of the index ``digest``, by platform, every blob hashed and every layer decompressed."""
    index = json.loads(_blob(layout, digest))
    return {
        f"{entry['platform']['os']}/{entry['platform']['architecture']}": _image(layout, entry)
        for entry in index["manifests"]
    }


def _image(layout: Path, descriptor: dict[str, Any]) -> Judged:
    manifest = json.loads(_described(layout, descriptor))
    config = json.loads(_described(layout, manifest["config"]))
    tars = tuple(_decompressed(_described(layout, layer), layer["mediaType"]) for layer in manifest["layers"])
    found = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars]
    assert found == config["rootfs"]["diff_ids"]
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            names = archive.getnames()
        assert len(names) == len(set(names)), "a path occurs twice in a layer"
    return Judged(manifest, config, tars)


def _described(layout: Path, descriptor: dict[str, Any]) -> bytes:
    data = _blob(layout, descriptor["digest"])
    assert len(data) == descriptor["size"]
    return data


def _blob(layout: Path, digest: str) -> bytes:
    data = (layout / "blobs" / digest.replace(":", "/")).read_bytes()
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    return data


def _decompressed(data: bytes, media_type: str) -> bytes:
    if media_type.endswith("+zstd"):
        return bytes(zstd.decompress(data))
    if media_type.endswith("+gzip"):
        return gzip.decompress(data)
    assert media_type.endswith(".tar")
    return data
