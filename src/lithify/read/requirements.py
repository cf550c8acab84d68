"""What an image's folder asks for: its requirement files, read and checked line by line.

The folder is ``binder/``, else ``.binder/``, else the image's folder itself. ``requirements.txt`` is read in pip's own
format (https://pip.pypa.io/en/stable/reference/requirements-file-format/): comments, continued lines, markers,
extras, ``-r``, ``-c``, index options, hashes, ``${VARIABLES}``. Only what can be locked as a wheel from an index is
taken; all else is an error that names the file and the line.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as _Parsed
from packaging.utils import canonicalize_name

from lithify.addresses import without_credentials
from lithify.errors import InputError
from lithify.lockfile import LOCK_FILE
from lithify.platforms import PLATFORMS, Platform
from lithify.read import yaml
from lithify.read.environment import SUBDIRS, EnvironmentFile, read_environment
from lithify.read.family import DebianBase, Family, Image, configuration_folder, lock_path
from lithify.read.files import read_bytes, read_text

PYTHON_FILE = "requirements.txt"
APT_FILE = "apt.txt"
VIRTUAL_FILE = "virtual-packages.yml"
CONDARC_FILE = "condarc.yml"
DASK_FILE = "dask_config.yml"


@dataclass(frozen=True)
class Requirement:
    """One requirement of a Python package, and where it was written.

    ``text`` is the requirement without comment, options and line ends; ``where`` is ``FILE:LINE``.
    """

    name: str
    text: str
    where: str
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Indexes:
    """What requirement files say of where to look: addresses as they were written, variables filled in."""

    index: str | None = None
    extra: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    no_index: bool = False
    prereleases: bool = False

    def joined(self, other: Indexes) -> Indexes:
        """Both; where both name the main index, ``other``'s."""
        return Indexes(
            other.index or self.index,
            tuple(dict.fromkeys((*self.extra, *other.extra))),
            tuple(dict.fromkeys((*self.links, *other.links))),
            self.no_index or other.no_index,
            self.prereleases or other.prereleases,
        )


@dataclass(frozen=True)
class AptPackage:
    """A Debian package by name, and where it was written (``FILE:LINE``)."""

    name: str
    where: str


@dataclass(frozen=True)
class Requirements:
    """All that an image's folder asks for.

    ``files`` maps each requirement file's path to its logical lines, comments gone: what the lock's fingerprint is
    made of. ``start``, ``jupyter_config``, ``dask_config`` and ``condarc`` are copied into the image as they are.
    ``environments`` are the conda environments' files, by the environment's name and the platform; ``virtual_packages``
    what ``virtual-packages.yml`` says, by conda's subdir and name, where there is one.
    """

    image: str
    folder: Path
    python: tuple[Requirement, ...] = ()
    constraints: tuple[Requirement, ...] = ()
    indexes: Indexes = Indexes()
    apt: tuple[AptPackage, ...] = ()
    start: bytes | None = None
    jupyter_config: bytes | None = None
    dask_config: bytes | None = None
    condarc: bytes | None = None
    environments: Mapping[str, Mapping[Platform, EnvironmentFile]] = field(default_factory=dict)
    virtual_packages: Mapping[str, Mapping[str, str]] | None = None
    files: Mapping[Path, bytes] = field(default_factory=dict)


# Files of the contract that mean something which this version does not do: never skipped in silence.
_UNSUPPORTED = {"postBuild": "postBuild is not supported yet, and would not be run"}
_CONDA_FILES = (
    *("environment.yml", "environment.yaml", "conda-lock.yml", "conda-linux-64.lock", "conda-linux-aarch64.lock"),
    VIRTUAL_FILE,
)


