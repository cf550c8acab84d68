"""A family: a folder with ``lithify.toml`` and one folder per image.

This module reads that file. Everything wrong in it is an `InputError` that names the file and the line, and for an
unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lithify.errors import InputError
from lithify.platforms import PLATFORMS, Platform, parse_platform

FAMILY_FILE = "lithify.toml"
MAXIMUM_LAYERS = 100
_NAME_HINT = "use at most 63 lower-case letters, digits, `-`, `_` and `.`, a letter or digit first"
# Debian policy, section 5.6.1; a version may follow.
_DEBIAN_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+~:-]+)?")


@dataclass(frozen=True)
class DebianBase:
    """A base made from Debian's own packages, installed by dpkg in the sandbox."""

    suite: str
    packages: tuple[str, ...]
    python: str  # the minor version, "3.13"


@dataclass(frozen=True)
class LayoutBase:
    """A base that is an image in an OCI image layout (or, with no ``layout``, in our own store)."""

    layout: Path | None
    image: str
    python: str


Base = DebianBase | LayoutBase


@dataclass(frozen=True)
class Image:
    """One image of a family, as ``lithify.toml`` declares it."""

    name: str
    folder: Path
    extends: str | None = None
    cmd: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of images, parents before children."""

    name: str
    root: Path
    platforms: tuple[Platform, ...]
    base: Base
    images: Mapping[str, Image]
    source: str | None = None
    maximum_layers: int = MAXIMUM_LAYERS

    def lineage(self, name: str) -> tuple[Image, ...]:
        """The image and its ancestors, the eldest first.

        Raises:
            InputError: for an image that the family does not have.
        """
        image = self.image(name)
        lineage = [image]
        while image.extends is not None:
            image = self.images[image.extends]
            lineage.append(image)
        return tuple(reversed(lineage))

    def image(self, name: str) -> Image:
        """The image called ``name``.

        Raises:
            InputError: for an image that the family does not have.
        """
        try:
            return self.images[name]
        except KeyError:
            raise InputError(
                f"no image `{name}` in {self.root / FAMILY_FILE}",
                hint=_nearest(name, self.images) or f"its images are {', '.join(self.images)}",
            ) from None

    def select(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """``names``, or every image of the family where none is given, parents before children."""
        for name in names:
            self.image(name)
        return tuple(name for name in self.images if not names or name in names)


def find_family(start: Path) -> Path:
    """The ``lithify.toml`` of the folder ``start`` or of the nearest folder above it.

    Raises:
        InputError: where there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / FAMILY_FILE).is_file():
            return folder / FAMILY_FILE
    raise InputError(
        f"no {FAMILY_FILE} in {start} or a folder above it",
        hint="`lithify init` makes a new family; `--family FOLDER` names another one",
    )


def read_family(start: Path) -> Family:
    """Read the family of the folder ``start`` (or of the nearest folder above it).

    Raises:
        InputError: naming the file and the line of what is wrong.
    """
    path = find_family(start)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}", hint="see https://toml.io for the format") from error
    return _Reader(path, text).family(document)


