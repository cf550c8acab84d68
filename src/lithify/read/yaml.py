"""YAML with the line of every value, read with distrust.

PyYAML's C parser tells what it sees, one event at a time; the tree is made of them here. So every value knows its line,
a key that stands twice is an error, no nesting is too deep for the stack (PyYAML's own C composer recurses, and ends
the process), and an alias is a reference to what it names: a "bomb" of aliases costs nothing.

Scalars have the types of YAML 1.1, as PyYAML, conda and conda-lock read them.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from lithify.errors import InputError

Kind = Literal["text", "null", "bool", "int", "float", "other"]
_KINDS: dict[str, Kind] = {"str": "text", "null": "null", "bool": "bool", "int": "int", "float": "float"}
# Requirement files are flat. What is deeper than this is not one.
_DEEPEST = 100


@dataclass(frozen=True)
class Scalar:
    """A single value as it was written; ``kind`` is the type that YAML 1.1 gives it."""

    text: str
    kind: Kind
    line: int


@dataclass
class Items:
    """A list."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass
class Table:
    """A mapping, whose keys are scalars."""

    line: int
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Scalar] = field(default_factory=dict)


Node = Scalar | Items | Table


@functools.cache
def kind_of(text: str) -> Kind:
    """The type of a plain (unquoted) scalar."""
    return _KINDS.get(_resolver()(text), "other")


@functools.cache
def _resolver() -> Callable[[str], str]:
    from yaml.nodes import ScalarNode
    from yaml.resolver import Resolver

    resolve: Callable[[type[ScalarNode], str, tuple[bool, bool]], str] = Resolver().resolve
    return lambda text: str(resolve(ScalarNode, text, (True, False))).rpartition(":")[2]


def parse_yaml(text: str, where: str, first_line: int = 1) -> Node | None:
    """The tree of the one document in ``text``, whose first line is line ``first_line`` of the file ``where``.

    Nothing for an empty document.

    Raises:
        InputError: naming the file and the line of what is no YAML, stands twice, or contains itself.
    """
    return _Builder(where, first_line).build(text)