def read_requirements(image: Image) -> Requirements:
    """Read what ``image``'s folder asks for.

    Raises:
        InputError: naming the file and the line of what is wrong or cannot be done.
    """
    folder = configuration_folder(image)
    for name, why in _UNSUPPORTED.items():
        if (folder / name).exists():
            raise InputError(
                f"{folder / name}: {why}", hint=f"remove it, or state what it does in {PYTHON_FILE} or {APT_FILE}"
            )
    if not image.environments:
        for name in _CONDA_FILES:
            if (folder / name).exists():
                raise InputError(
                    f"{folder / name} is about conda packages, and the family has none",
                    hint="add a [conda] table to lithify.toml (an empty one will do), or remove the file",
                )
    files: dict[Path, bytes] = {}
    reader = _PythonReader(files)
    if (folder / PYTHON_FILE).exists():
        reader.read(folder / PYTHON_FILE, constraints=False)
    return Requirements(
        image=image.name,
        folder=folder,
        python=tuple(reader.requirements),
        constraints=tuple(reader.constraints),
        indexes=reader.indexes,
        apt=tuple(_read_apt(folder / APT_FILE, files)) if (folder / APT_FILE).exists() else (),
        start=read_bytes(folder / "start"),
        jupyter_config=read_bytes(folder / "jupyter_notebook_config.py"),
        dask_config=_read_configuration(folder / DASK_FILE),
        condarc=_read_configuration(folder / CONDARC_FILE),
        environments=_read_environments(image, folder, files),
        virtual_packages=_read_virtual_packages(folder / VIRTUAL_FILE, files),
        files=files,
    )


def read_requirements_file(path: Path) -> tuple[Requirement, ...]:
    """The requirements of a file in pip's format, and of what it includes.

    Raises:
        InputError: naming the file and the line of what is wrong or cannot be done.
    """
    reader = _PythonReader({})
    reader.read(path, constraints=False)
    return tuple(reader.requirements)


def pip_requirements(
    file: EnvironmentFile,
) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...], Indexes]:
    """The requirements, the constraints and the indexes of the ``pip:`` section of ``file``.

    Files that ``-r`` and ``-c`` name are relative to it, as for conda.

    Raises:
        InputError: naming the file and the line of what is wrong or cannot be done.
    """
    reader = _pip_reader(file, {})
    return tuple(reader.requirements), tuple(reader.constraints), reader.indexes


def _pip_reader(file: EnvironmentFile, files: dict[Path, bytes]) -> _PythonReader:
    reader = _PythonReader(files)
    for asked in file.pip:
        for _, line in _logical_lines(asked.text):
            reader.line(_expanded(line), asked.where, Path(os.path.normpath(file.path)), False, ())
    reader.check_hashes()
    return reader


def _read_environments(
    image: Image, folder: Path, files: dict[Path, bytes]
) -> dict[str, dict[Platform, EnvironmentFile]]:
    found: dict[str, dict[Platform, EnvironmentFile]] = {}
    for environment in image.environments:
        stem = environment.file.removesuffix(".yml")
        there = [path for path in (folder / f"{stem}.yml", folder / f"{stem}.yaml") if path.exists()]
        if len(there) == 2:
            raise InputError(f"there are both {there[0]} and {there[1]}", hint="keep one of them: only one is read")
        for path in there:
            read = {platform: read_environment(path, platform) for platform in PLATFORMS.values()}
            found[environment.name] = read
            for file in read.values():
                _pip_reader(file, files)
            files[path] = b"\0".join(read[platform].document for platform in sorted(read))
    return found


def _read_virtual_packages(path: Path, files: dict[Path, bytes]) -> dict[str, dict[str, str]] | None:
    """What ``virtual-packages.yml`` (conda-lock's) says, by conda's subdir and name; nothing where it is missing."""
    if not path.exists():
        return None
    where = str(path)
    root = yaml.table(yaml.parse_yaml(read_text(path), where), where, VIRTUAL_FILE, ("subdirs",))
    if "subdirs" not in root.entries:
        raise InputError(f"{where}: no `subdirs`", hint="list platforms below it: `linux-64:`, then `packages:`")
    found: dict[str, dict[str, str]] = {}
    for subdir, node in yaml.table(root.entries["subdirs"], where, "`subdirs`", SUBDIRS).entries.items():
        packages = yaml.table(node, where, f"`{subdir}`", ("packages",)).entries.get("packages")
        table = yaml.table(packages, where, f"`packages` of `{subdir}`") if packages is not None else None
        found[subdir] = {}
        for name, value in table.entries.items() if table else ():
            if not re.fullmatch(r"__[a-z0-9_]+", name):
                line = table.keys[name].line if table else 0
                raise InputError(
                    f"{where}:{line}: `{yaml.shortened(name)}` is no virtual package",
                    hint="its name begins with two underscores: `__glibc`",
                )
            found[subdir][name] = yaml.text(value, where, f"the version of `{name}`")
    files[path] = json.dumps(found, sort_keys=True).encode()
    return found


