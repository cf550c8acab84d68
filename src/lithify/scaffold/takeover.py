"""``lithify init --from``: a family for a repository that is there already, whose files stay as they are.

Two kinds are recognised. One like Pangeo's has a folder an image, with ``environment.yml``, ``conda-lock.yml``,
``apt.txt`` or a ``Dockerfile``; one like repo2docker's has such files in ``binder/``, ``.binder/`` or at its top. What
an image extends is said by the files its lock was made from, by ``conda-lock -f ../OTHER/environment.yml`` in the
``Makefile``, or by the ``Dockerfile``'s ``FROM``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lithify.errors import InputError, LithifyError
from lithify.platforms import LINUX_AMD64, PLATFORMS
from lithify.read.environment import read_environment
from lithify.read.family import Image, configuration_folder

# Files that make a folder an image's.
_CONDA = ("environment.yml", "environment.yaml", "conda-lock.yml", "conda-linux-64.lock")
_ASKS = (*_CONDA, "requirements.txt", "apt.txt", "postBuild", "runtime.txt")
# Folders that have requirements of their own and are no images.
_NO_IMAGES = ("docs", "doc", "tests", "test", "examples", "notebooks", "ci", "scripts", "binder")
# What repo2docker or Pangeo's base do with a file, and we do not.
_LEFT = {
    "postBuild": "is not run: `lithify lock` refuses it until it is removed, or what it does is stated as packages",
    "install.R": "is not run: ask for `r-` packages in environment.yml",
    "DESCRIPTION": "is not read: ask for `r-` packages in environment.yml",
    "Project.toml": "is not read: Julia's packages are not installed",
    "JuliaProject.toml": "is not read: Julia's packages are not installed",
    "REQUIRE": "is not read: Julia's packages are not installed",
    "default.nix": "is not read: nothing is built by Nix",
    "setup.py": "is not installed: only packages of an index are",
    "pyproject.toml": "is not installed: only packages of an index are",
    "Pipfile": "is not read: list the packages in requirements.txt",
    "Pipfile.lock": "is not read: list the packages in requirements.txt",
}
# Instructions of a Dockerfile that mean nothing to us, or that the contract says already.
_HARMLESS = ("FROM", "ARG", "LABEL", "EXPOSE", "MAINTAINER", "SHELL", "HEALTHCHECK", "STOPSIGNAL")
_DEBIAN = {"3.11": "bookworm", "3.13": "trixie"}


@dataclass(frozen=True)
class Taken:
    """One image that was found: its name, its folder, what it extends, and what could not be taken over."""

    name: str
    folder: Path
    extends: str | None = None
    conda: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Takeover:
    """A repository as a family: the text of ``lithify.toml``, and notes about the rest."""

    text: str
    notes: tuple[str, ...]
    images: tuple[Taken, ...] = field(default=())


def take_over(repository: Path, family: Path, name: str) -> Takeover:
    """The family called ``name`` for ``repository``, whose ``lithify.toml`` is to lie in the folder ``family``.

    Nothing is written.

    Raises:
        InputError: where the repository has no image that can be recognised, or two ways to read one.
    """
    if not repository.is_dir():
        raise InputError(f"{repository} is no folder")
    folders = _image_folders(repository)
    images = _related(folders, repository) if folders else _single(repository)
    if not images:
        raise InputError(
            f"{repository} has no image that can be recognised",
            hint=f"it has no folder, and no file of its own, such as {', '.join(_ASKS[:4])}, ...",
        )
    platforms, of_platforms = _platforms(images)
    suite, of_python = _suite(images)
    notes = [*of_platforms, *of_python, *(note for image in images for note in image.notes)]
    return Takeover(_toml(images, repository, family, name, platforms, suite), tuple(notes), tuple(images))


# -- which images ------------------------------------------------------------------------------------------


def _image_folders(repository: Path) -> list[Path]:
    """The folders of a repository like Pangeo's."""
    found = []
    for folder in sorted(repository.iterdir()):
        if not folder.is_dir() or folder.name.startswith(".") or folder.name.lower() in _NO_IMAGES:
            continue
        inside = {path.name for path in configuration_folder(Image(folder.name, folder)).iterdir()}
        if "Dockerfile" in {path.name for path in folder.iterdir()} or inside & set(_CONDA):
            found.append(folder)
    return found


def _single(repository: Path) -> list[Taken]:
    """The one image of a repository like repo2docker's."""
    folder = configuration_folder(Image("notebook", repository))
    if folder == repository and not any((folder / name).exists() for name in (*_ASKS, "Dockerfile")):
        return []
    return [
        Taken(
            "notebook",
            repository,
            conda=any((folder / file).exists() for file in _CONDA),
            notes=tuple(_left_out(repository, repository)),
        )
    ]


