"""Fetch: the locked artefacts, from wherever their sources are served, into the store's cache by sha256.

Every byte is hashed while it streams in, and an artefact appears in the cache only when it has the size and the
sha256 that the lock says (the sha256 alone, where no index told the size). A download that breaks off goes on where it
stopped (RFC 9110, section 14, range requests), in the next attempt or the next build; one that is refused for now (429,
5xx, no name, no connection) is tried again, after the time the server asks for or a growing one.
"""

from __future__ import annotations

import collections
import contextlib
import email.utils
import hashlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit, urlunsplit

from lithify.errors import FetchError, InputError
from lithify.lockfile import Package
from lithify.progress import Event, Report, silent
from lithify.sources import Source, by_source
from lithify.store.store import CHUNK, SEAL, Store, friendly_disk_errors

if TYPE_CHECKING:
    import ssl

    import httpx

# More cold connections than this at once make some name servers give up.
CONNECTIONS = 4

# The most bytes of an artefact whose size nobody says; and what is taken for its size where gains are judged.
_MOST = 16 << 30
_ASSUMED = 10 << 20

_TOKEN = re.compile(r"/t/[^/]+(?=/)")

_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How long a server is given: times in seconds, ``slowest`` in bytes a second.

    An attempt ends after ``silence`` without a byte, or after ``window`` at less than ``slowest``. ``attempts`` that
    gained nothing, one after the other, end the download; the pause between two doubles from ``pause`` on, and
    neither it nor a server's Retry-After exceeds ``longest_pause``.
    """

    connect: float = 15
    silence: float = 30
    window: float = 60
    slowest: int = 1024
    attempts: int = 6
    pause: float = 0.5
    longest_pause: float = 60


PATIENT = Patience()


def fetch(
    store: Store,
    packages: Iterable[Package],
    sources: Mapping[str, Source],
    *,
    offline: bool = False,
    jobs: int = CONNECTIONS,
    report: Report = silent,
    patience: Patience = PATIENT,
) -> Mapping[Package, Path]:
    """Every package's artefact in the cache, its size and sha256 verified.

    What the cache lacks is asked of ``sources``, by the source's name, and downloaded ``jobs`` at a time (at most
    `CONNECTIONS`). A cached file that is no longer what it was is fetched again.

    Raises:
        FetchError: naming each package that cannot be had, or that is not what was locked.
        HostError: when the store cannot be written.
        InputError: for a source that nobody knows.
    """
    packages = tuple(packages)
    paths = {package: store.artefact_path(package.sha256) for package in packages}
    missing = _missing(store, packages, report)
    if missing and offline:
        raise FetchError(
            f"{_count(missing)} not in the cache of {store.root}, and the network is not to be used (offline)",
            details=_listing(missing),
            hint="run the same command once without --offline, or copy `artefacts/` from a store that has them",
        )
    if missing:
        addresses = _addresses(missing, sources, report)
        _Downloads(store, addresses, report, patience).run(min(jobs, CONNECTIONS))
    return paths


def completed(
    store: Store,
    packages: Iterable[Package],
    sources: Mapping[str, Source],
    *,
    offline: bool = False,
    report: Report = silent,
) -> tuple[Package, ...]:
    """``packages``, in which those whose index says no sha256 have that of their file; see `learned`.

    Raises:
        FetchError: for a file that cannot be had.
    """
    packages = tuple(packages)
    nameless = [package for package in packages if not package.sha256]
    addresses = _addresses(nameless, sources, report) if nameless else {}
    return tuple(
        learned(store, package, addresses[package], offline=offline, report=report) if package in addresses else package
        for package in packages
    )


def learned(
    store: Store,
    package: Package,
    url: str,
    *,
    offline: bool = False,
    report: Report = silent,
    patience: Patience = PATIENT,
) -> Package:
    """``package``, which has no sha256 yet, with that of what ``url`` serves, and its size; it is in the cache then.

    Where its ``md5`` is known, the file must have that.

    Raises:
        FetchError: when it cannot be had, or has another md5.
    """
    key = hashlib.sha256(f"{package.source}\n{package.file}\n{package.md5}".encode()).hexdigest()
    if package.md5 and (known := store.record("learned", key)):
        return replace(package, sha256=str(known["sha256"]), size=int(known["size"]))
    if offline:
        raise FetchError(
            f"the sha256 of {package.name} {package.version} is not known, and the network is not to be used (offline)",
            details=_listing([package]),
            hint="run the same command once without --offline",
        )
    with store.scratch("learn") as folder, friendly_disk_errors(store.root):
        partial = folder / "artefact"
        with http_client(patience) as client:
            _Downloads(store, {package: url}, report, patience).attempts(client, package, partial)
        with partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = replace(package, sha256=sha256, size=_size(partial))
        _install(partial, store.artefact_path(sha256))
    if package.md5:
        store.write_record("learned", key, {"sha256": sha256, "size": found.size})
    return found


def http_client(patience: Patience = PATIENT) -> httpx.Client:
    """A client that trusts what the system trusts, follows the environment's proxies, and knows the user's credentials.

    Those are ``~/.netrc``'s and rattler's; see `lithify.credentials`.
    """
    import httpx

    from lithify.credentials import authentication

    return httpx.Client(
        verify=_trust(),
        follow_redirects=True,
        timeout=httpx.Timeout(patience.silence, connect=patience.connect, pool=None),
        limits=httpx.Limits(max_connections=2 * CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        headers={"User-Agent": "lithify"},
        auth=authentication(),
    )


def shown(url: str) -> str:
    """``url`` as it may be shown: without credentials, and without a query, which may hold a signature."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that is not valid"
    host = parts.netloc.rpartition("@")[2]
    # A conda channel's token is a part of the path, which a Debian archive's `pool/main/t/tree` looks like.
    path = parts.path if "/pool/" in parts.path else _TOKEN.sub("", parts.path, count=1)
    return urlunsplit((parts.scheme, host, path, "", ""))