class _Builder:
    """Makes the tree out of the parser's events, with a stack of its own."""

    def __init__(self, where: str, first_line: int) -> None:
        self.where = where
        self.first = first_line
        self.open: list[tuple[Items | Table, list[Scalar]]] = []
        self.anchors: dict[str, Node] = {}
        self.unfinished: set[int] = set()
        self.root: Node | None = None
        self.documents = 0

    def fail(self, line: int, message: str, hint: str | None = None) -> NoReturn:
        raise InputError(f"{self.where}:{line}: {message}", hint=hint)

    def build(self, text: str) -> Node | None:
        import yaml

        try:
            for event in yaml.parse(text, Loader=yaml.CSafeLoader):
                self.take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = self.first + (mark.line if mark else 0)
            problem = " ".join(part for part in (error.context, error.problem) if part)
            hint = None
            if "cannot start any token" in problem:
                hint = "indent with spaces, not tabs, and put what begins with `@`, `%` or a backquote in quotes"
            self.fail(line, f"not valid YAML: {problem}", hint)
        except yaml.reader.ReaderError as error:
            position = error.position if isinstance(error.position, int) else 0
            line = self.first + text.encode("utf-8", "surrogatepass")[:position].count(b"\n")
            self.fail(line, f"not valid YAML: {error.reason}")
        except yaml.YAMLError as error:
            self.fail(self.first, f"not valid YAML: {error}")
        return self.root

    def take(self, event: object) -> None:
        import yaml

        line = self.first + event.start_mark.line if isinstance(event, yaml.Event) and event.start_mark else self.first
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and event.style in (None, "")
            kind: Kind = kind_of(event.value) if plain else "text"
            if event.tag:
                kind = self.tagged(event.tag, line, _KINDS)
            self.add(Scalar(event.value, kind, line), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            if len(self.open) >= _DEEPEST:
                self.fail(line, f"nested more than {_DEEPEST} deep")
            if event.tag:
                self.tagged(event.tag, line, {"seq": "other", "map": "other"})
            node: Items | Table = Items(line) if isinstance(event, yaml.SequenceStartEvent) else Table(line)
            self.add(node, event.anchor)
            self.open.append((node, []))
            self.unfinished.add(id(node))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            node, _ = self.open.pop()
            self.unfinished.discard(id(node))
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self.fail(line, f"`*{event.anchor}` names no anchor above it")
            if id(self.anchors[event.anchor]) in self.unfinished:
                self.fail(line, f"`*{event.anchor}` would contain itself")
            self.add(self.anchors[event.anchor], None)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.fail(line, "a second document begins here", "keep one of them: only one is read")

    def tagged(self, tag: str, line: int, known: Mapping[str, Kind]) -> Kind:
        """The kind that a tag gives: YAML's own tags say what is meant anyway, and no other means anything here."""
        schema, _, name = tag.rpartition(":")
        if schema != "tag:yaml.org,2002" or name not in known:
            self.fail(line, f"a tag (`{shortened(tag)}`) means nothing here", "remove it")
        return known[name]

    def add(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self.anchors[anchor] = node
        if not self.open:
            self.root = None if isinstance(node, Scalar) and node.kind == "null" and not node.text else node
            return
        parent, key = self.open[-1]
        if isinstance(parent, Items):
            parent.items.append(node)
        elif not key:
            if not isinstance(node, Scalar):
                self.fail(node.line, "a key must be a single value")
            if node.text in parent.keys:
                before = parent.keys[node.text].line
                self.fail(node.line, f"`{node.text}` stands twice, first in line {before}", "keep one of them")
            if node.text == "<<" and node.kind == "other":
                self.fail(node.line, "`<<` (a merge) is not read here", "write out what it would bring")
            parent.keys[node.text] = node
            key.append(node)
        else:
            parent.entries[key.pop().text] = node


# -- what a document must look like ------------------------------------------------------------------------


def line_of(where: str, node: Node) -> str:
    """``FILE:LINE`` of a value."""
    return f"{where}:{node.line}"


def table(node: Node | None, where: str, what: str, known: Iterable[str] | None = None) -> Table:
    """``node`` as a mapping whose keys are among ``known`` (any, without it).

    Raises:
        InputError: naming the line, and for an unknown key the nearest known one.
    """
    if not isinstance(node, Table):
        raise InputError(f"{_place(where, node)}: {what} must be a mapping (`key: value` lines), found {found(node)}")
    if known is not None:
        names = list(known)
        for key, scalar in node.keys.items():
            if key not in names:
                raise InputError(
                    f"{line_of(where, scalar)}: unknown key `{shortened(key)}` in {what}",
                    hint=nearest(key, names),
                )
    return node


def items(node: Node | None, where: str, what: str) -> list[Node]:
    """The items of a list; none for a key without a value.

    Raises:
        InputError: naming the line of what is no list.
    """
    if isinstance(node, Scalar) and node.kind == "null":
        return []
    if not isinstance(node, Items):
        raise InputError(f"{_place(where, node)}: {what} must be a list (`- item` lines), found {found(node)}")
    return node.items


def text(node: Node | None, where: str, what: str) -> str:
    """A scalar's text.

    Raises:
        InputError: naming the line of what is no text: a number would lose its zeros.
    """
    if not isinstance(node, Scalar) or node.kind != "text":
        hint = f'put it in quotes: "{node.text}"' if isinstance(node, Scalar) and node.kind != "null" else None
        raise InputError(f"{_place(where, node)}: {what} must be a text, found {found(node)}", hint=hint)
    return node.text


def texts(node: Node | None, where: str, what: str) -> list[str]:
    """A list of texts.

    Raises:
        InputError: naming the line of what is no list or no text.
    """
    return [text(item, where, f"an item of {what}") for item in items(node, where, what)]


def found(node: Node | None) -> str:
    """What a value is, for an error's message."""
    if node is None:
        return "nothing"
    if isinstance(node, Items):
        return "a list"
    if isinstance(node, Table):
        return "a mapping"
    names = {"null": "nothing", "bool": "a truth value", "int": "a number", "float": "a number", "text": "a text"}
    name = names.get(node.kind, "a value")
    return name if node.kind == "null" else f"{name} (`{shortened(node.text)}`)"


def nearest(word: str, known: Iterable[str]) -> str:
    """The hint for a word that is none of ``known``."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"known here are {', '.join(names)}"


def shortened(text: str, length: int = 120) -> str:
    """``text`` on one line of a message."""
    flat = "".join(c if c.isprintable() else "?" for c in text)
    return flat if len(flat) <= length else f"{flat[: length - 3]}..."


def _place(where: str, node: Node | None) -> str:
    return line_of(where, node) if node is not None else where
