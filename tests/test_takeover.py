"""`init --from`: a family for a repository that is there already, whose files stay as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lithify.errors import InputError
from lithify.progress import Event
from lithify.read.family import DebianBase, Family, read_family
from lithify.read.requirements import read_requirements
from lithify.scaffold import init


def repository(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def written(folder: Path, files: dict[str, str]) -> Path:
    return repository(folder, **files)


def taken(folder: Path, family: Path | None = None) -> tuple[Family, list[str]]:
    """The family that is made of ``folder``, and the notes; nothing else in the folder changes."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    notes: list[str] = []

    def report(event: Event) -> None:
        notes.append(event.message)

    path = init(family, from_=folder, report=report)
    assert before == {found: found.read_bytes() for found in folder.rglob("*") if found.is_file() and found != path}
    text = path.read_text()
    assert all(len(line) <= 120 for line in text.splitlines())
    told = " ".join(text.replace("\n#  ", "").split())
    of_images = [note for note in notes if "agree on no" not in note and "asks for" not in note]
    assert all(f"# Not taken over: {note}" in told for note in of_images)
    return read_family(path.parent), notes


def lock(*sources: str, subdirs: tuple[str, ...] = ("linux-64", "linux-aarch64")) -> str:
    return yaml.safe_dump(
        {
            "version": 1,
            "metadata": {
                "content_hash": dict.fromkeys(subdirs, "0" * 64),
                "channels": [{"url": "conda-forge", "used_env_vars": []}],
                "platforms": list(subdirs),
                "sources": list(sources),
            },
            "package": [],
        }
    )


PANGEO = {
    "README.md": "# images\n",
    "Makefile": (
        "base-notebook : base-image\n\tcd base-notebook ; \\\n"
        "\tconda-lock lock --mamba -f environment.yml -p linux-64\n\n"
        "ml-notebook : base-image\n\tcd ml-notebook ; \\\n"
        "\tconda-lock lock -f environment.yml -f ../base-notebook/environment.yml "
        "-f ../pangeo-notebook/environment.yml; \\\n"
        "\tdocker build .\n"
    ),
    "base-image/Dockerfile": (
        "FROM ubuntu:24.04\nENV CONDA_ENV=notebook \\\n    NB_USER=jovyan\nRUN x \\\n && RUN y\nONBUILD RUN z\n"
    ),
    "base-image/condarc.yml": "channels: [conda-forge]\n",
    "base-image/start": '#!/bin/bash -l\nexec "$@"\n',
    "base-notebook/Dockerfile": "FROM pangeo/base-image:master\n",
    "base-notebook/environment.yml": "channels: [conda-forge]\ndependencies: [python=3.12, pangeo-notebook]\n",
    "base-notebook/conda-lock.yml": lock("environment.yml"),
    "base-notebook/packages.txt": "python==3.12.1\n",
    "pangeo-notebook/Dockerfile": "FROM pangeo/base-image:master\n",
    "pangeo-notebook/environment.yml": "channels: [conda-forge]\ndependencies: [xarray]\n",
    "pangeo-notebook/conda-lock.yml": lock("environment.yml", "../base-notebook/environment.yml"),
    "pangeo-notebook/apt.txt": "git\n",
    "ml-notebook/Dockerfile": "FROM pangeo/base-image:master\n",
    "ml-notebook/environment.yml": "channels: [conda-forge]\ndependencies: [jax]\n",
    "docs/requirements.txt": "sphinx\n",
    "tests/test_all.py": "",
    ".github/workflows/build.yml": "",
}


def test_a_repository_like_pangeos_becomes_a_family(tmp_path: Path) -> None:
    family, notes = taken(written(tmp_path / "pangeo-images", PANGEO))
    assert family.name == "pangeo-images" and family.conda is not None
    assert {name: image.extends for name, image in family.images.items()} == {
        "base-image": None,
        "base-notebook": "base-image",  # FROM
        "pangeo-notebook": "base-notebook",  # the files of its lock
        "ml-notebook": "pangeo-notebook",  # the Makefile: of two, the one that has most above itself
    }
    assert [str(platform) for platform in family.platforms] == ["linux/amd64", "linux/arm64"]
    assert notes == [
        "base-image/Dockerfile is not run: ENV (line 2), RUN (line 4); see that nothing is missing in the image"
    ]
    for image in family.images.values():
        read_requirements(image)


