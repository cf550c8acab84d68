"""Container engines for tests, run so that they work on small machines, too: as root, or not, without cgroups."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

_CONFIGURATION = """\
[containers]
cgroups = "disabled"
netns = "host"
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
"""


@contextlib.contextmanager
def engine_folder() -> Iterator[Path]:
    """A folder for podman's storage. Its path is short: with a long one, podman waits 20 s for a socket in it."""
    folder = Path(tempfile.mkdtemp(prefix="pod-"))
    try:
        yield folder
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", "--lazy", str(folder / "storage/overlay")], capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            subprocess.run(["podman", "unshare", "rm", "-rf", str(folder)], capture_output=True)


def skopeo(*arguments: str | Path) -> str:
    """What skopeo prints; fails the test when it refuses, skips it where there is none."""
    return _run(["skopeo", *map(str, arguments)])


def podman(folder: Path, *arguments: str | Path) -> str:
    """What podman prints, its storage and configuration being in ``folder`` (`engine_folder`)."""
    return _run(["podman", *map(str, arguments)], podman_environment(folder))


def podman_run(folder: Path, *arguments: str | Path) -> str:
    """``podman run --rm ...``, with what it needs where the machine has no unified cgroup."""
    if os.geteuid() == 0:
        script = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman run --rm "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    else:
        script = 'mount -t tmpfs none /sys/fs/cgroup; exec podman run --rm "$@"'
        command = ["podman", "unshare", "sh", "-c", script, "sh"]
    return _run([*command, *map(str, arguments)], podman_environment(folder), needs="podman")


def podman_environment(folder: Path) -> dict[str, str]:
    """Variables that give podman storage and configuration of its own below ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "containers.conf").write_text(_CONFIGURATION)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
        f'rootless_storage_path = "{folder}/storage"\n'
    )
    return {
        **os.environ,
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }


def _run(command: Sequence[str], environment: dict[str, str] | None = None, needs: str | None = None) -> str:
    if shutil.which(needs or command[0]) is None:
        pytest.skip(f"no {needs or command[0]} on this machine")
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout
