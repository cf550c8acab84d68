"""A family: a folder with ``lithify.toml`` and one folder per image.

This module reads that file. Everything wrong in it is an `InputError` that names the file and the line, and for an
unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lithify.errors import InputError
from lithify.lockfile import LOCK_FILE, NOTEBOOK
from lithify.platforms import PLATFORMS, Platform, parse_platform
from lithify.runtime import CONDA_DIR, PREFIX

FAMILY_FILE = "lithify.toml"
MAXIMUM_LAYERS = 100
_IMAGE_KEYS = (
    *("folder", "extends", "cmd", "environment", "labels", "platforms"),
    *("notebook", "environments", "virtual-packages"),
)
_NAME_HINT = "use at most 63 lower-case letters, digits, `-`, `_` and `.`, a letter or digit first"
# Debian policy, section 5.6.1; a version may follow.
_DEBIAN_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+~:-]+)?")


@dataclass(frozen=True)
class DebianBase:
    """A base made from Debian's own packages, installed by dpkg in the sandbox.

    ``python`` is the minor version of its Python ("3.13"), nothing where the images bring their own.
    """

    suite: str
    packages: tuple[str, ...]
    python: str


@dataclass(frozen=True)
class LayoutBase:
    """A base that is an image in an OCI image layout (or, with no ``layout``, in our own store)."""

    layout: Path | None
    image: str
    python: str


Base = DebianBase | LayoutBase


@dataclass(frozen=True)
class Environment:
    """A conda environment of an image: where it lies, and what its requirement file is called.

    ``prefix`` is absolute; ``file`` lies in the image's configuration folder. ``kernel`` is the name under which
    JupyterLab offers it, where it does.
    """

    name: str
    prefix: str
    file: str
    kernel: str | None = None


NOTEBOOK_ENVIRONMENT = Environment(NOTEBOOK, PREFIX, "environment.yml")


@dataclass(frozen=True)
class CondaRules:
    """What a family says of conda: the ``[conda]`` table.

    ``channels`` are those of images whose requirement files name none. ``require`` is asked for in the notebook
    environment of every image. Packages named in ``link_scripts`` may run their link scripts, in the sandbox.
    ``owners`` says which package's file stays where several bring one for the same path (below the prefix).
    """

    channels: tuple[str, ...] = ("conda-forge",)
    require: tuple[str, ...] = ()
    link_scripts: tuple[str, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileRules:
    """What a family leaves out of its packages: the ``[files]`` table; see `lithify.sources.Target`."""

    exclude: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Image:
    """One image of a family, as ``lithify.toml`` declares it.

    ``environment`` are its variables. ``platforms`` are those that it is made for. ``environments`` are its conda
    environments and its ancestors', the notebook's first if it has that (``notebook = false`` leaves it to its
    children); none where the family has no ``[conda]``.
    ``virtual_packages`` are versions by name, by platform (``linux/amd64``), with what holds for every platform under
    an empty name.
    """

    name: str
    folder: Path
    extends: str | None = None
    cmd: tuple[str, ...] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    environments: tuple[Environment, ...] = ()
    virtual_packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


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
    conda: CondaRules | None = None
    files: FileRules = FileRules()

    def platforms_of(self, name: str) -> tuple[Platform, ...]:
        """The platforms that an image is made for.

        Raises:
            InputError: for an image that the family does not have.
        """
        return self.image(name).platforms or self.platforms

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


def configuration_folder(image: Image) -> Path:
    """Where the image's requirement files and its lock lie: ``binder/``, else ``.binder/``, else the folder itself.

    Raises:
        InputError: when there are both.
    """
    found = [image.folder / name for name in ("binder", ".binder") if (image.folder / name).is_dir()]
    if len(found) == 2:
        raise InputError(
            f"image `{image.name}` has both {found[0]} and {found[1]}", hint="keep one of them: only one is read"
        )
    return found[0] if found else image.folder


def lock_path(image: Image) -> Path:
    """Where the image's lock lies, whether or not it is there."""
    return configuration_folder(image) / LOCK_FILE


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
        self.family_platforms: tuple[Platform, ...] = ()

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
        document = self.table(document, "", ("family", "base", "images", "layers", "conda", "files"))
        family = self.table(document.get("family", {}), "family", ("name", "platforms", "source"))
        root = self.path.parent
        name = self.text(family, "name", "family", _default_name(root))
        assert name is not None
        if not _is_image_name(name):
            raise self.error(f"`{name}` cannot be a family's name", "family\0name", hint=_NAME_HINT)
        platforms = self.platforms(family, "family")
        layers = self.table(document.get("layers", {}), "layers", ("maximum",))
        maximum = layers.get("maximum", MAXIMUM_LAYERS)
        if not isinstance(maximum, int) or isinstance(maximum, bool) or not 8 <= maximum <= 120:
            raise self.error(
                f"`maximum` must be a whole number from 8 to 120, found {maximum!r}",
                "layers\0maximum",
                hint="container engines refuse images of more than 127 layers",
            )
        conda = self.conda(document["conda"]) if "conda" in document else None
        files = self.table(document.get("files", {}), "files", ("exclude", "keep"))
        if "base" not in document:
            raise self.error("no [base]", hint='add a [base] table, such as `debian = "trixie"`')
        return Family(
            name=name,
            root=root,
            platforms=platforms,
            base=self.base(document["base"], conda is not None),
            images=self.images(document.get("images", {}), conda is not None, platforms),
            source=self.text(family, "source", "family"),
            maximum_layers=maximum,
            conda=conda,
            files=FileRules(self.texts(files, "exclude", "files"), self.texts(files, "keep", "files")),
        )

    def conda(self, value: object) -> CondaRules:
        table = self.table(value, "conda", ("channels", "require", "link-scripts", "owners"))
        channels = self.texts(table, "channels", "conda") if "channels" in table else CondaRules.channels
        if not channels:
            raise self.error("`channels` names no channel", "conda\0channels", hint='leave it out for "conda-forge"')
        return CondaRules(
            channels=channels,
            require=self.texts(table, "require", "conda"),
            link_scripts=self.texts(table, "link-scripts", "conda"),
            owners=self.mapping(table, "owners", "conda"),
        )

    def platforms(self, table: dict[str, Any], where: str) -> tuple[Platform, ...]:
        names = self.texts(table, "platforms", where) if "platforms" in table else ("linux/amd64",)
        if not names:
            raise self.error(
                "`platforms` names no platform",
                f"{where}\0platforms",
                hint=f"leave it out for linux/amd64; the platforms that can be built are {', '.join(PLATFORMS)}",
            )
        for name in names:
            if name not in PLATFORMS:
                raise self.error(
                    f"unknown platform `{name}`",
                    f"{where}\0platforms",
                    hint=_nearest(name, PLATFORMS) or f"the platforms that can be built are {', '.join(PLATFORMS)}",
                )
        return tuple(parse_platform(name) for name in sorted(set(names)))

    def base(self, value: object, conda: bool) -> Base:
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
            if conda and python is not None:
                raise self.error(
                    "`python` is Debian's, and the images of a family with [conda] bring their own",
                    "base\0python",
                    hint="leave `python` out, and ask for it in environment.yml",
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
            return DebianBase(suite, packages, "" if conda else known[suite])
        if "oci-layout" in table or "image" in table:
            if python is None and not conda:
                raise self.error(
                    "the base is an image, and [base] does not say which Python it has",
                    "base",
                    hint='add `python = "3.13"`: /usr/bin/python3.13 must be in the base',
                )
            if conda:
                python = ""
            elif not re.fullmatch(r"3\.\d{1,2}", python or ""):
                raise self.error(f"`python` must be a minor version such as 3.13, found {python!r}", "base\0python")
            layout = self.text(table, "oci-layout", "base")
            image = self.text(table, "image", "base")
            return LayoutBase(self.path.parent / layout if layout else None, image or "", python or "")
        raise self.error("[base] names neither `debian` nor `oci-layout` nor `image`", "base")

    def images(self, value: object, conda: bool, platforms: tuple[Platform, ...]) -> dict[str, Image]:
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
            table = self.table(entry, where, _IMAGE_KEYS)
            for key in ("notebook", "environments", "virtual-packages"):
                if key in table and not conda:
                    raise self.error(
                        f"`{key}` is for conda packages, and the family has none",
                        f"{where}\0{key}",
                        hint="add a [conda] table, which may be empty",
                    )
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
                platforms=self.platforms(table, where) if "platforms" in table else platforms,
                environments=self.environments(table, where) if conda else (),
                virtual_packages=self.virtual_packages(table, where),
            )
        self.family_platforms = platforms
        for image in declared.values():
            for platform in image.platforms:
                if platform not in platforms:
                    raise self.error(
                        f"image `{image.name}` is for {platform}, and the family is not",
                        f"images\0{image.name}\0platforms",
                        hint=f'add "{platform}" to the family\'s `platforms`',
                    )
        images: dict[str, Image] = {}
        for name, image in self.parents_first(declared).items():
            images[name] = self.inherited(image, images[image.extends]) if image.extends else image
        return images

    def environments(self, image: dict[str, Any], where: str) -> tuple[Environment, ...]:
        declared = image.get("environments", {})
        image_where, where = where, f"{where}\0environments"
        if not isinstance(declared, dict):
            raise self.error(f"`environments` must be a table, found {declared!r}", where)
        notebook = image.get("notebook", True)
        if not isinstance(notebook, bool):
            raise self.error(f"`notebook` must be true or false, found {notebook!r}", f"{image_where}\0notebook")
        found = [NOTEBOOK_ENVIRONMENT] if notebook else []
        for name, entry in declared.items():
            here = f"{where}\0{name}"
            if name == NOTEBOOK or not _is_image_name(name):
                raise self.error(
                    f"`{name}` cannot be the name of a further environment",
                    here,
                    hint="every image has the environment `notebook`" if name == NOTEBOOK else _NAME_HINT,
                )
            table = self.table(entry, here, ("prefix", "file", "kernel"))
            default = CONDA_DIR if name == "base" else f"{CONDA_DIR}/envs/{name}"
            prefix = self.text(table, "prefix", here, default)
            assert prefix is not None
            if not re.fullmatch(r"(/[A-Za-z0-9._-]*[A-Za-z0-9_-])+", prefix) or prefix == PREFIX:
                raise self.error(
                    f"`{prefix}` cannot be an environment's prefix",
                    f"{here}\0prefix",
                    hint=f"give an absolute path other than {PREFIX}, without spaces",
                )
            file = self.text(table, "file", here, f"environment-{name}.yml")
            assert file is not None
            if "/" in file:
                raise self.error(f"`file` must be a file's name, found `{file}`", f"{here}\0file")
            found.append(Environment(name, prefix, file, self.text(table, "kernel", here)))
        return tuple(found)

    def virtual_packages(self, image: dict[str, Any], where: str) -> dict[str, dict[str, str]]:
        declared = image.get("virtual-packages", {})
        where = f"{where}\0virtual-packages"
        if not isinstance(declared, dict):
            raise self.error(f"`virtual-packages` must be a table, found {declared!r}", where)
        found: dict[str, dict[str, str]] = {}
        for key, value in declared.items():
            if isinstance(value, dict):
                if key not in PLATFORMS:
                    hint = _nearest(key, PLATFORMS) or f"the platforms that can be built are {', '.join(PLATFORMS)}"
                    raise self.error(f"unknown platform `{key}`", f"{where}\0{key}", hint=hint)
                table = value
            else:
                table, key = {key: value}, ""
            for name, version in table.items():
                if not re.fullmatch(r"__[a-z0-9_]+", name) or not isinstance(version, str):
                    raise self.error(
                        f"`{name} = {version!r}` is no virtual package",
                        f"{where}\0{name}",
                        hint='write it as `__cuda = "12.9"`',
                    )
                found.setdefault(key, {})[name] = version
        return found

    def inherited(self, image: Image, parent: Image) -> Image:
        """The image with its parent's environments and virtual packages, on platforms that its parent has."""
        if image.platforms == self.family_platforms:
            image = replace(image, platforms=parent.platforms)
        for platform in image.platforms:
            if platform not in parent.platforms:
                raise self.error(
                    f"image `{image.name}` is for {platform}, and `{parent.name}`, which it extends, is not",
                    f"images\0{image.name}\0platforms",
                    hint=f"leave {platform} out, or have it among the parent's `platforms`",
                )
        together = dict.fromkeys((*parent.environments, *image.environments))
        environments = tuple(sorted(together, key=lambda one: one.name != NOTEBOOK))
        for key in ("name", "prefix"):
            twice = [one for one, count in Counter(getattr(one, key) for one in environments).items() if count > 1]
            if twice:
                raise self.error(
                    f"image `{image.name}` has two environments `{twice[0]}`, its own and that of its parent",
                    f"images\0{image.name}\0environments",
                    hint="what a child adds to its parent's environment stands in a requirement file of the same name",
                )
        platforms = parent.virtual_packages.keys() | image.virtual_packages.keys()
        virtual = {
            platform: {**parent.virtual_packages.get(platform, {}), **image.virtual_packages.get(platform, {})}
            for platform in sorted(platforms)
        }
        return replace(image, environments=environments, virtual_packages=virtual)

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
