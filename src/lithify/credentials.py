"""Credentials, where rattler and conda keep them, for our own downloads.

The solver reads them by itself. In this order, as rattler has it: the address's own user and password; the file that
``RATTLER_AUTH_FILE`` names, else ``~/.rattler/credentials.json``, by host (``*.example.org`` is for every host below,
and for the domain itself); ``~/.netrc`` (or the file that ``NETRC`` names).
"""

from __future__ import annotations

import base64
import json
import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lithify.errors import InputError

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Credential:
    """What one server wants: a header's value, or a token in the path (conda's ``/t/TOKEN/``)."""

    header: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def credential_for(url: str) -> Credential | None:
    """The credential of this user for ``url``, if there is one.

    Raises:
        InputError: for a file of credentials that cannot be read.
    """
    try:
        parts = urlsplit(url)
        host, user, password = parts.hostname or "", parts.username, parts.password
    except ValueError:
        return None
    if user is not None:
        return Credential(header=_basic(unquote(user), unquote(password or "")))
    if not host:
        return None
    stored = _stored()
    for pattern in _patterns(host):
        if pattern in stored and (found := _credential(stored[pattern])):
            return found
    return _from_netrc(host)


def authentication() -> httpx.Auth:
    """What adds this user's credentials to requests: to the first of a chain of redirects only."""
    import httpx

    class Authentication(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
            found = credential_for(str(request.url))
            if found and found.header:
                request.headers["Authorization"] = found.header
            elif found and found.token and not request.url.path.startswith("/t/"):
                raw = request.url.raw_path.decode("ascii")
                request.url = request.url.copy_with(raw_path=f"/t/{found.token}{raw}".encode("ascii"))
            yield request

    return Authentication()


def _patterns(host: str) -> Iterator[str]:
    """What a host may be called in the file of credentials, the closest first."""
    yield host
    rest = host
    while rest:
        yield f"*.{rest}"
        rest = rest.partition(".")[2]


def _stored() -> Mapping[str, object]:
    named = os.environ.get("RATTLER_AUTH_FILE")
    path = Path(named) if named else Path.home() / ".rattler" / "credentials.json"
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        # A parser's message shows what it stumbled over, which may be a secret.
        why = error.strerror if isinstance(error, OSError) else "not JSON"
        raise InputError(
            f"{path}, rattler's file of credentials, cannot be read: {why}",
            hint="RATTLER_AUTH_FILE names another one" if not named else None,
        ) from None
    return document if isinstance(document, dict) else {}


def _credential(entry: object) -> Credential | None:
    if not isinstance(entry, dict):
        return None
    if isinstance(token := entry.get("BearerToken"), str):
        return Credential(header=f"Bearer {token}")
    if isinstance(token := entry.get("CondaToken"), str):
        return Credential(token=token)
    if isinstance(basic := entry.get("BasicHTTP"), dict):
        return Credential(header=_basic(str(basic.get("username", "")), str(basic.get("password", ""))))
    return None


def _from_netrc(host: str) -> Credential | None:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        found = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return None
    return Credential(header=_basic(found[0], found[2] or "")) if found else None


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode('ascii')}"
