"""A package index on this machine, of wheels made for the test (https://peps.python.org/pep-0691/)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from packaging.utils import canonicalize_name


class LocalIndex:
    """Serves the wheels of a folder; what is in the folder at the moment of the question counts."""

    def __init__(self, folder: Path, *, json_api: bool = True, sizes: bool = True, hashes: bool = True) -> None:
        self.folder, self.json_api, self.sizes, self.hashes = folder, json_api, sizes, hashes
        self.address = ""
        self.asked: list[str] = []

    def project(self, name: str) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.whl") if canonicalize_name(p.name.split("-")[0]) == name)

    def page(self, name: str) -> tuple[str, bytes]:
        files = []
        lines = []
        for path in self.project(name):
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            entry = {
                "filename": path.name,
                "url": f"/files/{path.name}",
                "hashes": {"sha256": sha256} if self.hashes else {},
            }
            if self.sizes:
                entry["size"] = len(data)  # type: ignore[assignment]
            files.append(entry)
            anchor = f"#sha256={sha256}" if self.hashes else ""
            lines.append(f'<a href="/files/{path.name}{anchor}">{path.name}</a>')
        if self.json_api:
            document = {"meta": {"api-version": "1.1"}, "name": name, "files": files, "versions": []}
            return "application/vnd.pypi.simple.v1+json", json.dumps(document).encode()
        return "text/html", ("<!DOCTYPE html><html><body>" + "\n".join(lines) + "</body></html>").encode()


@contextlib.contextmanager
def serving(index: LocalIndex) -> Iterator[LocalIndex]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            index.asked.append(f"{self.command} {self.path}")
            parts = self.path.strip("/").split("/")
            if parts[0] == "simple" and len(parts) == 2 and index.project(parts[1]):
                self.answer(*index.page(parts[1]))
            elif parts[0] == "files" and (index.folder / parts[-1]).is_file():
                self.answer("application/octet-stream", (index.folder / parts[-1]).read_bytes())
            else:
                self.send_error(404)

        def answer(self, kind: str, body: bytes) -> None:
            start, end = 0, len(body)
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes="):
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, end = (int(first), int(last) + 1 if last else end) if first else (max(0, end - int(last)), end)
            end = min(end, len(body))
            self.send_response(206 if asked else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "no-store")
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[start:end])

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    index.address = f"http://127.0.0.1:{server.server_address[1]}/simple"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
