"""Debian as a source: apt resolves, in a private state folder, for any architecture.

Nothing of the host's package system is read but where its archive is served from (and how to reach it: proxies,
certificates, credentials); nothing of it is written. The lists are verified by Debian's own signatures, with the
keyring of the host.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lithify.errors import FetchError, HostError, InputError, UnsatisfiableError
from lithify.lockfile import Package
from lithify.platforms import Platform
from lithify.progress import Event, Report, silent
from lithify.read.family import DebianBase
from lithify.read.settings import Settings
from lithify.sources.deb import control_stanza
from lithify.store.store import open_store, remove_tree

# Lists younger than this many seconds are not asked for again.
FRESH = 600

# A package's name (Debian policy, section 5.6.1), optionally with the one version that will do.
_WANTED = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+~:-]+)?")
_INSTALLED = re.compile(r"Inst (\S+) (?:\[\S*\] )?\((\S+) .*\[([a-z0-9-]+)\]\)")
_SUITES = (
    *("bookworm", "trixie", "forky", "duke", "bullseye", "buster"),
    *("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"),
)
_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg")
_TRUSTED = "/etc/apt/trusted.gpg.d"


def suite_sources(suite: str) -> tuple[str, ...]:
    """The sources that serve a suite: itself, its updates, its security fixes."""
    return f"debian/{suite}", f"debian/{suite}-updates", f"debian-security/{suite}-security"


def base_packages(base: DebianBase) -> tuple[str, ...]:
    """What to resolve for the base besides the suite's Essential packages: its Python, where it is to have one, and
    what the family asks for.
    """
    return tuple(sorted({*([f"python{base.python}"] if base.python else ()), *base.packages}))


def suite_of(package: Package) -> str:
    """The suite that a package's source belongs to: ``trixie`` also for its updates and its security fixes."""
    return package.source.partition("/")[2].removesuffix("-updates").removesuffix("-security")


def interpreter_build(packages: Iterable[Package]) -> str:
    """The exact Python that a base holds, such as ``debian/trixie python3.13-minimal=3.13.5-2``.

    Raises:
        InputError: when the packages hold none, or several.
    """
    found = {
        f"debian/{suite_of(package)} {package.name}={package.version}"
        for package in packages
        if re.fullmatch(r"python3\.\d+-minimal", package.name)
    }
    if len(found) != 1:
        raise InputError(
            f"the base holds {len(found) or 'no'} Python interpreters{': ' if found else ''}{', '.join(sorted(found))}",
            hint="lock the image again with `lithify lock --upgrade`",
        )
    return found.pop()


@dataclass(frozen=True)
class DebianSource:
    """Debian's archives, where ``settings`` or else the host's apt say that they are served from."""

    settings: Settings

    def addresses(self, packages: Sequence[Package], report: Report = silent) -> Mapping[Package, str]:
        """The URL of each package: the archive's root and the path that the lock holds.

        Raises:
            HostError: when nobody says where the archive is served from.
        """
        roots: dict[str, str] = {}
        for source in sorted({package.source for package in packages}):
            suite = source.partition("/")[2].removesuffix("-updates").removesuffix("-security")
            root = archive_addresses(suite, self.settings).get(source)
            if root is None:
                raise _unknown_archive(source)
            roots[source] = root
        return {package: f"{roots[package.source]}/{quote(package.file, safe='/+~:')}" for package in packages}


def archive_addresses(suite: str, settings: Settings) -> dict[str, str]:
    """Where the sources of a suite are served from: the root address of each, without a trailing slash.

    What ``settings`` say counts first (an empty address leaves a source out); a suite's updates come from where the
    suite comes from; else the host's apt is asked where it finds Debian.

    Raises:
        HostError: when neither says where the suite is served from.
    """
    main, updates, security = suite_sources(suite)
    configured = {source: address.rstrip("/") for source, address in settings.sources.items()}
    found = dict(configured)
    if main in configured:
        found.setdefault(updates, configured[main])
    if not {main, updates, security} <= found.keys():
        host_main, host_security = _host_archives()
        for source, address in ((main, host_main), (updates, host_main), (security, host_security)):
            if address is not None:
                found.setdefault(source, address)
    addresses = {source: found[source] for source in (main, updates, security) if found.get(source)}
    if main not in addresses:
        raise _unknown_archive(main)
    return addresses


