"""Which conda packages an image's environments hold, on every platform: rattler decides, in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lithify.addresses import without_credentials
from lithify.errors import FetchError, HostError, InputError, LithifyError, UnsatisfiableError
from lithify.lockfile import NOTEBOOK, Package
from lithify.platforms import PLATFORMS, Platform
from lithify.progress import Report, silent
from lithify.read.environment import CondaSpec, EnvironmentFile
from lithify.read.family import FAMILY_FILE, CondaRules, Environment, Image
from lithify.read.requirements import Requirements
from lithify.read.settings import Settings
from lithify.sources.conda.channel import (
    Channel,
    canonical_address,
    channel_of,
    configured_address,
    one_of_each,
    parse_channel,
    parse_channels,
    served_address,
)

if TYPE_CHECKING:
    from lithify.sources.conda.child import Started

# The kernel that packages may take for granted, as conda-lock has it: the version of no machine in particular.
_LINUX = "5.10"
# What every Linux of an architecture has: a file of virtual packages need not repeat it.
_ALWAYS = ("__unix", "__linux", "__archspec")


@dataclass(frozen=True)
class Wanted:
    """What one environment asks for on one platform.

    ``channels`` come in the order of their priority. ``virtual`` are versions (and builds, after a space) of virtual
    packages by name.
    """

    environment: str
    platform: Platform
    channels: tuple[Channel, ...]
    specs: tuple[CondaSpec, ...]
    virtual: Mapping[str, str] = field(default_factory=dict)

    @property
    def every_channel(self) -> dict[str, Channel]:
        """All channels by what a lock calls them, those that single specs name last."""
        named = [parse_channel(spec.channel, spec.where) for spec in self.specs if spec.channel]
        return one_of_each((*self.channels, *named))


@dataclass(frozen=True)
class Preferred:
    """Packages that a solve keeps where it can.

    ``kept`` are the image's own old ones, ``inherited`` its parents', which hold against those. The packages named in
    ``upgrade`` take their newest version, unless they are inherited.
    """

    kept: tuple[Package, ...] = ()
    inherited: tuple[Package, ...] = ()
    upgrade: frozenset[str] = frozenset()


# -- what is asked for -------------------------------------------------------------------------------------------------


def wanted_of(
    rules: CondaRules,
    image: Image,
    lineage: Sequence[Requirements],
    environment: Environment,
    platform: Platform,
    glibc: tuple[int, int],
    root: Path = Path(),
) -> Wanted:
    """What the images of ``lineage`` (the eldest first) ask for together in ``environment`` on ``platform``.

    ``glibc`` is the C library's version in the base; ``root`` the family's folder, for messages.

    Raises:
        InputError: for an environment that no file describes, channels in another order than a parent's, a platform
            that a file leaves out, or a channel that cannot be named.
    """
    files = files_of(lineage, environment.name, platform)
    if not files and environment.name != NOTEBOOK:
        raise InputError(
            f"the environment `{environment.name}` of image `{image.name}` has no requirement file",
            hint=f"write {lineage[-1].folder / environment.file}",
        )
    for file in files:
        if file.platforms and platform.subdir not in file.platforms:
            raise InputError(
                f"{file.path} is for {', '.join(file.platforms)}, and {platform.subdir} is to be locked, too",
                hint="add it to `platforms` there, or take the platform out of lithify.toml",
            )
    specs = [spec for file in files for spec in file.specs]
    if environment.name == NOTEBOOK:
        specs += required(rules, root)
    unique = {(spec.text, spec.channel): spec for spec in reversed(specs)}
    return Wanted(
        environment.name,
        platform,
        merged_channels(files, rules, root),
        tuple(reversed(unique.values())),
        virtual_packages(image, lineage, platform, glibc),
    )


def files_of(lineage: Iterable[Requirements], environment: str, platform: Platform) -> tuple[EnvironmentFile, ...]:
    """The files of a lineage that describe an environment."""
    found = (requirements.environments.get(environment, {}).get(platform) for requirements in lineage)
    return tuple(file for file in found if file is not None)


def required(rules: CondaRules, root: Path = Path()) -> tuple[CondaSpec, ...]:
    """What the family asks for in every notebook environment."""
    where = f"{root / FAMILY_FILE}: [conda] require"
    found = []
    for text in rules.require:
        channel, _, spec = text.strip().rpartition("::")
        name = re.match(r"[A-Za-z0-9_.-]+", spec)
        if name is None:
            raise InputError(f"{where}: `{text}` names no package", hint='write it as "NAME" or "NAME >=1.0"')
        found.append(CondaSpec(name[0].lower(), spec, where, channel or None))
    return tuple(found)


def merged_channels(files: Sequence[EnvironmentFile], rules: CondaRules, root: Path = Path()) -> tuple[Channel, ...]:
    """The channels of a lineage's files: a child's file may put others in front of its parents', no more.

    That is conda-lock's rule: of two lists, one must be the end of the other, and the longer one counts.

    Raises:
        InputError: naming the two files where it is not so.
    """
    found: tuple[Channel, ...] = ()
    named: EnvironmentFile | None = None
    for file in files:
        channels = parse_channels(file.channels, str(file.path))
        shorter, longer = sorted((found, channels), key=len)
        if tuple(map(_identity, longer[len(longer) - len(shorter) :])) != tuple(map(_identity, shorter)):
            assert named is not None
            raise InputError(
                f"{file.path} names the channels {_listed(channels)}, and {named.path} {_listed(found)}: "
                "a child may put channels in front of its parents', and change nothing else",
                hint=f"name all of them in the order of their priority, such as {_listed((*channels, *found))}",
            )
        if len(channels) >= len(found):
            found, named = channels, file
    return found or parse_channels(rules.channels, f"{root / FAMILY_FILE}: [conda] channels")


def channels_of(
    rules: CondaRules, image: Image, lineage: Sequence[Requirements], platforms: Iterable[Platform], root: Path = Path()
) -> dict[str, Channel]:
    """All channels that an image's requirement files and its family name, by what a lock calls them.

    Raises:
        InputError: for one that cannot be named, or two of one name.
    """
    found: list[Channel] = []
    for platform in platforms:
        for environment in image.environments:
            files = files_of(lineage, environment.name, platform)
            specs = [spec for file in files for spec in file.specs]
            found += merged_channels(files, rules, root)
            found += [parse_channel(spec.channel, spec.where) for spec in specs if spec.channel]
    found += [parse_channel(spec.channel, spec.where) for spec in required(rules, root) if spec.channel]
    return one_of_each(found)


def _identity(channel: Channel) -> tuple[str, str]:
    return channel.name, canonical_address(channel) if channel.url else ""


def _listed(channels: Iterable[Channel]) -> str:
    return ", ".join(dict.fromkeys(canonical_address(c) if c.url else c.name for c in channels))


def virtual_packages(
    image: Image, lineage: Sequence[Requirements], platform: Platform, glibc: tuple[int, int]
) -> dict[str, str]:
    """The virtual packages of ``image``: what the base has, as a file and the family say it.

    The nearest ``virtual-packages.yml`` that tells of the platform replaces all but what every Linux has; what
    ``lithify.toml`` says of the image and the platform counts most. There is no ``__cuda`` unless one of them says so.
    """
    found = {
        "__unix": "0",
        "__linux": _LINUX,
        "__archspec": f"1 {platform.machine}",
        "__glibc": f"{glibc[0]}.{glibc[1]}",
    }
    for requirements in reversed(lineage):
        declared = (requirements.virtual_packages or {}).get(platform.subdir)
        if declared is not None:
            found = {name: found[name] for name in _ALWAYS} | dict(declared)
            break
    return found | dict(image.virtual_packages.get("", {})) | dict(image.virtual_packages.get(str(platform), {}))


def python_requirements(lineage: Sequence[Requirements], wanted: Wanted) -> tuple[Requirements, ...]:
    """What the images of ``lineage`` ask the package index for in an environment: the ``pip:`` sections, and in the
    notebook's ``requirements.txt``; nothing where nobody asks.

    Raises:
        InputError: for a line of a ``pip:`` section that is wrong.
    """
    found = []
    for requirements in lineage:
        own = requirements if wanted.environment == NOTEBOOK else Requirements(requirements.image, requirements.folder)
        file = requirements.environments.get(wanted.environment, {}).get(wanted.platform)
        if file is not None and file.pip:
            from lithify.read.requirements import pip_requirements

            python, constraints, indexes = pip_requirements(file)
            own = replace(
                own,
                python=(*own.python, *python),
                constraints=(*own.constraints, *constraints),
                indexes=own.indexes.joined(indexes),
            )
        found.append(own)
    return tuple(found) if any(requirements.python for requirements in found) else ()


# -- the answer --------------------------------------------------------------------------------------------------------


def resolve(
    wanted: Sequence[Wanted],
    image: str,
    *,
    preferred: Mapping[tuple[str, Platform], Preferred] | None = None,
    exclude_newer: datetime | None = None,
    started: Started | None = None,
    settings: Settings,
    report: Report = silent,
) -> dict[tuple[str, Platform], tuple[Package, ...]]:
    """The packages of every environment and platform of ``wanted``, sorted, by the two.

    All are solved at once. A package whose index says no sha256 has none yet: see `lithify.fetch.completed`.
    ``image`` is for messages, ``preferred`` what stays where it can; ``exclude_newer`` leaves out what was published
    after that moment (what has no time is taken). ``started`` is a solver that waits already.

    Raises:
        UnsatisfiableError: where no packages fit, with the solver's explanation.
        FetchError: naming a channel that does not answer.
        InputError: for a spec that cannot be read.
        HostError: when the solver dies.
    """
    from lithify.sources.conda.child import ask

    wanted = [one for one in wanted if one.specs]
    if not wanted:
        return {}
    preferred = preferred or {}
    channels = one_of_each(channel for one in wanted for channel in one.every_channel.values())
    subdirs = sorted({one.platform.subdir for one in wanted})
    job = {
        "cache": str(cache_folder(settings)),
        "offline": settings.offline,
        "addresses": {source: _address(channel, settings) for source, channel in channels.items()},
        "solves": [
            {
                "key": task_name(image, one),
                "subdir": one.platform.subdir,
                "channels": list(one.every_channel),
                "specs": [_spec_document(spec) for spec in one.specs],
                "virtual": [_virtual_document(name, version) for name, version in sorted(one.virtual.items())],
                "newest": None if exclude_newer is None else int(exclude_newer.timestamp() * 1000),
                "elsewhere": [subdir for subdir in subdirs if subdir != one.platform.subdir]
                or [platform.subdir for platform in PLATFORMS.values() if platform != one.platform],
                **_preferred_document(preferred.get((one.environment, one.platform), Preferred())),
            }
            for one in wanted
        ],
    }
    answers = ask(job, report, started)["solves"]
    for one, answer in zip(wanted, answers, strict=True):
        if "error" in answer:
            raise _failure(one, image, answer["error"], channels, exclude_newer, settings)
    records = {
        (one.environment, one.platform): [(entry, one) for entry in answer["records"]]
        for one, answer in zip(wanted, answers, strict=True)
    }
    return {key: tuple(sorted(_package(entry, one) for entry, one in entries)) for key, entries in records.items()}


def records_of(
    packages: Sequence[Mapping[str, str]],
    channels: Mapping[str, Channel],
    settings: Settings,
    report: Report = silent,
) -> list[dict[str, Any] | None]:
    """What the channels' indexes say of packages, each given by its ``source`` and ``file`` (and ``md5``); None where
    they know nothing, or another file of that name.

    Raises:
        FetchError: naming a channel that does not answer.
    """
    from lithify.sources.conda.child import ask

    sources = sorted({package["source"] for package in packages})
    job = {
        "cache": str(cache_folder(settings)),
        "offline": settings.offline,
        "addresses": {source: _address(channel_of(source, channels), settings) for source in sources},
        "solves": [],
        "finds": [dict(package) for package in packages],
    }
    answer = ask(job, report)
    if broken := answer.get("broken"):
        text = without_credentials(str(broken["text"])).strip()
        raise _channel_failure(channel_of(broken["source"], channels), text, settings)
    return list(answer["finds"])


def cache_folder(settings: Settings) -> Path:
    """Where channels' indexes are kept; readable for its owner alone, as the addresses in it may hold tokens."""
    from lithify.store.store import friendly_disk_errors, open_store

    folder = open_store(settings.store).root / "repodata"
    with friendly_disk_errors(settings.store):
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def task_name(image: str, wanted: Wanted) -> str:
    """What a solve is called while it runs."""
    within = "" if wanted.environment == NOTEBOOK else f" {wanted.environment}"
    return f"lock {image}{within} {wanted.platform} conda"