def _related(folders: list[Path], repository: Path) -> list[Taken]:
    """The images in ``folders``, parents first."""
    names = {folder.name: _image_name(folder.name) for folder in folders}
    makefile = _makefile_parents(repository, names)
    above = {folder.name: _lock_parents(folder, names) | makefile.get(folder.name, set()) for folder in folders}
    parents: dict[str, str | None] = {}
    for folder in folders:
        # Of several, the one that has most above itself: what it lacks, it has from its own parents.
        near = sorted(above[folder.name], key=lambda other: (-len(above[other]), other))
        parents[folder.name] = near[0] if near else _dockerfile_parent(folder, names)
    images = []
    for folder in folders:
        notes = list(_left_out(folder, repository))
        parent = parents[folder.name]
        if parent is not None and _circle(folder.name, parents):
            notes.append(f"{folder.name}: it and `{parent}` are made from each other; `extends` is left out")
            parent = parents[folder.name] = None
        conda = any((configuration_folder(Image(folder.name, folder)) / file).exists() for file in _CONDA)
        images.append(Taken(names[folder.name], folder, names[parent] if parent else None, conda, tuple(notes)))
    depth = {image.name: _depth(image.name, {i.name: i.extends for i in images}) for image in images}
    return sorted(images, key=lambda image: (depth[image.name], image.name))


def _depth(name: str, parents: Mapping[str, str | None]) -> int:
    parent = parents[name]
    return 1 + _depth(parent, parents) if parent else 0


def _circle(name: str, parents: Mapping[str, str | None]) -> bool:
    seen: set[str] = set()
    here: str | None = name
    while here is not None and here not in seen:
        seen.add(here)
        here = parents[here]
    return here is not None


