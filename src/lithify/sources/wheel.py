"""A wheel's files at their final places.

What the binary distribution format specification says of installing a wheel
(https://packaging.python.org/en/latest/specifications/binary-distribution-format/), as a pure function: paths,
modes and bytes come out, nothing is written. The layout is a virtual environment's, as pip and uv know it.

Nothing in the archive is believed. A member is used only under a plain relative name, as a regular file, with the
bytes that RECORD announces; whatever differs is an error that names the wheel.

Small members are read with one call and inflated in one go: `zipfile` costs more than the inflating for them, and
an environment holds tens of thousands. Large ones are streamed, so that memory stays flat.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import os
import posixpath
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from installer.records import InvalidRecordEntry, parse_record_file
from installer.scripts import Script
from installer.utils import parse_entrypoints, parse_metadata_file
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from zlib_ng import zlib_ng

from lithify.errors import LithifyError
from lithify.lockfile import Package
from lithify.sources import File, Target

INSTALLER = b"lithify\n"
SMALL = 4 << 20
_CHUNK = 1 << 20
_MAXIMUM_METADATA = 64 << 20
# deflate reaches 1032:1 on zeros; the widest real wheel seen is under 30:1 as a whole.
_MAXIMUM_RATIO = 200
_RATIO_FREE = 256 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_HASHES = {"sha256": 32, "sha384": 48, "sha512": 64}
_SCHEMES = ("purelib", "platlib", "headers", "scripts", "data")
# What `zipfile` and zlib raise for a broken archive, and what reading text out of it can raise.
_BROKEN = (
    zipfile.BadZipFile,
    cast(type[Exception], zlib_ng.error),
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
    OSError,
)


@dataclass(frozen=True)
class _Announced:
    """What RECORD says of a file: the hash's algorithm and digest, as it spells them, and the size."""

    spelled: str
    algorithm: str
    digest: bytes
    size: int | None


def wheel_files(package: Package, artefact: Path, target: Target) -> Iterator[File]:
    """The files that installing the wheel ``artefact`` for ``target`` gives, RECORD and INSTALLER included.

    Everything that needs no content is checked before the first file comes; a file's content is checked against
    RECORD while it is read.

    Raises:
        LithifyError: for a wheel that is broken, lies about itself, is not ``package``, or would write outside the
            prefix. A stream that a file's ``content`` opens raises it too.
    """
    wheel = _Wheel(package, artefact)
    try:
        yield from wheel.files(target)
    except _BROKEN as error:
        raise wheel.error(f"broken: {error}") from error


