"""Images of conda environments, made of real small packages, and looked into."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import channel_server
import conda_channel
import conda_families
import lithify
from conda_families import served_from
from lithify.assemble.building import BuildResult
from lithify.errors import InputError, LithifyError
from lithify.platforms import LINUX_AMD64, host_platform
from lithify.progress import Event
from lithify.read.settings import Settings
from lithify.sandbox import Sandbox, arguments
from lithify.store.manifests import Manifest, manifest_for
from lithify.store.rootfs import read_files, root_filesystem
from lithify.store.store import open_store

pytestmark = pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the channel's machine code is for linux/amd64")

PREFIX = "/srv/conda/envs/notebook"
BOTH = ("linux/amd64", "linux/arm64")
# One of each kind: what has a prefix, links, old formats, activation, something to leave out.
SPECS = (
    *("python", "click", "rich", "text-prefix", "binary-prefix", "long-shebang", "links", "modes", "awkward-names"),
    *("clutter", "generic", "menu", "proj-like", "env-vars", "pre-unlink", "old-style", "new-style-bz2"),
)


@pytest.fixture(scope="session")
def channel() -> Iterator[str]:
    with channel_server.serving(conda_channel.small()) as server:
        yield server.channel(conda_channel.CHANNEL)


@pytest.fixture
def served(settings: Settings, channel: str) -> Settings:
    return served_from(settings, channel)


def built(family: Path, settings: Settings, *images: str, **options: object) -> BuildResult:
    lithify.lock(family, settings=settings)
    return lithify.build(family, images, settings=settings, **options)[-1]  # type: ignore[arg-type]


def manifest(settings: Settings, name: str = "small/notebook") -> Manifest:
    return manifest_for(open_store(settings.store), name, LINUX_AMD64)


def content(settings: Settings, path: str, name: str = "small/notebook") -> bytes | None:
    store = open_store(settings.store)
    return read_files(store, manifest(settings, name).layers, [path]).get(path)


def variables(settings: Settings, name: str = "small/notebook") -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in manifest(settings, name).runtime["Env"])


def inside(settings: Settings, command: Sequence[str], name: str = "small/notebook") -> str:
    """What a command prints in the image's root file system, with the image's variables."""
    root = root_filesystem(open_store(settings.store), manifest(settings, name).layers)
    sandbox = Sandbox(lower=(root,), environment=variables(settings, name))
    result = subprocess.run(arguments(sandbox, command), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


# -- an image ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, python_layout: Path, channel: str) -> Settings:
    """The settings of a store that has an image of `SPECS`, for both platforms."""
    folder = tmp_path_factory.mktemp("conda-image")
    more = {"notebook/condarc.yml": "auto_update_conda: false\n"}
    family = conda_families.write_small(folder / "family", python_layout, SPECS, more=more)
    settings = served_from(Settings(open_store(folder / "store").root, 2), channel)
    built(family, settings)
    return settings


def test_python_runs_at_its_prefix(image: Settings) -> None:
    script = "import sys, ssl, sqlite3, click; print(sys.prefix, sys.executable, click.__file__)"
    site = f"{PREFIX}/lib/python{conda_families.HOST_PYTHON}/site-packages"
    assert inside(image, ["python", "-c", script]).split() == [
        PREFIX,
        f"{PREFIX}/bin/python",
        f"{site}/click/__init__.py",
    ]


def test_modules_are_compiled_and_the_compiled_files_count(image: Settings) -> None:
    script = (
        "import importlib.util as u, click, os;"
        "cached = u.cache_from_source(click.__file__); data = open(cached, 'rb').read();"
        "print(int.from_bytes(data[8:12], 'little') == int(os.stat(click.__file__).st_mtime))"
    )
    assert inside(image, ["python", "-c", script]) == "True\n"


def test_scripts_with_the_prefix_run(image: Settings) -> None:
    assert inside(image, ["text-prefix"]) == f"{PREFIX}/share\n"
    assert inside(image, ["long-shebang"]) == f"{PREFIX}\n"
    assert inside(image, ["old-style"]) == f"{PREFIX}/share\n"


def test_what_activates_reaches_processes_that_no_shell_started(image: Settings) -> None:
    found = variables(image)
    assert found["TEST_PROJ_DATA"] == f"{PREFIX}/share/proj-like"
    assert "TEST_PROJ_NETWORK" not in found
    assert (found["TEST_ENV_VARS"], found["TEST_QUOTED"]) == ("of env-vars", 'it\'s "quoted" $HOME')
    assert (found["CONDA_PREFIX"], found["CONDA_DEFAULT_ENV"]) == (PREFIX, "notebook")
    assert "VIRTUAL_ENV" not in found
    assert inside(image, ["python", "-c", "import os; print(os.environ['TEST_PROJ_DATA'])"]).strip()


def test_a_login_shell_is_activated_too(image: Settings) -> None:
    script = "unset TEST_PROJ_DATA; . /etc/profile.d/init_conda.sh; echo $TEST_PROJ_DATA $CONDA_PREFIX"
    assert inside(image, ["bash", "-c", script]).split() == [f"{PREFIX}/share/proj-like", PREFIX]


def test_every_package_has_a_record_without_a_trace_of_this_machine(image: Settings) -> None:
    root = root_filesystem(open_store(image.store), manifest(image).layers)
    records = sorted((root / PREFIX.lstrip("/") / "conda-meta").glob("*.json"))
    lock = lithify.inspect("small/notebook", settings=image).packages
    assert len(records) == sum(package.source.startswith("conda/") for package in lock)
    for path in records:
        text = path.read_text()
        assert str(image.store) not in text and "127.0.0.1" not in text
        record = json.loads(text)
        for name in record["files"]:
            assert (root / PREFIX.lstrip("/") / name).is_symlink() or (root / PREFIX.lstrip("/") / name).exists(), name


def test_the_history_says_what_was_asked_for_and_installed(image: Settings) -> None:
    history = (content(image, f"{PREFIX}/conda-meta/history") or b"").decode()
    assert "+conda-forge/noarch::generic-1.0-" in history
    specs = next(line for line in history.splitlines() if line.startswith("# update specs: "))
    assert json.loads(specs.removeprefix("# update specs: ")) == list(SPECS)


def test_the_configuration_is_the_images_own(image: Settings) -> None:
    assert content(image, "/srv/conda/.condarc") == b"auto_update_conda: false\n"
    assert b"LocalCluster" in (content(image, "/srv/conda/etc/dask.yml") or b"")


def test_all_of_the_environment_belongs_to_the_user(image: Settings) -> None:
    from lithify.store import tar
    from lithify.store.compression import decompressed

    store = open_store(image.store)
    for layer in manifest(image).layers:
        with store.blob_path(layer.descriptor.digest).open("rb") as file:
            for member, _ in tar.members(decompressed(file, layer.descriptor.media_type)):
                if member.path.startswith(b"srv/conda"):
                    assert (member.uid, member.gid) == (1000, 1000), member.path


# -- rules ---------------------------------------------------------------------------------------------------------


def test_the_same_lock_gives_the_same_bytes_for_both_platforms(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    specs = ["python", "click", "generic"]
    family = conda_families.write_small(tmp_path / "family", python_layout, specs, platforms=BOTH)
    first = built(family, served)
    again = replace(served, store=open_store(tmp_path / "again").root, jobs=1)
    second = lithify.build(family, settings=again)[-1]
    assert first.digest == second.digest
    assert [str(one.platform) for one in first.platforms] == list(BOTH)
    assert lithify.build(family, settings=served)[-1].unchanged


def test_what_the_family_excludes_is_neither_there_nor_in_the_record(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    family = conda_families.write_small(tmp_path / "family", python_layout, ["clutter"])
    (family / "lithify.toml").write_text(
        (family / "lithify.toml").read_text()
        + "[files]\nexclude = ['*.a', '*.js.map', 'share/clutter/static/*.js']\nkeep = ['*.min.js']\n"
    )
    built(family, served)
    root = root_filesystem(open_store(served.store), manifest(served).layers) / PREFIX.lstrip("/")
    left = sorted(path.name for path in root.rglob("*clutter*") if path.is_file() and path.suffix != ".json")
    assert left == ["clutter.1", "clutter.min.js", "clutter.mo", "libclutter.la"]
    (record,) = (root / "conda-meta").glob("clutter-*.json")
    assert not [name for name in json.loads(record.read_text())["files"] if not (root / name).exists()]


def test_of_two_files_for_one_path_the_later_one_stays_and_the_other_is_told(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    specs = ["clobber-different-a", "clobber-different-b", "clobber-same-a", "clobber-same-b"]
    family = conda_families.write_small(tmp_path / "family", python_layout, specs)
    events: list[Event] = []
    built(family, served, report=events.append)
    assert content(served, f"{PREFIX}/share/clobber/different") == b"of b\n"
    root = root_filesystem(open_store(served.store), manifest(served).layers) / PREFIX.lstrip("/")
    (record,) = (root / "conda-meta").glob("clobber-different-a-*.json")
    assert json.loads(record.read_text())["files"] == []
    (warning,) = [event.message for event in events if event.kind == "warning"]
    assert "clobber-different-a 1.0 does not bring" in warning
    text = (family / "lithify.toml").read_text()
    owner = "[conda]\nowners = {'share/clobber/different' = 'clobber-different-a'}\n"
    (family / "lithify.toml").write_text(text.replace("[conda]\n", owner))
    built(family, served)
    assert content(served, f"{PREFIX}/share/clobber/different") == b"of a\n"


def test_a_file_in_a_folders_place_is_an_error_that_names_both(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    family = conda_families.write_small(tmp_path / "family", python_layout, ["clobber-different-a", "clobber-folder"])
    with pytest.raises(LithifyError) as caught:
        built(family, served)
    assert "clobber-different-a" in str(caught.value) and "clobber-folder" in str(caught.value)


def test_a_package_with_a_link_script_is_refused_by_name(tmp_path: Path, python_layout: Path, served: Settings) -> None:
    family = conda_families.write_small(tmp_path / "family", python_layout, ["post-link"])
    with pytest.raises(InputError, match="post-link") as caught:
        built(family, served)
    assert 'link-scripts = ["post-link"]' in (caught.value.hint or "")


def test_an_allowed_link_script_runs_and_what_it_makes_is_a_layer(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    family = conda_families.write_small(
        tmp_path / "family", python_layout, ["post-link", "generic"], conda="link-scripts = ['post-link']"
    )
    events: list[Event] = []
    first = built(family, served, report=events.append)
    assert content(served, f"{PREFIX}/share/post-link/made") == b"post-link 1.0 0\n"
    assert content(served, f"{PREFIX}/.messages.txt") is None
    assert any("post-link was here" in event.message for event in events)
    again = replace(served, store=open_store(tmp_path / "again").root)
    assert lithify.build(family, settings=again)[-1].digest == first.digest


def test_a_link_script_that_fails_is_told(tmp_path: Path, python_layout: Path, served: Settings) -> None:
    family = conda_families.write_small(
        tmp_path / "family", python_layout, ["pre-link"], conda="link-scripts = ['pre-link']"
    )
    with pytest.raises(LithifyError, match=r"link script of pre-link 1.0 failed with code 1"):
        built(family, served)
    assert lithify.list_images(settings=served) == ()


def test_an_image_holds_several_environments_and_offers_one_as_a_kernel(
    tmp_path: Path, python_layout: Path, served: Settings
) -> None:
    family = conda_families.write_small(
        tmp_path / "family",
        python_layout,
        ["python", "generic"],
        image="[images.notebook.environments.tools]\nkernel = 'Tools'\n",
        more={"notebook/environment-tools.yml": conda_families.environment(["python", "click", "proj-like"])},
    )
    built(family, served)
    tools = "/srv/conda/envs/tools"
    script = "import sys, click; print(sys.prefix)"
    assert inside(served, [f"{tools}/bin/python", "-c", script]) == f"{tools}\n"
    assert content(served, f"{tools}/conda-meta/history") and content(served, f"{PREFIX}/conda-meta/history")
    kernel = json.loads(content(served, f"{PREFIX}/share/jupyter/kernels/tools/kernel.json") or b"")
    assert kernel["argv"][0] == f"{tools}/bin/python" and kernel["display_name"] == "Tools"
    assert kernel["env"]["TEST_PROJ_DATA"] == f"{tools}/share/proj-like"
    assert "TEST_PROJ_DATA" not in variables(served)


def test_a_change_costs_the_changed_package_alone(tmp_path: Path, python_layout: Path, served: Settings) -> None:
    family = conda_families.write_small(tmp_path / "family", python_layout, ["python", "click", "rich", "proj-like"])
    built(family, served)
    (family / "notebook/environment.yml").write_text(
        conda_families.environment(["python", "click", "rich", "proj-like", "generic"])
    )
    (platform,) = built(family, served).platforms
    assert platform.fragments_built == 1


def test_a_child_has_its_parents_layers_first(tmp_path: Path, python_layout: Path, served: Settings) -> None:
    family = conda_families.write_small(
        tmp_path / "family",
        python_layout,
        ["python", "click"],
        image="[images.child]\nextends = 'notebook'\n",
        more={"child/environment.yml": conda_families.environment(["rich"])},
    )
    built(family, served)
    parent, child = manifest(served), manifest(served, "small/child")
    shared = [layer.diff_id for layer in parent.layers[:-1]]
    assert [layer.diff_id for layer in child.layers[: len(shared)]] == shared
    assert inside(served, ["python", "-c", "import click, rich"], "small/child") == ""


def test_a_build_that_fails_leaves_the_last_image(tmp_path: Path, python_layout: Path, served: Settings) -> None:
    family = conda_families.write_small(tmp_path / "family", python_layout, ["generic"])
    first = built(family, served)
    (family / "notebook/environment.yml").write_text(conda_families.environment(["generic", "post-link"]))
    with pytest.raises(InputError):
        built(family, served)
    (left,) = lithify.list_images(settings=served)
    assert left.digest == first.digest
