"""The link rules: where each file of a conda package goes, and what becomes of its content.

What installing by conda or rattler gives, as a pure function: paths, modes and bytes come out, nothing is written and
nothing of the package is run. The rules are written down in CEP 34 (the content of packages) and in conda's and
rattler's sources; py-rattler's own installation is what the tests compare with. What differs, and why:
docs/decisions/054-conda-files.md.
"""

from __future__ import annotations

import functools
import hashlib
import io
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lithify.errors import LithifyError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64
from lithify.sources import File, Held, Target
from lithify.sources.conda import record
from lithify.sources.conda.archive import (
    INDEX,
    Member,
    is_plain,
    open_archive,
    parse_index,
    parse_object,
    refused,
    refusing,
)
from lithify.sources.conda.prefix import PrefixTooLongError, replace_binary, replace_text
from lithify.sources.conda.record import Laid
from lithify.store import tar

Mode = Literal["", "text", "binary"]
# rattler's mode of the scripts it makes; it leaves all others as the package has them.
ENTRY_POINT_MODE = 0o775
# What packages without a named placeholder were built with. In parts, so that nobody replaces it in this file.
_FIRST_PLACEHOLDER = "/opt/" + "".join(f"anaconda{number}" for number in (1, 2, 3))
_NAME = re.compile(r"\s*(?:[^\s\[]*::)?([A-Za-z0-9_.-]+)")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMPILED = re.compile(r"(.*/)?__pycache__/([^/]+?)\.[a-z]+-?[0-9]+t?(?:\.opt-[0-9A-Za-z]+)?\.pyc")
_WORD = r'("(?:[^"\\]|\\.)*"|[^\s"]\S*)'
_HAS_PREFIX = re.compile(rf"(?:{_WORD}\s+(text|binary)\s+)?{_WORD}", re.IGNORECASE)
_SITE_PACKAGES, _SCRIPTS = "site-packages/", "python-scripts/"
_ENTRY_POINT = """\
{shebang}
# -*- coding: utf-8 -*-
import re
import sys

from {module} import {name}

if __name__ == '__main__':
\tsys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])
\tsys.exit({function}())
"""


@dataclass(frozen=True)
class Listed:
    """What a package says of one of its files; ``size`` is None where it does not say, other fields then are empty."""

    path: str
    kind: Literal["file", "link", "folder", ""]
    sha256: str = ""
    size: int | None = None
    placeholder: str = ""
    mode: Mode = ""


@dataclass(frozen=True)
class EntryPoint:
    """A command that calls a function of a module."""

    command: str
    module: str
    function: str


def narrowed(package: Package, target: Target) -> Target:
    """``target`` without what the files of ``package`` cannot depend on.

    A package that depends on other packages and not on Python has no use for it. One of which the lock does not say
    what it depends on (a list of addresses does not) may. Noarch files are the same on every platform.
    """
    if package.name != "python" and package.depends and not {"python", "python_abi"} & _names(package.depends):
        target = replace(target, python="", python_build="", site_packages="")
    if package.file.startswith("noarch/"):
        target = replace(target, platform=LINUX_AMD64)
    return target


def _names(specs: tuple[str, ...]) -> set[str]:
    """The packages that match specs ask for."""
    return {match[1].lower() for spec in specs if (match := _NAME.match(spec))}


def conda_files(package: Package, artefact: Path, target: Target) -> Iterator[File]:
    """The files that installing the conda package ``artefact`` for ``target`` gives, its record included.

    Everything is checked before the first file comes, but for contents: each is checked, against what the package says
    of it, before its own file comes.

    Raises:
        LithifyError: for a package that is broken, lies about itself, is not ``package``, or would write outside of
            the prefix, and where the prefix is longer than a binary has room for.
    """
    label = package.file
    with refusing(label):
        archive = open_archive(artefact, label)
        index = parse_index(archive.info, label)
        _check_identity(package, index, label)
        is_python = index.get("noarch") == "python"
        if is_python and not target.python:
            raise refused(label, "is a Python package, and the environment has no Python")
        files = matched(listed(archive.info, label), archive.members, label)
        points = entry_points(archive.info, label) if is_python else ()
        places = _places(files, points, is_python, _record_path(package), target, label)
        laid: list[Laid] = []
        for one in files:
            if (place := places.get(one.path)) is None:
                continue
            file, fact = _file(one, archive.members[one.path], place, target, label)
            laid.append(fact)
            yield file
        for point in points:
            path = f"bin/{point.command}"
            if target.wants(_below(target, path)):
                text = entry_point_script(point, target).encode()
                digest = hashlib.sha256(text).hexdigest()
                laid.append(Laid(path, record.ENTRY_POINT, digest, digest, len(text)))
                yield File(_below(target, path), ENTRY_POINT_MODE, len(text), Held((text,)), sha256=digest)
        made = record.receipt(package, index, laid, artefact.stat().st_size, target)
        yield File(_below(target, _record_path(package)), 0o644, 0, io.BytesIO, receipt=made)