def _address(channel: Channel, settings: Settings) -> str:
    """Where the solver finds a channel: it completes a name itself, so that rattler need not be loaded here."""
    return configured_address(channel, settings) or channel.name


def _spec_document(spec: CondaSpec) -> dict[str, str]:
    document = {"name": spec.name, "text": spec.text}
    if spec.channel:
        document["channel"] = parse_channel(spec.channel, spec.where).source
    return document


def _virtual_document(name: str, text: str) -> tuple[str, str, str]:
    version, _, build = text.strip().partition(" ")
    return name, version, build.strip() or "0"


def _preferred_document(preferred: Preferred) -> dict[str, Any]:
    kept = {package.name: package for package in preferred.kept}
    firm = {package.name: package for package in preferred.inherited}
    return {
        "locked": [
            {
                "source": package.source,
                "name": package.name,
                "file": package.file,
                "sha256": package.sha256,
                "size": package.size,
                "md5": package.md5,
                "depends": package.depends,
                "constrains": package.constrains,
                "site_packages": package.site_packages,
                "firm": package.name in firm,
            }
            for package in (kept | firm).values()
        ],
        "upgrade": sorted(preferred.upgrade - firm.keys()),
    }


def _package(entry: Mapping[str, Any], wanted: Wanted) -> Package:
    """The lock's entry of a record."""
    return Package(
        entry["source"],
        entry["name"],
        wanted.platform,
        entry["version"],
        entry["file"],
        entry["sha256"],
        entry["size"],
        environment=wanted.environment,
        md5=entry["md5"],
        depends=tuple(entry["depends"]),
        constrains=tuple(entry["constrains"]),
        site_packages=_unusual_site_packages(entry),
    )