def _read_configuration(path: Path) -> bytes | None:
    """A configuration file that is copied as it is, once it is known to be a YAML mapping (or empty)."""
    data = read_bytes(path)
    if data is not None:
        root = yaml.parse_yaml(read_text(path), str(path))
        if root is not None:
            yaml.table(root, str(path), path.name)
    return data


def documents(
    family: Family, lineage: Sequence[Image], requirements: Sequence[Requirements] | None = None
) -> dict[str, bytes]:
    """What the lock of the last image of ``lineage`` answers, by name.

    That is the requirement files of the lineage, the family's facts that matter, and the parent's lock: where it was
    made anew, its child is locked again too, or the two would not share their layers. Comments and blank lines do not
    count, nor does where the family lies. ``requirements`` are those of the lineage's images, where the caller has read
    them.

    Raises:
        InputError: for a requirement file that is wrong.
    """
    base = family.base
    if isinstance(base, DebianBase):
        about = f"debian {base.suite}\n" + "".join(f"package {name}\n" for name in sorted(set(base.packages)))
    else:
        about = f"image {base.image}\n"
    facts = f"python {base.python}\n{about}" + "".join(
        f"platform {platform}\n" for platform in sorted(family.platforms_of(lineage[-1].name))
    )
    facts += _conda_facts(family, lineage[-1])
    found = {"lithify.toml": facts.encode()}
    for image, asked in zip(lineage, requirements or map(read_requirements, lineage), strict=True):
        for path, content in asked.files.items():
            found[f"{image.name}: {Path(os.path.relpath(path, family.root)).as_posix()}"] = content
    if len(lineage) > 1 and (parent := read_bytes(lock_path(lineage[-2]))) is not None:
        found[f"{lineage[-2].name}: {LOCK_FILE}"] = parent.replace(b"\r\n", b"\n")
    return found


def _conda_facts(family: Family, image: Image) -> str:
    """What the family says of conda packages, a fact a line: nothing for a family without them."""
    if family.conda is None:
        return ""
    lines = [f"conda channel {without_credentials(channel)}" for channel in family.conda.channels]
    lines += [f"conda require {spec}" for spec in sorted(family.conda.require)]
    lines += [f"environment {one.name} {one.prefix} {one.file}" for one in image.environments]
    lines += [
        f"virtual package {name} {version} {platform}".rstrip()
        for platform, packages in sorted(image.virtual_packages.items())
        for name, version in sorted(packages.items())
    ]
    return "".join(f"{line}\n" for line in lines)


# -- requirements.txt --------------------------------------------------------------------------------------

