"""conda-lock.yml: read fast and alike, written as conda-lock writes it, and judged by conda-lock itself."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign_locks import CHANNEL, PLACES, both, conda_package, real_packages, wheel
from lithify.errors import InputError
from lithify.lockfile import Package
from lithify.locks import Places, complete, conda_lock, read_foreign
from lithify.locks.conda_lock import parse_conda_lock
from lithify.locks.conda_lock_writer import content_hash, joined_channels, split_spec, write_conda_lock
from lithify.locks.yaml_lines import line
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, PLATFORMS
from lithify.read.environment import EnvironmentFile, read_environment
from lithify.read.yaml import parse_yaml, table

PATH = Path("conda-lock.yml")


def entry(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "numpy",
        "version": "1.26.0",
        "manager": "conda",
        "platform": "linux-64",
        "dependencies": {"libblas": ">=3.8.0,<4.0a0", "python": ">=3.11,<3.12.0a0 *_cp311", "x": ""},
        "url": f"{CHANNEL}/linux-64/numpy-1.26.0-py311h1_0.conda",
        "hash": {"md5": "a" * 32, "sha256": "b" * 64},
        "category": "main",
        "optional": False,
    }
    return {**found, **changes}


def lock(*entries: dict[str, Any], **changes: Any) -> str:
    document = {
        "version": 1,
        "metadata": {
            "content_hash": {"linux-64": "0" * 64},
            "channels": [{"url": "conda-forge", "used_env_vars": []}],
            "platforms": ["linux-64"],
            "sources": ["environment.yml"],
        },
        "package": list(entries),
    }
    return yaml.dump({**document, **changes}, sort_keys=False)


def test_what_conda_lock_wrote_is_read() -> None:
    pip = entry(
        name="My_Wheel",
        manager="pip",
        url="https://files.example.org/a/my_wheel-2.0-py3-none-any.whl",
        hash={"sha256": "c" * 64},
        dependencies={},
    )
    found = parse_conda_lock(lock(entry(), pip), PATH)
    assert (found.format, found.platforms, found.channels) == ("conda-lock", (LINUX_AMD64,), ("conda-forge",))
    assert found.content_hash == {"linux-64": "0" * 64}
    numpy, mine = complete(found.found)
    assert numpy.source == "conda/conda-forge" and numpy.file == "linux-64/numpy-1.26.0-py311h1_0.conda"
    assert (numpy.version, numpy.sha256, numpy.md5) == ("1.26.0", "b" * 64, "a" * 32)
    assert numpy.depends == ("libblas >=3.8.0,<4.0a0", "python >=3.11,<3.12.0a0 *_cp311", "x")
    assert (mine.source, mine.name, mine.version) == ("pypi", "my-wheel", "1.26.0")
    assert (mine.file, mine.sha256) == ("my_wheel-2.0-py3-none-any.whl", "c" * 64)


def test_where_an_entry_stands_is_its_line() -> None:
    text = lock(entry(), entry(name="x", url=f"{CHANNEL}/noarch/x-1-0.tar.bz2"))
    numpy, x = parse_conda_lock(text, PATH).found
    lines = text.splitlines()
    assert lines[int(numpy.where.rpartition(":")[2]) - 1] == "- name: numpy"
    assert lines[int(x.where.rpartition(":")[2]) - 1] == "- name: x"


def test_platforms_that_are_not_built_are_left_out_with_a_note() -> None:
    mac = entry(platform="osx-arm64", url=f"{CHANNEL}/osx-arm64/numpy-1.26.0-py311h1_0.conda")
    found = parse_conda_lock(lock(entry(), mac), PATH)
    assert len(found.found) == 1
    assert found.notes == ("conda-lock.yml: 1 package for osx-arm64 left out: it is not built here",)
    with pytest.raises(InputError, match="osx-arm64 only, which Lithify does not build"):
        parse_conda_lock(lock(mac), PATH)


def test_categories_beyond_what_is_installed_by_default_are_left_out_with_a_note() -> None:
    found = parse_conda_lock(
        lock(
            entry(),
            entry(category="dev", optional=True),
            entry(name="x", url=f"{CHANNEL}/noarch/x-1-0.conda", category="docs", optional=True),
        ),
        PATH,
    )
    assert [one.name for one in found.found] == ["numpy"]
    assert found.notes == ("conda-lock.yml: 1 package of the category `docs` left out",)


def test_a_token_of_a_channel_is_not_kept() -> None:
    url = "https://user:sesame@conda.example.org/t/sesame/conda-forge/linux-64/numpy-1.26.0-py311h1_0.conda"
    found = parse_conda_lock(lock(entry(url=url)), PATH)
    assert "sesame" not in repr(found)
    assert complete(found.found)[0].source == "conda/conda-forge"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "x"}, "is no address of a conda package"),
        ({"url": f"{CHANNEL}/linux-64/numpy.zip"}, "is no conda package's file name"),
        ({"url": f"{CHANNEL}/linux-64/scipy-1-0.conda"}, "its file is `scipy-1-0.conda`"),
        ({"url": f"{CHANNEL}/linux-aarch64/numpy-1-0.conda"}, "is for linux-64, and its file for linux-aarch64"),
        ({"hash": {}}, "has no hash"),
        ({"hash": {"md5": "x"}}, "`x` is no md5"),
        ({"hash": {"sha256": "A" * 64}}, "is no sha256"),
        ({"hash": {"sha1": "a"}}, "unknown key `sha1`"),
        ({"manager": "npm"}, "for the manager `npm`"),
        ({"manager": "pip", "url": "https://a.example.org/x-1.tar.gz"}, "is no wheel"),
        (
            {"manager": "pip", "url": "https://a.example.org/x-1-py3-none-any.whl", "hash": {"md5": "a" * 32}},
            "no sha256",
        ),
        ({"version": 1.10}, "must be a text, found a number"),
        ({"dependencies": ["x"]}, "`dependencies` must be a mapping"),
        ({"color": "red"}, "unknown key `color`"),
        ({"name": None}, "`name` must be a text, found nothing"),
    ],
)
def test_a_wrong_entry_is_named_with_its_line(changes: dict[str, Any], said: str) -> None:
    good = entry(name="good", url=f"{CHANNEL}/noarch/good-1-0.conda")
    text = lock(good, entry(**changes))
    begins = [i for i, line_ in enumerate(text.splitlines(), 1) if line_.startswith("- name")][1]
    with pytest.raises(InputError) as caught:
        parse_conda_lock(text, PATH)
    assert said in str(caught.value)
    number = int(caught.value.message.split(":")[1])
    assert begins <= number <= begins + 15


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a lock must be a mapping"),
        ("version: 2\nmetadata: {}\npackage: []\n", "version a number (`2`)"),
        ("metadata: {}\npackage: []\n", "no version"),
        ("version: 1\npackage: []\n", "no `metadata`"),
        ("version: 1\nmetadata: {}\n", "`package` must be a list"),
        ("version: 1\nmetadata: {}\npackage:\n- name: [\n", "not valid YAML"),
        ("version: 1\nmetadata: {}\npackage:\n- name: 'a\n", "not valid YAML"),
        ("version: 1\nmetadata: {}\npackage:\n- a\n", ":4: a package must be a mapping"),
        ("version: 1\nmetadata: [\npackage:\n- name: a\n", "not valid YAML"),
    ],
)
def test_a_wrong_document_is_a_clear_error(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_conda_lock(text, PATH)
    assert said in str(caught.value)


def test_a_package_that_is_locked_twice_is_an_error() -> None:
    with pytest.raises(InputError, match="locked twice for linux/amd64"):
        parse_conda_lock(lock(entry(), entry(hash={"md5": "c" * 32})), PATH)


# -- the direct reader and the YAML parser see the same ----------------------------------------------------


def entries_both_ways(text: str) -> tuple[list[Any], list[Any]]:
    _, quick = conda_lock._document(text, "f")
    whole = table(parse_yaml(text, "f"), "f", "a lock")
    node = whole.entries["package"]
    return list(quick), [conda_lock._entry(item, "f") for item in getattr(node, "items", [])]


@pytest.mark.parametrize("style", [{}, {"default_style": '"'}, {"indent": 4}, {"width": 20}, {"sort_keys": True}])
def test_any_style_of_yaml_gives_the_same_entries(style: dict[str, Any]) -> None:
    long = {"python": ">=3.11,<3.12.0a0 *_cp311 " * 8, "y": "", "n": "'quoted'", "null": "1.0", "a: b": "c # d"}
    document = yaml.safe_load(lock(entry(), entry(name="on", dependencies=long), entry(name="x", dependencies={})))
    quick, slow = entries_both_ways(yaml.dump(document, **{"sort_keys": False, **style}))
    assert quick == slow and len(quick) == 3


@pytest.mark.parametrize(
    "extra",
    [
        "# a comment\n",
        "\n\n",
        "  # indented\n",
        "- {name: x, version: '1', manager: pip, platform: p, url: u, hash: {}}\n",
    ],
)
def test_what_people_add_by_hand_is_read(extra: str) -> None:
    text = lock(entry(), entry(name="x", url=f"{CHANNEL}/noarch/x-1-0.conda"))
    middle = text.index("- name: x")
    quick, slow = entries_both_ways(text[:middle] + extra + text[middle:])
    assert quick == slow
    assert [one.name for one in quick][:1] == ["numpy"]


def test_keys_after_the_packages_are_read() -> None:
    text = "metadata: {channels: []}\npackage:\n" + yaml.dump([entry()], sort_keys=True) + "version: 1\n"
    assert len(parse_conda_lock(text, PATH).found) == 1
    assert len(parse_conda_lock(text.replace("\n", "\r\n"), PATH).found) == 1


_WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *(
                "",
                "1",
                "1.0",
                "yes",
                "null",
                "~",
                "=",
                "=1",
                ">=1,<2",
                "1.2.*",
                ">=3.8 *_cp38",
                "a b",
                "a: b",
                "a #b",
                "#a",
            ),
            *(
                "'",
                "''",
                '"',
                "- a",
                "-",
                "?",
                ":",
                "a:",
                "[",
                "{}",
                "*",
                "&a",
                "!x",
                "%",
                "@",
                "`",
                "|",
                ">",
                "2024-01-01",
            ),
            *(
                "a" * 200,
                "a " * 60,
                "\t",
                " a",
                "a ",
                "\x85",
                "\u2028",
                "é",
                "\U0001f600",
                "0x1",
                "1e3",
                ".5",
                "<<",
                "...",
            ),
        ]
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(_WORDS, _WORDS, max_size=5), _WORDS, _WORDS)
def test_any_values_are_read_as_yaml_reads_them(dependencies: dict[str, str], name: str, version: str) -> None:
    document = yaml.safe_load(lock())
    document["package"] = [entry(name=name, version=version, dependencies=dependencies), entry()]
    quick, slow = entries_both_ways(yaml.dump(document, sort_keys=False))
    # YAML counts more line breaks than other tools do (NEL, for one), so lines may differ.
    assert [replace(one, where="") for one in quick] == [replace(one, where="") for one in slow]
    assert (quick[0].name, quick[0].version, quick[0].dependencies) == (name, version, dependencies)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_lock_is_read_as_yaml_reads_it_or_is_a_clear_error(data: st.DataObject) -> None:
    lines = lock(entry(), entry(name="x"), entry(name="y", dependencies={})).split("\n")
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "double", "indent", "quote", "cut", "text", "join"]))
        if change == "drop":
            lines[index] = ""
        elif change == "double":
            lines.insert(index, lines[index])
        elif change == "indent":
            lines[index] = data.draw(st.sampled_from([" ", "  ", "    ", "- ", "\t"])) + lines[index]
        elif change == "quote":
            lines[index] += data.draw(st.sampled_from(["'", '"', ":", " #", " |", ": x", ","]))
        elif change == "cut":
            lines[index] = lines[index][: len(lines[index]) // 2]
        elif change == "join":
            lines[index] = lines[index].lstrip()
        else:
            lines[index] = data.draw(st.text(max_size=10))
    text = "\n".join(lines)
    try:
        quick, slow = entries_both_ways(text)
    except (InputError, KeyError):
        with pytest.raises(InputError):
            parse_conda_lock(text, PATH)
        return
    assert quick == slow
    try:
        parse_conda_lock(text, PATH)
    except InputError as error:
        assert error.message.startswith("conda-lock.yml")


# -- writing -----------------------------------------------------------------------------------------------


def written(packages: list[Package], places: Places = PLACES, **more: Any) -> str:
    return write_conda_lock(
        packages,
        places,
        **{
            "channels": ["conda-forge"],
            "sources": ["environment.yml"],
            "content_hash": {p.subdir: "0" * 64 for p in PLATFORMS.values()},
            **more,
        },
    )


def test_what_is_written_is_read_back() -> None:
    mine = wheel("dask")
    packages = [conda_package("python", "3.12.1", depends=("libc >=2", "tz")), *both("tz"), mine]
    found = parse_conda_lock(
        written(packages, Places(PLACES.channels, {mine: "https://f.example.org/" + mine.file})), PATH
    )
    back = complete(found.found)
    assert [(p.name, p.platform, p.file, p.sha256) for p in back] == [
        (p.name, p.platform, p.file, p.sha256) for p in sorted(packages)
    ]
    assert [p.depends for p in back if p.kind == "conda"] == [p.depends for p in sorted(packages) if p.kind == "conda"]
    assert parse_conda_lock(written([]), PATH).found == ()


def test_a_package_without_an_md5_or_an_address_is_an_error() -> None:
    with pytest.raises(InputError, match="wants the md5"):
        written([conda_package("x", md5="")])
    with pytest.raises(InputError, match="not known where"):
        written([conda_package("x")], Places())
    with pytest.raises(InputError, match="not known where"):
        written([wheel("x")])


def test_no_token_is_written() -> None:
    places = Places({"conda/conda-forge": "https://u:sesame@conda.example.org/t/sesame/c"})
    text = written([conda_package("x")], places, channels=["https://conda.example.org/t/sesame/c"])
    assert "sesame" not in text and "conda.example.org/c/linux-64/x-1.0-h1_0.conda" in text


@settings(deadline=None, max_examples=500)
@given(_WORDS, _WORDS, st.sampled_from([2, 4]))
def test_lines_are_those_of_pyyaml(key: str, value: str, indent: int) -> None:
    document: object = {key: value}
    for _ in range(indent // 2):
        document = {"x": document}
    assert line(key, value, indent) == yaml.safe_dump(document, sort_keys=False).split("\n", indent // 2)[indent // 2]


def oracle_lock(packages: list[Package], urls: dict[Package, str], channels: list[str], hashes: dict[str, str]) -> Any:
    """conda-lock's own value for the same packages, made as its solver's answer is made into one."""
    v2 = pytest.importorskip("conda_lock.lockfile.v2prelim.models")
    spec = pytest.importorskip("conda_lock._vendor.conda.models.match_spec")
    entries = []
    for package in packages:
        by_name: dict[str, list[Any]] = {}
        for depend in package.depends:
            parsed = spec.MatchSpec(depend)
            by_name.setdefault(parsed.name, []).append(parsed)
        merged = {n: s[0] if len(s) == 1 else spec.MatchSpec.merge(s)[0] for n, s in by_name.items()}
        hash_ = {"md5": package.md5} if package.kind == "conda" else {}
        entries.append(
            v2.LockedDependency(
                name=package.name,
                version=package.version,
                manager="conda" if package.kind == "conda" else "pip",
                platform=package.platform.subdir,
                dependencies={n: s.version.spec_str if s.version is not None else "" for n, s in merged.items()},
                url=urls.get(package) or PLACES.of(package),
                hash=v2.HashModel(**hash_, sha256=package.sha256),
                categories={"main"},
            )
        )
    meta = v2.LockMeta(
        content_hash=hashes, channels=channels, platforms=sorted(hashes), sources=["environment.yml", "../a/b.yml"]
    )
    return v2.Lockfile(package=entries, metadata=meta)


def test_the_file_is_byte_for_byte_that_of_conda_lock(tmp_path: Path) -> None:
    oracle = pytest.importorskip("conda_lock.lockfile")
    packages = list(real_packages())[::5]
    mine = wheel("dask")
    urls = {mine: f"https://f.example.org/{mine.file}"}
    hashes = {p.subdir: "1" * 64 for p in PLATFORMS.values()}
    theirs = oracle_lock([*packages, mine], urls, ["conda-forge", "https://c.example.org/x"], hashes)
    oracle.write_conda_lock_file(theirs, tmp_path / "conda-lock.yml", metadata_choices=set())
    text = written(
        [*packages, mine],
        Places(PLACES.channels, urls),
        channels=["conda-forge", "https://c.example.org/x"],
        content_hash=hashes,
        sources=["environment.yml", "../a/b.yml"],
    )
    assert text == (tmp_path / "conda-lock.yml").read_text()
    again = complete(parse_conda_lock(text, PATH).found)
    assert [(p.file, p.sha256, p.md5) for p in again] == [(p.file, p.sha256, p.md5) for p in sorted([*packages, mine])]


ENVIRONMENT = """\
name: notebook
channels:
  - conda-forge
  - nodefaults
