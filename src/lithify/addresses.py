"""Addresses of channels and names of the files in them: taken apart, credentials taken out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from lithify.errors import InputError

# `user:password@` of an address, conda's `/t/TOKEN`, and a query, which may hold one.
_CREDENTIALS = (
    re.compile(r"(?<=//)[^/?#\s]*@"),
    re.compile(r"(?<!/)/t/[^/\s]+(?=/|\s|$)"),
    re.compile(r"(?<=[\w/.+~%=-])\?[^\s#]*"),
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[A-Za-z0-9_.!+]+")
_BUILD = re.compile(r"[A-Za-z0-9_.+]+")
_SUBDIR = re.compile(r"noarch|[a-z0-9]+-[a-z0-9_]+")


def without_credentials(text: str) -> str:
    """``text``, which may hold addresses, without their users, passwords, tokens and queries."""
    if "://" in text:
        for pattern in _CREDENTIALS:
            text = pattern.sub("", text)
    return text


@dataclass(frozen=True)
class CondaFile:
    """What the file name of a conda package says; ``extension`` is ``.conda`` or ``.tar.bz2``."""

    name: str
    version: str
    build: str
    extension: str

    def __str__(self) -> str:
        return f"{self.name}-{self.version}-{self.build}{self.extension}"


def split_file_name(file: str) -> CondaFile:
    """The parts of ``NAME-VERSION-BUILD.conda`` (or ``.tar.bz2``), as CEP 26 allows them.

    Raises:
        InputError: for anything else.
    """
    for extension in (".conda", ".tar.bz2"):
        if file.endswith(extension):
            parts = file.removesuffix(extension).rsplit("-", 2)
            forms = (_NAME, _VERSION, _BUILD)
            if len(parts) == 3 and all(form.fullmatch(part) for form, part in zip(forms, parts, strict=True)):
                return CondaFile(parts[0], parts[1], parts[2], extension)
    raise InputError(
        f"`{_printable(file)}` is no conda package's file name",
        hint="it is called NAME-VERSION-BUILD.conda or NAME-VERSION-BUILD.tar.bz2",
    )


@dataclass(frozen=True)
class CondaAddress:
    """Where a conda package lies: its channel's address without credentials, the platform's folder, the file."""

    channel: str
    subdir: str
    file: CondaFile

    @property
    def path(self) -> str:
        """The file's place in its channel, as locks name it."""
        return f"{self.subdir}/{self.file}"


def split_address(address: str) -> CondaAddress:
    """The parts of a conda package's address, ``CHANNEL/SUBDIR/FILE``.

    Raises:
        InputError: for an address of anything else; the message holds no credentials.
    """
    clean = without_credentials(address)
    channel, _, rest = clean.rpartition("/")
    channel, _, subdir = channel.rpartition("/")
    if "://" not in channel or not _SUBDIR.fullmatch(subdir):
        raise InputError(
            f"`{_printable(clean)}` is no address of a conda package",
            hint="it looks like scheme://.../CHANNEL/linux-64/NAME-VERSION-BUILD.conda",
        )
    return CondaAddress(channel, subdir, split_file_name(unquote(rest)))


def channel_name(address: str) -> str:
    """What a lock calls the channel at ``address``: the path on its server, or a local channel's folder's name.

    The server is not in it: mirrors of a channel have the same name.
    """
    scheme, separator, rest = without_credentials(address).rstrip("/").partition("://")
    if not separator:
        return scheme
    path = rest.partition("/")[2]
    return path.rpartition("/")[2] if scheme == "file" else path or rest


def _printable(text: str) -> str:
    flat = "".join(c if c.isprintable() and c != "`" else "?" for c in text)
    return flat if len(flat) <= 200 else f"{flat[:197]}..."