_COMMENT = re.compile(r"(^|\s+)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_HASH = re.compile(r"(sha256|sha384|sha512):([0-9a-f]{64,128})")
_SCHEME = re.compile(r"^(?:[a-z][a-z0-9+.-]*:)?//|^(?:git|hg|svn|bzr)\+|^file:", re.IGNORECASE)

_INDEX = ("-i", "--index-url", "--pypi-url")
_EXTRA = ("--extra-index-url",)
_LINKS = ("-f", "--find-links")
_FILES = ("-r", "--requirement", "-c", "--constraint")
_VALUED = (*_INDEX, *_EXTRA, *_LINKS, *_FILES, "-e", "--editable", "--no-binary", "--only-binary", "--trusted-host")
_VALUED_REFUSED = {
    "-e": "an editable package is source code of this machine, which an image cannot depend on",
    "--editable": "an editable package is source code of this machine, which an image cannot depend on",
    "--trusted-host": "which hosts to trust is each machine's configuration (uv's `allow-insecure-host`)",
}
_FLAGS = ("--pre", "--no-index", "--prefer-binary", "--require-hashes")
_KNOWN = (*_VALUED, *_FLAGS, "--hash")


class _PythonReader:
    """Reads ``requirements.txt`` and what it includes into ``requirements``, ``constraints`` and ``indexes``."""

    def __init__(self, files: dict[Path, bytes]) -> None:
        self.files = files
        self.requirements: list[Requirement] = []
        self.constraints: list[Requirement] = []
        self.indexes = Indexes()
        self.hashes_required = False
        self.done: set[tuple[Path, bool]] = set()

    def read(self, path: Path, *, constraints: bool) -> None:
        self.file(path, constraints, None, ())
        self.check_hashes()

    def check_hashes(self) -> None:
        """See that every requirement has the hash that ``--require-hashes`` asks for."""
        if self.hashes_required:
            for requirement in self.requirements:
                if not requirement.hashes:
                    raise InputError(
                        f"{requirement.where}: `{requirement.text}` has no --hash, and --require-hashes asks for one",
                        hint="the lock holds a hash for every package: --require-hashes is not needed here",
                    )

    def file(self, path: Path, constraints: bool, asked_at: str | None, above: tuple[Path, ...]) -> None:
        path = Path(os.path.normpath(path))
        if path in above:
            circle = " -> ".join(p.name for p in (*above[above.index(path) :], path))
            raise InputError(f"{asked_at}: requirement files include each other in a circle: {circle}")
        if (path, constraints) in self.done:
            return
        self.done.add((path, constraints))
        text = read_text(path, asked_at)
        lines = list(_logical_lines(text))
        self.files[path] = "".join(f"{line}\n" for _, line in lines).encode()
        for number, line in lines:
            self.line(_expanded(line), f"{path}:{number}", path, constraints, above)

    def line(self, line: str, where: str, path: Path, constraints: bool, above: tuple[Path, ...]) -> None:
        requirement, options = _split(line, where)
        hashes = []
        for option, value in options:
            if option == "--hash":
                if not requirement:
                    raise InputError(f"{where}: --hash belongs to a requirement, and there is none in `{line}`")
                algorithm, _, digest = value.partition(":")
                if not _HASH.fullmatch(value):
                    raise InputError(
                        f"{where}: `--hash={value}` is no hash",
                        hint=f"{algorithm} is too weak"
                        if algorithm in ("md5", "sha1")
                        else "it looks like --hash=sha256:0123...",
                    )
                hashes.append(f"{algorithm}:{digest}")
            elif requirement:
                raise InputError(
                    f"{where}: `{option}` cannot follow a requirement: `{line}`",
                    hint="only --hash can; put other options on a line of their own",
                )
            else:
                self.option(option, value, where, path, constraints, above)
        if requirement:
            parsed = _requirement(requirement, where, path.parent)
            found = Requirement(canonicalize_name(parsed.name), str(parsed), where, tuple(hashes))
            if constraints:
                if parsed.extras:
                    raise InputError(f"{where}: a constraint cannot have extras: `{requirement}`")
                self.constraints.append(found)
            else:
                self.requirements.append(found)

    def option(
        self, option: str, value: str, where: str, path: Path, constraints: bool, above: tuple[Path, ...]
    ) -> None:
        indexes = self.indexes
        if option in _FILES:
            if _SCHEME.match(value):
                raise InputError(
                    f"{where}: `{option} {value}` is an address",
                    hint="download it beside the requirement files: what is on a server changes without notice",
                )
            as_constraints = constraints or option in ("-c", "--constraint")
            self.file(path.parent / value, as_constraints, where, (*above, path))
        elif option in _INDEX:
            self.indexes = indexes.joined(Indexes(index=value))
        elif option in _EXTRA:
            self.indexes = indexes.joined(Indexes(extra=(value,)))
        elif option in _LINKS:
            place = value if _SCHEME.match(value) else str((path.parent / value).absolute())
            self.indexes = indexes.joined(Indexes(links=(place,)))
        elif option == "--no-index":
            self.indexes = indexes.joined(Indexes(no_index=True))
        elif option == "--pre":
            self.indexes = indexes.joined(Indexes(prereleases=True))
        elif option == "--require-hashes":
            self.hashes_required = True
        elif option == "--no-binary" and value != ":none:":
            raise InputError(
                f"{where}: `--no-binary {value}` asks to build from source, and only wheels can be locked",
                hint="remove it",
            )
        elif option in _VALUED_REFUSED:
            raise InputError(f"{where}: `{option} {value}`: {_VALUED_REFUSED[option]}", hint="remove it")


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with content, continued ones joined, comments gone; each with the number where it begins."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        if line.lstrip().startswith("#"):
            # A comment ends a continued line, as pip reads it.
            line = f" {line}"
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1]
            continue
        whole = _COMMENT.sub("", joined + line).strip()
        if whole:
            yield start, whole
        joined, start = "", 0
    if whole := _COMMENT.sub("", joined).strip():
        yield start, whole