def file_address(address: str, file: str) -> str:
    """The address of a package's file in the channel at ``address``."""
    from urllib.parse import quote

    return f"{address}/{quote(file, safe='/+~:!=@')}"


def _unusual_site_packages(entry: Mapping[str, Any]) -> str:
    folder = str(entry["site_packages"]).strip("/")
    usual = f"lib/python{'.'.join(entry['version'].split('.')[:2])}/site-packages"
    return "" if entry["name"] != "python" or folder == usual else folder


# -- failures ----------------------------------------------------------------------------------------------------------


def _failure(
    wanted: Wanted,
    image: str,
    error: Mapping[str, Any],
    channels: Mapping[str, Channel],
    exclude_newer: datetime | None,
    settings: Settings,
) -> LithifyError:
    """What went wrong, for whoever wrote the requirement files."""
    text = without_credentials(str(error["text"])).strip()
    if error["kind"] == "spec":
        spec = wanted.specs[error["index"]]
        return InputError(
            f"{spec.where}: `{spec.text}` does not say which packages may be taken",
            details=text,
            hint="`NAME`, `NAME >=1.2,<2`, `NAME=1.2`, `NAME=1.2=BUILD` are understood",
        )
    if error["kind"] == "channel":
        return _channel_failure(channels[error["source"]], text, settings)
    if error["kind"] == "unsatisfiable":
        return _conflict(wanted, image, text, error["culprits"], exclude_newer, settings.offline)
    return LithifyError(f"the conda packages of `{image}` for {wanted.platform} cannot be chosen", details=text)


