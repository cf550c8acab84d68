"""Small real images for tests, made of the files of this machine."""

from __future__ import annotations

import functools
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lithify.platforms import Platform, host_platform
from lithify.store import oci
from lithify.store.compression import ZSTD, Compression, compress
from lithify.store.store import Store

MTIME = 315619200
Member = tuple[tarfile.TarInfo, bytes]


def file(path: str, content: bytes | str = b"", mode: int = 0o644, **more: Any) -> Member:
    """A file as a member of a layer; ``more`` sets other fields of its header."""
    data = content.encode() if isinstance(content, str) else content
    return _member(path, tarfile.REGTYPE, mode, size=len(data), **more), data


def folder(path: str, mode: int = 0o755, **more: Any) -> Member:
    return _member(path, tarfile.DIRTYPE, mode, **more), b""


def symlink(path: str, target: str, **more: Any) -> Member:
    return _member(path, tarfile.SYMTYPE, 0o777, linkname=target, **more), b""


def hardlink(path: str, target: str, **more: Any) -> Member:
    return _member(path, tarfile.LNKTYPE, 0o644, linkname=target, **more), b""


def device(path: str, **more: Any) -> Member:
    return _member(path, tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3, **more), b""


def _member(path: str, kind: bytes, mode: int, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.mtime = kind, mode, MTIME
    for key, value in more.items():
        setattr(info, key, value)
    return info


def archive(members: Iterable[Member], form: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    """A tar of ``members``, by the standard library."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def layer(
    store: Store,
    members: Iterable[Member] | bytes,
    compression: Compression | None = ZSTD,
    annotations: Mapping[str, str] | None = None,
) -> oci.Layer:
    """A layer of ``members`` in ``store``; uncompressed without ``compression``."""
    data = members if isinstance(members, bytes) else archive(members)
    blob = compress(data, compression) if compression else data
    media_type = compression.media_type if compression else "application/vnd.oci.image.layer.v1.tar"
    written = store.write_blob([blob], media_type)
    descriptor = oci.Descriptor(media_type, written.digest, written.size, annotations or {})
    return oci.Layer(descriptor, oci.digest_of(data))


def image(
    store: Store,
    layers: Sequence[oci.Layer],
    name: str | None = "test/image",
    config: Mapping[str, Any] | None = None,
    platforms: Sequence[Platform] = (),
    *,
    index: bool = True,
) -> oci.Descriptor:
    """An image of ``layers`` in ``store``, an index over ``platforms`` (the host's) or just a manifest."""
    manifests = []
    for platform in platforms or [host_platform()]:
        settings = {
            "architecture": platform.architecture,
            "os": platform.os,
            "created": "1980-01-02T00:00:00Z",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": store.write_document(settings, oci.CONFIG).document(),
            "layers": [one.descriptor.document() for one in layers],
        }
        written = store.write_document(manifest, oci.MANIFEST)
        manifests.append(oci.Descriptor(written.media_type, written.digest, written.size, {}, platform))
    result = manifests[0]
    if index:
        document = {
            "schemaVersion": 2,
            "mediaType": oci.INDEX,
            "manifests": [one.document() for one in manifests],
        }
        result = store.write_document(document, oci.INDEX)
    if name:
        store.name_image(name, result)
    return result


@functools.cache
def programs(*names: str) -> tuple[Member, ...]:
    """Programs of this machine with the libraries that they need, in ``/bin`` and where their linker looks."""
    members: dict[str, Member] = {}
    for name in names:
        found = shutil.which(name)
        assert found is not None, f"the tests need `{name}`"
        path = Path(found).resolve()
        members[f"bin/{name}"] = file(f"bin/{name}", path.read_bytes(), 0o755)
        members |= {one[0].name: one for one in libraries(path)}
    return tuple(members.values())


def libraries(program: Path) -> list[Member]:
    """The libraries that ``program`` needs, where its linker looks."""
    listing = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"(/\S+) \(0x", listing)
    return [file(library.lstrip("/"), Path(library).read_bytes(), 0o755) for library in found]


def tree(source: Path, target: str, *, skip: Sequence[str] = ()) -> list[Member]:
    """The files and links below ``source`` as members below ``target``, without the folders named in ``skip``."""
    members = []
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if any(part in skip for part in relative.parts):
            continue
        inside = f"{target}/{relative}"
        if path.is_symlink():
            members.append(symlink(inside, str(path.readlink())))
        elif path.is_file():
            members.append(file(inside, path.read_bytes(), path.stat().st_mode & 0o777))
    return members
