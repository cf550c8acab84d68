"""Settings of a machine or a site: where the store is, and where sources are served from.

Nothing here can change what is built, only where its bytes come from. Read from, later ones first:

1. ``/etc/lithify/config.toml``
2. ``$XDG_CONFIG_HOME/lithify/config.toml`` (``~/.config/lithify/config.toml``), or the file ``$LITHIFY_CONFIG``
3. ``$LITHIFY_STORE``, ``$LITHIFY_OFFLINE``, ``$LITHIFY_JOBS``
4. the command line

::

    store = "/data/lithify"
    jobs = 4

    [sources]
    pypi = "..."               # a simple index; without it, the one that uv is configured for
    "debian/trixie" = "..."    # an archive's root; without it, the one that apt is configured for
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lithify.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Where things are, on this machine."""

    store: Path
    jobs: int
    offline: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)


def read_settings(*, store: Path | None = None, jobs: int | None = None, offline: bool | None = None) -> Settings:
    """The settings of this machine, with what the caller asks for on top.

    Raises:
        InputError: naming the file or variable that is wrong.
    """
    environment = os.environ
    data = Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    settings = Settings(store=data / "lithify", jobs=len(os.sched_getaffinity(0)))
    user = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lithify/config.toml"
    named = environment.get("LITHIFY_CONFIG")
    if named and not Path(named).is_file():
        raise InputError(f"LITHIFY_CONFIG names {named}, which does not exist")
    for path in (Path("/etc/lithify/config.toml"), Path(named) if named else user):
        if path.is_file():
            settings = _with_file(settings, path)
    if value := environment.get("LITHIFY_STORE"):
        settings = replace(settings, store=Path(value))
    if value := environment.get("LITHIFY_OFFLINE"):
        settings = replace(settings, offline=value not in ("0", "false", "no"))
    if value := environment.get("LITHIFY_JOBS"):
        settings = replace(settings, jobs=_jobs(value, "LITHIFY_JOBS"))
    return Settings(
        store=(store or settings.store).expanduser().absolute(),
        jobs=settings.jobs if jobs is None else _jobs(jobs, "--jobs"),
        offline=settings.offline if offline is None else offline,
        sources=settings.sources,
    )


def _with_file(settings: Settings, path: Path) -> Settings:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for key in document:
        if key not in ("store", "jobs", "offline", "sources"):
            raise InputError(f"{path}: unknown key `{key}`", hint="known are store, jobs, offline and [sources]")
    sources = document.get("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(value, str) for value in sources.values()):
        raise InputError(f"{path}: [sources] must hold addresses, each a text")
    store = document.get("store", str(settings.store))
    offline = document.get("offline", settings.offline)
    if not isinstance(store, str) or not isinstance(offline, bool):
        raise InputError(f"{path}: `store` must be a path and `offline` true or false")
    return Settings(
        store=Path(store).expanduser(),
        jobs=_jobs(document.get("jobs", settings.jobs), str(path)),
        offline=offline,
        sources={**settings.sources, **sources},
    )


def _jobs(value: object, where: str) -> int:
    try:
        jobs = int(value)  # type: ignore[call-overload]
        if jobs < 1 or isinstance(value, bool | float):
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"{where}: the number of jobs must be a whole number from 1 up, found {value!r}") from None
    return int(jobs)
