"""Conda packages for tests: honest ones of every format there is, and ones that lie as they are told to.

Nothing in them floats: the same package gives the same bytes.

- https://conda.org/learn/specifications/package-formats/ (CEP 35)
- https://conda.org/learn/ceps/cep-0034/ (what is in ``info/``)
"""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import posixpath
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What builders write instead of the prefix: 255 bytes, as conda-build's.
PLACEHOLDER = ("/opt/conda/conda-bld/thing_1700000000000/_h_env_placehold" + "_placehold" * 20)[:255]
# A name alone in a line of `info/has_prefix` has this one (conda-build before 2.0).
OLD_PLACEHOLDER = "/opt/anaconda1anaconda2" + "anaconda3"
MTIME = 1_700_000_000
CONDA, TAR_BZ2 = ".conda", ".tar.bz2"
NOARCH, LINUX_64, LINUX_AARCH64 = "noarch", "linux-64", "linux-aarch64"

Row = dict[str, Any]
_T = TypeVar("_T")


def _same(value: _T) -> _T:
    return value


# -- what is in a package ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file; with `placeholder`, the prefix replaces that text in it, in C strings if it is `binary`."""

    data: bytes
    mode: int = 0o644
    placeholder: str | None = None
    binary: bool = False
    no_link: bool = False


@dataclass(frozen=True)
class Symlink:
    """A symbolic link, to a file or a folder or nowhere."""

    target: str


@dataclass(frozen=True)
class Hardlink:
    """A hard link in the archive to another of its paths; a file like others once it is installed."""

    to: str


@dataclass(frozen=True)
class Folder:
    """A folder of its own, as ``path_type: directory`` allows."""

    mode: int = 0o755


Member = File | Symlink | Hardlink | Folder


def text(content: str, mode: int = 0o644) -> File:
    """A text file, with a placeholder if `PLACEHOLDER` is in it."""
    return File(content.encode(), mode, PLACEHOLDER if PLACEHOLDER in content else None)


def binary(data: bytes, mode: int = 0o755) -> File:
    """A file of machine code with a placeholder."""
    return File(data, mode, PLACEHOLDER, binary=True)


@dataclass(frozen=True)
class Lies:
    """What is changed behind a package's back, each before the next is made of it."""

    paths: Callable[[list[Row]], list[Row]] = _same  # the rows of `info/paths.json`
    index: Callable[[Row], Row] = _same
    info: Callable[[dict[str, bytes]], dict[str, bytes]] = _same
    members: Callable[[list[tuple[str, Member]]], list[tuple[str, Member]]] = _same  # the archive, without `info/`
    parts: Callable[[dict[str, bytes]], dict[str, bytes]] = _same  # the members of a `.conda`'s zip
    archive: Callable[[bytes], bytes] = _same


HONEST = Lies()


