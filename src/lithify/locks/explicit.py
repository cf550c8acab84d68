"""``@EXPLICIT`` lists (``conda-linux-64.lock``): an address a line, for one platform.

As ``conda list --explicit --md5``, conda-lock and micromamba write them: ``url#md5``, ``url#sha256:...`` or a bare
``url``; ``# platform: linux-64`` above. conda-lock adds ``# pip NAME @ URL#sha256=...`` for wheels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from lithify.addresses import split_address, without_credentials
from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks.foreign import BY_SUBDIR, ForeignLock, Found, gathered
from lithify.locks.writing import Places, of_kind, topological
from lithify.platforms import Platform
from lithify.read.files import read_text
from lithify.read.yaml import shortened

MARK = "@EXPLICIT"
_PLATFORM = re.compile(r"#\s*platform:\s*(\S+)\s*")
_IN_NAME = re.compile(r"(?:^|[-_.])((?:linux|osx|win)-[a-z0-9]+)(?=[-_.]|$)")
_PIP = re.compile(r"#\s*pip\s+(?P<name>[\w.-]+)\s*@\s*(?P<url>\S+?)(?:#sha256[=:](?P<sha256>\S+))?\s*")
_HASH = re.compile(r"(?:(?P<md5>[0-9a-f]{32})|sha256:(?P<sha256>[0-9a-f]{64}))")


def read_explicit(path: Path) -> ForeignLock:
    """Read the ``@EXPLICIT`` list at ``path``.

    Raises:
        InputError: naming the file and the line of what is wrong.
    """
    return parse_explicit(read_text(path), path)


def parse_explicit(text: str, path: Path) -> ForeignLock:
    """What ``text``, the content of ``path``, lists; see `read_explicit`."""
    lines = text.splitlines()
    if MARK not in (line.strip() for line in lines):
        raise InputError(f"{path} has no line `{MARK}`", hint="it is no list of `conda list --explicit`")
    subdir = _subdir(lines, path)
    platform = BY_SUBDIR.get(subdir)
    if platform is None:
        return gathered(path, "explicit", (), Counter({subdir: max(1, sum("://" in line for line in lines))}))
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        stripped = line.strip()
        if pip := _PIP.fullmatch(stripped):
            found.append(_wheel(pip, platform, where))
        elif stripped and not stripped.startswith("#") and stripped != MARK:
            found.append(_package(stripped, platform, where))
    return gathered(path, "explicit", found, {}, platforms=[platform])


def _subdir(lines: Iterable[str], path: Path) -> str:
    """The platform that the list is for, as conda's subdir."""
    folders: dict[str, None] = {}
    for line in lines:
        if match := _PLATFORM.fullmatch(line.strip()):
            return match[1]
        if match := re.search(r"://\S+/([a-z0-9]+-[a-z0-9_]+)/[^/\s]+\.(?:conda|tar\.bz2)", line):
            folders[match[1]] = None
    if len(folders) == 1:
        return next(iter(folders))
    if folders:
        raise InputError(f"{path} lists packages for {' and '.join(folders)}", hint="a list is for one platform")
    if match := _IN_NAME.search(path.name):
        return match[1]
    raise InputError(
        f"{path} does not say which platform it is for", hint="add a line such as `# platform: linux-64` at its top"
    )


def _package(line: str, platform: Platform, where: str) -> Found:
    url, _, digest = line.partition("#")
    match = _HASH.fullmatch(digest.strip().lower())
    if digest and not match:
        raise InputError(
            f"{where}: `{shortened(digest)}` is no hash", hint="it is 32 hexadecimal digits, or `sha256:` and 64"
        )
    try:
        address = split_address(url.strip())
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from error
    if address.subdir not in ("noarch", platform.subdir):
        raise InputError(f"{where}: {address.path} is not for {platform.subdir}, which the list is for")
    return Found(
        kind="conda",
        name=address.file.name.lower(),
        version=address.file.version,
        platform=platform,
        file=address.path,
        where=where,
        channel=address.channel,
        md5=(match and match["md5"]) or "",
        sha256=(match and match["sha256"]) or "",
    )


def _wheel(line: re.Match[str], platform: Platform, where: str) -> Found:
    address = without_credentials(line["url"])
    file = unquote(urlsplit(address).path.rpartition("/")[2])
    sha256 = (line["sha256"] or "").lower()
    if not file.endswith(".whl") or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InputError(f"{where}: {line['name']} is no wheel with a sha256, and only these can be installed")
    parts = file.split("-")
    return Found(
        kind="pypi",
        name=canonicalize_name(line["name"]),
        version=parts[1] if len(parts) > 2 else "",
        platform=platform,
        file=file,
        where=where,
        address=address,
        sha256=sha256,
    )


def write_explicit(packages: Iterable[Package], places: Places, platform: Platform) -> str:
    """The list of ``packages`` for ``platform``, each after what it depends on; wheels as conda-lock adds them.

    ``conda create --file`` and micromamba take it. A package without an md5 has its sha256 instead, which conda
    before 23.11 does not know.

    Raises:
        InputError: for a package whose address is not known.
    """
    chosen = [package for package in packages if package.platform == platform]
    lines = ["# Generated by lithify.", f"# platform: {platform.subdir}", MARK]
    for package in topological(of_kind(chosen, "conda")):
        lines.append(f"{places.of(package)}#{package.md5 or f'sha256:{package.sha256}'}")
    lines += [f"# pip {p.name} @ {places.of(p)}#sha256={p.sha256}" for p in of_kind(chosen, "pypi")]
    return "\n".join(lines) + "\n"