def _trust() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE's, SSL_CERT_DIR's); httpx's own where the system has none."""
    import ssl

    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    # Both are None where nothing is there, whatever the stubs say; a folder may be there and empty.
    if not paths.cafile and not (paths.capath and any(Path(paths.capath).iterdir())):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _missing(store: Store, packages: Sequence[Package], report: Report) -> list[Package]:
    """One package for each artefact that the cache lacks."""
    seen: dict[str, Package] = {}
    missing = []
    for package in packages:
        first = seen.setdefault(package.sha256, package)
        if first is not package:
            if first.size != package.size and first.size and package.size:
                raise InputError(
                    f"{first.name} and {package.name} are locked with one sha256 and two sizes, "
                    f"{first.size} and {package.size} bytes",
                    hint="remove the lock, and make it anew with `lithify lock`",
                )
            continue
        path = store.artefact_path(package.sha256)
        known = path.exists()
        if _verified(store, package):
            continue
        if known:
            report(
                Event(
                    "fetch",
                    "warning",
                    task=package.name,
                    message=f"the cached {package.name} {package.version} is not what was locked: it is fetched again",
                )
            )
        missing.append(package)
    return missing


def _verified(store: Store, package: Package) -> bool:
    """Whether the cache has the artefact, and has it whole."""
    path = store.artefact_path(package.sha256)
    return store.verified(path, f"sha256:{package.sha256}", package.size or _size(path))


def _addresses(missing: Sequence[Package], sources: Mapping[str, Source], report: Report) -> dict[Package, str]:
    grouped = by_source(missing)
    for name, packages in grouped.items():
        if name not in sources:
            raise InputError(
                f"the lock takes {packages[0].name} from the source `{name}`, which is not known here",
                hint=f"the sources known here are {', '.join(sorted(sources)) or 'none'}",
            )
    addresses: dict[Package, str] = {}
    for name, packages in grouped.items():
        addresses.update(sources[name].addresses(packages, report))
    lost = [package for package in missing if package not in addresses]
    if lost:
        raise FetchError(
            f"no address is known for {_count(lost)}",
            details=_listing(lost),
            hint="`lithify lock --upgrade-package NAME` chooses from what is served now",
        )
    return addresses


def _count(packages: Sequence[Package]) -> str:
    return f"{len(packages)} package{'s' if len(packages) != 1 else ''}"


def _listing(packages: Sequence[Package], most: int = 20) -> str:
    lines = [f"  {p.source}: {p.name} {p.version} ({p.platform})" for p in packages[:most]]
    if len(packages) > most:
        lines.append(f"  and {len(packages) - most} more")
    return "\n".join(lines)


