"""``conda-lock.yml``, version 1: conda-lock's unified lock for several platforms.

conda-lock writes it in one regular shape, a line a value. Lines of that shape are read directly, in a fifth of the
time of PyYAML's C loader; an entry of any other shape, and the head, by the parser itself (`lithify.read.yaml`). The
values are the same either way: see docs/decisions/057-other-tools-locks.md.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from lithify.addresses import split_address, without_credentials
from lithify.errors import InputError
from lithify.locks.foreign import BY_SUBDIR, ForeignLock, Found, gathered
from lithify.platforms import Platform
from lithify.read import yaml
from lithify.read.files import read_text

# What `conda-lock install` installs unless it is told otherwise.
_CATEGORIES = ("main", "dev")
_KEYS = (
    *("name", "version", "manager", "platform", "dependencies", "url", "hash", "category", "optional"),
    *("source", "build"),
)


def read_conda_lock(path: Path) -> ForeignLock:
    """Read the ``conda-lock.yml`` at ``path``.

    Raises:
        InputError: naming the file and the line of what is wrong.
    """
    return parse_conda_lock(read_text(path), path)


def parse_conda_lock(text: str, path: Path) -> ForeignLock:
    """What ``text``, the content of ``path``, locks; see `read_conda_lock`."""
    where = str(path)
    head, entries = _document(text, where)
    version = head.entries.get("version")
    if not isinstance(version, yaml.Scalar) or version.text != "1":
        raise InputError(
            f"{where}: {'version ' + yaml.found(version) if version else 'no version'} of conda-lock's format, "
            "and version 1 is read",
            hint="`conda-lock` writes version 1",
        )
    metadata = _metadata(head.entries.get("metadata"), where)
    found: dict[tuple[str, str, Platform], Found] = {}
    foreign: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for entry in entries:
        platform = BY_SUBDIR.get(entry.platform)
        if platform is None:
            foreign[entry.platform] += 1
        elif entry.category not in _CATEGORIES:
            left[entry.category] += 1
        elif entry.manager != "conda" or not entry.name.startswith("__"):
            one = _found(entry, platform)
            # One entry a category: conda-lock writes a package of two of them twice.
            before = found.setdefault((one.kind, one.name, one.platform), one)
            if (before.file, before.sha256, before.md5) != (one.file, one.sha256, one.md5):
                raise InputError(
                    f"{one.where}: {one.name} is locked twice for {one.platform}, first at {before.where}",
                    hint="lock it again with conda-lock",
                )
    return gathered(
        path,
        "conda-lock",
        found.values(),
        foreign,
        channels=metadata.channels,
        notes=[
            f"{path.name}: {count} package{'s' if count > 1 else ''} of the category `{category}` left out"
            for category, count in sorted(left.items())
        ],
        platforms=[BY_SUBDIR[subdir] for subdir in metadata.platforms if subdir in BY_SUBDIR],
        content_hash=metadata.content_hash,
        sources=metadata.sources,
    )


@dataclass(frozen=True)
class _Entry:
    """One item of ``package:``, its values checked to be texts."""

    where: str
    name: str
    version: str
    manager: str
    platform: str
    url: str
    category: str
    dependencies: dict[str, str]
    hash: dict[str, str]


def _found(entry: _Entry, platform: Platform) -> Found:
    for kind, digest in entry.hash.items():
        if not re.fullmatch(r"[0-9a-f]{32}" if kind == "md5" else r"[0-9a-f]{64}", digest):
            raise InputError(f"{entry.where}: {entry.name}: `{yaml.shortened(digest)}` is no {kind}")
    if entry.manager == "pip":
        return _wheel(entry, platform)
    if entry.manager != "conda":
        raise InputError(
            f"{entry.where}: {entry.name} is for the manager `{yaml.shortened(entry.manager)}`",
            hint="conda-lock knows `conda` and `pip`",
        )
    try:
        address = split_address(entry.url)
    except InputError as error:
        raise InputError(f"{entry.where}: {entry.name}: {error.message}", hint=error.hint) from error
    if address.subdir not in ("noarch", entry.platform):
        raise InputError(f"{entry.where}: {entry.name} is for {entry.platform}, and its file for {address.subdir}")
    if address.file.name.lower() != entry.name.lower():
        raise InputError(f"{entry.where}: {entry.name} is locked, and its file is `{address.file}`")
    if not entry.hash:
        raise InputError(f"{entry.where}: {entry.name} has no hash", hint="lock it again with conda-lock")
    return Found(
        kind="conda",
        name=entry.name.lower(),
        version=address.file.version,
        platform=platform,
        file=address.path,
        where=entry.where,
        channel=address.channel,
        sha256=entry.hash.get("sha256", ""),
        md5=entry.hash.get("md5", ""),
        depends=tuple(f"{name} {spec}".rstrip() for name, spec in sorted(entry.dependencies.items())),
    )


def _wheel(entry: _Entry, platform: Platform) -> Found:
    address = without_credentials(entry.url.partition("#")[0])
    file = unquote(urlsplit(address).path.rpartition("/")[2])
    if not file.endswith(".whl"):
        raise InputError(
            f"{entry.where}: {entry.name} is locked as `{yaml.shortened(file or address)}`, which is no wheel",
            hint="only wheels can be installed: choose a version that has one",
        )
    if "sha256" not in entry.hash:
        raise InputError(f"{entry.where}: {entry.name} has no sha256", hint="lock it again with conda-lock")
    return Found(
        kind="pypi",
        name=canonicalize_name(entry.name),
        version=entry.version,
        platform=platform,
        file=file,
        where=entry.where,
        address=address,
        sha256=entry.hash["sha256"],
    )


@dataclass(frozen=True)
class _Metadata:
    channels: list[str]
    content_hash: dict[str, str]
    platforms: list[str]
    sources: list[str]


def _metadata(node: yaml.Node | None, where: str) -> _Metadata:
    if node is None:
        raise InputError(f"{where}: no `metadata`", hint="it is no lock of conda-lock's")
    metadata = yaml.table(node, where, "`metadata`").entries
    channels = []
    for item in yaml.items(metadata["channels"], where, "`channels`") if "channels" in metadata else []:
        url = yaml.table(item, where, "a channel").entries.get("url")
        channels.append(without_credentials(yaml.text(url, where, "a channel's `url`")))
    hashes = {}
    if "content_hash" in metadata:
        for subdir, value in yaml.table(metadata["content_hash"], where, "`content_hash`").entries.items():
            hashes[subdir] = yaml.text(value, where, "a content hash")
    platforms, sources = (
        yaml.texts(metadata[key], where, f"`{key}`") if key in metadata else [] for key in ("platforms", "sources")
    )
    return _Metadata(channels, hashes, platforms, sources)


# -- the document ------------------------------------------------------------------------------------------

_PACKAGES = re.compile(r"^package:[ ]*\n(?=- )", re.MULTILINE)


def _document(text: str, where: str) -> tuple[yaml.Table, Iterator[_Entry]]:
    """The document without its packages, and these."""
    text = text.replace("\r\n", "\n")
    start = _PACKAGES.search(text)
    if start is not None:
        end = _end_of_items(text, start.end())
        lines = text[start.end() : end].split("\n")
        first = text.count("\n", 0, start.end()) + 1
        outside = text[: start.start()] + "package: []\n" + "\n" * (len(lines) - 1) + text[end:]
        try:
            return _head(outside, first - 1, where), iter(list(_entries(lines, first, where)))
        except _IrregularError:
            pass
    whole = yaml.table(yaml.parse_yaml(text, where), where, "a lock")
    return whole, (_entry(item, where) for item in yaml.items(whole.entries.get("package"), where, "`package`"))


def _head(text: str, line: int, where: str) -> yaml.Table:
    """The document without its packages, whose key ``package`` is in line ``line``.

    Raises:
        _IrregularError: where it is not, being part of some other value; or where the rest is no document.
    """
    try:
        head = yaml.table(yaml.parse_yaml(text, where), where, "a lock")
    except InputError as error:
        raise _IrregularError from error
    if "package" not in head.keys or head.keys["package"].line != line:
        raise _IrregularError
    return head


def _end_of_items(text: str, start: int) -> int:
    """Where the next key of the document begins: a line that is neither an item nor within one."""
    after = re.compile(r"^[^\s-]", re.MULTILINE).search(text, start)
    return after.start() if after else len(text)


class _IrregularError(Exception):
    """Lines that have not the shape that conda-lock writes."""


def _entries(lines: list[str], first: int, where: str) -> Iterator[_Entry]:
    """The entries in ``lines``, the first of which is line ``first`` of the file."""
    begins = [index for index, line in enumerate(lines) if line.startswith("- ")]
    if not begins or begins[0] != 0:
        raise _IrregularError
    for begin, end in zip(begins, [*begins[1:], len(lines)], strict=True):
        try:
            yield _regular(lines[begin:end], f"{where}:{first + begin}")
        except (_IrregularError, KeyError):
            yield _parsed(lines[begin:end], first + begin, where)


def _regular(lines: list[str], where: str) -> _Entry:
    """An entry in the shape that conda-lock writes: two levels, a value a line.

    Raises:
        _IrregularError, KeyError: for anything else.
    """
    values: dict[str, str] = {}
    tables: dict[str, dict[str, str]] = {}
    inner: dict[str, str] | None = None
    for line in lines:
        if line[:4] == "    ":
            if inner is None:
                raise _IrregularError
            key, colon, value = line[4:].partition(": ")
            # `''` is how an empty value is written; no colon, and the value stands in the next line.
            key = _scalar(key)
            if not colon or key in inner:
                raise _IrregularError
            inner[key] = _scalar(value)
            continue
        if line[:2] not in ("  ", "- "):
            if line:
                raise _IrregularError
            continue
        inner = None
        key, colon, value = line[2:].partition(":")
        if not colon or key not in _KEY_SET or key in values or key in tables:
            raise _IrregularError
        if key in _TABLES:
            if value == " {}":
                tables[key] = {}
            elif value:
                raise _IrregularError
            else:
                inner = tables[key] = {}
        elif value[:1] != " ":
            raise _IrregularError
        elif key != "optional":
            values[key] = _scalar(value[1:])
    return _Entry(
        where,
        values["name"],
        values["version"],
        values["manager"],
        values["platform"],
        values["url"],
        values.get("category", "main"),
        tables["dependencies"],
        _hashes(tables["hash"]),
    )


_KEY_SET = frozenset(_KEYS) - {"source"}
_TABLES = frozenset({"dependencies", "hash"})
# Plain scalars that begin with no indicator (YAML 1.1, section 9.1.3), single spaces in them, and quoted ones.
_PLAIN = re.compile(r"[A-Za-z0-9_./<=~+$^();\\](?:[^\s:#]|:(?=[^\s])|(?<=\S)#|[ ](?=[^\s#:]))*")
_QUOTED = re.compile(r"'((?:[^']|'')*)'")


@functools.lru_cache(maxsize=1 << 16)
def _scalar(text: str) -> str:
    if text.isprintable():
        if text[:1] == "'":
            if match := _QUOTED.fullmatch(text):
                return match[1].replace("''", "'")
        elif _PLAIN.fullmatch(text) and yaml.kind_of(text) == "text":
            return text
    raise _IrregularError


def _hashes(table: dict[str, str]) -> dict[str, str]:
    if not table.keys() <= {"md5", "sha256"}:
        raise _IrregularError
    return table


def _parsed(lines: list[str], first: int, where: str) -> _Entry:
    """An entry in any shape, by itself.

    Raises:
        _IrregularError: where it is no document of its own: the whole is to be read at once.
    """
    try:
        node = yaml.parse_yaml("\n".join(lines), where, first)
    except InputError as error:
        raise _IrregularError from error
    if not isinstance(node, yaml.Items) or len(node.items) != 1:
        raise _IrregularError
    return _entry(node.items[0], where)


def _entry(node: yaml.Node, where: str) -> _Entry:
    entry = yaml.table(node, where, "a package", _KEYS)
    for key in ("name", "version", "manager", "platform", "url", "hash"):
        if key not in entry.entries:
            raise InputError(f"{where}:{entry.line}: a package has no `{key}`")
    values = {
        key: yaml.text(entry.entries[key], where, f"`{key}`")
        for key in ("name", "version", "manager", "platform", "url", "category")
        if key in entry.entries
    }
    tables: dict[str, dict[str, str]] = {"dependencies": {}, "hash": {}}
    for key, known in (("dependencies", None), ("hash", ("md5", "sha256"))):
        if key in entry.entries:
            table = yaml.table(entry.entries[key], where, f"`{key}`", known)
            tables[key] = {name: yaml.text(value, where, f"`{name}`") for name, value in table.entries.items()}
    return _Entry(
        f"{where}:{entry.line}",
        values["name"],
        values["version"],
        values["manager"],
        values["platform"],
        values["url"],
        values.get("category", "main"),
        tables["dependencies"],
        tables["hash"],
    )
