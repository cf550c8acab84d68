"""What commands print on stdout: a result as text for people, or as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lithify.cli.display import size
from lithify.lockfile import NOTEBOOK, Package
from lithify.platforms import Platform

if TYPE_CHECKING:
    from lithify.assemble.building import BuildResult, PlatformResult
    from lithify.resolve import LockResult
    from lithify.use.inspecting import ImageDetails, ImageSummary

_Value = TypeVar("_Value")


def show(value: _Value, lines: Callable[[_Value], Iterable[str]], *, as_json: bool) -> None:
    """Print ``value``: with ``lines``, or as JSON."""
    if as_json:
        click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))
    else:
        for line in lines(value):
            click.echo(line)


def plain(value: Any) -> Any:
    """``value`` as JSON's own types: dataclasses by their fields, platforms as ``os/architecture``."""
    if isinstance(value, Platform | Path):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def count(number: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def build_lines(results: Sequence[BuildResult]) -> list[str]:
    """Each image with its digest and time, and each of its platforms with size, layers, and what was reused."""
    lines = []
    for result in results:
        state = "unchanged" if result.unchanged else "built"
        lines.append(f"{result.name}  {result.digest}  {state} in {result.seconds:.1f} s")
        lines += [f"  {line}" for line in table([_platform_row(platform) for platform in result.platforms])]
    return lines


def _platform_row(platform: PlatformResult) -> list[str]:
    return [
        str(platform.platform),
        platform.digest,
        size(platform.size),
        f"{count(platform.layers, 'layer')} ({platform.layers_reused} reused, {size(platform.new_bytes)} new)",
        f"{count(platform.fragments_built, 'package')} made, {platform.fragments_reused} reused",
    ]


def lock_lines(results: Sequence[LockResult]) -> list[str]:
    """Each image's lock and, package by package, what changed in it; of a new lock only how much it holds.

    A package is added (+), removed (-), newer (^), older (v), or another file of the same version (~).
    """
    lines = []
    for result in results:
        platforms = len({package.platform for package in result.lock.packages})
        held = f"{count(len(result.lock.packages), 'package')} for {count(platforms, 'platform')}"
        if not result.written:
            lines.append(f"{result.image}  {result.path}  unchanged, {held}")
            continue
        lines.append(f"{result.image}  {result.path}  {held}")
        if len(result.added) == len(result.lock.packages):
            continue
        changes: dict[str, list[str]] = {}
        for package in result.removed:
            changes.setdefault(f"- {_in_environment(package)} {package.version}", []).append(str(package.platform))
        for mark, pairs in (("^", result.up), ("v", result.down), ("~", result.rebuilt)):
            for old, new in pairs:
                version = new.version if old.version == new.version else f"{old.version} -> {new.version}"
                changes.setdefault(f"{mark} {_in_environment(new)} {version}", []).append(str(new.platform))
        for package in result.added:
            changes.setdefault(f"+ {_in_environment(package)} {package.version}", []).append(str(package.platform))
        for change, where in changes.items():
            lines.append(f"  {change}" if len(where) == platforms else f"  {change} ({', '.join(where)} only)")
        lines += _totals(result)
    return lines


def _in_environment(package: Package) -> str:
    return package.name if package.environment == NOTEBOOK else f"{package.environment}/{package.name}"


def _totals(result: LockResult) -> list[str]:
    """For each platform how many packages changed how, and what is to be downloaded."""
    rows = []
    for platform in sorted({package.platform for package in result.lock.packages}):
        kinds = (
            ("added", [package for package in result.added if package.platform == platform]),
            ("removed", [package for package in result.removed if package.platform == platform]),
            *(
                (kind, [new for _, new in pairs if new.platform == platform])
                for kind, pairs in (("up", result.up), ("down", result.down), ("rebuilt", result.rebuilt))
            ),
        )
        told = ", ".join(f"{len(packages)} {kind}" for kind, packages in kinds if packages)
        if told:
            new_bytes = result.new_bytes.get(str(platform), 0)
            rows.append(f"  {platform}: {told}{f'; {size(new_bytes)} to download' if new_bytes else ''}")
    return rows


def list_lines(images: Sequence[ImageSummary]) -> list[str]:
    """A line an image, below the columns' names; nothing for an empty store."""
    rows = [("NAME", "DIGEST", "CREATED", "SIZE", "LAYERS", "PLATFORMS")]
    for image in images:
        facts = (image.created, size(image.size), str(image.layers), ", ".join(image.platforms))
        rows.append(
            (image.name, short(image.digest), *(("", "", "", f"damaged: {image.problem}") if image.problem else facts))
        )
    return table(rows) if images else []


def short(digest: str) -> str:
    """As many digits of a digest as commands need to find the image."""
    return digest.removeprefix("sha256:")[:12]


def inspect_lines(image: ImageDetails) -> list[str]:
    """What an image is, how it is run, its layers from the lowest up, and its packages by source.

    Where it has several environments, its packages are listed by them; those of the system come first.
    """
    lines = table(
        [
            ("name", image.name),
            ("digest", image.digest),
            ("platforms", ", ".join(image.platforms)),
            ("created", image.created),
            ("size", f"{size(image.size)} compressed, in {count(len(image.layers), 'layer')} ({image.platform})"),
            ("manifest", image.manifest),
        ]
    )
    lines += ["", "configuration"]
    for key, value in image.config.items():
        if isinstance(value, Mapping):
            value = [f"{name}={item}" if item else str(name) for name, item in value.items()]
        if isinstance(value, list) and key in ("Env", "Labels"):
            lines += [f"  {key}", *(f"    {item}" for item in value)]
        elif isinstance(value, list):
            lines.append(f"  {key}  {shlex.join(str(item) for item in value)}")
        else:
            lines.append(f"  {key}  {value}")
    lines += ["", "layers"]
    rows = []
    for layer in image.layers:
        held = f"{layer.name} ({count(len(layer.packages), 'package')})" if len(layer.packages) > 1 else layer.name
        rows.append((short(layer.digest), size(layer.size), held))
    lines += [f"  {line}" for line in table(rows)]
    if image.packages:
        lines += ["", f"packages ({len(image.packages)})"]
        several = len({package.environment for package in image.packages} - {""}) > 1
        packages = sorted(image.packages, key=lambda package: package.environment) if several else image.packages
        rows = [(*((p.environment,) if several else ()), p.source, p.name, p.version) for p in packages]
        lines += [f"  {line}" for line in table(rows)]
    return lines