platforms:
  - linux-64
  - linux-aarch64
dependencies:
  - python=3.12
  - numpy >=1.26, <3
  - conda-forge::dask==2024.1.0
  - jaxlib>=0.4.31=cuda12*  # [linux64]
  - Pandas 2.*
  - openblas =0.3.21=*openmp*
  - proj[version='>=9']
"""
PIP = """\
  - pip:
      - My_Wheel[b,a] >=1,<2
      - other; sys_platform == 'linux'
      - mac-only; sys_platform == 'darwin'
"""


def judged(folder: Path, virtual: Path | None = None) -> dict[str, set[str]]:
    """What conda-lock would accept as the content hash of environment.yml, by platform."""
    src_parser = pytest.importorskip("conda_lock.src_parser")
    module = pytest.importorskip("conda_lock.virtual_package")
    hashing = pytest.importorskip("conda_lock.content_hash")
    mapping = folder / "mapping.yml"
    mapping.write_text("{}\n")
    spec = src_parser.make_lock_spec(src_files=[folder / "environment.yml"], mapping_url=mapping.as_uri())
    made = (
        module.virtual_package_repo_from_specification(virtual)
        if virtual
        else module.default_virtual_package_repodata()
    )
    return {p: hashing.backwards_compatible_content_hashes(spec, made, p) for p in spec.platforms}


@pytest.mark.parametrize("text", [ENVIRONMENT, ENVIRONMENT + PIP])
def test_the_content_hash_is_one_that_conda_lock_accepts(tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.yml").write_text(text)
    accepted = judged(tmp_path)
    for platform in PLATFORMS.values():
        file = read_environment(tmp_path / "environment.yml", platform)
        assert content_hash([file], platform.subdir) in accepted[platform.subdir]


def test_virtual_packages_are_part_of_the_content_hash(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text(ENVIRONMENT)
    virtual = tmp_path / "virtual-packages.yml"
    virtual.write_text('subdirs:\n  linux-64:\n    packages:\n      __glibc: "2.17"\n      __archspec: "1 x86_64"\n')
    said = {"linux-64": {"__glibc": "2.17", "__archspec": "1 x86_64"}}
    file = read_environment(tmp_path / "environment.yml", LINUX_AMD64)
    assert content_hash([file], "linux-64", said) in judged(tmp_path, virtual)["linux-64"]
    assert content_hash([file], "linux-64") not in judged(tmp_path, virtual)["linux-64"]


def test_conda_lock_says_that_the_file_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own command, which with the check of hashes solves nothing: there is no conda here to do it."""
    program = pytest.importorskip("conda_lock.conda_lock")
    monkeypatch.chdir(tmp_path)
    source, path = tmp_path / "environment.yml", tmp_path / "conda-lock.yml"
    source.write_text(ENVIRONMENT)
    files = {p: read_environment(source, p) for p in PLATFORMS.values()}
    text = written(both("python"), content_hash={p.subdir: content_hash([file], p.subdir) for p, file in files.items()})
    path.write_text(text)

    def lock_again() -> None:
        program.make_lock_files(
            conda=Path(os.devnull),
            src_files=[source],
            kinds=["lock"],
            lockfile_path=path,
            check_input_hash=True,
            mapping_url="",
        )

    lock_again()
    assert "already locked for ['linux-64', 'linux-aarch64']" in capsys.readouterr().err
    assert path.read_text() == text
    source.write_text(ENVIRONMENT.replace("python=3.12", "python=3.13"))
    with pytest.raises(BaseException):  # noqa: B017 - it goes to the solver that is not there
        lock_again()
    assert "already locked" not in capsys.readouterr().err


