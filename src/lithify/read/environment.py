"""``environment.yml``: what a conda environment asks for, as conda, mamba and conda-lock read it.

One file gives one answer a platform: selectors such as ``# [linux64]`` choose lines before the YAML is read. What they
can say, and where conda and conda-lock differ: docs/decisions/055-environment-files.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lithify.addresses import without_credentials
from lithify.errors import InputError
from lithify.platforms import Platform
from lithify.read import yaml
from lithify.read.files import read_text
from lithify.read.yaml import Items, Node, Scalar, Table, line_of, shortened


@dataclass(frozen=True)
class CondaSpec:
    """One conda package that is asked for.

    ``text`` is the match spec as it was written, without a channel; ``channel`` is the one that ``channel::spec``
    names, ``subdir`` the platform's folder of ``channel/subdir::spec`` (on another platform it cannot be had).
    ``where`` is ``FILE:LINE``.
    """

    name: str
    text: str
    where: str
    channel: str | None = None
    subdir: str = ""


@dataclass(frozen=True)
class PipLine:
    """One line of the ``pip:`` section, in the format of ``requirements.txt``, and where it was written."""

    text: str
    where: str


@dataclass(frozen=True)
class EnvironmentFile:
    """What one file asks for on one platform.

    ``channels`` are as written, without ``nodefaults`` (credentials are still in them: see
    `lithify.addresses.without_credentials`). ``platforms`` are conda's subdirs that the file names (none: any).
    ``variables`` are conda's ``env_vars``. ``category`` is conda-lock's, nothing where the file gives none.
    ``document`` is what decides about packages in one spelling, comments and credentials gone: what a lock's
    fingerprint covers.
    """

    path: Path
    name: str | None = None
    channels: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    specs: tuple[CondaSpec, ...] = ()
    pip: tuple[PipLine, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    category: str = ""
    document: bytes = b""

    def covers(self, platform: Platform) -> bool:
        """Whether the file is meant for ``platform``: it names it, or none."""
        return not self.platforms or platform.subdir in self.platforms


_KEYS = (
    *("name", "channels", "dependencies", "platforms", "variables", "prefix", "category", "pip-repositories"),
    "channel_priority",
)
# conda's platforms (CEP 26), of which we build some.
SUBDIRS = (
    *("linux-64", "linux-aarch64", "linux-ppc64le", "linux-armv6l", "linux-armv7l", "linux-32", "linux-riscv64"),
    *("linux-s390x", "osx-64", "osx-arm64", "win-64", "win-32", "win-arm64", "emscripten-wasm32", "wasi-wasm32"),
)


def read_environment(path: Path, platform: Platform) -> EnvironmentFile:
    """Read the environment file at ``path`` for ``platform``.

    Raises:
        InputError: naming the file and the line of what is wrong. No message holds a channel's credentials.
    """
    return parse_environment(read_text(path), path, platform)


def parse_environment(text: str, path: Path, platform: Platform) -> EnvironmentFile:
    """What ``text``, the content of ``path``, asks for on ``platform``; see `read_environment`."""
    where = str(path)
    root = yaml.parse_yaml("\n".join(select(text, where, platform)), where)
    if root is None:
        raise InputError(f"{where} is empty", hint="list what is needed below `dependencies:`, or remove the file")
    entries = yaml.table(root, where, "an environment file", _KEYS).entries
    name = _optional_text(entries.get("name"), where, "`name`")
    category = _optional_text(entries.get("category"), where, "`category`")
    channels = tuple(_channels(entries.get("channels"), where))
    platforms = tuple(_platforms(entries.get("platforms"), where))
    specs: list[CondaSpec] = []
    pip: list[PipLine] = []
    for address in _list(entries, "pip-repositories", where):
        repository = yaml.text(address, where, "an item of `pip-repositories`")
        pip.append(PipLine(f"--extra-index-url {repository}", line_of(where, address)))
    for item in _list(entries, "dependencies", where):
        if isinstance(item, Table):
            pip += _pip(item, where)
        else:
            specs.append(_spec(item, where))
    return EnvironmentFile(
        path=path,
        name=name,
        channels=channels,
        platforms=platforms,
        specs=tuple(specs),
        pip=tuple(pip),
        variables=_variables(entries.get("variables"), where),
        category=category or "",
        document=_document(channels, platforms, specs, pip),
    )


def _document(
    channels: tuple[str, ...], platforms: tuple[str, ...], specs: list[CondaSpec], pip: list[PipLine]
) -> bytes:
    content = {
        "channels": [without_credentials(channel) for channel in channels],
        "platforms": sorted(platforms),
        "conda": sorted(_spelt(spec) for spec in specs),
        "pip": [without_credentials(line.text) for line in pip],
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False).encode()


def _spelt(spec: CondaSpec) -> str:
    channel = "/".join(part for part in (without_credentials(spec.channel or ""), spec.subdir) if part)
    return f"{channel}::{spec.text}" if channel else spec.text


# -- selectors ---------------------------------------------------------------------------------------------

# As conda-build and conda-lock find them: brackets at the end of a comment.
_SELECTOR = re.compile(r"(?P<line>.+?)\s*#(?P<before>.*)\[(?P<says>[^\[\]]+)\][^()]*")
_TRUE = {
    "linux-64": frozenset({"linux64", "linux", "unix", "x86_64", "x86"}),
    "linux-aarch64": frozenset({"aarch64", "linux", "unix"}),
}
_SELECTORS = frozenset().union(*_TRUE.values()) | {
    *("linux32", "ppc64le", "s390x", "armv7l", "osx", "osx64", "arm64", "win", "win32", "win64", "emscripten", "wasi"),
}


def select(text: str, where: str, platform: Platform) -> Iterator[str]:
    """The lines of ``text``, those empty that their selector leaves out on ``platform``: every line keeps its number.

    Raises:
        InputError: for a selector that is not known: leaving the line out, or not, would both be guesses.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        match = _SELECTOR.fullmatch(line) if "[" in line and not line.lstrip().startswith("#") else None
        yield line if match is None or _chosen(match, f"{where}:{number}", platform) else ""


