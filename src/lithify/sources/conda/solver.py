"""The program that asks rattler to solve: a job as JSON on stdin, progress and the answer as lines of JSON on stdout.

It runs in a process of its own, by its path, because a failed solve may crash the interpreter when it ends; the exit
status says nothing, an answer is all that counts. It imports nothing of Lithify's: what it gets and gives is below.

A job: ``cache`` (a folder), ``offline``, ``addresses`` (of channels, by what a lock calls them; they may hold secrets;
a name alone is completed by rattler), ``solves`` (see `_Solve`), and ``finds``: packages (``source``, ``file``) whose
records are asked for. The answer: ``solves``, for each ``records`` or ``error``, and ``finds``, a record or null for
each.

An error has a ``kind``: ``spec`` (``index``: which one cannot be read), ``channel`` (``source``: which one fails),
``unsatisfiable`` (``culprits``: what the channels have for each spec that the explanation names), ``other``.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rattler import Channel, Gateway, MatchSpec, PackageName, RepoDataRecord, Subdir

# No archive is smaller (an empty zip's 22 bytes): an index that says so does not know.
_SMALLEST = 22
# What rattler says of a request whose failure another solve was told of.
_COALESCED = "a coalesced request failed"
# Where else a package may be, to be told of one that no platform of ours has.
_OTHER_SYSTEMS = ("osx-64", "osx-arm64", "win-64")


@dataclass(frozen=True)
class _Solve:
    """One environment on one platform.

    ``specs`` have ``name``, ``text`` and maybe ``channel``; ``locked`` are packages that stay where they can, of which
    those named in ``upgrade`` take their newest version instead (``firm`` ones hold against that, too); ``virtual`` are
    names, versions and builds; ``newest`` is the last moment of records that count, in milliseconds since 1970;
    ``elsewhere`` are the other platforms of the family.
    """

    key: str
    subdir: str
    channels: list[str]
    specs: list[dict[str, str]]
    locked: list[dict[str, Any]] = field(default_factory=list)
    upgrade: list[str] = field(default_factory=list)
    virtual: list[list[str]] = field(default_factory=list)
    newest: int | None = None
    elsewhere: list[str] = field(default_factory=list)


class _Noarch:
    """The part of a channel that is for every platform, as a source of rattler's."""

    def __init__(self, gateway: Gateway, channel: Channel) -> None:
        self.gateway, self.channel = gateway, channel

    async def fetch_package_records(self, platform: Subdir, name: PackageName) -> list[RepoDataRecord]:
        """The records of a package for a platform."""
        from rattler import MatchSpec

        if str(platform) != "noarch":
            return []
        answer = await self.gateway.query([self.channel], [platform], [MatchSpec(name.normalized)], recursive=False)
        return [record for records in answer for record in records]

    def package_names(self, platform: Subdir) -> list[str]:
        """Rattler asks for these in messages only."""
        return []


