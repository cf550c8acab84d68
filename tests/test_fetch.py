from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lithify import fetch as fetching
from lithify.errors import FetchError, HostError, InputError
from lithify.fetch import Patience, fetch, shown
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.progress import Event, Report
from lithify.store.store import Store, open_store

QUICK = Patience(connect=2, silence=0.5, window=0.5, slowest=1000, attempts=3, pause=0.01, longest_pause=0.2)
DATA = bytes(range(256)) * 800  # 200 kB


def package(
    data: bytes = DATA, name: str = "numpy", platform: Platform = LINUX_AMD64, source: str = "pypi", size: int = -1
) -> Package:
    digest = hashlib.sha256(data).hexdigest()
    return Package(
        source, name, platform, "1.0", f"{name}-1.0-py3-none-any.whl", digest, len(data) if size < 0 else size
    )


@dataclass(frozen=True)
class At:
    """A source that serves every package below one address."""

    address: str
    asked: list[Package] = field(default_factory=list, compare=False)

    def addresses(self, packages: Sequence[Package], report: Report) -> Mapping[Package, str]:
        self.asked.extend(packages)
        return {package: f"{self.address}/{package.file}" for package in packages}


class Request(BaseHTTPRequestHandler):
    """One request, answered by the server's next behaviour (the last one stays)."""

    protocol_version = "HTTP/1.1"
    server: Faulty

    def do_GET(self) -> None:
        self.server.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        self.server.next(self)

    def log_message(self, *_: object) -> None: ...

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def begin(self) -> int:
        """Where the request's range begins; answers its head."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match:
            self.head(200, Content_Length=len(DATA))
            return 0
        begin = int(match[1])
        self.head(206, Content_Length=len(DATA) - begin, Content_Range=f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}")
        return begin


Behaviour = Callable[[Request], None]


class Faulty(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.behaviours: list[Behaviour] = [whole]
        self.ranges: list[str | None] = []
        self.guard = threading.Lock()

    @property
    def source(self) -> At:
        return At(f"http://127.0.0.1:{self.server_port}")

    def next(self, request: Request) -> None:
        with self.guard:
            behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        behaviour(request)

    def handle_error(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Faulty]:
    with Faulty() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def whole(request: Request) -> None:
    request.wfile.write(DATA[request.begin() :])


def without_ranges(request: Request) -> None:
    request.head(200, Content_Length=len(DATA))
    request.wfile.write(DATA)


def reset_after(count: int) -> Behaviour:
    def behave(request: Request) -> None:
        begin = request.begin()
        request.wfile.write(DATA[begin : begin + count])
        request.wfile.flush()
        time.sleep(0.05)  # let the bytes arrive: a reset discards what is still under way
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    return behave


def short_by(count: int) -> Behaviour:
    def behave(request: Request) -> None:
        request.head(200, Connection="close")
        request.wfile.write(DATA[:-count])

    return behave


def answer(status: int, **headers: object) -> Behaviour:
    return lambda request: request.head(status, Content_Length=0, **headers)


def other_bytes(data: bytes) -> Behaviour:
    def behave(request: Request) -> None:
        request.head(200, Content_Length=len(data))
        request.wfile.write(data)

    return behave


def silent_after(count: int) -> Behaviour:
    def behave(request: Request) -> None:
        begin = request.begin()
        request.wfile.write(DATA[begin : begin + count])
        request.wfile.flush()
        time.sleep(2)

    return behave


def dripping(request: Request) -> None:
    request.begin()
    for byte in DATA:
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        time.sleep(0.05)


def redirect_to(address: str) -> Behaviour:
    return lambda request: request.head(302, Location=address, Content_Length=0)


def assert_fetched(store: Store, wanted: Package, server: Faulty, report: Report = lambda event: None) -> None:
    paths = fetch(store, [wanted], {"pypi": server.source}, report=report, patience=QUICK)
    assert paths[wanted] == store.artefact_path(wanted.sha256)
    assert paths[wanted].read_bytes() == DATA
    assert store.verified(paths[wanted], f"sha256:{wanted.sha256}", wanted.size)
    assert paths[wanted].stat().st_mode & 0o777 == 0o444
    assert leftovers(store) == []


def leftovers(store: Store) -> list[Path]:
    return [path for path in (store.root / "tmp").rglob("*") if path.is_file()]


def refused(store: Store, wanted: Package, server: Faulty) -> FetchError:
    with pytest.raises(FetchError) as raised:
        fetch(store, [wanted], {"pypi": server.source}, patience=QUICK)
    assert not store.artefact_path(wanted.sha256).exists()
    return raised.value


def test_what_is_cached_is_not_asked_for_again(store: Store, server: Faulty) -> None:
    assert_fetched(store, package(), server)
    source = server.source
    fetch(store, [package()], {"pypi": source}, patience=QUICK)
    assert source.asked == []
    assert len(server.ranges) == 1


def test_one_artefact_of_two_platforms_is_fetched_once(store: Store, server: Faulty) -> None:
    both = [package(), package(platform=LINUX_ARM64)]
    paths = fetch(store, both, {"pypi": server.source}, patience=QUICK)
    assert set(paths) == set(both)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_refusal_that_may_pass_is_tried_again(store: Store, server: Faulty, status: int) -> None:
    server.behaviours = [answer(status), answer(status), whole]
    assert_fetched(store, package(), server)


def test_retry_after_is_followed_and_told(store: Store, server: Faulty) -> None:
    server.behaviours = [answer(429, Retry_After="0"), answer(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), whole]
    events: list[Event] = []
    assert_fetched(store, package(), server, events.append)
    warnings = [event.message for event in events if event.kind == "warning"]
    assert warnings == [
        "numpy: the server answered 429 Too Many Requests; trying again in 0 s",
        "numpy: the server answered 503 Service Unavailable; trying again in 0 s",
    ]


def test_a_broken_download_goes_on_where_it_stopped(store: Store, server: Faulty) -> None:
    server.behaviours = [reset_after(50_000), reset_after(100_000), whole]
    assert_fetched(store, package(), server)
    begins = [int(r.removeprefix("bytes=").rstrip("-")) if r else 0 for r in server.ranges]
    assert begins[0] == 0
    assert 0 < begins[1] <= 50_000
    assert begins[1] < begins[2] <= 150_000


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(store: Store, server: Faulty) -> None:
    server.behaviours = [reset_after(50_000), answer(500)]
    refused(store, package(), server)
    server.behaviours = [whole]
    assert_fetched(store, package(), server)
    assert server.ranges[-1] not in (None, "bytes=0-")


def test_a_server_without_ranges_starts_over(store: Store, server: Faulty) -> None:
    server.behaviours = [reset_after(50_000), without_ranges]
    assert_fetched(store, package(), server)


@pytest.mark.parametrize(
    "odd",
    [
        answer(416),
        lambda request: request.head(206, Content_Length=3, Content_Range="bytes 7-9/10"),
        lambda request: request.head(206, Content_Length=3),
    ],
    ids=["refused", "another-range", "unsaid-range"],
)
def test_an_odd_answer_to_a_range_starts_over(store: Store, server: Faulty, odd: Behaviour) -> None:
    server.behaviours = [reset_after(50_000), odd, whole]
    assert_fetched(store, package(), server)
    assert server.ranges[-1] is None


def test_a_body_that_ends_early_is_completed(store: Store, server: Faulty) -> None:
    server.behaviours = [short_by(1000), whole]
    assert_fetched(store, package(), server)


def test_a_silent_server_is_left_and_asked_again(store: Store, server: Faulty) -> None:
    server.behaviours = [silent_after(100_000), whole]
    assert_fetched(store, package(), server)


def test_a_server_that_only_drips_is_given_up(store: Store, server: Faulty) -> None:
    server.behaviours = [dripping]
    error = refused(store, package(), server)
    assert "bytes in" in error.message
    assert "mirror" in (error.hint or "")


def test_a_redirect_is_followed(store: Store, server: Faulty) -> None:
    server.behaviours = [redirect_to(f"{server.source.address}/elsewhere"), whole]
    assert_fetched(store, package(), server)


def test_wrong_bytes_once_are_fetched_again(store: Store, server: Faulty) -> None:
    server.behaviours = [other_bytes(DATA[:-1] + b"!"), whole]
    assert_fetched(store, package(), server)


def test_wrong_bytes_twice_are_refused_and_not_kept(store: Store, server: Faulty) -> None:
    wrong = DATA[:-1] + b"!"
    server.behaviours = [other_bytes(wrong)]
    error = refused(store, package(), server)
    assert error.message == "numpy 1.0 (numpy-1.0-py3-none-any.whl) is not what was locked"
    assert hashlib.sha256(DATA).hexdigest() in (error.details or "")
    assert hashlib.sha256(wrong).hexdigest() in (error.details or "")
    assert "lithify lock --upgrade-package numpy" in (error.hint or "")
    assert len(server.ranges) == 2
    assert leftovers(store) == []


@pytest.mark.parametrize("data", [DATA + b"more", DATA[:-4], b""], ids=["longer", "shorter", "empty"])
def test_another_size_is_refused(store: Store, server: Faulty, data: bytes) -> None:
    server.behaviours = [other_bytes(data)]
    error = refused(store, package(), server)
    assert f"expected {len(DATA)} bytes" in (error.details or "")
    assert leftovers(store) == []


def test_a_body_without_end_is_cut_at_the_locked_size(store: Store, server: Faulty) -> None:
    def endless(request: Request) -> None:
        request.head(200, Connection="close")
        while True:
            request.wfile.write(DATA)

    server.behaviours = [endless]
    assert "found    more" in (refused(store, package(), server).details or "")


def test_an_empty_artefact_can_be_fetched(store: Store, server: Faulty) -> None:
    server.behaviours = [other_bytes(b"")]
    empty = package(b"")
    assert fetch(store, [empty], {"pypi": server.source}, patience=QUICK)[empty].read_bytes() == b""


def test_a_damaged_partial_file_does_not_harm(store: Store, server: Faulty) -> None:
    partial = store.root / "tmp" / "partial" / package().sha256
    partial.parent.mkdir()
    for damage in (b"x" * 1000, b"x" * len(DATA), b"x" * (len(DATA) + 1)):
        store.artefact_path(package().sha256).unlink(missing_ok=True)
        partial.write_bytes(damage)
        assert_fetched(store, package(), server)


def test_a_missing_file_names_package_and_remedy(store: Store, server: Faulty) -> None:
    server.behaviours = [answer(404)]
    error = refused(store, package(), server)
    assert "404" in error.message
    assert "numpy-1.0" in error.message
    assert "lithify lock" in (error.hint or "")
    assert len(server.ranges) == 1


def test_one_missing_file_does_not_stop_the_others(store: Store, server: Faulty) -> None:
    def some(request: Request) -> None:
        if "lost" in request.path:
            answer(404)(request)
        else:
            whole(request)

    server.behaviours = [some]
    lost = [package(b"1", "lost-one"), package(b"2", "lost-two")]
    with pytest.raises(FetchError) as raised:
        fetch(store, [*lost, package()], {"pypi": server.source}, patience=QUICK)
    assert raised.value.message == "2 packages could not be fetched"
    assert "lost-one" in (raised.value.details or "")
    assert "lost-two" in (raised.value.details or "")
    assert store.artefact_path(package().sha256).exists()


def test_a_refused_connection_is_an_error_after_some_attempts(store: Store) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        events: list[Event] = []
        with pytest.raises(FetchError) as raised:
            fetch(
                store,
                [package(), package(b"another")],
                {"pypi": At(f"http://name:secret@127.0.0.1:{port}")},
                report=events.append,
                patience=QUICK,
            )
    text = f"{raised.value} {events}"
    assert "refused" in raised.value.message
    assert "secret" not in text


@pytest.mark.parametrize("address", ["gopher://127.0.0.1", "http://[::bad", "nonsense"])
def test_an_address_that_is_none_is_an_error(store: Store, address: str) -> None:
    with pytest.raises(FetchError):
        fetch(store, [package()], {"pypi": At(address)}, patience=QUICK)


def test_an_untrusted_certificate_says_what_to_do(
    store: Store, server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    import ssl
    import subprocess

    if not shutil.which("openssl"):
        pytest.skip("needs the openssl program to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    source = {"pypi": At(f"https://127.0.0.1:{server.server_port}")}
    with pytest.raises(FetchError) as raised:
        fetch(store, [package()], source, patience=QUICK)
    assert "certificate" in raised.value.message
    assert "SSL_CERT_FILE" in (raised.value.hint or "")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert fetch(store, [package()], source, patience=QUICK)[package()].read_bytes() == DATA


def test_files_of_this_machine_are_fetched_and_checked(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    source = {"pypi": At(folder.as_uri())}
    with pytest.raises(FetchError, match="cannot be read"):
        fetch(store, [package()], source, patience=QUICK)
    (folder / package().file).write_bytes(b"wrong")
    with pytest.raises(FetchError, match="not what was locked"):
        fetch(store, [package()], source, patience=QUICK)
    (folder / package().file).write_bytes(DATA)
    assert fetch(store, [package()], source, patience=QUICK)[package()].read_bytes() == DATA


@pytest.mark.parametrize("keep_size", [True, False], ids=["one-byte-changed", "truncated"])
def test_a_damaged_artefact_is_found_and_fetched_again(store: Store, server: Faulty, keep_size: bool) -> None:
    assert_fetched(store, package(), server)
    path = store.artefact_path(package().sha256)
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"!" if keep_size else DATA[:-1])
    events: list[Event] = []
    assert_fetched(store, package(), server, events.append)
    assert [event.task for event in events if event.kind == "warning"] == ["numpy"]


def test_offline_takes_the_cache_and_names_what_it_lacks(store: Store, server: Faulty) -> None:
    assert_fetched(store, package(), server)
    server.ranges.clear()
    assert fetch(store, [package()], {}, offline=True)[package()].read_bytes() == DATA
    with pytest.raises(FetchError) as raised:
        fetch(store, [package(), package(b"x", "dask")], {"pypi": server.source}, offline=True)
    assert raised.value.message.startswith("1 package not in the cache")
    assert "dask 1.0" in (raised.value.details or "")
    assert "--offline" in (raised.value.hint or "")
    assert server.ranges == []


def test_an_unknown_source_is_named(store: Store) -> None:
    with pytest.raises(InputError, match="`conda-forge`"):
        fetch(store, [package(source="conda-forge")], {"pypi": At("http://127.0.0.1")})


def test_a_source_that_gives_no_address_is_an_error(store: Store) -> None:
    class Forgetful:
        def addresses(self, packages: Sequence[Package], report: Report) -> Mapping[Package, str]:
            return {}

    with pytest.raises(FetchError, match="no address"):
        fetch(store, [package()], {"pypi": Forgetful()})


def test_two_sizes_for_one_hash_are_a_broken_lock(store: Store) -> None:
    with pytest.raises(InputError, match="two sizes"):
        fetch(store, [package(), package(name="other", size=3)], {})


def test_progress_counts_bytes_up_to_all(store: Store, server: Faulty) -> None:
    events: list[Event] = []
    assert_fetched(store, package(), server, events.append)
    assert [event.kind for event in events if event.kind != "advance"] == ["start", "finish"]
    assert all(event.unit == "bytes" and event.total == len(DATA) for event in events)
    assert events[-1].done == len(DATA)


def test_a_full_disk_is_told_as_such(store: Store, server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching.os, "fsync", full)  # type: ignore[attr-defined]
    with pytest.raises(HostError, match="no space is left"):
        fetch(store, [package()], {"pypi": server.source}, patience=QUICK)
    assert not store.artefact_path(package().sha256).exists()


def _fetch_in(root: Path, address: str, ready: object) -> None:
    ready.wait()  # type: ignore[attr-defined]
    fetch(open_store(root), [package()], {"pypi": At(address)}, patience=QUICK)


def test_two_builders_download_an_artefact_once(store: Store, server: Faulty) -> None:
    def slow(request: Request) -> None:
        begin = request.begin()
        for at in range(begin, len(DATA), 20_000):
            request.wfile.write(DATA[at : at + 20_000])
            time.sleep(0.02)

    server.behaviours = [slow]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    builders = [context.Process(target=_fetch_in, args=(store.root, server.source.address, ready)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert len(server.ranges) == 1
    assert_fetched(store, package(), server)


def test_a_killed_builder_leaves_a_store_that_the_next_one_uses(store: Store, server: Faulty) -> None:
    server.behaviours = [silent_after(100_000), whole]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(2)
    builder = context.Process(target=_fetch_in, args=(store.root, server.source.address, ready))
    builder.start()
    ready.wait(60)
    while not server.ranges:
        time.sleep(0.01)
    builder.kill()
    builder.join(60)
    assert_fetched(store, package(), server)


def test_what_is_shown_of_an_address_holds_no_secret() -> None:
    assert shown("https://name:secret@host:1/a/b.whl?signature=x#y") == "https://host:1/a/b.whl"


# -- sizes and credentials that are not in the lock ------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [whole, without_ranges])
def test_an_artefact_of_unknown_size_is_verified_by_its_sha256_alone(
    store: Store, server: Faulty, behaviour: Behaviour
) -> None:
    server.behaviours = [behaviour]
    wanted = package(source="conda/ours", size=0)
    paths = fetch(store, [wanted], {"conda/ours": server.source}, patience=QUICK)
    assert paths[wanted].read_bytes() == DATA
    server.ranges.clear()
    fetch(store, [wanted], {"conda/ours": server.source}, patience=QUICK)
    assert server.ranges == []


def test_a_download_of_unknown_size_goes_on_where_it_stopped(store: Store, server: Faulty) -> None:
    server.behaviours = [reset_after(100_000), whole]
    wanted = package(source="conda/ours", size=0)
    assert fetch(store, [wanted], {"conda/ours": server.source}, patience=QUICK)[wanted].read_bytes() == DATA
    assert server.ranges[1] is not None


def test_a_wrong_artefact_of_unknown_size_is_refused(store: Store, server: Faulty) -> None:
    wanted = package(b"other", source="conda/ours", size=0)
    with pytest.raises(FetchError, match="not what was locked"):
        fetch(store, [wanted], {"conda/ours": server.source}, patience=QUICK)
    assert not store.artefact_path(wanted.sha256).exists()


def test_an_artefact_of_unknown_size_comes_from_a_folder_too(store: Store, tmp_path: Path) -> None:
    wanted = package(source="conda/ours", size=0)
    (tmp_path / wanted.file).write_bytes(DATA)
    paths = fetch(store, [wanted], {"conda/ours": At(tmp_path.as_uri())}, patience=QUICK)
    assert paths[wanted].read_bytes() == DATA


def test_a_missing_artefact_is_named_with_its_channel_and_an_address_without_secrets(
    store: Store, server: Faulty
) -> None:
    server.behaviours = [lambda request: request.head(404)]
    address = server.source.address.replace("://", "://user:secret@") + "/t/tk-secret/ours"
    with pytest.raises(FetchError) as raised:
        fetch(store, [package(source="conda/ours")], {"conda/ours": At(address)}, patience=QUICK)
    assert "numpy 1.0 of conda/ours cannot be fetched" in raised.value.message
    assert f"{server.source.address}/ours/numpy" in raised.value.message
    assert "--upgrade-package" in (raised.value.hint or "") and "secret" not in str(raised.value)


def test_rattlers_credentials_are_shown_to_their_host_and_no_other(
    store: Store, server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def note(request: Request) -> None:
        asked.append((request.path, request.headers.get("Authorization")))
        whole(request)

    server.behaviours = [note]
    stored = tmp_path / "auth.json"
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(stored))
    for number, entry in enumerate(({"BearerToken": "tok"}, {"CondaToken": "ct"}, None)):
        stored.write_text(json.dumps({"127.0.0.1": entry} if entry else {"elsewhere.example": {"BearerToken": "tok"}}))
        wanted = package(name=f"p{number}")
        fetch(open_store(tmp_path / f"store{number}"), [wanted], {"pypi": server.source}, patience=QUICK)
    assert [authorization for _, authorization in asked] == ["Bearer tok", None, None]
    assert [path.startswith("/t/ct/") for path, _ in asked] == [False, True, False]


def test_a_debian_archives_folder_is_not_taken_for_a_token() -> None:
    address = "https://h.example/debian/pool/main/t/tree/tree.deb"
    assert shown(address) == address