def _channel_failure(channel: Channel, text: str, settings: Settings) -> LithifyError:
    if str(settings.store) in text and "os error" in text:
        # Not the channel's fault: what it said cannot be kept.
        return HostError(
            f"the index of the channel `{channel.name}` cannot be written below {settings.store}",
            details=text,
            hint="free some space there, see who owns it, or use another store: --store or LITHIFY_STORE",
        )
    address = without_credentials(served_address(channel, settings))
    place = f"{channel.where}: " if channel.where else ""
    known = f'`[sources] "{channel.source}"` in Lithify\'s configuration names another address'
    if settings.offline and not address.startswith("file:"):
        return FetchError(
            f"{place}what is known offline of the channel `{channel.name}` is not enough to choose packages",
            details=text,
            hint="run `lithify lock` once without --offline",
        )
    if "could not find subdir" in text or re.search(r"\b404\b", text):
        return FetchError(
            f"{place}there is no channel `{channel.name}` at {address}",
            details=text,
            hint=f"look at its spelling; {known}; a channel of your own needs `noarch/repodata.json`, if an empty one",
        )
    if re.search(r"\b40[137]\b", text):
        return FetchError(
            f"{place}the channel `{channel.name}` at {address} wants other credentials",
            details=text,
            hint="they belong in rattler's file of credentials (RATTLER_AUTH_FILE, ~/.rattler/credentials.json) "
            "or in ~/.netrc",
        )
    return FetchError(
        f"{place}the channel `{channel.name}` at {address} does not answer, or not as a channel does",
        details=text,
        hint=f"try again later; {known}",
    )