def _check_identity(package: Package, index: Mapping[str, Any], label: str) -> None:
    """Refuse another package than the one that was locked."""
    told = tuple(index.get(key) for key in ("name", "version", "build"))
    if not all(isinstance(part, str) and part for part in told):
        raise refused(label, f"{INDEX} does not say name, version and build")
    wanted = tuple(_stem(package).rsplit("-", 2))
    if told != wanted or told[:2] != (package.name, package.version):
        raise refused(label, f"holds {' '.join(map(str, told))}, the lock has {package.name} {package.version}")


def _stem(package: Package) -> str:
    """NAME-VERSION-BUILD."""
    file = package.file.rpartition("/")[2]
    return file.removesuffix(".conda").removesuffix(".tar.bz2")


def _record_path(package: Package) -> str:
    return f"conda-meta/{_stem(package)}.json"


# -- what the package says -----------------------------------------------------------------------------------------


def listed(info: Mapping[str, bytes], label: str) -> list[Listed]:
    """The package's files, by ``info/paths.json``, or by the older files in its stead.

    Raises:
        LithifyError: when what is said makes no sense, or there is nothing.
    """
    if "info/paths.json" in info:
        document = parse_object(info["info/paths.json"], "info/paths.json", label)
        if document.get("paths_version") != 1 or not isinstance(document.get("paths"), list):
            raise refused(label, f"info/paths.json is of version {document.get('paths_version')!r}; 1 is known")
        found = [_listed(entry, label) for entry in document["paths"]]
    elif "info/files" in info:
        found = _listed_of_old(info, label)
    else:
        raise refused(label, "has neither info/paths.json nor info/files")
    seen: set[str] = set()
    for one in found:
        if one.path in seen:
            raise refused(label, f"lists `{one.path}` twice")
        seen.add(one.path)
    return found


_KINDS: dict[str, Literal["file", "link", "folder"]] = {"hardlink": "file", "softlink": "link", "directory": "folder"}