@dataclass(frozen=True)
class CondaPackage:
    """A package to write. `info` are more files of ``info/`` (their names start with it)."""

    name: str
    version: str = "1.0"
    files: Mapping[str, Member] = field(default_factory=dict)
    build: str = "0"
    subdir: str = NOARCH
    depends: Sequence[str] = ()
    constrains: Sequence[str] = ()
    noarch: str | None = None  # "python" or "generic"; `subdir` is noarch then
    entry_points: Sequence[str] = ()
    build_number: int = 0
    license: str = "BSD-3-Clause"
    index: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, bytes] = field(default_factory=dict)
    mtime: int = MTIME
    old: bool = False  # only `info/files`, `info/has_prefix` and `info/no_link`, no `info/paths.json`
    tar_format: Literal[0, 1, 2] = tarfile.GNU_FORMAT

    @property
    def stem(self) -> str:
        """``NAME-VERSION-BUILD``."""
        return f"{self.name}-{self.version}-{self.build}"

    def with_files(self, files: Mapping[str, Member]) -> CondaPackage:
        """The package with more files."""
        return replace(self, files={**self.files, **files})

    def path(self, channel: Path, container: str = CONDA) -> Path:
        """Where `write` puts it."""
        return channel / self.subdir / (self.stem + container)

    @cached_property
    def _digests(self) -> dict[str, tuple[str, int]]:
        return {
            path: (hashlib.sha256(member.data).hexdigest(), len(member.data))
            for path, member in self.files.items()
            if isinstance(member, File)
        }

    def rows(self) -> list[Row]:
        """The rows of ``info/paths.json``. A link has the digest of the file that it leads to, as conda-build's."""
        rows = []
        for path in sorted(self.files):
            member = self.files[path]
            row: Row = {"_path": path}
            digest, size = self._digests.get(self._file_of(path), (hashlib.sha256(b"").hexdigest(), 0))
            match member:
                case Folder():
                    rows.append({"_path": path, "path_type": "directory"})
                    continue
                case Symlink():
                    row["path_type"] = "softlink"
                case _:
                    row["path_type"] = "hardlink"
            row |= {"sha256": digest, "size_in_bytes": size}
            if isinstance(member, File):
                if member.placeholder is not None:
                    row["prefix_placeholder"] = member.placeholder
                    row["file_mode"] = "binary" if member.binary else "text"
                if member.no_link:
                    row["no_link"] = True
            rows.append(row)
        return rows

    def _file_of(self, path: str) -> str:
        """The path of the file that a path is, or leads to."""
        for _ in range(8):
            match self.files.get(path):
                case Symlink(target):
                    path = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
                case Hardlink(to):
                    path = to
                case _:
                    break
        return path

    def index_document(self) -> Row:
        """``info/index.json``."""
        document: Row = {
            "arch": {LINUX_64: "x86_64", LINUX_AARCH64: "aarch64"}.get(self.subdir),
            "build": self.build,
            "build_number": self.build_number,
            "constrains": list(self.constrains),
            "depends": list(self.depends),
            "license": self.license,
            "name": self.name,
            "platform": None if self.subdir == NOARCH else "linux",
            "subdir": self.subdir,
            "timestamp": self.mtime * 1000,
            "version": self.version,
        }
        if self.noarch:
            document["noarch"] = self.noarch
        return {**document, **self.index}

    def info_files(self, lies: Lies = HONEST) -> dict[str, bytes]:
        """The files of ``info/``."""
        paths = [path for path in sorted(self.files) if not isinstance(self.files[path], Folder)]
        prefixed = [(p, m) for p in paths if isinstance(m := self.files[p], File) and m.placeholder is not None]
        unlinked = [p for p in paths if isinstance(m := self.files[p], File) and m.no_link]
        info = {
            "info/about.json": _json({"license": self.license, "summary": self.name}),
            "info/files": "".join(f"{path}\n" for path in paths).encode(),
            "info/index.json": _json(lies.index(self.index_document())),
        }
        if prefixed:
            info["info/has_prefix"] = "".join(_has_prefix(path, member) for path, member in prefixed).encode()
        if unlinked:
            info["info/no_link"] = "".join(f"{path}\n" for path in unlinked).encode()
        if not self.old:
            info["info/paths.json"] = _json({"paths": lies.paths(self.rows()), "paths_version": 1})
        if self.noarch:
            noarch: Row = {"type": self.noarch}
            if self.entry_points:
                noarch["entry_points"] = list(self.entry_points)
            info["info/link.json"] = _json({"noarch": noarch, "package_metadata_version": 1})
        return lies.info({**info, **self.info})

    def archive(self, container: str = CONDA, *, level: int = 1, lies: Lies = HONEST) -> bytes:
        """The package's bytes, compressed by zstd's or bzip2's ``level``."""
        info: list[tuple[str, Member]] = [(path, File(data)) for path, data in sorted(self.info_files(lies).items())]
        # Hard links after what they lead to.
        ordered = sorted(self.files.items(), key=lambda item: (isinstance(item[1], Hardlink), item[0]))
        members = lies.members(ordered)
        if container == TAR_BZ2:
            return lies.archive(bz2.compress(self._tar([*info, *members]), max(1, min(level, 9))))
        parts = {
            "metadata.json": b'{"conda_pkg_format_version": 2}',
            f"pkg-{self.stem}.tar.zst": zstd.compress(self._tar(members), level),
            f"info-{self.stem}.tar.zst": zstd.compress(self._tar(info), level),
        }
        return lies.archive(zipped(lies.parts(parts)))

    def write(self, channel: Path, container: str = CONDA, *, level: int = 1, lies: Lies = HONEST) -> Path:
        """Write it into the folder of its platform in ``channel``."""
        path = self.path(channel, container)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.archive(container, level=level, lies=lies))
        return path

    def _tar(self, members: Iterable[tuple[str, Member]]) -> bytes:
        blocks = []
        for path, member in members:
            info = tarfile.TarInfo(path)
            info.mtime, data = self.mtime, b""
            match member:
                case File():
                    data, info.mode = member.data, member.mode
                case Symlink():
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, member.target, 0o777
                case Hardlink():
                    info.type, info.linkname = tarfile.LNKTYPE, member.to
                case Folder():
                    info.type, info.mode = tarfile.DIRTYPE, member.mode
            info.size = len(data)
            blocks += [info.tobuf(self.tar_format), data, bytes(-len(data) % 512)]
        return b"".join([*blocks, bytes(1024)])


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _has_prefix(path: str, member: File) -> str:
    if member.placeholder == OLD_PLACEHOLDER and not member.binary:
        return f"{path}\n"
    return f'"{member.placeholder}" {"binary" if member.binary else "text"} "{path}"\n'


