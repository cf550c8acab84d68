"""Platforms, by the names that each ecosystem gives them."""

from __future__ import annotations

import platform as _platform
from dataclasses import dataclass

from lithify.errors import InputError


@dataclass(frozen=True, order=True)
class Platform:
    """An operating system and an architecture, by OCI's (Go's) names, and what others call them.

    ``debian`` is dpkg's architecture, ``triplet`` its multiarch folder, ``uv`` the value of uv's
    ``--python-platform``, ``machine`` what ``uname -m`` prints, ``elf_machine`` the ELF header's ``e_machine`` and
    ``subdir`` the folder of a conda channel.
    """

    os: str
    architecture: str
    debian: str
    triplet: str
    machine: str
    uv: str
    elf_machine: int
    subdir: str

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


LINUX_AMD64 = Platform("linux", "amd64", "amd64", "x86_64-linux-gnu", "x86_64", "x86_64-manylinux_2_40", 62, "linux-64")
LINUX_ARM64 = Platform(
    "linux", "arm64", "arm64", "aarch64-linux-gnu", "aarch64", "aarch64-manylinux_2_40", 183, "linux-aarch64"
)
PLATFORMS = {str(p): p for p in (LINUX_AMD64, LINUX_ARM64)}


def parse_platform(text: str) -> Platform:
    """The platform that ``text`` names.

    Raises:
        InputError: for a platform that we do not build.
    """
    try:
        return PLATFORMS[text]
    except KeyError:
        known = ", ".join(PLATFORMS)
        raise InputError(f"unknown platform `{text}`", hint=f"the platforms that can be built are {known}") from None


def host_platform() -> Platform:
    """The platform of this machine, whose programs it can run.

    Raises:
        InputError: on a machine of another architecture.
    """
    machine = _platform.machine()
    for candidate in PLATFORMS.values():
        if candidate.machine == machine:
            return candidate
    raise InputError(f"this machine is `{machine}`, which Lithify does not know")
