"""environment.yml: read as conda and conda-lock read it, each wrong line named, nothing secret told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lithify.errors import InputError
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, PLATFORMS
from lithify.read.environment import EnvironmentFile, parse_environment, parse_spec, read_environment
from lithify.read.requirements import pip_requirements

FILE = Path("environment.yml")


def read(text: str, platform: str = "linux/amd64") -> EnvironmentFile:
    return parse_environment(text, FILE, PLATFORMS[platform])


def specs(text: str, platform: str = "linux/amd64") -> list[str]:
    return [spec.text for spec in read(text, platform).specs]


def dependencies(*lines: str) -> str:
    return "dependencies:\n" + "".join(f"  - {line}\n" for line in lines)


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(
        "# what it is for\nname: notebook\nprefix: /home/me/envs/notebook\nchannels:\n  - conda-forge\n  - nodefaults\n"
        "platforms: [linux-64, linux-aarch64]\ndependencies:\n- python=3.12.*\n- conda-forge::NumPy >=1.26,<3\n"
        "- openblas=0.3.21=*openmp*\n- pip:\n  - dask[complete] >= 2024\n  - --pre\nvariables:\n  A: 1\n  B: two\n"
    )
    found = read_environment(path, LINUX_AMD64)
    assert (found.name, found.channels, found.platforms) == (
        "notebook",
        ("conda-forge",),
        ("linux-64", "linux-aarch64"),
    )
    assert [(s.name, s.text, s.channel, s.where) for s in found.specs] == [
        ("python", "python=3.12.*", None, f"{path}:9"),
        ("numpy", "NumPy >=1.26,<3", "conda-forge", f"{path}:10"),
        ("openblas", "openblas=0.3.21=*openmp*", None, f"{path}:11"),
    ]
    assert [(line.text, line.where) for line in found.pip] == [
        ("dask[complete] >= 2024", f"{path}:13"),
        ("--pre", f"{path}:14"),
    ]
    assert found.variables == {"A": "1", "B": "two"}
    assert found.covers(LINUX_AMD64)
    assert not read("platforms: [linux-aarch64]\n").covers(LINUX_AMD64)


def test_what_is_no_package_does_not_change_the_document() -> None:
    one = read("name: a\nchannels: [c]\ndependencies:\n  - x\n  - y=1 # why\nvariables: {A: b}\n")
    other = read("dependencies: [y=1, x]\nchannels:\n- c\n")
    assert one.document == other.document
    assert json.loads(one.document) == {"channels": ["c"], "conda": ["x", "y=1"], "pip": [], "platforms": []}
    assert one.document != read("dependencies: [y=1, x]\n").document


def test_a_token_is_kept_for_the_channel_but_not_in_the_document() -> None:
    text = "channels: ['https://u:sesame@a.invalid/t/tk-sesame/c']\ndependencies: ['https://a.invalid/t/sesame/c::x']\n"
    found = read(text)
    assert found.channels == ("https://u:sesame@a.invalid/t/tk-sesame/c",)
    assert found.specs[0].channel == "https://a.invalid/t/sesame/c"
    assert b"sesame" not in found.document


def test_a_platforms_folder_of_a_channel_is_kept_apart() -> None:
    found = read(dependencies("conda-forge/linux-64::cupy", "pkgs/main/noarch::x>=2", "python=3.7*", "y"))
    assert [(s.name, s.channel, s.subdir, s.text) for s in found.specs] == [
        ("cupy", "conda-forge", "linux-64", "cupy"),
        ("x", "pkgs/main", "noarch", "x>=2"),
        ("python", None, "", "python=3.7*"),
        ("y", None, "", "y"),
    ]
    assert b"conda-forge/linux-64::cupy" in found.document


@pytest.mark.parametrize(
    ("selector", "amd64", "arm64"),
    [
        ("[linux64]", True, False),
        ("[aarch64]", False, True),
        ("[linux]", True, True),
        ("[unix]", True, True),
        ("[x86_64]", True, False),
        ("[osx]", False, False),
        ("[win64]", False, False),
        ("[arm64]", False, False),  # conda-build's name of a Mac's processor
        ("[not win]", True, True),
        ("[linux and not aarch64]", True, False),
        ("[not (osx or linux64)]", False, True),
        ("only there [linux64]", True, False),
        ("see [the issue]", True, True),
        ("plain", True, True),
    ],
)
def test_selectors_choose_lines(selector: str, amd64: bool, arm64: bool) -> None:
    text = dependencies(f"one # {selector}", "two=", "three")[:-1].replace("two=", "two")
    assert ("one" in specs(text)) is amd64
    assert ("one" in specs(text, "linux/arm64")) is arm64
    assert read(text).specs[-1].where == "environment.yml:4"


@pytest.mark.parametrize("selector", ["[linux46]", "[not]", "[linux linux]", "[(linux]", "[and linux]", "[py>=38]"])
def test_a_selector_that_is_not_known_is_an_error_and_no_guess(selector: str) -> None:
    with pytest.raises(InputError, match=r"environment\.yml:2: .*selector"):
        read(dependencies(f"one # {selector}"))


def test_selectors_are_those_of_conda_lock() -> None:
    oracle = pytest.importorskip("conda_lock.src_parser.selectors")
    text = dependencies(
        *(f"p{i}  # [{s}]" for i, s in enumerate(("linux64", "aarch64", "linux", "unix", "osx", "win", "arm64")))
    )
    for platform in PLATFORMS.values():
        theirs = list(oracle.filter_platform_selectors(text, platform=platform.subdir))
        assert [s.name for s in read(text, str(platform)).specs] == [line.split()[1] for line in theirs[1:]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "environment.yml is empty"),
        ("# nothing\n", "environment.yml is empty"),
        ("- a\n", ":1: an environment file must be a mapping"),
        ("just words\n", ":1: an environment file must be a mapping"),
        ("dependencies: numpy\n", ":1: `dependencies` must be a list"),
        ("dependencies:\n  numpy: 1\n", ":2: `dependencies` must be a list"),
        ("dependencies:\n  - 1.10\n", ":2: a package must be a text, found a number (`1.10`)"),
        ("dependencies:\n  -\n", ":2: an empty item"),
        ("dependencies:\n  - [a]\n", ":2: a list stands where"),
        ("dependencies:\n  - pipp:\n    - x\n", ":2: unknown key `pipp`"),
        ("dependencies:\n  - pip: x\n", ":2: `pip` must be a list"),
        ("dependencies:\n  - pip:\n    - 3\n", ":3: an item of `pip` must be a text"),
        ("dependencys:\n  - a\n", "did you mean `dependencies`?"),
        ("name: a\n\nname: b\n", ":3: `name` stands twice, first in line 1"),
        ("dependencies:\n\t- a\n", ":2: not valid YAML"),
        ("dependencies: [a\n", "not valid YAML"),
        ("name: a\n---\nname: b\n", ":2: a second document"),
        ("name: !!python/name:os.system x\n", ":1: a tag"),
        ("a: &x [*x]\n", ":1: `*x` would contain itself"),
        ("dependencies: *x\n", "names no anchor"),
        ("? [a]\n: b\n", ":1: a key must be a single value"),
        ("name: \x07\n", ":1: not valid YAML"),
        ("[" * 200_000, "nest"),
        ("- " * 200_000, "nest"),
        ("channels: conda-forge\n", ":1: `channels` must be a list"),
        ("channels:\n- a b\n", ":2: `a b` is no channel"),
        ("platforms: [linux-46]\n", "did you mean `linux-64`?"),
        ("variables: [a]\n", ":1: `variables` must be a mapping"),
        ("variables: {a-b: c}\n", ":1: `a-b` cannot be a variable's name"),
        ("variables: {a: 1.10}\n", 'put it in quotes: "1.10"'),
        ("variables: {a: yes}\n", "found a truth value"),
        (dependencies("numpy=="), ":2: `numpy==` is no conda package"),
        (dependencies("numpy=>1"), ":2: `numpy=>1` is no conda package"),
        (dependencies("dask[complete]"), "below `pip:`"),
        (dependencies("nu mpy 1 2"), ":2: `nu mpy 1 2` has more than a name"),
        (dependencies("'*'"), ":2: `*` is no conda package"),
        (dependencies("numpy[channel=conda-forge]"), "names its channel or platform in brackets"),
        (dependencies("'::numpy'"), "names no channel"),
        (dependencies("https://a.invalid/c/linux-64/a-1-0.conda"), "is the address of a file"),
        (dependencies("./a-1-0.conda"), "is the address of a file"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert said in str(caught.value)
    assert caught.value.message.startswith("environment.yml")


def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_bytes(b"name: a\ndependencies: [\xff]\n")
    with pytest.raises(InputError, match=r"environment\.yml:2: not UTF-8"):
        read_environment(tmp_path / "environment.yml", LINUX_AMD64)


def test_a_bomb_of_aliases_costs_nothing() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(InputError, match="unknown key `a0`"):
        read("\n".join(lines))


@pytest.mark.parametrize(
    "spec",
    ["https://user:sesame@a.invalid/t/sesame/c::nu==", "https://a.invalid/c/linux-64/a-1-0.conda?key=sesame"],
)
def test_no_error_tells_a_secret(spec: str) -> None:
    for text in (dependencies(f"'{spec}'"), f"channels: ['{spec} x']\n"):
        with pytest.raises(InputError) as caught:
            read(text)
        assert "sesame" not in str(caught.value)


def test_the_pip_section_is_read_as_requirements_txt(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("three\n")
    (tmp_path / "limits.txt").write_text("one<2\n")
    path = tmp_path / "environment.yml"
    path.write_text(
        "dependencies:\n- pip:\n  - one >= 1  # why\n  - -r more.txt\n  - -c limits.txt\n"
        "  - --extra-index-url http://a.invalid/simple\n  - two; sys_platform == 'linux'\n"
    )
    asked, limits, indexes = pip_requirements(read_environment(path, LINUX_AMD64))
    assert [r.text for r in asked] == ["one>=1", "three", 'two; sys_platform == "linux"']
    assert [r.where for r in asked] == [f"{path}:3", f"{tmp_path / 'more.txt'}:1", f"{path}:7"]
    assert [r.text for r in limits] == ["one<2"]
    assert indexes.extra == ("http://a.invalid/simple",)


@pytest.mark.parametrize(
    ("line", "said"), [("-e .", "editable"), ("one=1", "did you mean `one==1`"), ("-r x", "x does")]
)
def test_a_wrong_line_of_the_pip_section_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(f"dependencies:\n- pip:\n  - {line}\n")
    with pytest.raises(InputError) as caught:
        pip_requirements(read_environment(path, LINUX_ARM64))
    assert f"{path}:3: " in caught.value.message and said in str(caught.value)


# -- whatever the text -------------------------------------------------------------------------------------

_PIECES = [
    "numpy",
    "=",
    "==",
    ">=",
    "1.2",
    ".*",
    "*",
    " ",
    ",",
    "|",
    "[",
    "]",
    "::",
    "conda-forge",
    "version=",
    "'",
    "/",
]


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(_PIECES), max_size=10).map("".join)))
@example("a" * 5000)
@example("numpy " + "(" * 3000)
@example("[::0")
def test_any_spec_is_read_or_is_a_clear_error(text: str) -> None:
    try:
        spec = parse_spec(text, "f:1")
    except InputError as error:
        assert error.message.startswith("f:1: ")
    else:
        from rattler import MatchSpec

        parsed = MatchSpec(f"{spec.channel}::{spec.text}" if spec.channel else spec.text, strict=False)
        assert parsed.name is not None and parsed.name.normalized == spec.name


_LINES = (
    *("dependencies:", "  - numpy", "  - pip:", "    - dask", "channels:", "- a", "name: x", "variables:", "  A: b"),
    *(
        "\t",
        "[",
        "]",
        "{",
        "}",
        "&a",
        "*a",
        "'",
        '"',
        "# [linux]",
        "# [x]",
        "- x=1  # [win]",
        "---",
        "? a",
        ": b",
        "|",
        ">",
    ),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(max_size=80), st.lists(st.sampled_from(_LINES), max_size=12).map("\n".join)))
def test_any_file_is_read_or_is_a_clear_error(text: str) -> None:
    for platform in PLATFORMS.values():
        try:
            found = parse_environment(text, FILE, platform)
        except InputError as error:
            assert error.message.startswith("environment.yml")
        else:
            assert json.loads(found.document)