def zipped(parts: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive without a time in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            member = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            member.compress_type = compression
            archive.writestr(member, data)
    return file.getvalue()


# -- packages that lie ---------------------------------------------------------------------------------------------


def changed_row(path: str, **changes: Any) -> Lies:
    """``info/paths.json`` says something else of ``path``."""
    return Lies(paths=lambda rows: [{**row, **changes} if row["_path"] == path else row for row in rows])


def renamed(path: str, to: str) -> Lies:
    """``path`` has another name everywhere: one that leads out of the prefix, for instance."""
    old, new = f"{path}\n".encode(), f"{to}\n".encode()
    return Lies(
        paths=changed_row(path, _path=to).paths,
        info=lambda info: {**info, "info/files": info["info/files"].replace(old, new)},
        members=lambda members: [(to if name == path else name, member) for name, member in members],
    )


def without(path: str) -> Lies:
    """``path`` is listed, but not there."""
    return Lies(members=lambda members: [one for one in members if one[0] != path])


def with_members(*more: tuple[str, Member]) -> Lies:
    """The archive has members more, perhaps of the same name, that nothing lists."""
    return Lies(members=lambda members: [*members, *more])


def listed_twice(path: str) -> Lies:
    """``path`` has two rows in ``info/paths.json``, and two members in the archive."""
    return Lies(
        paths=lambda rows: [*rows, *(row for row in rows if row["_path"] == path)],
        members=lambda members: [*members, *(one for one in members if one[0] == path)],
    )


def cut(keep: float = 0.5) -> Lies:
    """The archive ends before its end."""
    return Lies(archive=lambda data: data[: int(len(data) * keep)])


def part_cut(kind: str, keep: float = 0.5) -> Lies:
    """One part of a whole zip (``pkg`` or ``info``) ends before its end."""
    return Lies(
        parts=lambda parts: {
            name: data[: int(len(data) * keep)] if name.startswith(f"{kind}-") else data for name, data in parts.items()
        }
    )


def zeros(size: int) -> bytes:
    """A zstd frame of ``size`` (a multiple of 1 MiB) zero bytes, some 30,000 times smaller than they are."""
    compressor = zstd.ZstdCompressor(level=1)
    chunk = bytes(1 << 20)
    return b"".join([*(compressor.compress(chunk) for _ in range(size >> 20)), compressor.flush()])


def zstd_bomb(size: int) -> Lies:
    """The ``pkg`` part unpacks to a file ``bomb`` of ``size`` zeros that nothing lists."""
    header = tarfile.TarInfo("bomb")
    header.size = size
    frames = zstd.compress(header.tobuf(tarfile.GNU_FORMAT)) + zeros(size) + zstd.compress(bytes(1024))
    return Lies(parts=lambda parts: {name: frames if name.startswith("pkg-") else data for name, data in parts.items()})


def zip_bomb(size: int) -> Lies:
    """The zip's ``info`` part is deflated, against the format, and unpacks to ``size`` zeros."""

    def archive(data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as honest:
            parts = {name: honest.read(name) for name in honest.namelist()}
        for name in parts:
            if name.startswith("info-"):
                parts[name] = bytes(size)
        return zipped(parts, zipfile.ZIP_DEFLATED)

    return Lies(archive=archive)


def victim(name: str = "victim") -> CondaPackage:
    """A small package with something of everything, for `hostile` to spoil."""
    return CondaPackage(
        name,
        files={
            "bin/victim": text(f"#!{PLACEHOLDER}/bin/sh\necho victim\n", 0o755),
            "share/victim/data.bin": File(hashlib.shake_256(b"victim").digest(100_000)),
            "share/victim/text": File(b"victim\n"),
            "share/victim/link": Symlink("text"),
        },
        build="h0_0",
        subdir=LINUX_64,
    )


def hostile(name: str = "victim") -> dict[str, tuple[CondaPackage, Lies]]:
    """What is wrong, and a package of ``name`` with just that wrong: ``package.write(channel, lies=lies)``."""
    honest = victim(name)
    path = "share/victim/text"
    short = honest.with_files({"lib/short.bin": File(b"\x7fELF\0/short/one\0rest\0", 0o755, "/short/one", binary=True)})
    return {
        "wrong sha256": (honest, changed_row(path, sha256="0" * 64)),
        "wrong size": (honest, changed_row(path, size_in_bytes=1)),
        "path with ..": (honest, renamed(path, "../escaped")),
        "path with .. inside": (honest, renamed(path, "share/../../escaped")),
        "absolute path": (honest, renamed(path, "/tmp/escaped")),
        "path with a backslash": (honest, renamed(path, "share\\..\\..\\escaped")),
        "empty path": (honest, renamed(path, "")),
        "path of a line": (honest, renamed(path, "share/two\nlines")),
        "path into conda-meta": (honest, renamed(path, "conda-meta/history")),
        "member with ..": (honest, with_members(("../escaped", File(b"escaped\n")))),
        "symlink out": (honest.with_files({"share/victim/out": Symlink("../../../../escaped")}), HONEST),
        "absolute symlink": (honest.with_files({"share/victim/out": Symlink("/etc/passwd")}), HONEST),
        "write through a symlink": (
            honest.with_files({"share/out": Symlink("../../escaped"), "share/out/file": File(b"escaped\n")}),
            HONEST,
        ),
        "hard link out": (honest, with_members(("share/victim/hard", Hardlink("../../../etc/passwd")))),
        "duplicate path": (honest, listed_twice(path)),
        "two members of one path": (honest, with_members((path, File(b"another\n")))),
        "file that is a folder": (honest.with_files({f"{path}/below": File(b"below\n")}), HONEST),
        "missing file": (honest, without(path)),
        "unlisted file": (honest, with_members(("share/unlisted", File(b"unlisted\n")))),
        "row without a path": (honest, Lies(paths=lambda rows: [*rows, {"path_type": "hardlink"}])),
        "unknown path type": (honest, changed_row(path, path_type="device")),
        "unknown file mode": (honest, changed_row("bin/victim", file_mode="wide")),
        "paths.json is no JSON": (honest, Lies(info=lambda info: {**info, "info/paths.json": b"{"})),
        "paths.json is a list": (honest, Lies(info=lambda info: {**info, "info/paths.json": b"[]"})),
        "no index.json": (honest, Lies(info=lambda info: {k: v for k, v in info.items() if k != "info/index.json"})),
        "no info": (honest, Lies(info=lambda info: {})),
        "index of another package": (honest, Lies(index=lambda index: {**index, "name": "other"})),
        "short binary placeholder": (short, HONEST),
        "placeholder that is not there": (honest, changed_row(path, prefix_placeholder=PLACEHOLDER, file_mode="text")),
        "cut": (honest, cut()),
        "cut at its end": (honest, Lies(archive=lambda data: data[:-5])),
        "empty": (honest, cut(0)),
        "cut pkg": (honest, part_cut("pkg")),
        "cut info": (honest, part_cut("info")),
        "no pkg": (
            honest,
            Lies(parts=lambda parts: {name: data for name, data in parts.items() if not name.startswith("pkg-")}),
        ),
        "future format": (
            honest,
            Lies(parts=lambda parts: {**parts, "metadata.json": b'{"conda_pkg_format_version": 3}'}),
        ),
        "not a zip": (honest, Lies(archive=lambda data: b"<!DOCTYPE html>" * 100)),
        "zstd bomb": (honest, zstd_bomb(1 << 30)),
        "zip bomb": (honest, zip_bomb(1 << 26)),
    }