class _Wheel:
    """An open wheel, with what is needed to say what is wrong with it."""

    def __init__(self, package: Package, artefact: Path) -> None:
        self.label = package.file
        self.package = package
        try:
            self.zip = zipfile.ZipFile(artefact)
            assert self.zip.fp is not None
            self.descriptor = self.zip.fp.fileno()
            self.bytes = os.fstat(self.descriptor).st_size
            self.members = self.checked_members()
        except _BROKEN as error:
            raise self.error(f"not a readable zip archive: {error}") from error

    def error(self, message: str) -> LithifyError:
        return LithifyError(
            f"wheel {self.label}: {message}",
            hint=f"{self.package.name} {self.package.version} cannot be used as it is published; "
            "require another version of it",
        )

    # -- the archive ---------------------------------------------------------------------------------------

    def checked_members(self) -> dict[str, zipfile.ZipInfo]:
        """The files of the archive by name: each name plain and relative, each one regular, none twice."""
        members: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for info in self.zip.infolist():
            name = info.orig_filename
            is_folder = name.endswith("/")
            self.check_name(name[:-1] if is_folder else name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
                what = "a symbolic link" if kind == stat.S_IFLNK else "no regular file"
                raise self.error(f"`{name}` is {what}")
            if is_folder:
                continue
            if info.flag_bits & 0x1:
                raise self.error(f"`{name}` is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self.error(f"`{name}` is compressed in a way that wheels do not use ({info.compress_type})")
            if name in members:
                raise self.error(f"holds `{name}` twice")
            if not (0 <= info.header_offset < self.bytes and info.compress_size <= self.bytes):
                raise self.error(f"`{name}` lies outside of the archive")
            if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
                raise self.error(f"`{name}` is stored with two sizes")
            members[name] = info
            total += info.file_size
        if total > _MAXIMUM_RATIO * self.bytes + _RATIO_FREE:
            raise self.error(f"{self.bytes:,} bytes claim to hold {total:,}: a decompression bomb")
        for name in members:
            parent = name.rpartition("/")[0]
            while parent:
                if parent in members:
                    raise self.error(f"`{parent}` is a file and a folder")
                parent = parent.rpartition("/")[0]
        return members

    def check_name(self, name: str) -> None:
        """Refuse any name that could mean a place other than the one it spells."""
        if _is_plain(name):
            return
        if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in name):
            raise self.error(f"{name!r} holds a control character")
        if "\\" in name:
            raise self.error(f"{name!r} holds a backslash")
        if name.startswith("/"):
            raise self.error(f"{name!r} is an absolute path")
        parts = name.split("/")
        if ".." in parts:
            raise self.error(f"{name!r} leads outside")
        if "" in parts or "." in parts:
            raise self.error(f"{name!r} is no plain path")
        if len(name.encode()) > 2048 or any(len(part.encode()) > 255 for part in parts):
            raise self.error(f"{name[:80]!r}... is longer than a file name can be")

    def extent(self, info: zipfile.ZipInfo) -> tuple[int, bytes]:
        """Where a member's compressed bytes begin, and as many of them as came with the local header."""
        name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        head = _LOCAL_HEADER.size + len(name)
        data = os.pread(self.descriptor, head + 64 + min(info.compress_size, _CHUNK), info.header_offset)
        fields = _LOCAL_HEADER.unpack_from(data)
        if fields[0] != b"PK\x03\x04" or data[_LOCAL_HEADER.size : head] != name or fields[9] != len(name):
            raise self.error(f"`{info.orig_filename}` has two names in the archive")
        start = head + int(fields[10])
        return info.header_offset + start, data[start : start + info.compress_size]

    def whole(self, info: zipfile.ZipInfo) -> bytes:
        """A member's bytes, never more of them than the archive's directory says."""
        start, data = self.extent(info)
        if len(data) < info.compress_size:
            data = os.pread(self.descriptor, info.compress_size, start)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            inflate = zlib_ng.decompressobj(-15)
            data = inflate.decompress(data, info.file_size + 1)
            if len(data) == info.file_size and not inflate.eof:
                data += inflate.decompress(inflate.unconsumed_tail, 1)
            if not inflate.eof:
                raise self.wrong_size(info)
        if len(data) != info.file_size:
            raise self.wrong_size(info)
        return data

    def wrong_size(self, info: zipfile.ZipInfo) -> LithifyError:
        return self.error(f"`{info.orig_filename}` is not of the {info.file_size} bytes that it claims")

    def verified(self, info: zipfile.ZipInfo, announced: _Announced) -> bytes:
        """A member's bytes, checked against RECORD."""
        try:
            data = self.whole(info)
        except _BROKEN as error:
            raise self.error(f"`{info.orig_filename}` cannot be read: {error}") from error
        self.compare(info, announced, hashlib.new(announced.algorithm, data).digest())
        return data

    def compare(self, info: zipfile.ZipInfo, announced: _Announced, digest: bytes) -> None:
        if digest != announced.digest:
            raise self.error(f"`{info.orig_filename}` is not what RECORD says it is")

    def open(self, info: zipfile.ZipInfo, announced: _Announced) -> BinaryIO:
        """A stream of a member's bytes that raises when they are not what RECORD says."""
        if info.file_size <= SMALL:
            return io.BytesIO(self.verified(info, announced))
        try:
            return io.BufferedReader(_Verifying(self, info, announced), _CHUNK)
        except _BROKEN as error:
            raise self.error(f"`{info.orig_filename}` cannot be read: {error}") from error

    # -- metadata ------------------------------------------------------------------------------------------

    def dist_info(self) -> str:
        """The name of the one ``.dist-info`` folder, which must be the locked package's."""
        tops = {name.partition("/")[0] for name in self.members if "/" in name}
        found = sorted(top for top in tops if top.lower().endswith(".dist-info"))
        if len(found) != 1 or not found[0].endswith(".dist-info"):
            raise self.error(f"has {len(found) or 'no'} .dist-info folder{'s: ' if found else ''}{', '.join(found)}")
        name, _, version = found[0].removesuffix(".dist-info").partition("-")
        self.check_identity(name, version, f"the folder {found[0]}")
        folders = sorted(top for top in tops if top.lower().endswith(".data") and "-" in top)
        stem = found[0].removesuffix(".dist-info")
        for folder in folders:
            if folder == f"{stem}.data":
                continue
            other = folder[: -len(".data")].partition("-")
            if canonicalize_name(other[0]) == canonicalize_name(self.package.name):
                raise self.error(f"has a folder {folder} beside {found[0]}")
        return found[0]

    def check_identity(self, name: str | None, version: str | None, where: str) -> None:
        wanted = self.package
        same = name is not None and canonicalize_name(name) == canonicalize_name(wanted.name)
        try:
            same = same and Version(version or "") == Version(wanted.version)
        except InvalidVersion:
            same = same and version == wanted.version
        if not same:
            raise self.error(f"{where} says {name} {version}, the lock {wanted.name} {wanted.version}")

    def metadata(self, name: str) -> str:
        info = self.members.get(name)
        if info is None:
            raise self.error(f"has no {name}")
        if info.file_size > _MAXIMUM_METADATA:
            raise self.error(f"{name} is larger than {_MAXIMUM_METADATA:,} bytes")
        try:
            return self.whole(info).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self.error(f"{name} is not UTF-8: {error}") from error

    def root_is_purelib(self, dist_info: str) -> None:
        """Check the WHEEL file. Both of its roots are one folder in a virtual environment."""
        document = parse_metadata_file(self.metadata(f"{dist_info}/WHEEL"))
        version = str(document.get("Wheel-Version", "")).strip()
        if version.partition(".")[0] != "1":
            raise self.error(f"is of wheel version {version or 'unknown'}; 1.x is known")
        metadata = parse_metadata_file(self.metadata(f"{dist_info}/METADATA"))
        self.check_identity(_text(metadata.get("Name")), _text(metadata.get("Version")), "METADATA")

    def record(self, dist_info: str) -> dict[str, _Announced]:
        """What RECORD announces: every file of the archive, each once, each hashed; itself apart."""
        own = (f"{dist_info}/RECORD", f"{dist_info}/RECORD.jws", f"{dist_info}/RECORD.p7s")
        announced: dict[str, _Announced] = {}
        try:
            rows = list(parse_record_file(self.metadata(own[0]).splitlines()))
        except (InvalidRecordEntry, ValueError) as error:
            raise self.error(f"RECORD: {error}") from error
        except Exception as error:  # csv.Error is no subclass of the above
            raise self.error(f"RECORD is not readable: {error}") from error
        for path, spelled, size in rows:
            if path in own or path.endswith("/"):
                continue
            if path in announced:
                raise self.error(f"RECORD lists `{path}` twice")
            info = self.members.get(path)
            if info is None:
                raise self.error(f"RECORD lists `{path}`, which is not there")
            announced[path] = self.announced(path, spelled, size, info)
        missing = next((name for name in self.members if name not in announced and name not in own), None)
        if missing is not None:
            raise self.error(f"`{missing}` is not in RECORD")
        return announced

    def announced(self, path: str, spelled: str, size: str, info: zipfile.ZipInfo) -> _Announced:
        algorithm, _, encoded = spelled.partition("=")
        if algorithm not in _HASHES:
            raise self.error(f"RECORD has no strong hash of `{path}`: {spelled!r}")
        try:
            digest = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            length = int(size) if size else None
        except ValueError:
            raise self.error(f"RECORD says nonsense of `{path}`: {spelled!r}, {size!r}") from None
        if len(digest) != _HASHES[algorithm]:
            raise self.error(f"RECORD's hash of `{path}` has {len(digest)} bytes")
        if length is not None and length != info.file_size:
            raise self.error(f"`{path}` has {info.file_size} bytes, RECORD says {length}")
        return _Announced(spelled, algorithm, digest, length)

    def scripts(self, dist_info: str) -> list[Script]:
        """The console scripts that the wheel's entry points ask for."""
        name = f"{dist_info}/entry_points.txt"
        if name not in self.members:
            return []
        try:
            found = [Script(*entry) for entry in parse_entrypoints(self.metadata(name))]
        except LithifyError:
            raise
        except Exception as error:  # the parser knows configparser's errors, assertions and more
            raise self.error(f"entry_points.txt is not readable: {error}") from error
        for script in found:
            if "/" in script.name:
                raise self.error(f"the entry point {script.name!r} leads outside")
            self.check_name(script.name)
            if "/" in script.name or not script.name.strip():
                raise self.error(f"{script.name!r} cannot be a script's name")
        return found

    # -- places --------------------------------------------------------------------------------------------

    def files(self, target: Target) -> Iterator[File]:
        """All files, placed; see `wheel_files`."""
        try:
            name, version = parse_wheel_filename(posixpath.basename(self.package.file))[:2]
        except InvalidWheelFilename as error:
            raise self.error(f"is no wheel's file name: {error}") from error
        self.check_identity(name, str(version), "its file name")
        dist_info = self.dist_info()
        self.root_is_purelib(dist_info)
        record = self.record(dist_info)
        scripts = {script.name: script for script in self.scripts(dist_info)}
        prefix = target.prefix.strip("/")
        packages = target.packages_folder
        interpreter = f"/{prefix}/bin/python"
        data = dist_info.removesuffix(".dist-info") + ".data/"
        roots = {
            "purelib": packages,
            "platlib": packages,
            "headers": f"{prefix}/include/site/python{target.python}/{self.package.name}",
            "scripts": f"{prefix}/bin",
            "data": prefix,
        }
        rows: dict[str, str] = {}
        placed: set[str] = set()

        def place(path: str, hashed: str, size: int) -> str:
            if not path.startswith(f"{prefix}/") or posixpath.normpath(path) != path:
                raise self.error(f"`{path}` leads outside of /{prefix}")
            if path in placed:
                raise self.error(f"two of its files are to become /{path}")
            placed.add(path)
            below = path.removeprefix(f"{packages}/")
            if len(below) == len(path):
                below = posixpath.relpath(path, packages)
            rows[below] = f"{hashed},{size}"
            return path

        def made(path: str, content: bytes, mode: int) -> File:
            return File(
                place(path, _hash(content), len(content)), mode, len(content), functools.partial(io.BytesIO, content)
            )

        for member, announced in record.items():
            info = self.members[member]
            mode = 0o755 if info.external_attr >> 16 & 0o111 else 0o644
            root, path, scheme = packages, member, ""
            if member.startswith(data):
                scheme, _, path = member.removeprefix(data).partition("/")
                if scheme not in _SCHEMES or not path:
                    raise self.error(f"`{member}` belongs to no scheme; known are {', '.join(_SCHEMES)}")
                root = roots[scheme]
            if not target.wants(f"{root}/{path}"):
                continue
            if scheme == "scripts":
                if path in scripts:
                    continue  # an entry point's script takes the place of one in the archive, as pip has it
                mode = 0o755
                if self.begins(info, b"#!python"):
                    text = self.verified(info, announced)
                    yield made(f"{root}/{path}", _shebang(interpreter) + text.partition(b"\n")[2], mode)
                    continue
            if member == f"{dist_info}/INSTALLER" or (path.endswith(".pyc") and "/__pycache__/" in f"/{path}"):
                # Ours replaces the one, and the target's own Python makes the other, after the fixed times.
                continue
            final = place(f"{root}/{path}", announced.spelled, info.file_size)
            yield File(
                final,
                mode,
                info.file_size,
                functools.partial(self.open, info, announced),
                compile=final.endswith(".py") and final.startswith(packages),
                sha256=announced.digest.hex() if announced.algorithm == "sha256" else None,
            )
        for script in scripts.values():
            if not target.wants(f"{prefix}/bin/{script.name}"):
                continue
            yield made(f"{prefix}/bin/{script.name}", script.generate(interpreter, "posix")[1], 0o755)
        yield made(f"{packages}/{dist_info}/INSTALLER", INSTALLER, 0o644)
        own = f"{dist_info}/RECORD"
        rows[own] = ","
        for path in placed:
            parent = path.rpartition("/")[0]
            while parent:
                if parent in placed:
                    raise self.error(f"/{parent} is to become a file and a folder")
                parent = parent.rpartition("/")[0]
        content = "".join(f"{_csv(path)},{rows[path]}\n" for path in sorted(rows)).encode()
        yield File(f"{packages}/{own}", 0o644, len(content), functools.partial(io.BytesIO, content))

    def begins(self, info: zipfile.ZipInfo, text: bytes) -> bool:
        """Whether a member's content begins with ``text``."""
        _, data = self.extent(info)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = zlib_ng.decompressobj(-15).decompress(data, len(text))
        return data[: len(text)] == text


class _Verifying(io.RawIOBase):
    """A member's bytes, hashed on their way; the last of them come only when the hash is the announced one."""

    def __init__(self, wheel: _Wheel, info: zipfile.ZipInfo, announced: _Announced) -> None:
        self.wheel, self.info, self.announced = wheel, info, announced
        self.inflate = zlib_ng.decompressobj(-15) if info.compress_type == zipfile.ZIP_DEFLATED else None
        self.hash = hashlib.new(announced.algorithm)
        self.at, self.waiting = wheel.extent(info)
        self.at += len(self.waiting)
        self.end = self.at - len(self.waiting) + info.compress_size
        self.left = info.file_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left or not len(buffer):
            return 0
        try:
            data = self.next(min(len(buffer), self.left))
            self.hash.update(data)
            self.left -= len(data)
            if not self.left and (self.next(1) or (self.inflate is not None and not self.inflate.eof)):
                raise self.wheel.wrong_size(self.info)
        except _BROKEN as error:
            raise self.wheel.error(f"`{self.info.orig_filename}` cannot be read: {error}") from error
        if not data:
            raise self.wheel.wrong_size(self.info)
        if not self.left:
            self.wheel.compare(self.info, self.announced, self.hash.digest())
        buffer[: len(data)] = data
        return len(data)

    def next(self, size: int) -> bytes:
        """Up to ``size`` bytes of content; none where the member ends."""
        while True:
            if not self.waiting and self.at < self.end:
                self.waiting = os.pread(self.wheel.descriptor, min(_CHUNK, self.end - self.at), self.at)
                self.at += len(self.waiting)
                if not self.waiting:
                    return b""
            if self.inflate is None:
                data, self.waiting = self.waiting[:size], self.waiting[size:]
                return data
            data = self.inflate.decompress(self.waiting, size)
            self.waiting = self.inflate.unconsumed_tail
            if data or self.inflate.eof or (not self.waiting and self.at >= self.end):
                return data


def _is_plain(name: str) -> bool:
    """Whether a glance shows ``name`` to be a plain relative path; False only says to look closer."""
    return (
        0 < len(name) <= 255
        and name.isascii()
        and name.isprintable()
        and name[0] not in "/."
        and name[-1] != "/"
        and "\\" not in name
        and "//" not in name
        and "/." not in name
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value).strip()


def _hash(content: bytes) -> str:
    """``content``'s hash as RECORD spells it: URL-safe base64 without padding."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def _csv(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if '"' in path or "," in path else path


def _shebang(interpreter: str) -> bytes:
    """The line that runs a script; a kernel reads 127 bytes of it, and a longer one takes pip's way round."""
    script = Script("script", "module", "main", "console").generate(interpreter, "posix")[1]
    return script[: script.index(b"# -*- coding")]