class _Passing(Exception):
    """A failure that may pass; ``after`` is the server's own idea of when, in seconds."""

    def __init__(self, cause: str, after: float | None = None) -> None:
        super().__init__(cause)
        self.after = after


class _Wrong(Exception):
    """What came is not what was locked; the message says how it differs."""


class _Stopped(Exception):
    """Another download failed for good."""


class _ServerError(FetchError):
    """The server does not answer: no use in asking it for the other packages."""


class _Downloads:
    """One call's downloads: what its threads share."""

    def __init__(self, store: Store, addresses: Mapping[Package, str], report: Report, patience: Patience) -> None:
        self.store = store
        self.addresses = addresses
        self.patience = patience
        self.stop = threading.Event()
        self._report = report
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}
        self._shown = 0.0
        # Unknown where one of the sizes is.
        self._total = sum(p.size for p in addresses) if all(p.size for p in addresses) else None

    def run(self, jobs: int) -> None:
        # The largest first, so that none of them is left to the end alone.
        work = collections.deque(sorted(self.addresses, key=lambda package: (-package.size, package)))
        outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def worker() -> None:
            while not self.stop.is_set():
                try:
                    outcomes.put(self.one(client, work.popleft()))
                except IndexError:
                    return
                except BaseException as error:
                    outcomes.put(error)

        with friendly_disk_errors(self.store.root):
            (self.store.root / "tmp" / "partial").mkdir(exist_ok=True)
        self.report(Event("fetch", "start", task="fetch", total=self._total, unit="bytes"))
        refused: list[FetchError] = []
        # Threads that do not keep the interpreter alive: one may wait long, for a server or for another builder.
        threads = [threading.Thread(target=worker, name="fetch", daemon=True) for _ in range(max(1, jobs))]
        with http_client(self.patience) as client:
            try:
                for thread in threads:
                    thread.start()
                for _ in self.addresses:
                    outcome = outcomes.get()
                    if isinstance(outcome, FetchError) and not isinstance(outcome, _ServerError):
                        refused.append(outcome)
                    elif outcome is not None:
                        raise outcome
            finally:
                self.stop.set()
                for thread in threads:
                    thread.join(timeout=0.5)
        if refused:
            raise _together(refused)
        done = sum(self._done.values())
        self.report(Event("fetch", "finish", task="fetch", done=done, total=done, unit="bytes"))

    def report(self, event: Event) -> None:
        with self._lock:
            self._report(event)

    def progress(self, package: Package, done: int) -> None:
        """Tell how far all downloads together are, ten times a second at most."""
        with self._lock:
            self._done[package.sha256] = done
            now = time.monotonic()
            if now - self._shown < 0.1:
                return
            self._shown = now
            total = sum(self._done.values())
            self._report(Event("fetch", "advance", task="fetch", done=total, total=self._total, unit="bytes"))

    def one(self, client: httpx.Client, package: Package) -> FetchError | None:
        """Fetch one artefact; the error where this package, and maybe no other, cannot be had."""
        destination = self.store.artefact_path(package.sha256)
        partial = self.store.root / "tmp" / "partial" / package.sha256
        try:
            with self.store.lock(f"fetch-{package.sha256}"), friendly_disk_errors(self.store.root):
                if not _verified(self.store, package):
                    self.attempts(client, package, partial)
                    _install(partial, destination)
        except _ServerError:
            raise
        except FetchError as error:
            return error
        self.progress(package, package.size or _size(destination))
        return None

    def attempts(self, client: httpx.Client, package: Package, partial: Path) -> None:
        """Try until ``partial`` is the whole artefact."""
        url, failures, wrong = self.addresses[package], 0, 0
        while True:
            before = _size(partial)
            try:
                self.attempt(client, package, partial)
                return
            except _Wrong as error:
                partial.unlink(missing_ok=True)
                wrong += 1
                if wrong > 1:
                    raise FetchError(
                        f"{package.name} {package.version} ({package.file}) is not what was locked",
                        details=f"{error}\nfrom     {shown(url)}",
                        hint="the source changed the file, or something between it and here did: try another mirror; "
                        f"if the new one is right, `lithify lock --upgrade-package {package.name}` locks it",
                    ) from None
            except _Passing as error:
                # Small gains do not count, or a server that drips would be asked for ever.
                gained = _size(partial) - before
                whole = package.size or _ASSUMED
                failures = 1 if gained > 0 and gained * 20 >= whole else failures + 1
                if failures >= self.patience.attempts:
                    raise _ServerError(
                        f"{package.name} {package.version} could not be fetched: {error}",
                        details=f"{failures} attempts at {shown(url)} brought nothing more",
                        hint="see whether this machine reaches that server, or take another one as mirror (see "
                        "docs/how-to/mirrors-and-offline.md); what has arrived is kept",
                    ) from None
                pause = self.pause(failures, error.after)
                message = f"{package.name}: {error}; trying again in {pause:.0f} s"
                self.report(Event("fetch", "warning", task=package.name, message=message))
                if self.stop.wait(pause):
                    raise _Stopped from None

    def pause(self, failures: int, asked: float | None) -> float:
        """How long to wait before the next attempt: what the server asks, else doubling, and not all at once."""
        longest = self.patience.longest_pause
        if asked is not None:
            return min(asked, longest)
        return min(self.patience.pause * 2.0 ** (failures - 1), longest) * random.uniform(0.75, 1.25)

    def attempt(self, client: httpx.Client, package: Package, partial: Path) -> None:
        """Go on from what ``partial`` holds, to the end."""
        with partial.open("a+b") as file:
            content = _Content(file, package.size)
            if not content.ends(package.sha256):
                began = time.monotonic(), content.size
                what = f"{package.name} {package.version} of {package.source}"
                with _opened(client, self.addresses[package], content, what) as chunks:
                    for chunk in chunks:
                        content.append(chunk)
                        if self.stop.is_set():
                            raise _Stopped
                        self.progress(package, content.size)
                        began = self.checked_speed(began, content.size)
            file.flush()
            os.fsync(file.fileno())
        if content.size < content.expected:
            raise _Passing(f"the server ended the file after {content.size} of {content.expected} bytes")
        if not package.sha256:
            _check_md5(package, partial)
        elif content.digest.hexdigest() != package.sha256:
            raise _Wrong(f"expected sha256 {package.sha256}\nfound    sha256 {content.digest.hexdigest()}")

    def checked_speed(self, began: tuple[float, int], size: int) -> tuple[float, int]:
        """The beginning of the running window of time, at the end of which the server must have been fast enough."""
        passed = time.monotonic() - began[0]
        if passed < self.patience.window:
            return began
        if size - began[1] < self.patience.slowest * passed:
            raise _Passing(f"the server sent {size - began[1]} bytes in {passed:.0f} s")
        return time.monotonic(), size


