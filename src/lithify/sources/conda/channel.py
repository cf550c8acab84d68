"""Channels: what a lock calls them, where they are served from, and what an image may say of them.

A requirement file names a channel (``conda-forge``, ``pkgs/main``, ``some/label/dev``) or gives its address, which may
hold a password or a token. A lock says ``conda/NAME`` and nothing of servers or secrets.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lithify.addresses import channel_name, without_credentials
from lithify.errors import InputError
from lithify.read.settings import Settings

# What a source of conda packages is called in locks: this, and the channel's name.
PREFIX = "conda/"
# What conda calls `defaults` without any configuration.
_DEFAULTS = ("pkgs/main", "pkgs/r")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Channel:
    """A channel by its name, with the address where requirement files give one (it may hold credentials).

    ``where`` is where it was written.
    """

    name: str
    url: str = field(default="", repr=False)
    where: str = field(default="", compare=False)

    @property
    def source(self) -> str:
        """What the lock calls it."""
        return f"{PREFIX}{self.name}"


def parse_channels(texts: Iterable[str], where: str) -> tuple[Channel, ...]:
    """The channels that requirement files name, in their order; ``defaults`` is two.

    Raises:
        InputError: for what is neither a channel's name nor its address.
    """
    found: list[Channel] = []
    for text in texts:
        found += (
            [Channel(name, where=where) for name in _DEFAULTS] if text == "defaults" else [parse_channel(text, where)]
        )
    return tuple(dict.fromkeys(found))


def parse_channel(text: str, where: str) -> Channel:
    """The channel that ``text`` names.

    An address is called by its path on the server, without a token; a folder of this machine by its own name.

    Raises:
        InputError: for what is neither a channel's name nor its address.
    """
    text = text.strip()
    if not _SCHEME.match(text):
        name = text.strip("/")
        if not _NAME.fullmatch(name) or ".." in name or text.startswith((".", "/", "~")):
            hint = "a folder is written as its address: file:///..." if text.startswith((".", "/", "~")) else None
            raise InputError(f"{where}: `{without_credentials(text)}` is no channel's name", hint=hint)
        return Channel(name, where=where)
    try:
        parts = urlsplit(text)
        scheme, path = parts.scheme.lower(), urlsplit(without_credentials(text)).path.strip("/")
    except ValueError:
        raise InputError(f"{where}: `{without_credentials(text)}` is no channel's address") from None
    if scheme not in ("http", "https", "file"):
        raise InputError(
            f"{where}: `{without_credentials(text)}` is no address that channels can have",
            hint="use https, http or file",
        )
    # Without a path, there is only a server's name, which a lock does not hold.
    name = unquote(channel_name(text)) if path else ""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InputError(
            f"{where}: the channel at {without_credentials(text)} has no name that a lock could call it by",
            hint="give it a name, and its address in Lithify's configuration: "
            '`"conda/NAME" = "ADDRESS"` below [sources]',
        )
    return Channel(name, text.rstrip("/"), where)


def one_of_each(channels: Iterable[Channel]) -> dict[str, Channel]:
    """The channels by what a lock calls them, in their order.

    Raises:
        InputError: where two are one name.
    """
    found: dict[str, Channel] = {}
    for channel in channels:
        first = found.setdefault(channel.source, channel)
        if first.url != channel.url and canonical_address(first) != canonical_address(channel):
            raise InputError(
                f"{first.where} and {channel.where} name two channels that a lock would both call "
                f"`{channel.source}`: {canonical_address(first)} and {canonical_address(channel)}",
                hint="write a name of your own for one of them, and its address in Lithify's configuration: "
                '`"conda/NAME" = "ADDRESS"` below [sources]',
            )
    return found


def served_address(channel: Channel, settings: Settings) -> str:
    """Where ``channel`` is served from, for this machine: an address without a slash at its end; it may hold secrets.

    The first of: `[sources]` of Lithify's configuration for this channel; the address that requirement files give;
    `[sources] conda`, which serves all channels by their names; conda's own configuration (``custom_channels``,
    ``mirrored_channels``, ``channel_alias``); rattler's default.
    """
    return configured_address(channel, settings) or default_address(channel.name)


def configured_address(channel: Channel, settings: Settings) -> str | None:
    """Where somebody says that ``channel`` is served from: as `served_address`, without rattler's default."""
    name = channel.name
    if configured := settings.sources.get(channel.source):
        return _as_address(configured)
    if channel.url:
        return channel.url
    if configured := settings.sources.get(PREFIX.rstrip("/")):
        return f"{_as_address(configured)}/{name}"
    condarc = _condarc()
    custom = condarc.get("custom_channels")
    if isinstance(custom, dict) and isinstance(custom.get(name), str):
        return f"{_as_address(custom[name])}/{name}"
    mirrored = condarc.get("mirrored_channels")
    if isinstance(mirrored, dict) and isinstance(mirrored.get(name), list) and mirrored[name]:
        return _as_address(str(mirrored[name][0]))
    alias = condarc.get("channel_alias")
    return f"{_as_address(alias)}/{name}" if isinstance(alias, str) and alias else None


def canonical_address(channel: Channel) -> str:
    """What an image may say of where ``channel`` is: the same on every machine, and without credentials."""
    return without_credentials(channel.url) if channel.url else default_address(channel.name)


def default_address(name: str) -> str:
    """The address of a channel that has only a name, as rattler completes it."""
    from rattler import Channel as RattlerChannel

    return str(RattlerChannel(name).base_url).rstrip("/")


def channel_of(source: str, channels: Mapping[str, Channel]) -> Channel:
    """The channel that a lock calls ``source``; one that no requirement file spells has its name alone."""
    return channels.get(source) or Channel(source.removeprefix(PREFIX))


def _as_address(place: str) -> str:
    """A configured place, which may be a folder, as an address."""
    if _SCHEME.match(place):
        return place.rstrip("/")
    return Path(place).expanduser().absolute().as_uri()


def _condarc() -> Mapping[str, Any]:
    """What conda's own configuration of this user says."""
    path = Path(os.environ.get("CONDARC") or Path.home() / ".condarc")
    try:
        return _parsed_condarc(path, path.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=4)
def _parsed_condarc(path: Path, changed: int) -> Mapping[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}, conda's configuration, cannot be read: {without_credentials(str(error))}") from error
    return document if isinstance(document, dict) else {}
