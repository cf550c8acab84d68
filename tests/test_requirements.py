"""Requirement files: read as pip reads them, and each wrong line named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lithify.errors import InputError
from lithify.read.family import Image, configuration_folder, lock_path, read_family
from lithify.read.requirements import Requirements, documents, read_requirements


def image(folder: Path, **files: str) -> Image:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Image("image", folder)


def read(folder: Path, text: str) -> Requirements:
    return read_requirements(image(folder, requirements_txt=text))


def texts(requirements: Requirements) -> list[str]:
    return [requirement.text for requirement in requirements.python]


def test_an_empty_folder_asks_for_nothing(tmp_path: Path) -> None:
    found = read_requirements(Image("image", tmp_path))
    assert (found.python, found.apt, found.start, found.files) == ((), (), None, {})


def test_comments_blanks_and_continued_lines(tmp_path: Path) -> None:
    text = "# first\n\none  # why\n  two>=1,\\\n   <2   # both\nthree#not-a-comment-sign\n"
    with pytest.raises(InputError, match=r"requirements\.txt:6: `three#not-a-comment-sign`"):
        read(tmp_path, text)
    found = read(tmp_path, text.replace("#not-a-comment-sign", ""))
    assert texts(found) == ["one", "two<2,>=1", "three"]
    assert [r.where.rpartition(":")[2] for r in found.python] == ["3", "4", "6"]


def test_a_comment_inside_a_continued_line_ends_it_as_in_pip(tmp_path: Path) -> None:
    assert texts(read(tmp_path, "one \\\n# comment \\\ntwo\n")) == ["one", "two"]


def test_markers_extras_and_specifiers(tmp_path: Path) -> None:
    text = "dask[complete] >= 2024 ; python_version >= '3.12' and platform_machine != 'x'\nName_X == 1.0.*\n~~\n"
    with pytest.raises(InputError, match=r":3: `~~`"):
        read(tmp_path, text)
    found = read(tmp_path, text.replace("~~\n", ""))
    assert found.python[0].name == "dask" and "extra" not in found.python[0].text
    assert "[complete]" in found.python[0].text and 'platform_machine != "x"' in found.python[0].text
    assert (found.python[1].name, found.python[1].text) == ("name-x", "Name_X==1.0.*")


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert texts(read_requirements(Image("image", tmp_path))) == ["one", "two"]


def test_included_files_are_relative_to_the_one_that_names_them(tmp_path: Path) -> None:
    found = read_requirements(
        image(
            tmp_path,
            requirements_txt="-r more/a.txt\n--requirement=shared.txt\none\n",
            more__a_txt="-r b.txt\n-c ../limits.txt\ntwo\n",
            more__b_txt="three\n-r ../shared.txt\n",
            shared_txt="four\n",
            limits_txt="one<2\n-r further.txt\n",
            further_txt="two<3\n",
        )
    )
    assert [r.name for r in found.python] == ["three", "four", "two", "one"]
    assert [r.text for r in found.constraints] == ["one<2", "two<3"]
    assert {path.name for path in found.files} == {
        "requirements.txt",
        "a.txt",
        "b.txt",
        "shared.txt",
        "limits.txt",
        "further.txt",
    }
    assert found.constraints[0].where == f"{tmp_path / 'limits.txt'}:1"


def test_files_that_include_each_other_are_an_error_with_the_circle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt:2: .*circle: requirements\.txt -> a\.txt -> requirements\.txt"):
        read_requirements(image(tmp_path, requirements_txt="-r a.txt\n", a_txt="\n-r ./requirements.txt\n"))
    with pytest.raises(InputError, match="circle"):
        read_requirements(image(tmp_path, requirements_txt="-c requirements.txt\n"))


def test_index_options(tmp_path: Path) -> None:
    text = "-i http://main.invalid/simple\n--extra-index-url=http://a.invalid/\n--extra-index-url http://b.invalid/\n"
    text += "-f links\n--find-links http://c.invalid/x\n--pre\n--prefer-binary\n--only-binary :all:\n--no-index\none\n"
    indexes = read(tmp_path, text).indexes
    assert indexes.index == "http://main.invalid/simple"
    assert indexes.extra == ("http://a.invalid/", "http://b.invalid/")
    assert indexes.links == (str(tmp_path / "links"), "http://c.invalid/x")
    assert indexes.prereleases and indexes.no_index


def test_variables_are_filled_in_but_do_not_change_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_1", "secret")
    monkeypatch.delenv("UNSET", raising=False)
    found = read(tmp_path, "--extra-index-url http://${TOKEN_1}@a.invalid/${UNSET}/$TOKEN_1/${lower}\none\n")
    assert found.indexes.extra == ("http://secret@a.invalid/${UNSET}/$TOKEN_1/${lower}",)
    assert b"secret" not in b"".join(found.files.values())


def test_hashes_are_kept(tmp_path: Path) -> None:
    found = read(tmp_path, f"one==1 \\\n  --hash=sha256:{'a' * 64} \\\n  --hash sha512:{'b' * 128}\n")
    assert found.python[0].hashes == (f"sha256:{'a' * 64}", f"sha512:{'b' * 128}")
    assert found.python[0].text == "one==1"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("one==", "`one==` is no requirement"),
        ("one=1.0", "did you mean `one==1.0`"),
        ("one two", "`one two` is no requirement"),
        ("one; python_versoin < '3'", "is no requirement"),
        ("one[", "is no requirement"),
        ("one @ http://a.invalid/one-1.0-py3-none-any.whl", "is an address"),
        ("one[x]@ file:///tmp/x", "is an address"),
        ("git+http://a.invalid/one.git", "is an address"),
        ("http://a.invalid/one.tar.gz", "is an address"),
        ("./one", "path of this machine"),
        ("../one", "path of this machine"),
        ("/opt/one", "path of this machine"),
        ("one-1.0-py3-none-any.whl", "path of this machine"),
        ("-e .", "editable"),
        ("--editable=git+http://a.invalid/x", "editable"),
        ("--no-binary :all:", "only wheels can be locked"),
        ("--no-binary=one", "only wheels can be locked"),
        ("--trusted-host a.invalid", "configuration"),
        ("--extra-index http://a.invalid", "did you mean `--extra-index-url`"),
        ("--nonsense", "unknown option `--nonsense`"),
        ("-x", "unknown option `-x`"),
        ("--index-url", "needs a value"),
        ("--pre=yes", "takes no value"),
        ("--hash=sha256:abc", "belongs to a requirement"),
        ("one --hash=sha256:abc", "is no hash"),
        (f"one --hash=md5:{'a' * 32}", "md5 is too weak"),
        ("one --pre", "cannot follow a requirement"),
        ("one --config-settings=x=y", "unknown option"),
        ("-r http://a.invalid/r.txt", "is an address"),
        ("-r missing.txt", "missing.txt does not exist"),
        ("-c .", "cannot be read"),
        ("-i 'unclosed", "quotes do not match"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_number_and_text(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f"# comment\nfine\n{line}\n")
    assert f"{tmp_path / 'requirements.txt'}:3: " in caught.value.message
    assert said in str(caught.value)


def test_required_hashes_are_required(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"requirements\.txt:2: `one` has no --hash"):
        read(tmp_path, "--require-hashes\none\n")


def test_a_constraint_with_extras_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"limits\.txt:1: a constraint cannot have extras"):
        read_requirements(image(tmp_path, requirements_txt="-c limits.txt\n", limits_txt="one[more]<2\n"))


@pytest.mark.parametrize("data", [b"one\n\xff\xfe\n", b"one\ntwo\0\n"])
def test_files_that_are_no_text_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "requirements.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"requirements\.txt:2: "):
        read_requirements(Image("image", tmp_path))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                [
                    "one",
                    "==1",
                    "[x]",
                    ";",
                    " ",
                    "-r ",
                    "-c ",
                    "--hash=",
                    "\\\n",
                    "\n",
                    "#",
                    "'",
                    '"',
                    "-",
                    "--pre",
                    "$",
                    "${A}",
                    "@",
                    "=",
                    "\t",
                    "\r",
                    "\x0c",
                    "./",
                    "requirements.txt",
                ]
            ),
            max_size=12,
        ).map("".join),
    )
)
def test_any_text_is_read_or_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "requirements.txt").write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        found = read_requirements(Image("image", tmp_path))
    except InputError as error:
        assert "requirements.txt" in error.message
    else:
        assert all("\n" not in requirement.text for requirement in found.python)


# -- the folder and the other files ------------------------------------------------------------------------


def test_binder_comes_before_dot_binder_before_the_folder(tmp_path: Path) -> None:
    folder = image(tmp_path, requirements_txt="outer\n")
    assert configuration_folder(folder) == tmp_path
    image(tmp_path, **{".binder__requirements_txt": "hidden\n"})
    assert texts(read_requirements(folder)) == ["hidden"]
    assert lock_path(folder) == tmp_path / ".binder" / "lithify.lock"
    (tmp_path / ".binder").rename(tmp_path / "binder")
    assert configuration_folder(folder) == tmp_path / "binder"
    (tmp_path / ".binder").mkdir()
    with pytest.raises(InputError, match=r"both .*binder and .*\.binder"):
        read_requirements(folder)


def test_apt_names_are_sorted_once_each_with_their_lines(tmp_path: Path) -> None:
    found = read_requirements(image(tmp_path, apt_txt="# tools\n\nless\ngit  libstdc++6 # both\nless\n"))
    assert [(p.name, p.where.rpartition(":")[2]) for p in found.apt] == [
        ("git", "4"),
        ("less", "3"),
        ("libstdc++6", "4"),
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("Git", "no Debian package's name"),
        ("g", "no Debian package's name"),
        ("-y", "no Debian package's name"),
        ("git;rm", "no Debian package's name"),
        ("git=1.0", "the lock pins it"),
        ("git/trixie", "the lock pins it"),
        ("git:arm64", "architecture"),
    ],
)
def test_a_wrong_apt_name_is_named_with_its_line(tmp_path: Path, word: str, said: str) -> None:
    with pytest.raises(InputError, match=r"apt\.txt:2: ") as caught:
        read_requirements(image(tmp_path, apt_txt=f"less\n{word}\n"))
    assert said in str(caught.value)


def test_files_of_the_contract_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "start").write_bytes(b'#!/bin/bash\r\nexec "$@"\n')
    (tmp_path / "jupyter_notebook_config.py").write_bytes(b"c = 1\n")
    (tmp_path / "dask_config.yml").write_bytes(b"distributed: {}\n")
    found = read_requirements(Image("image", tmp_path))
    assert found.start == b'#!/bin/bash\r\nexec "$@"\n'
    assert (found.jupyter_config, found.dask_config) == (b"c = 1\n", b"distributed: {}\n")
    assert not found.files  # what is copied does not change what is locked


@pytest.mark.parametrize("name", ["postBuild", "environment.yml", "environment.yaml", "conda-lock.yml"])
def test_files_that_would_be_skipped_are_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"not supported yet|the family has none"):
        read_requirements(Image("image", tmp_path))


# -- conda -------------------------------------------------------------------------------------------------


def conda_family(folder: Path, conda: str = "[conda]\n", images: str = "[images.one]\n") -> Path:
    (folder / "one").mkdir(exist_ok=True)
    (folder / "lithify.toml").write_text(f'[base]\ndebian = "trixie"\n{conda}{images}')
    return folder


def facts(folder: Path) -> dict[str, bytes]:
    family = read_family(folder)
    return documents(family, family.lineage("one"))


def test_environments_are_read_for_both_platforms_and_are_part_of_what_is_locked(tmp_path: Path) -> None:
    conda_family(tmp_path)
    (tmp_path / "one" / "more.txt").write_text("two  # why\n")
    (tmp_path / "one" / "environment.yaml").write_text(
        "dependencies:\n- python=3.12\n- mkl  # [linux64]\n- pip:\n  - -r more.txt\n"
    )
    found = read_requirements(read_family(tmp_path).image("one"))
    read = {str(platform): [s.name for s in file.specs] for platform, file in found.environments["notebook"].items()}
    assert read == {"linux/amd64": ["python", "mkl"], "linux/arm64": ["python"]}
    content = facts(tmp_path)
    assert content["one: one/more.txt"] == b"two\n"
    assert b"mkl" in content["one: one/environment.yaml"]


def test_two_files_for_one_environment_are_an_error(tmp_path: Path) -> None:
    conda_family(tmp_path)
    for name in ("environment.yml", "environment.yaml"):
        (tmp_path / "one" / name).write_text("dependencies: [python]\n")
    with pytest.raises(InputError, match="keep one of them"):
        facts(tmp_path)


def test_what_the_family_says_of_conda_is_part_of_what_is_locked(tmp_path: Path) -> None:
    seen = [
        facts(conda_family(tmp_path, conda, images))["lithify.toml"]
        for conda, images in (
            ("", "[images.one]\n"),
            ("[conda]\n", "[images.one]\n"),
            ('[conda]\nchannels = ["a"]\n', "[images.one]\n"),
            ('[conda]\nrequire = ["pangeo-notebook"]\n', "[images.one]\n"),
            ("[conda]\n", '[images.one.virtual-packages]\n__cuda = "12.9"\n'),
            ("[conda]\n", '[images.one.virtual-packages."linux/amd64"]\n__cuda = "12.9"\n'),
            ("[conda]\n", "[images.one.environments.base]\n"),
            ("[conda]\n", '[images.one.environments.base]\nprefix = "/opt/base"\n'),
        )
    ]
    assert len(set(seen)) == len(seen)
    assert seen[0] == b"python 3.13\ndebian trixie\nplatform linux/amd64\n"  # as before there was conda


def test_a_channels_token_is_no_part_of_what_is_locked(tmp_path: Path) -> None:
    conda_family(tmp_path, '[conda]\nchannels = ["https://a.invalid/t/sesame/c"]\n')
    assert b"sesame" not in b"".join(facts(tmp_path).values())


def test_virtual_packages_are_read_as_conda_lock_reads_them(tmp_path: Path) -> None:
    conda_family(tmp_path)
    path = tmp_path / "one" / "virtual-packages.yml"
    path.write_text(
        'subdirs:\n  linux-64:\n    packages:\n      __glibc: "2.17"\n      __cuda: "12.9"  # why\n'
        "  osx-64: {packages: {}}\n"
    )
    found = read_requirements(read_family(tmp_path).image("one"))
    assert found.virtual_packages == {"linux-64": {"__glibc": "2.17", "__cuda": "12.9"}, "osx-64": {}}
    assert b"12.9" in facts(tmp_path)["one: one/virtual-packages.yml"]
    path.unlink()
    assert read_requirements(read_family(tmp_path).image("one")).virtual_packages is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must be a mapping"),
        ("{}\n", "no `subdirs`"),
        ("subdirs:\n  linux-46: {}\n", ":2: unknown key `linux-46`"),
        ("subdirs:\n  linux-64:\n    package: {}\n", "did you mean `packages`?"),
        ("subdirs:\n  linux-64:\n    packages:\n      glibc: '2'\n", ":4: `glibc` is no virtual package"),
        ("subdirs:\n  linux-64:\n    packages:\n      __glibc: 2.10\n", 'put it in quotes: "2.10"'),
    ],
)
def test_a_wrong_virtual_package_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    conda_family(tmp_path)
    (tmp_path / "one" / "virtual-packages.yml").write_text(text)
    with pytest.raises(InputError, match=r"virtual-packages\.yml") as caught:
        facts(tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["condarc.yml", "dask_config.yml"])
def test_configuration_that_is_copied_must_be_yaml(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a:\n  - b\nc: [\n")
    with pytest.raises(InputError, match=rf"{name}:\d: not valid YAML"):
        read_requirements(Image("image", tmp_path))
    (tmp_path / name).write_text("- a\n")
    with pytest.raises(InputError, match=rf"{name}:1: .*must be a mapping"):
        read_requirements(Image("image", tmp_path))
    (tmp_path / name).write_bytes(b"# nothing\r\n")
    found = read_requirements(Image("image", tmp_path))
    assert b"# nothing\r\n" in (found.condarc, found.dask_config)
