"""`lithify.toml`: what it may say, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lithify.errors import InputError
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.read.family import DebianBase, Family, LayoutBase, find_family, read_family

WHOLE = """\
[family]
name = "mine"
platforms = ["linux/arm64", "linux/amd64"]
source = "https://example.invalid/repository"

[base]
debian = "trixie"
packages = ["tzdata"]

[layers]
maximum = 50

[images.child]
extends = "parent"
cmd = ["jupyter", "lab"]
environment = { A = "1" }
labels = { "org.example" = "x" }

[images.parent]
folder = "elsewhere"
"""


def read(folder: Path, text: str) -> Family:
    for name in ("child", "elsewhere", "parent", "a", "b", "c"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "lithify.toml").write_text(text)
    return read_family(folder)


def test_all_that_a_family_can_say(tmp_path: Path) -> None:
    family = read(tmp_path, WHOLE)
    assert family.name == "mine" and family.root == tmp_path
    assert family.platforms == (LINUX_AMD64, LINUX_ARM64)
    assert family.base == DebianBase("trixie", ("tzdata",), "3.13")
    assert family.maximum_layers == 50 and family.source == "https://example.invalid/repository"
    assert list(family.images) == ["parent", "child"]
    assert family.images["parent"].folder == tmp_path / "elsewhere"
    child = family.images["child"]
    assert child.cmd == ("jupyter", "lab") and child.environment == {"A": "1"} and child.labels == {"org.example": "x"}
    assert [image.name for image in family.lineage("child")] == ["parent", "child"]
    assert family.select(()) == ("parent", "child")
    assert family.select(("child",)) == ("child",)


def test_the_least_that_a_family_can_say(tmp_path: Path) -> None:
    family = read(tmp_path, '[base]\ndebian = "bookworm"\n[images.a]\n')
    assert family.name == tmp_path.name and family.platforms == (LINUX_AMD64,)
    assert family.base.python == "3.11" and family.images["a"].cmd is None


def test_an_image_as_base(tmp_path: Path) -> None:
    base = '[base]\noci-layout = "layout"\nimage = "x"\npython = "3.12"\n[images.a]\n'
    assert read(tmp_path, base).base == LayoutBase(tmp_path / "layout", "x", "3.12")


def test_the_family_is_found_from_a_folder_inside(tmp_path: Path) -> None:
    read(tmp_path, WHOLE)
    assert find_family(tmp_path / "child") == tmp_path / "lithify.toml"
    with pytest.raises(InputError, match=r"no lithify\.toml") as caught:
        find_family(tmp_path.parent)
    assert "lithify init" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ('name = "mine"', "name = ", 2, "not valid TOML"),
        ('name = "mine"', 'nmae = "mine"', 2, "did you mean `name`"),
        ('name = "mine"', "name = 3", 2, "must be a text"),
        ('"linux/arm64", ', '"linux/arm65", ', 3, "did you mean `linux/arm64`"),
        ('platforms = ["linux/arm64", "linux/amd64"]', 'platforms = "linux/amd64"', 3, "list of texts"),
        ('platforms = ["linux/arm64", "linux/amd64"]', "platforms = []", 3, "platform"),
        ("[base]", "[bse]", 6, "did you mean `base`"),
        ('debian = "trixie"', 'debian = "trixi"', 7, "did you mean `trixie`"),
        ('debian = "trixie"', 'debian = "trixie"\npython = "3.12"', 8, "Python 3.13, not 3.12"),
        ('debian = "trixie"', 'debian = "trixie"\nimage = "x"', 6, "both a Debian suite and an image"),
        ('debian = "trixie"\n', "", 6, "neither"),
        ('packages = ["tzdata"]', 'packages = "tzdata"', 8, "list of texts"),
        ('packages = ["tzdata"]', 'package = ["tzdata"]', 8, "did you mean `packages`"),
        ("maximum = 50", "maximum = 500", 11, "from 8 to 120"),
        ("maximum = 50", "maximum = true", 11, "from 8 to 120"),
        ("maximum = 50", "maximun = 50", 11, "did you mean `maximum`"),
        ('extends = "parent"', 'extends = "parnt"', 14, "did you mean `parent`"),
        ('extends = "parent"', 'extend = "parent"', 14, "did you mean `extends`"),
        ('extends = "parent"', 'extends = "child"', 14, "child -> child"),
        ('folder = "elsewhere"', 'extends = "child"', None, "circle"),
        ('folder = "elsewhere"', 'folder = "nowhere"', 20, "has no folder"),
        ('folder = "elsewhere"', 'folder = ["x"]', 20, "must be a text"),
        ('cmd = ["jupyter", "lab"]', 'cmd = "jupyter lab"', 15, "list of texts"),
        ('environment = { A = "1" }', "environment = { A = 1 }", 16, "table of texts"),
        ('labels = { "org.example" = "x" }', "labels = 1", 17, "table of texts"),
        ("[images.child]", '[images."Child"]', 13, "cannot be an image's name"),
        ("[images.child]", '[images."a/b"]', 13, "cannot be an image's name"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int | None, said: str) -> None:
    assert WHOLE.count(old) == 1
    with pytest.raises(InputError) as caught:
        read(tmp_path, WHOLE.replace(old, new))
    message = str(caught.value)
    assert said in message
    path = tmp_path / "lithify.toml"
    if line is None or "not valid TOML" in message:
        assert str(path) in message
    else:
        assert f"{path}:{line}: " in message


def test_the_line_is_that_of_the_right_table(tmp_path: Path) -> None:
    text = '[base]\ndebian = "trixie"\n\n[images.a]\nextends = "b"\n'
    text += '\n[images.b]\nextends = "c"\n\n[images.c]\nextends = "d"\n'
    with pytest.raises(InputError, match=r"lithify\.toml:11: image `c` extends `d`"):
        read(tmp_path, text)
    text = '[base]\ndebian = "trixie"\n\n[images]\na = { extends = "b" }\nb = { extnds = "c" }\n'
    with pytest.raises(InputError, match=r"lithify\.toml:6: unknown key `extnds`"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "base = 1\n",
        '[base]\ndebian = "trixie"\n',
        '[base]\ndebian = "trixie"\n[images]\n',
        '[base]\ndebian = "trixie"\n[images]\na = 1\n',
        'images = 1\n[base]\ndebian = "trixie"\n',
        'family = 1\n[base]\ndebian = "trixie"\n[images.a]\n',
        'layers = []\n[base]\ndebian = "trixie"\n[images.a]\n',
        "[base]\ndebian = 3\n[images.a]\n",
        '[base]\nimage = "x"\n[images.a]\n',
        '[base]\ndebian = ""\n[images.a]\n',
        '[base]\nimage = "x"\npython = "three"\n[images.a]\n',
        '[base]\ndebian = "trixie"\npackages = ["no/name"]\n[images.a]\n',
        '[family]\nname = "../x"\n[base]\ndebian = "trixie"\n[images.a]\n',
        '[family]\nname = "Mine"\n[base]\ndebian = "trixie"\n[images.a]\n',
    ],
)
def test_half_a_family_is_a_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"lithify\.toml"):
        read(tmp_path, text)


def test_a_file_that_is_no_text_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "lithify.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_family(tmp_path)


VALUES = st.sampled_from(
    ['""', '"x"', '"a"', "1", "true", "[]", '["a"]', "[1]", "{}", '{ a = "b" }', "{ a = {} }", "2026-01-01", "nan"]
)
KEYS = st.sampled_from(["family", "base", "images", "layers", "images.a", "images.b", "x", '"a.b"'])
INNER = st.sampled_from(
    [
        "name",
        "platforms",
        "debian",
        "packages",
        "python",
        "image",
        "oci-layout",
        "extends",
        "folder",
        "cmd",
        "labels",
        "maximum",
        "a",
        "b",
    ]
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=st.lists(st.tuples(KEYS, st.lists(st.tuples(INNER, VALUES), max_size=3)), max_size=5))
def test_any_family_is_read_or_is_a_clear_error(
    tmp_path: Path, tables: list[tuple[str, list[tuple[str, str]]]]
) -> None:
    text = "".join(f"[{table}]\n" + "".join(f"{key} = {value}\n" for key, value in rows) for table, rows in tables)
    try:
        read(tmp_path, text)
    except InputError as error:
        assert "lithify.toml" in error.message
