"""A family of conda environments, its channel and its store, for tests of what the command line does with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import conda_families
from channel_server import ChannelServer
from conda_channel import CHANNEL, index
from lithify.lockfile import read_lock, write_lock
from making_conda import HONEST, LINUX_64, LINUX_AARCH64, CondaPackage, File, Lies

# What every channel here has: a package for all platforms, a newer one of it, and one for each platform.
PACKAGES = (
    CondaPackage("good", "1.0", {"share/good/version": File(b"1.0\n")}, noarch="generic"),
    CondaPackage("good", "1.1", {"share/good/version": File(b"1.1\n")}, noarch="generic"),
    CondaPackage("needs-old", "1.0", {"share/needs-old": File(b"\n")}, noarch="generic", depends=["good <1.1"]),
    CondaPackage("only-amd64", "1.0", {"share/only-amd64": File(b"\n")}, subdir=LINUX_64),
    CondaPackage("only-arm64", "1.0", {"share/only-arm64": File(b"\n")}, subdir=LINUX_AARCH64),
    CondaPackage("only-mac", "1.0", {"share/only-mac": File(b"\n")}, subdir="osx-arm64"),
)


@dataclass(frozen=True)
class Place:
    """A family of one image, ``notebook``; ``home`` is the user's, so that nobody's credentials or settings count."""

    family: Path
    store: Path
    layout: Path
    server: ChannelServer

    @property
    def home(self) -> Path:
        return self.family.parent / "home"

    @property
    def channel(self) -> Path:
        return self.server.folder / CHANNEL

    @property
    def lock(self) -> Path:
        return self.family / "notebook/lithify.lock"

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a command."""
        config = self.family.parent / "config.toml"
        config.write_text(f'[sources]\n"{conda_families.SOURCE}" = "{self.server.channel(CHANNEL)}"\n')
        self.home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if name not in ("RATTLER_AUTH_FILE", "CONDARC")}
        return {**kept, "HOME": str(self.home), "LITHIFY_CONFIG": str(config), **more}

    def line(self, *arguments: str) -> list[str]:
        """A command as a process's arguments; it goes on in `family`."""
        return [sys.executable, "-m", "lithify", "--store", str(self.store), "-j", "2", *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*arguments),
            capture_output=True,
            text=True,
            check=False,
            cwd=self.family,
            env=self.environment(**environment),
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """A command in a session of its own, as a terminal's job is."""
        return subprocess.Popen(
            self.line(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.family,
            env=self.environment(**environment),
            start_new_session=True,
        )

    def asks(self, *specs: str, image: str = "notebook") -> None:
        """Write what an image asks for."""
        conda_families.write(self.family, {f"{image}/environment.yml": conda_families.environment(specs)})

    def publish(self, package: CondaPackage, lies: Lies = HONEST) -> Path:
        """Put a package into the channel, beside `PACKAGES`."""
        path = package.write(self.channel, lies=lies)
        index(self.channel)
        # This server does not say how long its index counts, and rattler then takes it for a tenth of its age.
        shutil.rmtree(self.store / "repodata", ignore_errors=True)
        return path

    def good(self, *arguments: str, **environment: str) -> str:
        """What a command prints that is to succeed."""
        result = self.run(*arguments, **environment)
        assert result.returncode == 0, result.stderr
        assert litter(self.store) == []
        return result.stdout

    def refused(self, code: int, *arguments: str, **environment: str) -> str:
        """What a command says that is to be refused with ``code``, in one line, once its form was checked."""
        before = self.kept()
        result = self.run(*arguments, **environment)
        assert result.returncode == code, result.stderr
        self.check_message(result)
        self.check_kept(before)
        return " ".join(result.stderr.split())

    def check_message(self, result: subprocess.CompletedProcess[str]) -> None:
        """One error for people, and nothing of a result."""
        lines = result.stderr.splitlines()
        assert sum(line.startswith("error: ") for line in lines) == 1, result.stderr
        for sign in ("Traceback", "internal error", "\x1b["):
            assert sign not in result.stderr, result.stderr
        assert result.stdout == ""

    def kept(self) -> dict[str, bytes | int]:
        """What no failure may change: locks, images, and what they are made of."""
        found: dict[str, bytes | int] = {str(path): path.read_bytes() for path in self.family.rglob("lithify.lock")}
        index = self.store / "index.json"
        if index.exists():
            found["index.json"] = index.read_bytes()
        for folder in ("blobs", "artefacts", "fragments"):
            for path in (self.store / folder).rglob("*"):
                if path.is_file():
                    found[str(path)] = path.stat().st_size
        return found

    def check_kept(self, before: dict[str, bytes | int]) -> None:
        """Whatever was finished may stay; nothing is changed or gone, no lock or name is new, nothing half-written."""
        after = self.kept()
        assert {name: after.get(name) for name in before} == before
        new = {name for name in after.keys() - before.keys() if name.endswith(("lithify.lock", "index.json"))}
        assert not {name for name in new if not name.endswith("index.json") or images(self.store)}
        assert litter(self.store) == []
        assert not list(self.family.rglob(".lithify.lock*"))


def images(store: Path) -> set[str]:
    """The names in a store."""
    import lithify
    from lithify.read.settings import Settings

    return {image.name for image in lithify.list_images(settings=Settings(store, 1))}


def litter(store: Path) -> list[Path]:
    """What lies in a store's folder for what is being written, but for downloads to be gone on with."""
    tmp = store / "tmp"
    return [path for path in tmp.rglob("*") if path.is_file() and path.parent.name != "partial"] if tmp.is_dir() else []


def relock(path: Path, name: str, platform: str | None = None, **changes: object) -> None:
    """Change what a lock says of a package."""
    lock = read_lock(path)
    packages = [
        replace(one, **changes) if one.name == name and platform in (None, str(one.platform)) else one  # type: ignore[arg-type]
        for one in lock.packages
    ]
    assert packages != list(lock.packages)
    path.write_text(write_lock(replace(lock, packages=tuple(packages))))
