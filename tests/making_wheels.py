"""Small wheels for tests: honest ones, and ones that lie as they are told to."""

from __future__ import annotations

import base64
import hashlib
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, Platform


def hashed(data: bytes, algorithm: str = "sha256") -> str:
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm}={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def make_wheel(
    folder: Path,
    members: Mapping[str, bytes] | None = None,
    *,
    name: str = "thing",
    version: str = "1.0",
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
    modes: Mapping[str, int] | None = None,
    record: str | None = None,
    unlisted: Mapping[str, bytes] | None = None,
    entry_points: str | None = None,
    replaced: Mapping[str, bytes | None] | None = None,
    purelib: bool = True,
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """A wheel with ``members`` and the metadata that belongs to it, written into ``folder``.

    ``record`` replaces RECORD's text; ``unlisted`` members are not in it; ``replaced`` changes, or with None drops,
    members after RECORD was made.
    """
    info = f"{name}-{version}.dist-info"
    content = dict(members if members is not None else {f"{name}/__init__.py": b"value = 1\n"})
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
    lines += [f"Requires-Dist: {requirement}\n" for requirement in requires]
    lines += [f"Provides-Extra: {extra}\n" for extra in extras]
    content[f"{info}/METADATA"] = "".join(lines).encode()
    root = "true" if purelib else "false"
    content[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: {root}\nTag: {tag}\n".encode()
    if entry_points is not None:
        content[f"{info}/entry_points.txt"] = entry_points.encode()
    if record is None:
        rows = []
        for path, data in content.items():
            quoted = '"' + path.replace('"', '""') + '"' if set(path) & set(',"\n\r') else path
            rows.append(f"{quoted},{hashed(data)},{len(data)}\n")
        record = "".join(rows) + f"{info}/RECORD,,\n"
    content[f"{info}/RECORD"] = record.encode()
    content.update(unlisted or {})
    for path, changed in (replaced or {}).items():
        if changed is None:
            del content[path]
        else:
            content[path] = changed
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member, data in content.items():
            entry = zipfile.ZipInfo(member, (2020, 2, 2, 0, 0, 0))
            entry.filename = entry.orig_filename = member
            mode = (modes or {}).get(member, stat.S_IFREG | 0o644)
            entry.external_attr = mode << 16
            entry.compress_type = compression
            archive.writestr(entry, data)
    return wheel


def package_of(path: Path, platform: Platform = LINUX_AMD64) -> Package:
    """The lock's entry of a wheel."""
    name, version = path.name.split("-")[:2]
    data = path.read_bytes()
    return Package("pypi", name, platform, version, path.name, hashlib.sha256(data).hexdigest(), len(data))