@pytest.mark.parametrize("inside", ["", "binder", ".binder"])
def test_a_repository_for_repo2docker_becomes_one_image(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / "repository"
    files = {"environment.yml": "dependencies: [python=3.12]\n", "apt.txt": "git\n", "start": 'exec "$@"\n'}
    written(folder, {f"{inside}/{name}" if inside else name: text for name, text in files.items()})
    family, notes = taken(folder)
    assert list(family.images) == ["notebook"] and not notes
    asked = read_requirements(family.image("notebook"))
    assert asked.start and [package.name for package in asked.apt] == ["git"]
    assert list(asked.environments) == ["notebook"]


@pytest.mark.parametrize(("runtime", "suite"), [("python-3.11", "bookworm"), ("python-3.13.1\n", "trixie")])
def test_without_conda_the_debian_is_the_one_with_the_python(tmp_path: Path, runtime: str, suite: str) -> None:
    family, notes = taken(written(tmp_path / "r", {"requirements.txt": "numpy\n", "runtime.txt": runtime}))
    assert isinstance(family.base, DebianBase) and family.base.suite == suite
    assert family.conda is None and not notes


def test_what_is_not_taken_over_is_said(tmp_path: Path) -> None:
    files = dict.fromkeys(("postBuild", "install.R", "Project.toml", "default.nix", "setup.py"), "x\n")
    files |= {
        "environment.yml": "dependencies: [1.0]\n",
        "start": "#!/bin/bash\njupyter lab\n",
        "conda-lock.yml": "nonsense\n",
        "runtime.txt": "python-3.9",
    }
    _, notes = taken(written(tmp_path / "r", files))
    for said in (
        *files,
        '`exec "$@"`',
        "environment.yml cannot be read: environment.yml:1: ",
        "Julia",
        "conda-lock.yml cannot",
    ):
        assert any(said in note for note in notes), said
    assert not any(str(tmp_path) in note for note in notes)
    _, notes = taken(written(tmp_path / "p", {"requirements.txt": "a\n", "runtime.txt": "python-3.9"}))
    assert "asks for 'python-3.9'" in notes[0]


def test_platforms_are_those_that_all_files_have_in_common(tmp_path: Path) -> None:
    files = {"a/environment.yml": "platforms: [linux-64, osx-64]\ndependencies: [x]\n", "b/conda-lock.yml": lock()}
    family, _ = taken(written(tmp_path / "one", files))
    assert [str(platform) for platform in family.platforms] == ["linux/amd64"]
    files["b/environment.yml"] = "platforms: [linux-aarch64]\ndependencies: [x]\n"
    _, notes = taken(written(tmp_path / "two", files))
    assert "agree on no platform" in notes[0]


def test_images_that_are_made_from_each_other_are_no_family(tmp_path: Path) -> None:
    files = {"a/Dockerfile": "FROM me/b\n", "b/Dockerfile": "FROM me/a\n", "c/Dockerfile": "FROM me/c:1\n"}
    family, notes = taken(written(tmp_path, files))
    assert sorted(image.extends or "" for image in family.images.values()) == ["", "", "a"]
    assert "made from each other" in notes[0]


def test_stages_arguments_and_odd_names(tmp_path: Path) -> None:
    files = {
        "Base.Image/Dockerfile": "FROM --platform=linux/amd64 debian AS one\n",
        "child_1/Dockerfile": "ARG T=1\nFROM me/Base.Image:${T} AS parent\nFROM other AS two\nfrom parent\n",
    }
    family, _ = taken(written(tmp_path, files))
    assert {name: image.extends for name, image in family.images.items()} == {
        "base.image": None,
        "child_1": "base.image",
    }


def test_the_file_can_lie_elsewhere_and_nothing_is_overwritten(tmp_path: Path) -> None:
    old = written(tmp_path / "old", {"one/environment.yml": "dependencies: [x]\n"})
    family, _ = taken(old, tmp_path / "new")
    assert family.root == tmp_path / "new" and family.name == "old"
    assert family.image("one").folder.resolve() == old / "one"
    with pytest.raises(InputError, match="is there already"):
        init(tmp_path / "new", from_=old)


@pytest.mark.parametrize("files", [{}, {"README.md": "x"}, {"docs/requirements.txt": "sphinx\n"}])
def test_a_repository_with_no_image_is_an_error(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(InputError, match="no image that can be recognised"):
        init(from_=written(tmp_path, files))
    with pytest.raises(InputError, match="is no folder"):
        init(from_=tmp_path / "missing")


def test_two_configuration_folders_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has both"):
        init(from_=written(tmp_path, {"binder/apt.txt": "", ".binder/apt.txt": ""}))


def test_the_command_tells_what_was_left_out(tmp_path: Path) -> None:
    written(tmp_path, {"environment.yml": "dependencies: [x]\n", "postBuild": "x"})
    command = [sys.executable, "-m", "lithify", "init", "--from", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "lithify.toml")
    assert "postBuild is not run" in result.stderr