def resolve(
    suite: str,
    wanted: Sequence[str],
    platform: Platform,
    *,
    essential: bool = False,
    kept: Sequence[Package] = (),
    previous: Sequence[Package] = (),
    upgrade: bool = False,
    asked_at: Mapping[str, str] | None = None,
    settings: Settings,
    report: Report = silent,
) -> tuple[Package, ...]:
    """The packages that ``wanted`` needs on ``platform``, sorted, without recommendations.

    ``essential`` adds the suite's Essential packages and marks the result as the base's. ``kept`` are the packages
    that are there already (the base's and the parents'): none of them is changed, none is in the result.
    ``previous`` is the last lock's answer: its versions are preferred while the archive serves them and they fit,
    unless ``upgrade`` is set. ``asked_at`` says, for errors, where a name was written.

    Raises:
        HostError: without apt or its keyring, or when nobody says where the archive is served from.
        InputError: for a name that is no package's.
        UnsatisfiableError: when there is no solution, with apt's explanation.
        FetchError: when the archive cannot be reached, or no longer says what a kept package is.
    """
    for text in wanted:
        if not _WANTED.fullmatch(text):
            raise InputError(f"`{text}` is not the name of a Debian package", hint="write `NAME` or `NAME=VERSION`")
    if not wanted and not essential:
        return ()
    addresses = archive_addresses(suite, settings)
    apt = _Apt(suite, platform, addresses, settings, _keyrings())
    task = f"apt {suite} {platform}"
    report(Event("resolve", "start", task))
    store = open_store(settings.store)
    with store.lock(f"apt-{apt.key}"):
        apt.update(report)
        index = _read_index(apt.folder, apt.list_files(), apt.stamp())
        names = sorted({*wanted, *(index.essential() if essential else ())})
        _known(names, index, suite, platform, asked_at or {})
        status = _status(kept, index, settings)
        preferred = () if upgrade else [package for package in previous if package.platform == platform]
        try:
            chosen = apt.choose(names, status, preferred)
        except UnsatisfiableError:
            if not preferred:
                raise
            chosen = apt.choose(names, status, ())
    here = {package.name for package in kept}
    packages = []
    for name, version in chosen:
        if name in here:
            raise UnsatisfiableError(
                f"{', '.join(names)} would change {name}, which the base or a parent image holds",
                hint="lock the parent again with `lithify lock --upgrade`, or leave the package out",
            )
        packages.append(index.package(name, version, platform, base=essential))
    report(Event("resolve", "finish", task))
    return tuple(sorted(packages))


