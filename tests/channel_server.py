"""Channels over HTTP on the loopback, as a plain static server has them, with what goes wrong on demand.

    with serving(small()) as server:
        server.faults["noarch/repodata.json.zst"] = Fault(status=404)
        solve([server.channel("conda-forge")], …)
        assert server.asked("repodata")

Ranges (RFC 9110, section 14), ETag, Last-Modified and their conditions are answered.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fnmatch
import http.server
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

_KINDS = {".json": "application/json", ".zst": "application/zstd", ".bz2": "application/x-bzip2"}
_PIECE = 1 << 18


@dataclass
class Fault:
    """What is wrong with a path.

    A ``status`` replaces the answer. ``body`` replaces the bytes, ``flip`` changes the byte at that place. With
    ``truncate`` the answer says that the file has only so many bytes; with ``die`` it promises all, and the connection
    ends after so many. ``wait`` is a pause before the answer in seconds. After ``times`` requests all is well.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    flip: int | None = None
    truncate: int | None = None
    die: int | None = None
    wait: float = 0
    times: int | None = None


@dataclass(frozen=True)
class Request:
    """A request that came in: its path without a conda token, and the token."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    token: str | None = None


@dataclass(frozen=True)
class Login:
    """What a request must show: a name and password, a bearer token, or conda's token in the path (``/t/TOKEN/``)."""

    basic: tuple[str, str] | None = None
    bearer: str | None = None
    token: str | None = None

    def fits(self, authorization: str, token: str | None) -> bool:
        """Whether one of them was shown."""
        if self.basic is not None:
            encoded = base64.b64encode(":".join(self.basic).encode()).decode()
            if authorization == f"Basic {encoded}":
                return True
        if self.bearer is not None and authorization == f"Bearer {self.bearer}":
            return True
        return self.token is not None and token == self.token