def test_files_of_a_lineage_are_hashed_as_conda_lock_joins_them(tmp_path: Path) -> None:
    src_parser = pytest.importorskip("conda_lock.src_parser")
    module = pytest.importorskip("conda_lock.virtual_package")
    hashing = pytest.importorskip("conda_lock.content_hash")
    for name, text in (
        ("base", "channels: [conda-forge]\nplatforms: [linux-64]\ndependencies: [python=3.12, dask]\n"),
        ("child", "channels: [nvidia, conda-forge]\ndependencies: [dask=2024, xarray]\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.yml").write_text(text)
    paths = [tmp_path / name / "environment.yml" for name in ("base", "child")]
    spec = src_parser.make_lock_spec(src_files=paths, mapping_url="")
    accepted = hashing.backwards_compatible_content_hashes(spec, module.default_virtual_package_repodata(), "linux-64")
    files = [read_environment(path, LINUX_AMD64) for path in paths]
    assert joined_channels(files) == ("nvidia", "conda-forge")
    assert content_hash(files, "linux-64") in accepted
    with pytest.raises(InputError, match="has the channels"):
        joined_channels([EnvironmentFile(Path("a"), channels=("x", "y")), EnvironmentFile(Path("b"), channels=("x",))])


_VERSIONS = ["1.2", "1.2.*", "1.2*", "*", ">=1.2", "<2", ">=1,<2", "1|2", "!=1.2", "~=1.2", "==1.2", "=1.2", "=1.2.*"]


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(_VERSIONS),
    st.sampled_from(["", "py_0", "*_cpython", "h1*", "*"]),
    st.sampled_from([" ", "="]),
    st.sampled_from([" ", "="]),
)
def test_specs_are_split_as_conda_splits_them(version: str, build: str, before: str, between: str) -> None:
    spec = pytest.importorskip("conda_lock._vendor.conda.models.match_spec")
    if version[0] in "=<>!~":
        before = ""
    text = f"{before}{version}" + (f"{between}{build}" if build else "")
    try:
        theirs = spec.MatchSpec(f"numpy{text}")
    except Exception:
        return
    expected = theirs.version.spec_str if theirs.version is not None else "", theirs.get("build")
    assert split_spec(text) == expected


def test_a_lock_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "any-name.yaml"
    path.write_text(lock(entry(platform="linux-aarch64", url=f"{CHANNEL}/noarch/numpy-1-0.conda")))
    found = read_foreign(path)
    assert (found.format, found.platforms) == ("conda-lock", (LINUX_AMD64, LINUX_ARM64))