def _image_name(folder: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", folder.lower()).strip("._-")[:63] or "image"


def _lock_parents(folder: Path, names: Iterable[str]) -> set[str]:
    """The other images whose files ``conda-lock.yml`` was made from."""
    path = configuration_folder(Image(folder.name, folder)) / "conda-lock.yml"
    if not path.exists():
        return set()
    from lithify.locks.conda_lock import read_conda_lock

    try:
        sources = read_conda_lock(path).sources
    except LithifyError:
        return set()  # `_left_out` says so
    return {Path(os.path.normpath(path.parent / source)).parent.name for source in sources} & set(names) - {folder.name}


def _makefile_parents(repository: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """The other images whose environment.yml the ``Makefile`` gives to conda-lock, by image."""
    path = repository / "Makefile"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found: dict[str, set[str]] = {}
    for block in re.split(r"^(?=[^\s#][^=\n]*:(?!=))", text, flags=re.MULTILINE):
        inside = re.search(r"\bcd\s+(?:\./)?([\w.-]+)", block)
        target = inside[1] if inside else re.split(r"[\s:]", block, maxsplit=1)[0]
        for line in re.findall(r"conda-lock\b.*?(?=[;&|]|(?<!\\)\n|\Z)", block, re.DOTALL):
            others = re.findall(r"(?:-f|--file)[ =]\S*?([\w.-]+)/(?:binder/|\.binder/)?environment\.ya?ml", line)
            found.setdefault(target, set()).update(other for other in others if other in names and other != target)
    return found


def _dockerfile_parent(folder: Path, names: Iterable[str]) -> str | None:
    """The image that the last stage of ``Dockerfile`` is made from, where the repository has it."""
    path = folder / "Dockerfile"
    if not path.is_file():
        return None
    stages: dict[str, str] = {}
    last = ""
    for match in re.finditer(
        r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", path.read_text("utf-8", "replace"), re.MULTILINE | re.I
    ):
        last = stages.get(match[1].lower(), match[1])
        if match[2]:
            stages[match[2].lower()] = last
    image = re.sub(r"[:@].*$", "", last.rpartition("/")[2])
    return image if image in set(names) - {folder.name} else None


# -- what is said of them ----------------------------------------------------------------------------------


def _left_out(folder: Path, repository: Path) -> Iterable[str]:
    """What of an image's folder is not taken over."""
    inner = configuration_folder(Image(folder.name, folder))
    shown = inner.relative_to(repository)
    for file, why in _LEFT.items():
        if (inner / file).exists():
            yield f"{shown / file} {why}"
    runtime = inner / "runtime.txt"
    if runtime.exists() and any((inner / file).exists() for file in _CONDA):
        yield f"{shown / 'runtime.txt'} is not read: environment.yml says which Python"
    for file in ("environment.yml", "environment.yaml"):
        try:
            if (inner / file).is_file():
                read_environment(inner / file, LINUX_AMD64)
        except LithifyError as error:
            yield f"{shown / file} cannot be read: {_inside(error, inner)}"
    lock = inner / "conda-lock.yml"
    if lock.is_file():
        from lithify.locks.conda_lock import read_conda_lock

        try:
            for note in read_conda_lock(lock).notes:
                yield f"{shown / 'conda-lock.yml'}: {note.partition(': ')[2]}"
        except LithifyError as error:
            yield f"{shown / 'conda-lock.yml'} cannot be read: {_inside(error, inner)}"
    start = inner / "start"
    if start.is_file() and not re.search(rb'exec\s+"\$@"\s*$', start.read_bytes()):
        yield f'{shown / "start"} does not end in `exec "$@"`: hubs could not start their own command'
    for path in dict.fromkeys((folder / "Dockerfile", inner / "Dockerfile")):
        if path.is_file():
            yield from _dockerfile_notes(path, path.relative_to(repository))


def _inside(error: LithifyError, folder: Path) -> str:
    """An error's message on one line, without the folder that is named before it."""
    return " ".join(error.message.replace(f"{folder}{os.sep}", "").split())


def _dockerfile_notes(path: Path, shown: Path) -> Iterable[str]:
    """The instructions of a Dockerfile that do something, by line; those for images on top (``ONBUILD``) are ours."""
    steps: list[str] = []
    continued = False
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        word = line.strip().partition(" ")[0].upper()
        if not continued and re.fullmatch(r"[A-Z]+", word) and word not in (*_HARMLESS, "ONBUILD"):
            steps.append(f"{word} (line {number})")
        if not line.lstrip().startswith("#"):
            continued = line.rstrip().endswith("\\")
    if steps:
        yield (
            f"{shown} is not run: {', '.join(steps[:12])}{', ...' if len(steps) > 12 else ''}; "
            "see that nothing is missing in the image"
        )


def _platforms(images: Iterable[Taken]) -> tuple[list[str], list[str]]:
    """The platforms that every lock and every environment.yml that names some is for."""
    common = set(PLATFORMS)
    named = False
    for image in images:
        for subdirs in _named_platforms(configuration_folder(Image(image.name, image.folder))):
            named = True
            common &= {str(platform) for platform in PLATFORMS.values() if platform.subdir in subdirs}
    if not named:
        return ["linux/amd64"], []
    if not common:
        return ["linux/amd64"], ["the files agree on no platform that can be built; linux/amd64 is put down"]
    return sorted(common), []


def _named_platforms(folder: Path) -> Iterable[set[str]]:
    """The platforms that each file of the folder names, as conda's subdirs; what cannot be read names none."""
    from lithify.locks.conda_lock import read_conda_lock

    for file in ("conda-lock.yml", "environment.yml", "environment.yaml"):
        path = folder / file
        if path.is_file():
            with contextlib.suppress(LithifyError):
                if file == "conda-lock.yml":
                    yield {platform.subdir for platform in read_conda_lock(path).platforms}
                elif named := read_environment(path, LINUX_AMD64).platforms:
                    yield set(named)


def _suite(images: Iterable[Taken]) -> tuple[str, list[str]]:
    """Debian's release, by the Python that ``runtime.txt`` asks for where there is no conda."""
    for image in images:
        path = configuration_folder(Image(image.name, image.folder)) / "runtime.txt"
        if not image.conda and path.is_file():
            asked = path.read_text("utf-8", "replace").strip()
            match = re.fullmatch(r"python-(3\.\d+)(?:\.\d+)?", asked)
            if match and match[1] in _DEBIAN:
                return _DEBIAN[match[1]], []
            return "trixie", [
                f"{path.name} asks for {asked[:60]!r}: Debian has Python 3.11 (bookworm) and 3.13 (trixie); "
                "environment.yml can ask for any"
            ]
    return "trixie", []


def _toml(
    images: Iterable[Taken], repository: Path, family: Path, name: str, platforms: Iterable[str], suite: str
) -> str:
    images = list(images)
    quoted = ", ".join(json.dumps(platform) for platform in platforms)
    lines = [
        "# Made by `lithify init --from`: the files beside it are read as they are, and none was changed.",
        "# `lithify lock` resolves the family, `lithify build` builds it.",
        "",
        "[family]",
        f"name = {json.dumps(name)}",
        f"platforms = [{quoted}]",
        "",
        "[base]",
        f"debian = {json.dumps(suite)}",
        "# TLS certificates, time zones, and the libraries that compiled packages take for granted.",
        'packages = ["ca-certificates", "libexpat1", "libgcc-s1", "libstdc++6", "tzdata", "zlib1g"]',
    ]
    if any(image.conda for image in images):
        lines += [
            "",
            "# Packages come from conda channels: those that environment.yml names, or these where it names none.",
            "[conda]",
            '# channels = ["conda-forge"]',
            '# require = ["pangeo-notebook"]      # asked for in every image',
        ]
    for image in images:
        lines += ["", *_comments(image.notes), f"[images.{_key(image.name)}]"]
        folder = Path(os.path.relpath(image.folder, family)).as_posix()
        if folder != image.name:
            lines.append(f"folder = {json.dumps(folder, ensure_ascii=False)}")
        if image.extends:
            lines.append(f"extends = {json.dumps(image.extends)}")
    return "\n".join(lines) + "\n"


def _comments(notes: Iterable[str]) -> Iterable[str]:
    for note in notes:
        yield from textwrap.wrap(
            f"Not taken over: {note}", 110, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
        )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
