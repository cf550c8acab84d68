"""What rattler makes of a channel: what others' code says of ours (https://conda.github.io/rattler/py-rattler/)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conda_python import HOST_SUBDIR
from making_conda import LINUX_AARCH64, NOARCH

if TYPE_CHECKING:
    from rattler import RepoDataRecord

# conda-lock's default, without a GPU.
VIRTUAL = {"__unix": "0", "__linux": "5.10", "__glibc": "2.28"}


def solve(
    channels: Sequence[str], specs: Sequence[str], subdir: str = HOST_SUBDIR, virtual: Mapping[str, str] = VIRTUAL
) -> list[RepoDataRecord]:
    """What rattler chooses from channels (by their addresses) with strict priority, by name.

    A solve that fails can crash this process when it ends: ask only for what can be had.
    """
    from rattler import Gateway, GenericVirtualPackage, MatchSpec, PackageName, Version, solve
    from rattler.package import BuildString

    machine = "aarch64" if subdir == LINUX_AARCH64 else "x86_64"
    given = [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString("0"))
        for name, version in virtual.items()
    ]
    given.append(GenericVirtualPackage(PackageName("__archspec"), Version("1"), BuildString(machine)))

    async def ask(cache: Path) -> list[RepoDataRecord]:
        return await solve(
            list(channels),
            [MatchSpec(spec) for spec in specs],
            gateway=Gateway(cache_dir=cache),
            platforms=[subdir, NOARCH],  # type: ignore[list-item]
            virtual_packages=given,
        )

    with tempfile.TemporaryDirectory(prefix="lithify-test-") as cache:
        records = asyncio.run(ask(Path(cache)))
    return sorted(records, key=lambda record: record.name.normalized)


def install(
    records: Sequence[RepoDataRecord],
    prefix: Path,
    *,
    final: str | None = None,
    subdir: str = HOST_SUBDIR,
    scripts: bool = False,
    cache: Path | None = None,
) -> Path:
    """Install records into ``prefix``, as if it were ``final``; with ``scripts``, link scripts are run."""
    from rattler import Subdir, install

    async def go(packages: Path) -> None:
        await install(
            list(records),
            prefix.absolute(),
            cache_dir=packages,
            platform=Subdir(subdir),
            execute_link_scripts=scripts,
            show_progress=False,
            alternative_target_prefix=final,
        )

    with tempfile.TemporaryDirectory(prefix="lithify-test-") as folder:
        asyncio.run(go(cache or Path(folder)))
    return prefix