def _conflict(
    wanted: Wanted,
    image: str,
    text: str,
    culprits: Sequence[Mapping[str, Any]],
    exclude_newer: datetime | None,
    offline: bool,
) -> UnsatisfiableError:
    """No packages fit: by what cannot be had at all where that is it, else by all that have a part in it."""
    text = _shortened(text.removeprefix("Cannot solve the request because of: "))
    absent = [culprit for culprit in culprits if "subdirs" in culprit and not _has(culprit, wanted.platform)]
    if absent:
        causes = [_absence(wanted, image, culprit) for culprit in absent]
        return UnsatisfiableError(
            "; ".join(cause for cause, _ in causes),
            details=text,
            hint="leave --offline out: what was not asked for before is not known" if offline else causes[0][1],
        )
    named = [wanted.specs[culprit["index"]] for culprit in culprits]
    places = "".join(f"\n  {spec.where}: {spec.text}" for spec in named)
    within = "" if wanted.environment == NOTEBOOK else f" in its environment `{wanted.environment}`"
    hint = "loosen one of the requirements named above"
    if any("[conda] require" in spec.where for spec in named):
        hint = "what [conda] require in lithify.toml asks for holds in every image: loosen one of the others"
    if exclude_newer is not None:
        hint += f", or allow packages from after {exclude_newer.isoformat()}"
    if offline:
        hint += ", or leave --offline out: what was not asked for before is not known"
    return UnsatisfiableError(
        f"no conda packages satisfy all that `{image}` asks for{within} on {wanted.platform}"
        + (f"; asked for, and with a part in it:{places}" if places else ""),
        details=text,
        hint=hint,
    )


def _shortened(text: str, most: int = 80) -> str:
    """An explanation without its middle where it is longer than anybody reads: it repeats itself for every version."""
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    left_out = f"({len(lines) - most} more lines of the same kind)"
    return "\n".join((*lines[: most - 10], left_out, *lines[-10:]))


def _has(culprit: Mapping[str, Any], platform: Platform) -> bool:
    return bool({platform.subdir, "noarch"} & set(culprit["subdirs"]))


def _absence(wanted: Wanted, image: str, culprit: Mapping[str, Any]) -> tuple[str, str]:
    """Of a spec that nothing on its platform fits: that, and what to do."""
    spec = wanted.specs[culprit["index"]]
    versions, elsewhere = culprit["versions"], culprit["subdirs"]
    channels = ", ".join(channel.name for channel in wanted.every_channel.values())
    if elsewhere:
        return (
            f"{spec.where}: {channels} has `{spec.text}` for {', '.join(elsewhere)}, not for {wanted.platform.subdir}",
            f"ask for it on one platform only, with a selector such as `# [{_selector(elsewhere)}]`"
            if set(elsewhere) & {platform.subdir for platform in PLATFORMS.values()}
            else f"`{image}` is made for Linux: leave it out",
        )
    if versions:
        return (
            f"{spec.where}: {channels} has no package for `{spec.text}` on {wanted.platform.subdir}",
            f"the newest versions of {spec.name} there are {', '.join(versions)}",
        )
    return (
        f"{spec.where}: {channels} has no package `{spec.name}`, for {wanted.platform.subdir} or any other platform",
        f"did you mean `{culprit['near'][0]}`?"
        if culprit["near"]
        else "look at its spelling; a package of the Python index belongs below `pip:`",
    )


def _selector(subdirs: Iterable[str]) -> str:
    return next((name for subdir, name in (("linux-64", "linux64"), ("linux-aarch64", "aarch64")) if subdir in subdirs))