def _check_md5(package: Package, path: Path) -> None:
    """Check what a lock of another tool says, which knows no better digest."""
    if package.md5:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != package.md5:
            raise _Wrong(f"expected md5 {package.md5}\nfound    md5 {found}")


class _Content:
    """A file that grows to ``expected`` bytes (0: nobody has said yet how many), hashed on the way."""

    def __init__(self, file: BinaryIO, expected: int) -> None:
        self.file = file
        self.expected = expected
        self.digest = hashlib.sha256()
        self.size = 0
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._count(chunk)

    def ends(self, sha256: str) -> bool:
        """Whether nothing is missing."""
        return self.size >= self.expected > 0 or (self.size > 0 and self.digest.hexdigest() == sha256)

    def restart(self) -> None:
        self.file.truncate(0)
        self.digest = hashlib.sha256()
        self.size = 0

    def append(self, chunk: bytes) -> None:
        self._count(chunk)
        self.file.write(chunk)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.digest.update(chunk)
        if self.size > (self.expected or _MOST):
            raise _Wrong(f"expected {self.expected or f'at most {_MOST}'} bytes\nfound    more")


@contextlib.contextmanager
def _opened(client: httpx.Client, url: str, content: _Content, what: str) -> Iterator[Iterable[bytes]]:
    """What ``url`` holds after the bytes that ``content`` has (which is emptied where all of it comes again).

    ``what`` it is, is for messages.
    """
    if url.startswith("file:"):
        with _opened_file(url, content, what) as chunks:
            yield chunks
        return
    import httpx

    # No content coding: what is hashed is what the server stores.
    headers = {"Accept-Encoding": "identity"}
    if content.size:
        headers["Range"] = f"bytes={content.size}-"
    try:
        with client.stream("GET", url, headers=headers) as response:
            _check_status(response, url, content, what)
            yield response.iter_raw()
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise FetchError(f"{what} cannot be fetched from {shown(url)}: {_said(error, url)}") from None
    except httpx.TimeoutException as error:
        cause = "no connection in time" if isinstance(error, httpx.ConnectTimeout) else "the server is silent"
        raise _Passing(cause) from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise _ServerError(
                f"the certificate of {urlsplit(shown(url)).netloc} is not trusted on this machine",
                details=_said(error, url),
                hint="add your site's authority to the system's certificates, or name its file in SSL_CERT_FILE",
            ) from None
        raise _Passing(_said(error, url)) from None


