"""What the command line shows of images of conda environments, and where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import conda_channel
import conda_families
import lithify
from channel_server import serving
from conda_place import PACKAGES, Place
from lithify.read.settings import Settings


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, python_layout: Path) -> Iterator[Place]:
    """A family whose image has two environments, locked and built."""
    folder = tmp_path_factory.mktemp("conda-cli")
    conda_channel.write_channel(folder / "channels" / conda_channel.CHANNEL, PACKAGES)
    family = conda_families.write_small(
        folder / "family",
        python_layout,
        ["good"],
        platforms=("linux/amd64", "linux/arm64"),
        image="environments.tools = {}",
        more={"notebook/environment-tools.yml": conda_families.environment(["needs-old"])},
    )
    with serving(folder / "channels") as server:
        made = Place(family, folder / "store", python_layout, server)
        made.good("lock")
        made.good("build")
        yield made


def test_json_alone_is_on_stdout(place: Place) -> None:
    for command in ("lock", "build"):
        result = place.run(command, "--json")
        assert result.returncode == 0, result.stderr
        (image,) = json.loads(result.stdout)
        assert image["image"] == "notebook"
    assert place.run("lock", "--json", "--upgrade").stdout.startswith("[")


def test_quiet_shows_the_result_alone(place: Place) -> None:
    for arguments in (["lock", "--upgrade"], ["build"]):
        result = place.run(*arguments, "--quiet")
        assert result.returncode == 0 and result.stderr == "" and "notebook" in result.stdout


def test_quiet_shows_errors_all_the_same(place: Place) -> None:
    result = place.run("-q", "build", "--platform", "linux/riscv64")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stdout == ""


def test_a_step_is_a_line_where_there_is_no_terminal(place: Place) -> None:
    result = place.run("lock", "--upgrade")
    steps = [line.partition(":")[0] for line in result.stderr.splitlines() if " conda" in line]
    assert sorted(steps) == [
        f"lock notebook{environment} {platform} conda"
        for environment in ("", " tools")
        for platform in ("linux/amd64", "linux/arm64")
    ]
    assert "\x1b" not in result.stderr and "\r" not in result.stderr


@pytest.mark.parametrize("variable", ["NO_COLOR", "nothing"])
def test_colours_are_for_terminals_that_want_them(place: Place, variable: str) -> None:
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", variable: "1", "COLUMNS": "200"}
    kept = {name: value for name, value in place.environment(**environment).items() if name != "CI"}
    process = subprocess.Popen(
        place.line("build", "nobody"), cwd=place.family, env=kept, stdout=subprocess.PIPE, stderr=theirs
    )
    process.wait()
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "image `nobody`" in shown or "`nobody`" in shown
    assert ("\x1b[1;31m" in shown) == (variable != "NO_COLOR")


def test_inspect_shows_the_environment_of_each_package(place: Place) -> None:
    shown = place.good("inspect", "small/notebook")
    rows = [line.split() for line in shown[shown.index("packages (") :].splitlines()[1:]]
    assert rows == [
        ["notebook", "conda/conda-forge", "good", "1.1"],
        ["tools", "conda/conda-forge", "good", "1.0"],
        ["tools", "conda/conda-forge", "needs-old", "1.0"],
    ]
    details = json.loads(place.good("inspect", "small/notebook", "--json"))
    assert {(one["environment"], one["name"]) for one in details["packages"]} == {(row[0], row[2]) for row in rows}


def test_list_shows_the_image(place: Place) -> None:
    head, row = place.good("list").splitlines()
    assert head.startswith("NAME") and row.startswith("small/notebook")
    assert "linux/amd64, linux/arm64" in row
    (image,) = lithify.list_images(settings=Settings(place.store, 1))
    assert image.name == "small/notebook"