class _BadSpec(Exception):
    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class _Solver:
    """One job's gateway and channels."""

    def __init__(self, job: dict[str, Any]) -> None:
        from rattler import Channel, Client, Gateway
        from rattler.repo_data.gateway import SourceConfig

        self.channels: dict[str, Channel] = {name: Channel(address) for name, address in job["addresses"].items()}
        self.addresses = {name: channel.base_url.rstrip("/") for name, channel in self.channels.items()}
        self.names = {address: name for name, address in self.addresses.items()}
        self.offline: bool = job["offline"]
        self.gateway: Gateway = Gateway(
            cache_dir=Path(job["cache"]),
            default_config=SourceConfig(cache_action="force-cache-only" if self.offline else "cache-or-fetch"),
            client=Client.default_client(max_retries=2, user_agent="lithify"),
        )
        # Folders of platforms that a channel lacks: offline, the cache does not tell.
        self.absent: set[tuple[str, str]] = set()

    async def attempted(self, solve: _Solve) -> list[RepoDataRecord] | Exception:
        """The records that a solve gives, or why it gives none."""
        _say({"progress": solve.key, "state": "start"})
        try:
            return await self.solved(solve)
        except Exception as error:
            return error
        finally:
            _say({"progress": solve.key, "state": "finish"})

    async def answered(self, solve: _Solve, outcome: list[RepoDataRecord] | Exception) -> dict[str, Any]:
        """The answer to one solve, what went wrong looked into; nothing is raised."""
        from rattler.exceptions import FetchRepoDataError, GatewayError, SolverError

        if isinstance(outcome, GatewayError) and _COALESCED in str(outcome) and not await self.broken_channel(solve):
            outcome = await self.attempted(solve)
        if not isinstance(outcome, Exception):
            documents = (self.document(record) for record in outcome)
            return {"records": sorted(documents, key=lambda document: str(document["name"]))}
        text = str(outcome)
        if isinstance(outcome, _BadSpec):
            return {"error": {"kind": "spec", "index": outcome.index, "text": text}}
        if isinstance(outcome, GatewayError | FetchRepoDataError | SolverError):
            # An explanation may also be that of a channel that broke off while the solver asked it for more.
            if broken := await self.broken_channel(solve):
                return {"error": {"kind": "channel", "source": broken[0], "text": broken[1]}}
            if not isinstance(outcome, SolverError):
                return {"error": {"kind": "channel", "source": self.named_in(solve, text), "text": text}}
            return {"error": {"kind": "unsatisfiable", "text": text, "culprits": await self.culprits(solve, text)}}
        return {"error": {"kind": "other", "text": f"{type(outcome).__name__}: {text}"}}

    async def solved(self, solve: _Solve) -> list[RepoDataRecord]:
        specs = self.specs(solve)
        if self.offline:
            await self.look_offline(solve)
        locked = await self.locked(solve)
        if not solve.upgrade or not locked:
            return await self.run(solve, specs, locked, [])
        # The newest that the requirements allow, others moving as they like; then that, with the others kept.
        firm = {entry["name"] for entry in solve.locked if entry["firm"]}
        free = await self.run(solve, specs, [record for record in locked if record.name.normalized in firm], [])
        wanted = [_exactly(record) for record in free if record.name.normalized in solve.upgrade]
        kept = [record for record in locked if record.name.normalized not in solve.upgrade]
        return await self.run(solve, specs, kept, wanted)

    async def look_offline(self, solve: _Solve) -> None:
        """Note the channels of which nothing is cached for the platform, but something for all platforms."""
        for name in solve.channels:
            try:
                await self.gateway.names([self.channels[name]], _subdirs(solve.subdir))
            except Exception:
                self.absent.add((name, solve.subdir))

    def subdirs(self, channel: str, subdir: str) -> list[Subdir]:
        """The folders of a channel that count for a platform."""
        return _subdirs("noarch") if (channel, subdir) in self.absent else _subdirs(subdir, "noarch")

    def sources(self, solve: _Solve) -> list[Channel | _Noarch]:
        """The channels of a solve, those without a folder for its platform reduced to what they have."""
        return [
            _Noarch(self.gateway, self.channels[name]) if (name, solve.subdir) in self.absent else self.channels[name]
            for name in solve.channels
        ]

    async def run(
        self,
        solve: _Solve,
        specs: Sequence[MatchSpec],
        locked: Sequence[RepoDataRecord],
        constraints: Sequence[MatchSpec],
    ) -> list[RepoDataRecord]:
        from rattler import GenericVirtualPackage, MatchSpec, PackageName, Version
        from rattler import solve as solve_with_rattler
        from rattler.channel.channel_priority import ChannelPriority
        from rattler.package.build_string import BuildString

        newest = None
        if solve.newest is not None:
            newest = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=solve.newest)
        # A channel whose packages of a name all miss the spec would be passed over, as the gateway leaves them out;
        # with the bare name they are there, and strict priority holds.
        free = {spec["name"] for spec in solve.specs} - {spec["name"] for spec in solve.specs if spec.get("channel")}
        names = [MatchSpec(name) for name in sorted(free)] if len(solve.channels) > 1 else []
        return await solve_with_rattler(
            self.sources(solve),
            [*specs, *names],
            gateway=self.gateway,
            platforms=_subdirs(solve.subdir, "noarch"),
            locked_packages=locked,
            virtual_packages=[
                GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
                for name, version, build in solve.virtual
            ],
            channel_priority=ChannelPriority.Strict,
            # rattler takes the wall clock of an aware moment for UTC's, so it gets one of UTC; by its default it would
            # leave out what has no time at all.
            exclude_newer=newest,
            timestamp_policy="allow-missing",
            constraints=constraints,
            # Exactly the channels that are asked for, whatever they say of each other (CEP 42).
            channel_relations="disabled",
        )

    def specs(self, solve: _Solve) -> list[MatchSpec]:
        # From text: `solve` would read a text strictly, and refuse `jaxlib>=0.4.31=cuda12*`.
        from rattler import MatchSpec

        found = []
        for index, spec in enumerate(solve.specs):
            text = f"{self.addresses[spec['channel']]}::{spec['text']}" if spec.get("channel") else spec["text"]
            try:
                found.append(MatchSpec(text))
            except Exception as error:
                raise _BadSpec(index, str(error)) from error
        return found

    async def locked(self, solve: _Solve) -> list[RepoDataRecord]:
        """The records of locked packages: as the channels have them now, or else as the lock has them."""
        entries = [entry for entry in solve.locked if entry["source"] in solve.channels]
        served = await self.found(entries, solve.subdir)
        return [record or self.remembered(entry) for entry, record in zip(entries, served, strict=True)]

    async def found(self, entries: Sequence[dict[str, Any]], subdir: str) -> list[RepoDataRecord | None]:
        """What the channels have for each package, by its channel and file."""
        from rattler import MatchSpec

        by_source: dict[str, dict[str, MatchSpec]] = {}
        for entry in entries:
            name, version, build = _file_parts(entry["file"])
            by_source.setdefault(entry["source"], {})[entry["file"]] = MatchSpec(f"{name} =={version} {build}")
        records: dict[tuple[str, str], RepoDataRecord] = {}
        for source, specs in by_source.items():
            answer = await self.gateway.query(
                [self.channels[source]],
                self.subdirs(source, subdir),
                list(specs.values()),
                recursive=False,
                channel_relations="disabled",
            )
            for record in (record for records in answer for record in records):
                records[source, f"{record.subdir}/{record.file_name}"] = record
        served = (records.get((entry["source"], entry["file"])) for entry in entries)
        return [
            record if record and _is_same(record, entry) else None
            for entry, record in zip(entries, served, strict=True)
        ]

    def remembered(self, entry: dict[str, Any]) -> RepoDataRecord:
        from rattler import PackageRecord, RepoDataRecord
        from rattler.package.build_string import BuildString

        _, version, build = _file_parts(entry["file"])
        subdir, _, file = entry["file"].partition("/")
        record = PackageRecord(
            name=entry["name"],
            version=version,
            build=BuildString(build),
            build_number=_build_number(build),
            subdir=subdir,
            depends=entry["depends"],
            constrains=entry["constrains"],
            sha256=bytes.fromhex(entry["sha256"]),
            size=entry["size"] or None,
            md5=bytes.fromhex(entry["md5"]) if entry["md5"] else None,
            python_site_packages_path=entry["site_packages"] or None,
        )
        base = self.channels[entry["source"]].base_url
        return RepoDataRecord(record, file, f"{base}{entry['file']}", base)

    def document(self, record: RepoDataRecord) -> dict[str, Any]:
        channel = record.channel.rstrip("/")
        return {
            "source": self.names.get(channel) or next(n for a, n in self.names.items() if record.url.startswith(a)),
            "name": record.name.normalized,
            "version": str(record.version),
            "file": f"{record.subdir}/{record.file_name}",
            "sha256": record.sha256.hex() if record.sha256 else "",
            "md5": record.md5.hex() if record.md5 else "",
            "size": record.size if record.size and record.size >= _SMALLEST else 0,
            "depends": list(record.depends),
            "constrains": list(record.constrains),
            "site_packages": record.python_site_packages_path or "",
        }

    async def broken_channel(self, solve: _Solve) -> tuple[str, str] | None:
        """The first channel of a solve that does not answer for all that the specs need, and what it says."""
        from rattler import MatchSpec

        specs = [MatchSpec(spec["name"]) for spec in solve.specs]
        for name in solve.channels:
            subdirs = self.subdirs(name, solve.subdir)
            try:
                await self.gateway.names([self.channels[name]], subdirs)
                await self.gateway.query(
                    [self.channels[name]],
                    subdirs,
                    specs,
                    channel_relations="disabled",
                )
            except Exception as error:
                return name, str(error)
        return None

    def named_in(self, solve: _Solve, text: str) -> str:
        """The channel that a message is about: the one whose address is in it, else the first."""
        for name in solve.channels:
            if _without_secrets(self.addresses[name]) in _without_secrets(text):
                return name
        return solve.channels[0]

    async def culprits(self, solve: _Solve, text: str) -> list[dict[str, Any]]:
        """What the channels have for each spec whose name is in an explanation."""
        words = set(re.findall(r"[a-z0-9_][a-z0-9_.-]*", text.lower()))
        specs = self.specs(solve)
        culprits = []
        for index, spec in enumerate(specs):
            name = solve.specs[index]["name"]
            if name not in words:
                continue
            try:
                culprits.append({"index": index, **await self.served(solve, spec, name)})
            except Exception:
                culprits.append({"index": index})
        return culprits

    async def served(self, solve: _Solve, spec: MatchSpec, name: str) -> dict[str, Any]:
        """The versions of ``name`` that the solve's platform has, and the platforms that have one for ``spec``."""
        from rattler import MatchSpec

        channels = [self.channels[name] for name in solve.channels]
        own = await self._query(channels, [solve.subdir, "noarch"], MatchSpec(name))
        versions = sorted({record.version for record in own})
        fitting = {record.subdir for record in await self._query(channels, [solve.subdir, "noarch"], spec)}
        if not fitting:
            for others in (solve.elsewhere, () if self.offline else _OTHER_SYSTEMS):
                fitting = fitting or {record.subdir for record in await self._query(channels, others, spec)}
        return {
            "versions": [str(version) for version in versions[-12:]],
            "subdirs": sorted(fitting),
            "near": [] if versions or fitting else await self.near(solve, name),
        }

    async def near(self, solve: _Solve, name: str) -> list[str]:
        """The packages on the solve's platform whose names are closest to ``name``."""
        import difflib

        names: set[str] = set()
        for channel in solve.channels:
            with contextlib.suppress(Exception):
                subdirs = self.subdirs(channel, solve.subdir)
                found = await self.gateway.names([self.channels[channel]], subdirs)
                names.update(one.normalized for one in found)
        return difflib.get_close_matches(name, sorted(names), 1, 0.8)

    async def _query(
        self, channels: Sequence[Channel], subdirs: Iterable[str], spec: MatchSpec
    ) -> list[RepoDataRecord]:
        subdirs = list(subdirs)
        if not subdirs:
            return []
        answer = await self.gateway.query(
            channels, _subdirs(*subdirs), [spec], recursive=False, channel_relations="disabled"
        )
        return [record for records in answer for record in records]