def _chosen(match: re.Match[str], where: str, platform: Platform) -> bool:
    words = match["says"].replace("(", " ( ").replace(")", " ) ").split()
    names = [word for word in words if word not in ("not", "and", "or", "(", ")")]
    unknown = [name for name in names if name not in _SELECTORS]
    if unknown or not names:
        if match["before"].strip():
            return True  # A comment that happens to have brackets.
        raise InputError(
            f"{where}: unknown selector `[{shortened(match['says'])}]`",
            hint=yaml.nearest(unknown[0] if unknown else "", sorted(_SELECTORS))
            + " A comment may hold brackets where a word comes first",
        )
    try:
        chosen, rest = _either(words, _TRUE[platform.subdir])
    except (IndexError, RecursionError):
        rest = ["?"]
    if rest:
        raise InputError(
            f"{where}: the selector `[{shortened(match['says'])}]` cannot be read",
            hint="write it with names, `not`, `and`, `or` and parentheses: `# [linux and not aarch64]`",
        )
    return chosen


def _either(words: list[str], true: frozenset[str]) -> tuple[bool, list[str]]:
    """What ``A or B`` is, and the words after it; `IndexError` where words are missing."""
    value, rest = _both(words, true)
    while rest and rest[0] == "or":
        other, rest = _both(rest[1:], true)
        value = value or other
    return value, rest


def _both(words: list[str], true: frozenset[str]) -> tuple[bool, list[str]]:
    value, rest = _single(words, true)
    while rest and rest[0] == "and":
        other, rest = _single(rest[1:], true)
        value = value and other
    return value, rest


def _single(words: list[str], true: frozenset[str]) -> tuple[bool, list[str]]:
    word, rest = words[0], words[1:]
    if word == "not":
        value, rest = _single(rest, true)
        return not value, rest
    if word == "(":
        value, rest = _either(rest, true)
        return value, rest[1:] if rest[0] == ")" else [*rest, "?"]
    if word in ("and", "or", ")"):
        raise IndexError(word)
    return word in true, rest


# -- the parts of the file ---------------------------------------------------------------------------------


def _list(entries: Mapping[str, Node], key: str, where: str) -> list[Node]:
    return yaml.items(entries[key], where, f"`{key}`") if key in entries else []


def _optional_text(node: Node | None, where: str, what: str) -> str | None:
    if node is None or (isinstance(node, Scalar) and node.kind == "null"):
        return None
    return yaml.text(node, where, what)


def _channels(node: Node | None, where: str) -> Iterator[str]:
    if node is None:
        return
    for item in yaml.items(node, where, "`channels`"):
        channel = yaml.text(item, where, "a channel").strip()
        if not channel or re.search(r"[\s\0]", channel) or channel.endswith("::"):
            raise InputError(
                f"{line_of(where, item)}: `{shortened(without_credentials(channel))}` is no channel",
                hint="write a name such as `conda-forge`, or an address",
            )
        if channel != "nodefaults":
            yield channel


def _platforms(node: Node | None, where: str) -> Iterator[str]:
    if node is None:
        return
    for item in yaml.items(node, where, "`platforms`"):
        name = yaml.text(item, where, "a platform")
        if name not in SUBDIRS:
            raise InputError(
                f"{line_of(where, item)}: unknown platform `{shortened(name)}`", hint=yaml.nearest(name, SUBDIRS)
            )
        yield name


def _variables(node: Node | None, where: str) -> dict[str, str]:
    if node is None or (isinstance(node, Scalar) and node.kind == "null"):
        return {}
    found = {}
    variables = yaml.table(node, where, "`variables`")
    for name, value in variables.entries.items():
        key = variables.keys[name]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"{line_of(where, key)}: `{shortened(name)}` cannot be a variable's name")
        if isinstance(value, Scalar) and value.kind == "int" and re.fullmatch(r"0|-?[1-9]\d*", value.text):
            found[name] = value.text
        else:
            found[name] = yaml.text(value, where, f"the variable `{name}`")
    return found