def _expanded(line: str) -> str:
    return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[0], line)


def _split(line: str, where: str) -> tuple[str, list[tuple[str, str]]]:
    """A line's requirement (or nothing) and its options with their values."""
    words = line.split(" ")
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    requirement = " ".join(words[:first]).strip()
    try:
        rest = shlex.split(" ".join(words[first:]))
    except ValueError as error:
        raise InputError(f"{where}: quotes do not match in `{line}`: {error}") from error
    options: list[tuple[str, str]] = []
    while rest:
        word = rest.pop(0)
        option, has_value, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2:
            option, has_value, value = word[:2], "=", word[2:].removeprefix("=")
        if option not in _KNOWN:
            close = difflib.get_close_matches(option, _KNOWN, n=1)
            raise InputError(
                f"{where}: unknown option `{option}` in `{line}`",
                hint=f"did you mean `{close[0]}`?" if close else f"known are {', '.join(_KNOWN)}",
            )
        if option in _FLAGS:
            if has_value:
                raise InputError(f"{where}: `{option}` takes no value: `{line}`")
        elif not has_value:
            if not rest:
                raise InputError(f"{where}: `{option}` needs a value: `{line}`")
            value = rest.pop(0)
        options.append((option, value))
    return requirement, options


def _requirement(text: str, where: str, folder: Path) -> _Parsed:
    if _SCHEME.match(text) or re.match(r"^[\w.-]+(\[[^]]*\])?\s*@", text):
        raise InputError(
            f"{where}: `{text}` is an address, and only packages of an index can be locked",
            hint="name the package and its version: `name==1.0`",
        )
    if (
        text.startswith((".", "/", "~"))
        or text.endswith((".whl", ".tar.gz", ".zip"))
        or ((folder / text).is_dir() and "/" in text)
    ):
        raise InputError(
            f"{where}: `{text}` is a path of this machine, and only packages of an index can be locked",
            hint="publish it to an index, or build it in a step of its own",
        )
    try:
        return _Parsed(text)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        hint = None
        if re.fullmatch(r"[A-Za-z0-9._-]+\s*=\s*[^=].*", text):
            hint = f"did you mean `{re.sub(r' *= *', '==', text, count=1)}`? One `=` is conda's way"
        raise InputError(f"{where}: `{text}` is no requirement: {why}", hint=hint) from error


# -- apt.txt -----------------------------------------------------------------------------------------------

# Debian Policy 5.6.1: at least two characters, lower-case letters, digits, plus, minus and periods.
_APT_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")


def _read_apt(path: Path, files: dict[Path, bytes]) -> Iterator[AptPackage]:
    text = read_text(path)
    found: dict[str, AptPackage] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for word in _COMMENT.sub("", line).split():
            where = f"{path}:{number}"
            if not _APT_NAME.fullmatch(word):
                hint = "a name has lower-case letters, digits, `+`, `-` and `.`"
                if re.match(r"[a-z0-9+.-]+[=/]", word):
                    hint = "leave the version out: the lock pins it"
                elif re.match(r"[a-z0-9+.-]+:", word):
                    hint = "leave the architecture out: each platform's own is taken"
                raise InputError(f"{where}: `{word}` is no Debian package's name", hint=hint)
            found.setdefault(word, AptPackage(word, where))
    files[path] = "".join(f"{name}\n" for name in sorted(found)).encode()
    yield from (found[name] for name in sorted(found))