def _listed(entry: Any, label: str) -> Listed:
    """An entry of ``info/paths.json`` (CEP 34)."""
    path = entry.get("_path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise refused(label, f"info/paths.json lists {str(entry)[:80]!r}")
    kind = _KINDS.get(str(entry.get("path_type")))
    sha256, size = entry.get("sha256"), entry.get("size_in_bytes")
    placeholder, mode = entry.get("prefix_placeholder"), entry.get("file_mode")
    if kind is None:
        raise refused(label, f"info/paths.json: `{path}` is of the unknown type {str(entry.get('path_type'))!r}")
    if sha256 is not None and (not isinstance(sha256, str) or not _SHA256.fullmatch(sha256)):
        raise refused(label, f"info/paths.json: {str(sha256)[:80]!r} is no sha256 of `{path}`")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
        raise refused(label, f"info/paths.json: {str(size)[:80]!r} is no size of `{path}`")
    if placeholder is None:
        return Listed(path, kind, sha256 or "", size)
    if not isinstance(placeholder, str) or not placeholder or mode not in ("text", "binary"):
        raise refused(label, f"info/paths.json: `{path}` has placeholder {placeholder!r} and mode {mode!r}")
    return Listed(path, kind, sha256 or "", size, placeholder, mode)


def _listed_of_old(info: Mapping[str, bytes], label: str) -> list[Listed]:
    """What ``info/files`` and ``info/has_prefix`` say, which came before ``info/paths.json``.

    ``info/no_link`` says which files must be copies; here all are.
    """
    prefixes = {}
    for line in _lines(info.get("info/has_prefix", b""), "info/has_prefix", label):
        placeholder, mode, path = parse_has_prefix(line, label)
        prefixes[path] = (placeholder, mode)
    paths = _lines(info["info/files"], "info/files", label)
    unknown = next((path for path in prefixes if path not in set(paths)), None)
    if unknown is not None:
        raise refused(label, f"info/has_prefix lists `{unknown}`, info/files does not")
    return [Listed(path, "", "", None, *prefixes.get(path, ("", ""))) for path in paths]


def _lines(data: bytes, name: str, label: str) -> list[str]:
    try:
        return [line for line in data.decode().replace("\r\n", "\n").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise refused(label, f"{name} is not UTF-8: {error}") from error


def parse_has_prefix(line: str, label: str) -> tuple[str, Mode, str]:
    """A line of ``info/has_prefix``: ``PLACEHOLDER text|binary PATH``, each quoted or not, or only a path.

    Raises:
        LithifyError: for any other line.
    """
    match = _HAS_PREFIX.fullmatch(line.strip())
    if match:
        placeholder, mode, path = _unquoted(match[1] or ""), match[2], _unquoted(match[3])
        if mode is None:
            return _FIRST_PLACEHOLDER, "text", path
        if placeholder:
            return placeholder, "text" if mode.lower() == "text" else "binary", path
    raise refused(label, f"info/has_prefix: {line[:300]!r} makes no sense")


def _unquoted(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word[1:-1]) if word.startswith('"') else word


def entry_points(info: Mapping[str, bytes], label: str) -> tuple[EntryPoint, ...]:
    """The commands that ``info/link.json`` asks for, each once.

    Raises:
        LithifyError: for what is no name of a command, a module or a function.
    """
    if "info/link.json" not in info:
        return ()
    noarch = parse_object(info["info/link.json"], "info/link.json", label).get("noarch") or {}
    told = (noarch.get("entry_points") or []) if isinstance(noarch, dict) else None
    if not isinstance(told, list) or not all(isinstance(text, str) for text in told):
        raise refused(label, "info/link.json does not say its entry points as a list of texts")
    found: dict[str, EntryPoint] = {}
    for text in told:
        command, equals, called = text.partition("=")
        module, colon, function = called.partition(":")
        point = EntryPoint(command.strip(), module.strip(), function.strip())
        if "/" in point.command or "\\" in point.command or point.command.startswith("."):
            raise refused(label, f"the entry point {text[:200]!r} leads outside")
        if not equals or not colon or not is_plain(point.command):
            raise refused(label, f"{text[:200]!r} is no entry point")
        # Both become code.
        if not _DOTTED.fullmatch(point.module) or not _DOTTED.fullmatch(point.function):
            raise refused(label, f"the entry point {text[:200]!r} does not name a function of a module")
        if found.setdefault(point.command, point) != point:
            raise refused(label, f"has two entry points `{point.command}`")
    return tuple(found.values())


def matched(files: list[Listed], members: Mapping[str, Member], label: str) -> list[Listed]:
    """The files that are to be laid out: those that the package lists and holds, which must be the same.

    Folders are left out: a layer has those that its files need.

    Raises:
        LithifyError: for the first that is only listed, or only there, or not of the size or type that it is to be.
    """
    found = []
    for one in files:
        if one.kind == "folder":
            continue
        member = members.get(one.path)
        if member is None:  # What is there has a plain name.
            what = "which is not there" if is_plain(one.path) else "which is no plain path below the prefix"
            raise refused(label, f"lists {one.path[:300]!r}, {what}")
        kind: Literal["file", "link"] = "link" if member.link else "file"
        if one.kind not in ("", kind):
            raise refused(label, f"`{one.path}` is no {one.kind}, as it is said to be")
        if kind == "file" and one.size not in (None, len(member.data)):
            raise refused(label, f"`{one.path}` has {len(member.data)} bytes, info/paths.json says {one.size}")
        found.append(one if one.kind else replace(one, kind=kind))
    known = {one.path for one in files}
    unlisted = next((path for path in members if path not in known), None)
    if unlisted is not None:
        raise refused(label, f"holds `{unlisted}`, which it does not list")
    return found


# -- places --------------------------------------------------------------------------------------------------------


def _below(target: Target, path: str) -> str:
    return f"{target.prefix.strip('/')}/{path}"


def _in_prefix(path: str, scripts: str, packages: str) -> str:
    """Where a noarch Python package's file goes, below the prefix."""
    if path.startswith(_SITE_PACKAGES):
        return f"{packages}/{path[len(_SITE_PACKAGES) :]}"
    if path.startswith(_SCRIPTS):
        return f"{scripts}/{path[len(_SCRIPTS) :]}"
    return path


def _places(
    files: list[Listed],
    points: tuple[EntryPoint, ...],
    is_python: bool,
    record_path: str,
    target: Target,
    label: str,
) -> dict[str, str]:
    """Where the files go, below the prefix, by their paths in the archive; without those that are left out."""
    packages = target.packages_folder.removeprefix(_below(target, ""))
    there = {one.path: _in_prefix(one.path, "bin", packages) if is_python else one.path for one in files}
    taken: set[str] = set()
    for path in (*there.values(), *(f"bin/{point.command}" for point in points)):
        if path in taken:
            raise refused(label, f"two of its files are to become `{path}`")
        taken.add(path)
        if path.startswith("conda-meta/") and (path.endswith(".json") or path == "conda-meta/history"):
            raise refused(label, f"`{path}` would pass for a record of what is installed")
    taken.add(record_path)
    clash = next((folder for folder in tar.parents(taken) if folder in taken), None)
    if clash is not None:
        raise refused(label, f"`{clash}` is to become a file and a folder")
    wanted = {}
    for path, place in there.items():
        # What a package ships in `__pycache__` was made for other times, where it was made for this Python at all.
        match = _COMPILED.fullmatch(place) if place.endswith(".pyc") else None
        if match and f"{match[1] or ''}{match[2]}.py" in taken:
            continue
        if target.wants(_below(target, place)):
            wanted[path] = place
    return wanted


# -- contents ------------------------------------------------------------------------------------------------------


def _file(one: Listed, member: Member, place: str, target: Target, label: str) -> tuple[File, Laid]:
    """A file at its place, and what its package's record says of it."""
    path = _below(target, place)
    if one.kind == "link":
        _check_link(place, member.link, label)
        return File(path, 0o777, 0, io.BytesIO, link=member.link), Laid(place, record.SOFTLINK, one.sha256)
    original = hashlib.sha256(member.data).hexdigest()
    if one.sha256 not in ("", original):
        raise refused(label, f"`{one.path}` is not what info/paths.json says: its sha256 is {original}")
    pieces: tuple[bytes | memoryview, ...] = (member.data,)
    size, digest = len(member.data), original
    if one.placeholder:
        old, new = one.placeholder.encode(), target.prefix.rstrip("/").encode()
        substitute = replace_text if one.mode == "text" else replace_binary
        try:
            pieces = tuple(substitute(member.data, old, new))
        except PrefixTooLongError as error:
            raise LithifyError(
                f"conda package {label}: the prefix {target.prefix} is too long for `{one.path}`, a binary: {error}",
                hint="a shorter `prefix` in lithify.toml fits",
            ) from error
        total = hashlib.sha256()
        for piece in pieces:
            total.update(piece)
        size, digest = sum(map(len, pieces)), total.hexdigest()
    compiled = bool(target.python) and place.endswith(".py") and place.startswith(_python_folders(target))
    file = File(path, member.mode & 0o777, size, Held(pieces), compile=compiled, sha256=digest)
    return file, Laid(place, record.HARDLINK, original, digest, size, one.placeholder, one.mode)


@functools.lru_cache(maxsize=16)
def _python_folders(target: Target) -> tuple[str, str]:
    """Where Python code lies, below the prefix: the standard library's, and all packages'."""
    return f"lib/python{target.python}/", target.packages_folder.removeprefix(_below(target, "")) + "/"


def _check_link(place: str, link: str, label: str) -> None:
    """Refuse a relative link that leaves the prefix: how far up leads where depends on the prefix.

    An absolute one names the same place from anywhere, and may be meant: ``/dev/null``, ``/proc/mounts``. Nothing here
    follows either.
    """
    if link.startswith("/"):
        return
    end = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    if end == ".." or end.startswith("../"):
        raise refused(label, f"`{place}` links to `{link}`, which leads out of the prefix")


def entry_point_script(point: EntryPoint, target: Target) -> str:
    """The text of the script that an entry point becomes."""
    python = f"{target.prefix.rstrip('/')}/bin/python{target.python}"
    shebang = f"#!{python}"
    # As rattler has it: a kernel follows no longer line, and none with a space in the path.
    if len(python.encode()) > 125 or " " in python:
        shebang = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\" #'''"
    name = point.function.partition(".")[0]
    return _ENTRY_POINT.format(shebang=shebang, module=point.module, name=name, function=point.function)