def _pip(item: Table, where: str) -> Iterator[PipLine]:
    for line in _list(yaml.table(item, where, "an item of `dependencies`", ("pip",)).entries, "pip", where):
        text = yaml.text(line, where, "an item of `pip`")
        for offset, part in enumerate(text.splitlines()):
            if part.strip():
                yield PipLine(part.strip(), f"{where}:{line.line + offset}")


# -- match specs -------------------------------------------------------------------------------------------

_CHANNEL = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*", re.ASCII)
_PACKAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# What needs no library to be understood: `numpy`, `numpy=1.26`, `numpy >=1.26,<3`. Importing rattler costs more than
# reading a file, and most files need no more than this.
_PLAIN = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    r"(?: ?(?:=[0-9]{1,8}(?:\.[0-9]{1,8}){0,5}(?:\.\*)?|(?:==|>=|<=|!=|>|<)[0-9]{1,8}(?:\.[0-9]{1,8}){0,5}"
    r"(?:,(?:==|>=|<=|!=|>|<)[0-9]{1,8}(?:\.[0-9]{1,8}){0,5}){0,5}))?"
)


def _spec(node: Node, where: str) -> CondaSpec:
    if isinstance(node, Items):
        raise InputError(f"{line_of(where, node)}: a list stands where a package is expected")
    if isinstance(node, Scalar) and node.kind == "null":
        raise InputError(f"{line_of(where, node)}: an empty item of `dependencies`", hint="remove it")
    return parse_spec(yaml.text(node, where, "a package"), line_of(where, node))


def parse_spec(text: str, where: str) -> CondaSpec:
    """The match spec, ``[CHANNEL[/SUBDIR]::]NAME [VERSION [BUILD]]``, that was written at ``where``.

    Raises:
        InputError: naming ``where`` and, without credentials, the spec that is none.
    """
    channel, separator, rest = text.strip().rpartition("::")
    rest = rest.strip()
    shown = shortened(without_credentials(text.strip()))
    if separator and not _is_channel(channel):
        raise InputError(f"{where}: `{shown}` names no channel before `::`", hint="write it as `conda-forge::numpy`")
    subdir = channel.rpartition("/")[2] if channel.rpartition("/")[2] in (*SUBDIRS, "noarch") else ""
    channel = channel.removesuffix(f"/{subdir}") if subdir else channel
    if _PLAIN.fullmatch(rest):
        return CondaSpec(_PACKAGE.match(rest)[0].lower(), rest, where, channel or None, subdir)  # type: ignore[index]
    if "://" in rest or rest.startswith((".", "/", "~")) or rest.endswith((".conda", ".tar.bz2")):
        raise InputError(
            f"{where}: `{shown}` is the address of a file, and only packages of a channel can be locked",
            hint="put it into a channel (`rattler-index` makes one of a folder), and name the package",
        )
    return CondaSpec(_parsed_name(rest, shown, where), rest, where, channel or None, subdir)


def _is_channel(text: str) -> bool:
    """Whether ``text`` can be a channel: a name, or else what rattler takes for an address."""
    if _CHANNEL.fullmatch(text):
        return True
    if not text or re.search(r"\s|::", text):
        return False
    from rattler import MatchSpec
    from rattler.exceptions import InvalidMatchSpecError

    try:
        MatchSpec(f"{text}::name", strict=False)
    except InvalidMatchSpecError:
        return False
    return True


def _parsed_name(text: str, shown: str, where: str) -> str:
    from rattler import MatchSpec
    from rattler.exceptions import InvalidMatchSpecError

    if len(text) > 2000 or not text.isprintable():
        raise InputError(f"{where}: `{shown}` is no conda package")
    try:
        spec = MatchSpec(text, strict=False)
    except InvalidMatchSpecError as error:
        why = shortened(without_credentials(str(error).splitlines()[0]))
        hint = None
        if re.fullmatch(r"[\w.-]+(\[[^]]*\])?\s*[~=]=.*|[\w.-]+\[\w.*", text):
            hint = "a package of Python's index belongs below `pip:`"
        raise InputError(f"{where}: `{shown}` is no conda package: {why}", hint=hint) from None
    if spec.name is None or spec.channel is not None or spec.subdir is not None:
        raise InputError(
            f"{where}: `{shown}` names its channel or platform in brackets", hint="write it as `conda-forge::numpy`"
        )
    if spec.build is not None and re.search(r"\s", str(spec.build)):
        raise InputError(
            f"{where}: `{shown}` has more than a name, a version and a build",
            hint="conditions are joined by commas, without spaces: `numpy >=1.26,<3`",
        )
    return str(spec.name.normalized)
