"""Families with many packages, all alike: to see how time and memory grow with their number."""

from __future__ import annotations

import hashlib
import random
import zipfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from lithify.lockfile import LOCK_FILE, Lock, Package, read_lock, write_lock
from lithify.platforms import Platform
from lithify.store.store import Store

MODULES = 40  # a package: this many modules, and a library of 400 kB that does not compress
LIBRARY = 400_000


def wheel(number: int) -> tuple[str, bytes]:
    """A wheel's file name and bytes: the same for the same number."""
    chance = random.Random(number)
    name = f"many{number:04d}"
    files = {f"{name}/library.bin": chance.randbytes(LIBRARY)}
    for module in range(MODULES):
        lines = [f"def f{i}(x):\n    return x * {chance.random()} + {chance.randrange(10**9)}\n" for i in range(60)]
        files[f"{name}/{'__init__' if module == 0 else f'm{module}'}.py"] = "\n".join(lines).encode()
    info = f"{name}-1.0.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{path},sha256={_urlsafe(data)},{len(data)}" for path, data in files.items()]
    files[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return f"{name}-1.0-py3-none-any.whl", buffer.getvalue()


def _urlsafe(data: bytes) -> str:
    from base64 import urlsafe_b64encode

    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def add_image(family: Path, parent: str, name: str, packages: range, platform: Platform, store: Store) -> None:
    """Add an image to a family: its parent's packages and the numbered ones, whose wheels go into the store's cache."""
    locked = list(read_lock(family / parent / LOCK_FILE).packages)
    for number in packages:
        file, data = wheel(number)
        digest = hashlib.sha256(data).hexdigest()
        with store.writing(store.artefact_path(digest), seal=True) as output:
            output.write(data)
        locked.append(Package("pypi", f"many{number:04d}", platform, "1.0", file, digest, len(data)))
    folder = family / name
    folder.mkdir()
    (folder / "requirements.txt").write_text("".join(f"many{number:04d}\n" for number in packages))
    # The fingerprint is nobody's: the build says so, and goes on.
    lock = Lock("sha256:many", datetime(2026, 1, 1, tzinfo=UTC), tuple(sorted(locked)))
    (folder / LOCK_FILE).write_text(write_lock(lock))
    with (family / "lithify.toml").open("a") as file_of_family:
        file_of_family.write(f'\n[images.{name}]\nextends = "{parent}"\n')
