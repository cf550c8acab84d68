"""The lock: every package of an image, for every platform, with sha256 and size.

``lithify.lock`` lies beside the requirement files that it answers. It is TOML in a stable order, one entry per
package and platform, so that a changed package is a small diff. It is host-neutral: sources have names, files
have names and hashes, and where a source is served from is configuration.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli

from lithify.errors import InputError
from lithify.platforms import PLATFORMS, Platform

LOCK_FILE = "lithify.lock"
VERSION = 1
# The environment that every image has, and that the contract is about.
NOTEBOOK = "notebook"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_ENVIRONMENT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_HEAD = """\
# Made by `lithify lock`. Change the requirement files, not this one.
"""


@dataclass(frozen=True, order=True)
class Package:
    """One exact artefact from one source, for one platform.

    ``file`` is the artefact's name in its source: a wheel's file name, a ``.deb``'s path below the archive's root, or
    ``SUBDIR/NAME-VERSION-BUILD.conda``. ``size`` is in bytes, 0 where the source's index does not say. ``base`` marks
    what belongs to the base's own run, not to an ``apt.txt``; ``environment`` is the one of the image's environments
    that it is installed into.

    What follows identifies nothing (a channel corrects it now and then, for the same artefact): the ``md5`` that other
    tools' lock files want, a conda package's ``depends`` and ``constrains``, and where a Python interpreter looks for
    packages (CEP 17's ``python_site_packages_path``) where it is not the usual place.
    """

    source: str
    name: str
    platform: Platform
    version: str
    file: str
    sha256: str
    size: int
    base: bool = False
    environment: str = NOTEBOOK
    md5: str = field(default="", compare=False)
    depends: tuple[str, ...] = field(default=(), compare=False)
    constrains: tuple[str, ...] = field(default=(), compare=False)
    site_packages: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """The kind of its source: ``pypi``, ``debian``, ``conda``."""
        return self.source.partition("/")[0].partition("-")[0]


@dataclass(frozen=True)
class Lock:
    """All packages of an image, sorted; ``fingerprint`` identifies the requirement files that were resolved.

    ``created`` is the moment of the last change of any package: the image's reproducible time.
    """

    fingerprint: str
    created: datetime
    packages: tuple[Package, ...]

    def of(self, platform: Platform, source: str | None = None) -> tuple[Package, ...]:
        """The packages for ``platform``, of one source (or of every source whose name starts with ``source/``)."""
        return tuple(
            package
            for package in self.packages
            if package.platform == platform
            and (source is None or package.source == source or package.source.startswith(f"{source}/"))
        )


def fingerprint(documents: dict[str, bytes]) -> str:
    """The digest of named documents: the same for the same names and bytes, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(documents):
        encoded = name.encode()
        total.update(b"%d:%b%d:" % (len(encoded), encoded, len(documents[name])))
        total.update(documents[name])
    return f"sha256:{total.hexdigest()}"


def write_lock(lock: Lock) -> str:
    """The lock as TOML: the same text for the same lock, a line for each fact."""
    lines = [
        _HEAD,
        f"version = {VERSION}",
        f"created = {lock.created.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%SZ')}",
        f"fingerprint = {_quote(lock.fingerprint)}",
    ]
    for package in sorted(lock.packages):
        lines += [
            "",
            "[[package]]",
            f"source = {_quote(package.source)}",
            f"name = {_quote(package.name)}",
            f"platform = {_quote(str(package.platform))}",
            f"version = {_quote(package.version)}",
            f"file = {_quote(package.file)}",
            f"sha256 = {_quote(package.sha256)}",
        ]
        if package.size:
            lines.append(f"size = {package.size}")
        if package.base:
            lines.append("base = true")
        if package.environment != NOTEBOOK:
            lines.append(f"environment = {_quote(package.environment)}")
        if package.md5:
            lines.append(f"md5 = {_quote(package.md5)}")
        if package.site_packages:
            lines.append(f"site-packages = {_quote(package.site_packages)}")
        if package.depends:
            lines.append(f"depends = {_quoted(package.depends)}")
        if package.constrains:
            lines.append(f"constrains = {_quoted(package.constrains)}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """``text`` as a TOML basic string (https://toml.io/en/v1.0.0#string)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped) + '"'


def _quoted(texts: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_quote, texts))}]"


