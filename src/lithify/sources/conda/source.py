"""Conda channels as a source of packages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lithify.lockfile import Package
from lithify.progress import Report, silent
from lithify.read.settings import Settings
from lithify.sources import File, Target
from lithify.sources.conda.channel import Channel, canonical_address, channel_of, served_address
from lithify.sources.conda.resolve import file_address


@dataclass(frozen=True)
class CondaSource:
    """The channels of a lock; implements `lithify.sources.FragmentSource`.

    ``channels`` are those that requirement files name, by what the lock calls them; see
    `lithify.sources.conda.resolve.channels_of`.
    """

    settings: Settings
    channels: Mapping[str, Channel] = field(default_factory=dict)

    def addresses(self, packages: Sequence[Package], report: Report = silent) -> Mapping[Package, str]:
        """The URL of each package: its channel's address and the file that the lock names."""
        roots = {
            source: served_address(channel_of(source, self.channels), self.settings)
            for source in {package.source for package in packages}
        }
        return {package: file_address(roots[package.source], package.file) for package in packages}

    def narrowed(self, package: Package, target: Target) -> Target:
        """See `lithify.sources.conda.link.narrowed`; what the record may say of the channel is added."""
        from lithify.sources.conda.link import narrowed

        address = canonical_address(channel_of(package.source, self.channels))
        return replace(narrowed(package, target), address=address)

    def files(self, package: Package, artefact: Path, target: Target) -> Iterator[File]:
        """See `lithify.sources.conda.link.conda_files`."""
        from lithify.sources.conda.link import conda_files

        return conda_files(package, artefact, target)