def _is_same(record: RepoDataRecord, entry: dict[str, Any]) -> bool:
    """Whether a record is of the file that ``entry`` means: what both know of its digests agrees."""
    digests = (("sha256", record.sha256), ("md5", record.md5))
    return all(not entry.get(key) or not digest or digest.hex() == entry[key] for key, digest in digests)


def _subdirs(*names: str) -> list[Subdir]:
    from rattler import Subdir

    return [Subdir(name) for name in names]


def _exactly(record: RepoDataRecord) -> MatchSpec:
    from rattler import MatchSpec

    return MatchSpec(f"{record.name.normalized} =={record.version} {record.build}")


def _file_parts(file: str) -> tuple[str, str, str]:
    """The name, version and build of ``SUBDIR/NAME-VERSION-BUILD.conda``."""
    stem = file.rpartition("/")[2]
    for ending in (".conda", ".tar.bz2"):
        stem = stem.removesuffix(ending)
    name, version, build = stem.rsplit("-", 2)
    return name, version, build


def _build_number(build: str) -> int:
    digits = build.rpartition("_")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else 0


def _without_secrets(text: str) -> str:
    return re.sub(r"/t/[^/\s)]+", "", re.sub(r"(?<=://)[^/\s@]+@", "", text))


async def _answer(job: dict[str, Any]) -> dict[str, Any]:
    solver = _Solver(job)
    solves = [_Solve(**solve) for solve in job["solves"]]
    outcomes = await asyncio.gather(*(solver.attempted(solve) for solve in solves))
    # One after the other: what fails for two at once is explained to one of them only.
    answers = [await solver.answered(solve, outcome) for solve, outcome in zip(solves, outcomes, strict=True)]
    finds: list[dict[str, Any] | None] = []
    by_folder: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(job.get("finds", ())):
        by_folder.setdefault((entry["source"], entry["file"].partition("/")[0]), []).append(index)
        finds.append(None)
    for (source, subdir), indexes in by_folder.items():
        try:
            records = await solver.found([job["finds"][index] for index in indexes], subdir)
        except Exception as error:
            return {"solves": answers, "finds": [], "broken": {"source": source, "text": str(error)}}
        for index, record in zip(indexes, records, strict=True):
            finds[index] = solver.document(record) if record else None
    return {"solves": answers, "finds": finds}


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Let nothing be left of a command that is killed: a server may keep a solver waiting for long (prctl(2))."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Answer the job on stdin, and leave without the interpreter's own end, which may crash."""
    _end_with_parent()
    try:
        import rattler  # noqa: F401  while nobody has asked yet

        _say({"answer": asyncio.run(_answer(json.load(sys.stdin)))})
    except BaseException as error:
        _say({"failure": f"{type(error).__name__}: {error}"})
    finally:
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