@dataclass
class ChannelServer:
    """A folder that is served, and what is asked of it. All of it may be changed while it runs.

    ``faults`` are by path below the folder, or the end of one, or a pattern of one; ``logins`` by the first part of
    the path (the channel's name), or ``*``.
    """

    folder: Path
    faults: dict[str, Fault] = field(default_factory=dict)
    logins: dict[str, Login] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    ranges: bool = True
    etags: bool = True
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def channel(self, name: str, *, token: str | None = None, user: tuple[str, str] | None = None) -> str:
        """The address of a channel, with conda's token or a name and password in it if it is to have them."""
        address = self.address
        if user is not None:
            quoted = ":".join(urllib.parse.quote(part, safe="") for part in user)
            address = address.replace("://", f"://{quoted}@")
        return f"{address}/t/{token}/{name}" if token else f"{address}/{name}"

    def asked(self, part: str = "") -> list[str]:
        """The paths, in order, that were asked for and have ``part`` in them."""
        with self._lock:
            return [request.path for request in self.log if part in request.path]

    def requests(self, part: str = "") -> list[Request]:
        """The requests whose paths have ``part`` in them."""
        with self._lock:
            return [request for request in self.log if part in request.path]

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self.log.clear()

    def _noted(self, request: Request) -> None:
        with self._lock:
            self.log.append(request)

    def _fault(self, path: str) -> Fault | None:
        with self._lock:
            for pattern, fault in self.faults.items():
                if path == pattern or path.endswith("/" + pattern) or fnmatch.fnmatchcase(path, pattern):
                    if fault.times is not None:
                        if fault.times <= 0:
                            continue
                        fault.times -= 1
                    return fault
        return None


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ChannelServer]:
    """Serve the channels in ``folder`` on a free port of 127.0.0.1."""
    served = ChannelServer(folder)

    class Handler(_Handler):
        channels = served

    server = _Server(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # A solver opens many connections at once.
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    channels: ChannelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, token = self._path()
        fault = self.channels._fault(path)
        if fault is not None and fault.wait:
            threading.Event().wait(fault.wait)
        login = self.channels.logins.get(path.partition("/")[0], self.channels.logins.get("*"))
        self._token, self._asked = token, path
        if login is not None and not login.fits(self.headers.get("Authorization", ""), token):
            kind = "Bearer" if login.bearer is not None else "Basic"
            self._refuse(HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": f'{kind} realm="channels"'})
        elif fault is not None and fault.status is not None:
            self._refuse(fault.status, fault.headers, fault.body)
        else:
            self._serve(path, fault or Fault())

    def _path(self) -> tuple[str, str | None]:
        parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(self.path).path.split("/") if part]
        token = None
        if len(parts) > 1 and parts[0] == "t":
            token, parts = parts[1], parts[2:]
        return "/".join(parts), token

    def _note(self, status: int) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.channels._noted(Request(self.command, self._asked, headers, int(status), self._token))

    def _refuse(self, status: int, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> None:
        self._note(status)
        # Not a number alone: that is JSON, in which conda looks for a reason.
        content = f"{int(status)} {HTTPStatus(status).phrase}\n".encode() if body is None else body
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _serve(self, path: str, fault: Fault) -> None:
        file = self.channels.folder / path
        if ".." in path.split("/") or not file.is_file():
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        stat = file.stat()
        size = stat.st_size if fault.body is None else len(fault.body)
        if fault.truncate is not None:
            size = min(size, fault.truncate)
        headers = {"Last-Modified": email.utils.formatdate(stat.st_mtime, usegmt=True)}
        etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
        if self.channels.etags:
            headers["ETag"] = etag
        if self._unchanged(etag, int(stat.st_mtime)):
            self._note(HTTPStatus.NOT_MODIFIED)
            self.send_response(HTTPStatus.NOT_MODIFIED)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            return
        start, end, status = 0, size, HTTPStatus.OK
        if self.channels.ranges:
            headers["Accept-Ranges"] = "bytes"
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes=") and "," not in asked and self.headers.get("If-Range", etag) == etag:
                start, end, status = _range(asked.removeprefix("bytes="), size)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._refuse(status, {"Content-Range": f"bytes */{size}"})
            return
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._note(status)
        self.send_response(status)
        for name, value in {**headers, **fault.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", _KINDS.get(file.suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.die is not None:
            end = min(end, start + fault.die)
            self.close_connection = True
        if fault.body is not None or fault.flip is not None:
            data = bytearray(fault.body if fault.body is not None else file.read_bytes())
            if fault.flip is not None and data:
                data[fault.flip % len(data)] ^= 0xFF
            self.wfile.write(bytes(data[start:end]))
        else:
            with open(file, "rb") as opened:
                self._copy(opened, start, end)

    def _copy(self, file: BinaryIO, start: int, end: int) -> None:
        file.seek(start)
        while start < end:
            piece = file.read(min(_PIECE, end - start))
            if not piece:
                break
            self.wfile.write(piece)
            start += len(piece)

    def _unchanged(self, etag: str, modified: int) -> bool:
        """RFC 9110, section 13."""
        if (tags := self.headers.get("If-None-Match")) is not None:
            return self.channels.etags and (tags.strip() == "*" or etag in tags)
        if (since := self.headers.get("If-Modified-Since")) is not None:
            try:
                return modified <= email.utils.parsedate_to_datetime(since).timestamp()
            except ValueError:
                return False
        return False


def _range(asked: str, size: int) -> tuple[int, int, HTTPStatus]:
    """The first byte, the one after the last, and the status of an answer to one range."""
    first, _, last = asked.partition("-")
    try:
        if first:
            start, end = int(first), min(int(last) + 1 if last else size, size)
        else:
            start, end = max(0, size - int(last)), size
    except ValueError:
        return 0, size, HTTPStatus.OK
    if start >= end:
        return 0, size, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    return start, end, HTTPStatus.PARTIAL_CONTENT