def _nearest(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else None


class _Reader:
    """Turns the parsed document into values; holds the text to find the lines of what is wrong."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()

    def error(self, message: str, key: str | None = None, hint: str | None = None) -> InputError:
        line = self.line_of(key) if key else None
        where = f"{self.path}:{line}" if line else str(self.path)
        return InputError(f"{where}: {message}", hint=hint)

    def line_of(self, key: str) -> int | None:
        """The line where ``key`` (its parts divided by NUL) is set, or else the nearest thing around it."""
        wanted = key.split("\0")
        table: list[str] = []
        best, depth = None, 0
        for number, line in enumerate(self.lines, 1):
            stripped = line.strip()
            if stripped.startswith("["):
                table = _parts(stripped.lstrip("[").partition("]")[0])
                path = table
            elif "=" in stripped and not stripped.startswith("#"):
                path = [*table, *_parts(stripped.partition("=")[0])]
            else:
                continue
            if path == wanted:
                return number
            # An inline table, or the heading of the table that lacks the key.
            if path == wanted[: len(path)] and len(path) > depth:
                best, depth = number, len(path)
            elif wanted == path[: len(wanted)] and best is None:
                best = number
        return best

    def table(self, value: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"`{where.replace(chr(0), '.')}` must be a table", where)
        for key in value:
            if key not in known:
                raise self.error(
                    f"unknown key `{key}` in [{where.replace(chr(0), '.')}]" if where else f"unknown key `{key}`",
                    f"{where}\0{key}" if where else key,
                    hint=_nearest(key, known) or f"the keys known here are {', '.join(known)}",
                )
        return value

    def text(self, table: dict[str, Any], key: str, where: str, default: str | None = None) -> str | None:
        value = table.get(key, default)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.error(f"`{key}` must be a text, found {value!r}", f"{where}\0{key}")
        return value

    def texts(self, table: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(f"`{key}` must be a list of texts, found {value!r}", f"{where}\0{key}")
        return tuple(value)

    def mapping(self, table: dict[str, Any], key: str, where: str) -> dict[str, str]:
        value = table.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise self.error(f"`{key}` must be a table of texts, found {value!r}", f"{where}\0{key}")
        return dict(value)

    def family(self, document: dict[str, Any]) -> Family:
        document = self.table(document, "", ("family", "base", "images", "layers"))
        family = self.table(document.get("family", {}), "family", ("name", "platforms", "source"))
        root = self.path.parent
        name = self.text(family, "name", "family", _default_name(root))
        assert name is not None
        if not _is_image_name(name):
            raise self.error(f"`{name}` cannot be a family's name", "family\0name", hint=_NAME_HINT)
        platforms = self.platforms(family)
        layers = self.table(document.get("layers", {}), "layers", ("maximum",))
        maximum = layers.get("maximum", MAXIMUM_LAYERS)
        if not isinstance(maximum, int) or isinstance(maximum, bool) or not 8 <= maximum <= 120:
            raise self.error(
                f"`maximum` must be a whole number from 8 to 120, found {maximum!r}",
                "layers\0maximum",
                hint="container engines refuse images of more than 127 layers",
            )
        if "base" not in document:
            raise self.error("no [base]", hint='add a [base] table, such as `debian = "trixie"`')
        return Family(
            name=name,
            root=root,
            platforms=platforms,
            base=self.base(document["base"]),
            images=self.images(document.get("images", {})),
            source=self.text(family, "source", "family"),
            maximum_layers=maximum,
        )

    def platforms(self, family: dict[str, Any]) -> tuple[Platform, ...]:
        names = self.texts(family, "platforms", "family") if "platforms" in family else ("linux/amd64",)
        if not names:
            raise self.error(
                "`platforms` names no platform",
                "family\0platforms",
                hint=f"leave it out for linux/amd64; the platforms that can be built are {', '.join(PLATFORMS)}",
            )
        for name in names:
            if name not in PLATFORMS:
                raise self.error(
                    f"unknown platform `{name}`",
                    "family\0platforms",
                    hint=_nearest(name, PLATFORMS) or f"the platforms that can be built are {', '.join(PLATFORMS)}",
                )
        return tuple(parse_platform(name) for name in sorted(set(names)))

    def base(self, value: object) -> Base:
        table = self.table(value, "base", ("debian", "packages", "python", "oci-layout", "image"))
        python = self.text(table, "python", "base")
        if "debian" in table and ("oci-layout" in table or "image" in table):
            raise self.error("[base] names both a Debian suite and an image", "base", hint="keep one of them")
        if "debian" in table:
            suite = self.text(table, "debian", "base")
            assert suite is not None
            known = {"bookworm": "3.11", "trixie": "3.13"}
            if suite not in known:
                raise self.error(
                    f"unknown Debian suite `{suite}`",
                    "base\0debian",
                    hint=_nearest(suite, known) or f"the suites known are {', '.join(known)}",
                )
            if python not in (None, known[suite]):
                raise self.error(
                    f"Debian {suite} has Python {known[suite]}, not {python}",
                    "base\0python",
                    hint="leave `python` out",
                )
            packages = self.texts(table, "packages", "base")
            for package in packages:
                if not _DEBIAN_PACKAGE.fullmatch(package):
                    raise self.error(f"`{package}` is no Debian package's name", "base\0packages")
            return DebianBase(suite, packages, known[suite])
        if "oci-layout" in table or "image" in table:
            if python is None:
                raise self.error(
                    "the base is an image, and [base] does not say which Python it has",
                    "base",
                    hint='add `python = "3.13"`: /usr/bin/python3.13 must be in the base',
                )
            if not re.fullmatch(r"3\.\d{1,2}", python):
                raise self.error(f"`python` must be a minor version such as 3.13, found {python!r}", "base\0python")
            layout = self.text(table, "oci-layout", "base")
            image = self.text(table, "image", "base")
            return LayoutBase(self.path.parent / layout if layout else None, image or "", python)
        raise self.error("[base] names neither `debian` nor `oci-layout` nor `image`", "base")

    def images(self, value: object) -> dict[str, Image]:
        if not isinstance(value, dict) or not value:
            raise self.error("the family has no images", hint="add an [images.NAME] table")
        declared: dict[str, Image] = {}
        for name, entry in value.items():
            where = f"images\0{name}"
            if not _is_image_name(name):
                raise self.error(
                    f"`{name}` cannot be an image's name",
                    where,
                    hint=_NAME_HINT,
                )
            table = self.table(entry, where, ("folder", "extends", "cmd", "environment", "labels"))
            folder = self.path.parent / (self.text(table, "folder", where, name) or name)
            if not folder.is_dir():
                key = f"{where}\0folder" if "folder" in table else where
                raise self.error(f"image `{name}` has no folder {folder}", key, hint=f"mkdir {folder}")
            declared[name] = Image(
                name=name,
                folder=folder,
                extends=self.text(table, "extends", where),
                cmd=self.texts(table, "cmd", where) or None,
                environment=self.mapping(table, "environment", where),
                labels=self.mapping(table, "labels", where),
            )
        return self.parents_first(declared)

    def parents_first(self, declared: dict[str, Image]) -> dict[str, Image]:
        ordered: dict[str, Image] = {}

        def visit(name: str, children: tuple[str, ...]) -> None:
            if name in ordered:
                return
            if name in children:
                cycle = " -> ".join((*children[children.index(name) :], name))
                raise self.error(f"images extend each other in a circle: {cycle}", f"images\0{name}\0extends")
            parent = declared[name].extends
            if parent is not None:
                if parent not in declared:
                    raise self.error(
                        f"image `{name}` extends `{parent}`, which the family does not have",
                        f"images\0{name}\0extends",
                        hint=_nearest(parent, declared) or f"its images are {', '.join(declared)}",
                    )
                visit(parent, (*children, name))
            ordered[name] = declared[name]

        for name in declared:
            visit(name, ())
        return ordered


def _parts(key: str) -> list[str]:
    """The parts of a dotted key (https://toml.io/en/v1.0.0#keys)."""
    return ["".join(part) for part in re.findall(r"\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+)", key)]


def _default_name(folder: Path) -> str:
    """A family's name where it gives none: its folder's, made to fit an image's name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).lstrip("._-")[:63]
    return name or "family"


def _is_image_name(name: str) -> bool:
    return (
        0 < len(name) <= 63
        and name[0].isalnum()
        and name.isascii()
        and name == name.lower()
        and all(c.isalnum() or c in "-_." for c in name)
    )
