"""``requirements.txt`` in which every line has its hashes, as ``pip install --require-hashes`` wants it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks.foreign import ForeignLock, Found, gathered
from lithify.locks.writing import of_kind
from lithify.platforms import PLATFORMS, Platform
from lithify.read.requirements import read_requirements_file


def read_hashed(path: Path) -> ForeignLock:
    """Read the requirements at ``path``: names, versions and the hashes of which one is the file's.

    A line holds for every platform that its marker allows.

    Raises:
        InputError: naming the file and the line of what is wrong, is not pinned, or has no sha256.
    """
    from packaging.requirements import Requirement

    found = []
    for asked in read_requirements_file(path):
        requirement = Requirement(asked.text)
        pins = [s.version for s in requirement.specifier if s.operator in ("==", "===") and "*" not in s.version]
        if not pins:
            raise InputError(f"{asked.where}: `{asked.text}` is not pinned", hint="a lock says `name==version`")
        hashes = tuple(h.partition(":")[2] for h in asked.hashes if h.startswith("sha256:"))
        if not hashes:
            raise InputError(f"{asked.where}: `{asked.text}` has no sha256", hint="add `--hash=sha256:...`")
        for platform in PLATFORMS.values():
            if requirement.marker is None or requirement.marker.evaluate(markers(platform)):
                found.append(
                    Found(
                        kind="pypi",
                        name=asked.name,
                        version=pins[0],
                        platform=platform,
                        file="",
                        where=asked.where,
                        hashes=hashes,
                    )
                )
    return gathered(path, "requirements", found, {})


def markers(platform: Platform) -> dict[str, str]:
    """What environment markers (PEP 508) say of a platform."""
    return {
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": platform.machine,
    }


def write_hashed(packages: Iterable[Package]) -> str:
    """The Python packages among ``packages``, with the hashes of every platform's file.

    A version that only some platforms have gets a marker. conda packages are not in it: pip cannot install them.
    """
    chosen = of_kind(packages, "pypi")
    everywhere = {package.platform for package in chosen}
    by_version: dict[tuple[str, str], list[Package]] = {}
    for package in chosen:
        by_version.setdefault((package.name, package.version), []).append(package)
    lines = []
    for (name, version), members in sorted(by_version.items()):
        machines = sorted({member.platform.machine for member in members})
        words = [f"{name}=={version}"]
        if len(machines) < len(everywhere):
            words[0] += " ; " + " or ".join(f"platform_machine == '{machine}'" for machine in machines)
        words += [f"--hash=sha256:{sha256}" for sha256 in sorted({member.sha256 for member in members})]
        lines.append(" \\\n    ".join(words) + "\n")
    return "".join(lines)