def read_lock(path: Path) -> Lock:
    """Read a lock file.

    Raises:
        InputError: for a missing, broken or hostile lock; nothing in it can name a file outside the caches.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist",
            hint=f"`lithify lock {path.parent.name}` makes it from the requirement files",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return parse_lock(text, str(path))


def parse_lock(text: str, where: str = LOCK_FILE) -> Lock:
    """The lock that ``text`` holds; ``where`` names it in errors.

    Raises:
        InputError: for anything that `write_lock` would not have written.
    """
    relock = "restore it from version control, or make it anew with `lithify lock`"
    try:
        document = tomli.loads(text)
    except (tomli.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not valid TOML: {error}", hint=relock) from error
    version = document.get("version")
    if version != VERSION:
        raise InputError(
            f"{where}: lock format {version!r}, this Lithify knows {VERSION}",
            hint="upgrade Lithify" if isinstance(version, int) and version > VERSION else relock,
        )
    try:
        created = document["created"]
        if not isinstance(created, datetime) or created.tzinfo is None or created.year < 1980:
            raise ValueError(f"`created` is {created!r}, not a moment with a time zone")
        if not isinstance(document["fingerprint"], str):
            raise ValueError("`fingerprint` is not a text")
        entries = document.get("package", [])
        if not isinstance(entries, list):
            raise ValueError("`package` is not a list")
        packages = tuple(sorted(_package(entry) for entry in entries))
    except KeyError as error:
        raise InputError(f"{where}: no key {error}", hint=relock) from error
    except ValueError as error:
        raise InputError(f"{where}: {error}", hint=relock) from error
    seen: set[tuple[str, str, Platform, str]] = set()
    for package in packages:
        # A conda environment holds a name once, whatever the channel.
        source = package.kind if package.kind == "conda" else package.source
        key = (source, package.name, package.platform, package.environment)
        if key in seen:
            raise InputError(f"{where}: {package.name} is locked twice for {package.platform}", hint=relock)
        seen.add(key)
    return Lock(fingerprint=document["fingerprint"], created=created, packages=packages)


def _package(entry: Any) -> Package:
    if not isinstance(entry, dict):
        raise ValueError("an entry of `package` is not a table")
    for key in ("source", "name", "platform", "version", "file", "sha256"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise ValueError(f"`{key}` is {entry[key]!r}, not a text")
    if entry["platform"] not in PLATFORMS:
        raise ValueError(f"unknown platform {entry['platform']!r}")
    if not _SHA256.fullmatch(entry["sha256"]):
        raise ValueError(f"{entry['name']}: `sha256` is {entry['sha256']!r}, not 64 hexadecimal digits")
    size = entry.get("size", 0)
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{entry['name']}: `size` is {size!r}, not a number of bytes")
    file = entry["file"]
    if file.startswith("/") or ".." in file.split("/") or "\0" in file:
        raise ValueError(f"{entry['name']}: `file` is {file!r}, which leaves its source")
    return Package(
        source=entry["source"],
        name=entry["name"],
        platform=PLATFORMS[entry["platform"]],
        version=entry["version"],
        file=file,
        sha256=entry["sha256"],
        size=size,
        base=entry.get("base", False) is True,
        environment=_optional(entry, "environment", _ENVIRONMENT, NOTEBOOK),
        md5=_optional(entry, "md5", _MD5),
        depends=_texts(entry, "depends"),
        constrains=_texts(entry, "constrains"),
        site_packages=_optional(entry, "site-packages", _FOLDER),
    )


def _optional(entry: Any, key: str, form: re.Pattern[str], default: str = "") -> str:
    value = entry.get(key, default)
    if value != default and (not isinstance(value, str) or not form.fullmatch(value) or ".." in value):
        raise ValueError(f"{entry['name']}: `{key}` is {value!r}")
    return str(value)


def _texts(entry: Any, key: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{entry['name']}: `{key}` is {value!r}, not a list of texts")
    return tuple(value)
