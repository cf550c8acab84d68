"""`init`: a family that can be read, and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from lithify.errors import HostError, InputError
from lithify.platforms import LINUX_AMD64
from lithify.read.family import DebianBase, read_family
from lithify.read.requirements import read_requirements
from lithify.scaffold import init


def test_a_new_family_is_one_that_can_be_read(tmp_path: Path) -> None:
    path = init(tmp_path / "my-images")
    family = read_family(tmp_path / "my-images")

    assert path == tmp_path / "my-images/lithify.toml"
    assert family.name == "my-images"
    assert isinstance(family.base, DebianBase)
    assert (family.base.suite, family.base.python) == ("trixie", "3.13")
    # Without it no compiled wheel of C++ loads: not even a kernel starts.
    assert "libstdc++6" in family.base.packages
    assert list(family.images) == ["notebook"]
    for name in ("requirements.txt", "apt.txt"):
        assert (family.images["notebook"].folder / name).read_text()


def test_the_name_is_the_callers_or_the_folders_in_letters_that_engines_accept(tmp_path: Path) -> None:
    init(tmp_path / "a", name="pangeo")
    init(tmp_path / "My Images!")

    assert read_family(tmp_path / "a").name == "pangeo"
    assert read_family(tmp_path / "My Images!").name == "my-images"


def test_every_line_of_the_template_is_explained_or_short(tmp_path: Path) -> None:
    text = init(tmp_path).read_text()

    assert text.count("#") >= 5
    assert "{" not in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("taken", ["lithify.toml", "notebook/requirements.txt"])
def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("mine")

    with pytest.raises(InputError, match="is there already"):
        init(tmp_path)
    assert (tmp_path / taken).read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / taken]


@pytest.mark.parametrize("name", ["", "Upper", "with space", "../up", "a/b", "-x", "a--b"])
def test_a_name_that_engines_refuse_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a family's name"):
        init(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be written"):
        init(tmp_path / "file/family")


def test_a_family_of_conda_environments_is_read_as_one(tmp_path: Path) -> None:
    written = init(tmp_path / "images", conda=True)
    family = read_family(written.parent)
    assert family.conda is not None
    (environment,) = read_requirements(family.images["notebook"]).environments.values()
    assert {spec.name for spec in environment[LINUX_AMD64].specs} == {"python", "jupyterlab", "jupyterhub-singleuser"}
