"""Debian packages for tests: small ones made here, and real ones of trixie, fetched once for all sessions."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import pwd
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import installer

import lithify
from lithify.fetch import fetch
from lithify.lockfile import Lock, Package, parse_lock, write_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.read.settings import Settings
from lithify.sources import by_source
from lithify.sources.debian import DebianSource, resolve
from lithify.store.store import open_store

SUITE = "trixie"
BASE = ("python3.13-minimal", "ca-certificates", "tzdata")
# Scripts that make a group, a cache by running a program of the package, a cache by a program in a library folder.
APT = ("openssh-client", "shared-mime-info", "libgdk-pixbuf-2.0-0", "zip")
PLATFORMS = (LINUX_AMD64, LINUX_ARM64)

Levels = tuple[tuple[Package, ...], ...]


def made(stanza: str, members: Mapping[str, bytes] | None = None, data: bytes | None = None) -> bytes:
    """A ``.deb`` with a control stanza and data files; ``data`` replaces the data tar."""
    control = _tar({"./control": stanza.encode()})
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(control),
        "data.tar.xz": lzma.compress(_tar(members or {}) if data is None else data),
    }
    return archive(parts)


def archive(parts: Mapping[str, bytes]) -> bytes:
    """An ``ar`` archive (deb(5))."""
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (name.encode(), 0, 0, 0, 0o100644, len(content))
        out += content + b"\n" * (len(content) % 2)
    return out


def _tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as out:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# -- of trixie ---------------------------------------------------------------------------------------------------


def cache() -> Settings:
    """Where real packages and lists stay between sessions: readable by the other users of this machine."""
    folder = Path(tempfile.gettempdir()) / f"lithify-tests-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    return Settings(store=folder / "store", jobs=2)


def levels(platform: Platform) -> Levels:
    """A small base, and a level on top of it."""
    settings = cache()
    base = resolve(SUITE, BASE, platform, essential=True, settings=settings)
    return base, resolve(SUITE, APT, platform, kept=base, settings=settings)


def fetched(packages: Sequence[Package]) -> Mapping[Package, Path]:
    """The packages' files."""
    settings = cache()
    source = DebianSource(settings)
    return fetch(open_store(settings.store), packages, dict.fromkeys(by_source(packages), source), jobs=2)


def lock_text(levels_of: Mapping[Platform, Levels]) -> str:
    """All packages as a lock."""
    packages = tuple(p for levels_ in levels_of.values() for level in levels_ for p in level)
    return write_lock(Lock("sha256:test", datetime(2026, 1, 1, tzinfo=UTC), packages))


def levels_in(text: str) -> dict[Platform, Levels]:
    """What `lock_text` wrote."""
    lock = parse_lock(text)
    return {
        platform: (
            tuple(p for p in lock.of(platform) if p.base),
            tuple(p for p in lock.of(platform) if not p.base),
        )
        for platform in PLATFORMS
    }


# -- somebody else -----------------------------------------------------------------------------------------------


def unprivileged() -> tuple[str, str] | None:
    """A user with subordinate ids who is not us, and a Python of ours that this user can run."""
    if os.geteuid() != 0 or not Path("/etc/subuid").is_file():
        return None
    names = [line.split(":")[0] for line in Path("/etc/subuid").read_text().splitlines()]
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in names:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        for python in (sys.executable, shutil.which(minor, path="/usr/bin:/usr/local/bin")):
            with contextlib.suppress(PermissionError):
                if python and not as_user(name, python, "import lithify.fetch", check=False).returncode:
                    return name, python
    return None


def as_user(
    name: str, python: str, code: str, *arguments: str, check: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user."""
    user = pwd.getpwnam(name)
    packages = Path(installer.__file__).parents[1]
    return subprocess.run(
        [python, "-c", code, *arguments],
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/nonexistent",
            "USER": name,
            "PYTHONPATH": f"{Path(lithify.__file__).parents[1]}:{packages}:{Path(__file__).parent}",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        check=check,
    )


def store_for(name: str, folder: Path) -> Path:
    """An empty folder that another user owns."""
    user = pwd.getpwnam(name)
    folder.mkdir(mode=0o755)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return folder