def _check_status(response: httpx.Response, url: str, content: _Content, what: str) -> None:
    """Raise unless the body that follows is the rest of ``content``, or all of it (which is emptied then)."""
    status = response.status_code
    if status == 206 and content.size:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match and int(match[1]) == content.size:
            _check_length(match[2], content)
            return
    if status in (206, 416) and content.size:
        content.restart()
        raise _Passing("the server does not send the rest of the file alone")
    if status == 200:
        if content.size:
            content.restart()
        _check_length(response.headers.get("Content-Length", "*"), content)
        return
    said = f"the server answered {status} {response.reason_phrase}".rstrip()
    if status in _TRY_AGAIN:
        raise _Passing(said, _retry_after(response.headers.get("Retry-After", "")))
    hint = f"see {shown(url)}"
    if status in (404, 410):
        hint = (
            "the source no longer has the file, a mirror may still have it: "
            f"`lithify lock --upgrade-package {what.partition(' ')[0]}` chooses from what is served now"
        )
    elif status in (401, 403, 407):
        hint = "credentials belong in ~/.netrc, or in the address of the source in the settings"
        if what.rpartition(" of ")[2].startswith("conda/"):
            hint = (
                "credentials belong in rattler's file of them (RATTLER_AUTH_FILE, ~/.rattler/credentials.json), or "
                "in ~/.netrc"
            )
    raise FetchError(f"{what} cannot be fetched from {shown(url)}: {said}", hint=hint)


def _check_length(announced: str, content: _Content) -> None:
    if not content.expected and announced.isdecimal() and 0 < int(announced) <= _MOST:
        content.expected = int(announced)
    if announced.isdecimal() and int(announced) != content.expected:
        raise _Wrong(f"expected {content.expected} bytes\nfound    {announced} bytes")


@contextlib.contextmanager
def _opened_file(url: str, content: _Content, what: str) -> Iterator[Iterable[bytes]]:
    path = Path(unquote(urlsplit(url).path))
    try:
        with path.open("rb") as file:
            if content.size:
                content.restart()
            _check_length(str(os.fstat(file.fileno()).st_size), content)
            yield iter(lambda: file.read(CHUNK), b"")
    except OSError as error:
        if error.filename != str(path):
            raise  # of what is written, not of what is read
        raise FetchError(
            f"{what}: {path} cannot be read: {error.strerror}",
            hint="the source is a folder of this machine: see [sources] in the settings",
        ) from None


def _retry_after(value: str) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), as a number or as a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def _said(error: Exception, url: str) -> str:
    """What ``error`` says, or its kind where it says nothing, without the credentials in ``url``."""
    return (str(error) or type(error).__name__).replace(url, shown(url))


def _install(partial: Path, destination: Path) -> None:
    """Make the whole, flushed ``partial`` the sealed artefact ``destination``."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(destination)
    # Sealed in its place: a partial file that is read-only could not be gone on with, and one that is not sealed is
    # hashed at its next use.
    destination.chmod(0o444)
    os.utime(destination, (SEAL, SEAL))
    handle = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _together(errors: Sequence[FetchError]) -> FetchError:
    """One error for one or more refused packages."""
    if len(errors) == 1:
        return errors[0]
    hints = {error.hint for error in errors if error.hint}
    return FetchError(
        f"{len(errors)} packages could not be fetched",
        details="\n".join("\n  ".join(filter(None, (f"- {e.message}", e.details))) for e in errors),
        hint=hints.pop() if len(hints) == 1 else None,
    )