# -- apt -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Apt:
    """apt with a state of its own, below the store."""

    suite: str
    platform: Platform
    addresses: Mapping[str, str]
    settings: Settings
    keyrings: tuple[str, ...]

    @functools.cached_property
    def key(self) -> str:
        told = [self.suite, self.platform.debian, *(f"{s}={a}" for s, a in sorted(self.addresses.items()))]
        return hashlib.sha256("\n".join([*told, *self.keyrings]).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        return self.settings.store / "apt" / self.key

    def stamp(self) -> float:
        try:
            return (self.folder / "updated").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def update(self, report: Report) -> None:
        """Have lists that are fresh."""
        age = time.time() - self.stamp()
        if 0 <= age < FRESH or (self.settings.offline and self.stamp()):
            return
        if self.settings.offline:
            raise FetchError(
                f"no package lists of {self.suite} for {self.platform} are here, and nothing may be fetched",
                hint="run `lithify lock` once without --offline",
            )
        for name in ("lists/partial", "cache/archives/partial", "state", "sources", "log", "none"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write("sources/lithify.sources", self._sources())
        self._write("status", "")
        self._write("preferences", "")
        self._write("apt.conf", self._configuration())
        result = self._run(["update", "-o", "APT::Update::Error-Mode=any"])
        if result.returncode != 0:
            # What came half is not to be taken for the whole next time.
            remove_tree(self.folder / "lists")
            (self.folder / "updated").unlink(missing_ok=True)
            raise FetchError(
                f"the package lists of Debian {self.suite} for {self.platform} cannot be fetched",
                details=_complaint(result),
                hint="check the network and the address of the archive; it is apt's own, or the one that [sources] "
                f'names for "{suite_sources(self.suite)[0]}" in Lithify\'s configuration',
            )
        self._write("updated", "")
        os.utime(self.folder / "updated")

    def list_files(self) -> list[tuple[Path, str]]:
        """The lists, each with the name of its source."""
        result = self._run(["indextargets", "--format", "$(RELEASE) $(FILENAME)", "Created-By: Packages"])
        by_release = {source.partition("/")[2]: source for source in self.addresses}
        files = []
        for line in result.stdout.splitlines():
            release, _, name = line.partition(" ")
            if release in by_release and Path(name).is_file():
                files.append((Path(name), by_release[release]))
        order = list(self.addresses)
        return sorted(files, key=lambda pair: order.index(pair[1]))

    def choose(self, names: Sequence[str], status: str, preferred: Sequence[Package]) -> list[tuple[str, str]]:
        """What apt would install, as names and versions."""
        self._write("status", status)
        self._write(
            "preferences",
            "".join(f"Package: {p.name}\nPin: version {p.version}\nPin-Priority: 995\n\n" for p in preferred),
        )
        result = self._run(["install", "--simulate", "--no-install-recommends", "--no-remove", "--", *names])
        if result.returncode != 0:
            raise UnsatisfiableError(
                f"apt finds no way to install {', '.join(names)} on Debian {self.suite} for {self.platform}",
                details=_complaint(result),
                hint="what the base and the parent images hold stays as it is; to let it move, lock them again with "
                "`lithify lock --upgrade`",
            )
        chosen = []
        for line in result.stdout.splitlines():
            if match := _INSTALLED.match(line):
                chosen.append((match[1].partition(":")[0], match[2]))
        return chosen

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        program = shutil.which("apt-get")
        if program is None:
            raise _no_apt()
        environment = {**os.environ, "APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def _sources(self) -> str:
        return "\n".join(
            f"Types: deb\nURIs: {address}/\nSuites: {source.partition('/')[2]}\nComponents: main\n"
            f"Architectures: {self.platform.debian}\nSigned-By: {' '.join(self.keyrings)}\n"
            for source, address in self.addresses.items()
        )

    def _configuration(self) -> str:
        folder = str(self.folder)
        if '"' in folder or "\n" in folder:
            raise HostError(f"apt cannot work below {folder}", hint="choose another store with --store")
        own = {
            "Dir::State": f"{folder}/state",
            "Dir::State::lists": f"{folder}/lists/",
            "Dir::State::status": f"{folder}/status",
            "Dir::Cache": f"{folder}/cache",
            "Dir::Log": f"{folder}/log",
            # The host's hooks and preferences are the host's.
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{folder}/none",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": f"{folder}/sources",
            "Dir::Etc::preferences": f"{folder}/preferences",
            "Dir::Etc::preferencesparts": f"{folder}/none",
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": f"{folder}/none",
            "APT::Architecture": self.platform.debian,
            "APT::Sandbox::User": "root",
            "APT::Get::Assume-Yes": "true",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "false",
            "Acquire::Retries": "2",
            "Acquire::http::Timeout": "20",
            "Acquire::https::Timeout": "20",
        }
        lines = [line for line in _host_configuration() if line.partition(" ")[0] not in own]
        lines += [f'{key} "{value}";' for key, value in own.items()]
        lines.append(f'#clear APT::Architectures; APT::Architectures {{ "{self.platform.debian}"; }};')
        return "\n".join(lines) + "\n"


def _complaint(result: subprocess.CompletedProcess[str]) -> str:
    """What apt says is wrong, without its progress."""
    noise = ("W: ", "Reading ", "Building ", "NOTE:", "Get:", "Hit:", "Ign:", "Fetched ", "Note,")
    lines = [
        line
        for line in (*result.stdout.splitlines(), *result.stderr.splitlines())
        if line.strip()
        and not line.lstrip().startswith(noise)
        and not re.match(r"\s+(apt-get needs|Keep also|so don't)", line)
    ]
    return "\n".join(lines[-40:])


def _no_apt() -> HostError:
    return HostError(
        "no apt-get on this machine, which resolves Debian packages",
        hint="lock on a Debian or Ubuntu machine (or in such a container) and commit lithify.lock: building from a "
        "lock needs no apt",
    )


def _unknown_archive(source: str) -> HostError:
    return HostError(
        f"nobody says where `{source}` is served from: this machine's apt is not configured for Debian",
        hint=f'name the root of an archive in ~/.config/lithify/config.toml: `[sources]` and `"{source}" = "..."`',
    )


def _keyrings() -> tuple[str, ...]:
    """Debian's signing keys on this host."""
    for name in _KEYRINGS:
        if Path(name).is_file():
            return (name,)
    trusted = Path(_TRUSTED)
    found = sorted(str(path) for path in trusted.glob("debian-archive-*")) if trusted.is_dir() else []
    if not found:
        raise HostError(
            "Debian's signing keys are not on this machine, so its archive cannot be trusted",
            hint="install the package `debian-archive-keyring`",
        )
    return tuple(found)


def _host_configuration() -> list[str]:
    """How the host's apt reaches its archives: proxies, certificates, credentials."""
    program = shutil.which("apt-config")
    if program is None:
        raise _no_apt()
    result = subprocess.run([program, "dump"], capture_output=True, text=True, errors="replace", check=False)
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::ForceIPv")
    return [line for line in result.stdout.splitlines() if line.startswith(wanted)]


@functools.cache
def _host_archives() -> tuple[str | None, str | None]:
    """The roots of Debian's main and security archives that the host's apt is configured for."""
    program = shutil.which("apt-get")
    if program is None:
        raise _no_apt()
    form = "$(REPO_URI)|$(RELEASE)|$(ORIGIN)|$(LABEL)"
    result = subprocess.run(
        [program, "indextargets", "--format", form, "Created-By: Packages"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    main: str | None = None
    security: str | None = None
    for line in result.stdout.splitlines():
        address, release, origin, label = [*line.split("|"), "", "", ""][:4]
        root = _root(address)
        # apt knows origin and label only after it fetched a list; before that, the suite's name must do.
        suite = release.partition("/")[0].removesuffix("-updates").removesuffix("-security")
        if root is None or (origin != "Debian" if "$" not in origin and origin else suite not in _SUITES):
            continue
        if label == "Debian-Security" or release.endswith(("-security", "/updates")):
            security = security or root
        elif label in ("Debian", "", "$(LABEL)") and suite in _SUITES:
            main = main or root
    return main, security


def _root(address: str) -> str | None:
    """The address of an archive's root that any client can use; None where only apt could."""
    if address.startswith("mirror+file:"):
        try:
            first = Path(unquote(urlsplit(address).path).rstrip("/")).read_text(encoding="utf-8").split()[0]
        except (OSError, UnicodeDecodeError, IndexError):
            return None
        return _root(first)
    return address.rstrip("/") if address.startswith(("http://", "https://", "file:/")) else None


# -- package lists ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Index:
    """What the lists say: the stanzas of each package's name, each with its source."""

    stanzas: Mapping[str, Sequence[tuple[str, bytes]]]

    def essential(self) -> list[str]:
        """The names of the Essential packages."""
        return [n for n, found in self.stanzas.items() if any(b"\nEssential: yes" in s for _, s in found)]

    def provided(self) -> set[str]:
        """The names of virtual packages."""
        names: set[str] = set()
        for found in self.stanzas.values():
            for _, stanza in found:
                if b"\nProvides: " in stanza:
                    names.update(re.findall(r"[a-z0-9][a-z0-9+.-]+", _field(stanza, "Provides")))
        return names

    def package(self, name: str, version: str, platform: Platform, *, base: bool) -> Package:
        """The lock's entry of one version."""
        for source, stanza in self.stanzas.get(name, ()):
            if _field(stanza, "Version") == version:
                return Package(
                    source=source,
                    name=name,
                    platform=platform,
                    version=version,
                    file=_field(stanza, "Filename"),
                    sha256=_field(stanza, "SHA256"),
                    size=int(_field(stanza, "Size")),
                    base=base,
                )
        raise FetchError(
            f"apt chose {name} {version}, and no package list has it", hint="run `lithify lock` again: the lists moved"
        )

    def stanza(self, package: Package) -> bytes | None:
        """What the lists say about exactly the package that is locked."""
        for _, stanza in self.stanzas.get(package.name, ()):
            if _field(stanza, "SHA256") == package.sha256 and _field(stanza, "Version") == package.version:
                return stanza
        return None


def _read_index(folder: Path, files: Sequence[tuple[Path, str]], stamp: float) -> _Index:
    return _read_index_once(folder, tuple(files), stamp)


@functools.lru_cache(maxsize=4)
def _read_index_once(folder: Path, files: tuple[tuple[Path, str], ...], stamp: float) -> _Index:
    stanzas: dict[str, list[tuple[str, bytes]]] = {}
    for path, source in files:
        for stanza in path.read_bytes().split(b"\n\n"):
            if stanza.startswith(b"Package: "):
                name = stanza[9 : stanza.index(b"\n")].decode("ascii", "replace").strip()
                stanzas.setdefault(name, []).append((source, stanza))
    if not stanzas:
        raise FetchError(f"the package lists in {folder} are empty", hint="remove the folder and lock again")
    return _Index(stanzas)


def _field(stanza: bytes, name: str) -> str:
    match = re.search(rb"^%b:[ \t]*(.*)$" % name.encode(), stanza, re.MULTILINE | re.IGNORECASE)
    return match[1].decode("utf-8", "replace").strip() if match else ""


def _known(names: Sequence[str], index: _Index, suite: str, platform: Platform, asked_at: Mapping[str, str]) -> None:
    provided: set[str] | None = None
    for text in names:
        name = text.partition("=")[0]
        if name in index.stanzas:
            continue
        if provided is None:
            provided = index.provided()
        if name not in provided:
            close = difflib.get_close_matches(name, list(index.stanzas), n=1, cutoff=0.7)
            where = f"{asked_at[name]}: " if name in asked_at else ""
            raise InputError(
                f"{where}Debian {suite} has no package `{name}` for {platform}",
                hint=f"did you mean `{close[0]}`?" if close else "search for its name with `apt-cache search`",
            )


def _status(kept: Sequence[Package], index: _Index, settings: Settings) -> str:
    """A dpkg status in which ``kept`` are installed and held (deb-control(5), dpkg(1) "Package selection states")."""
    from lithify.store.store import Store

    store = Store(settings.store)
    stanzas = []
    for package in kept:
        listed = index.stanza(package)
        if listed is not None:
            text = listed.decode("utf-8", "replace")
        else:
            deb = store.artefact_path(package.sha256)
            if not store.verified(deb, f"sha256:{package.sha256}", package.size):
                raise FetchError(
                    f"{package.name} {package.version}, which the base or a parent image is locked to, is no longer "
                    "in the archive and not in the cache",
                    hint="lock the base and the parents again with `lithify lock --upgrade`",
                )
            text = control_stanza(deb)
        lines = text.strip().splitlines()
        stanzas.append("\n".join([lines[0], "Status: hold ok installed", *lines[1:]]))
    return "\n\n".join(stanzas) + "\n" if stanzas else ""
