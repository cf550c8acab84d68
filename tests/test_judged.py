"""Judged by others: skopeo and podman take the images, and uv installs the same tree."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import families
import judge
import lithify
from engines import podman, podman_run, skopeo
from lithify.lockfile import read_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, host_platform
from lithify.read.settings import Settings
from lithify.store.store import open_store

PREFIX = "srv/conda/envs/notebook"


@pytest.fixture(scope="session")
def images(shared: Path, python_layout: Path, wheels: tuple[families.Wheel, ...]) -> Path:
    """A folder with a store for each compression, both with the image ``small/child``."""
    with families.made_once(shared, "judged") as (folder, empty):
        if empty:
            family = families.write_small(folder / "family", python_layout, wheels)
            for compression in ("zstd", "gzip"):
                families.provide(open_store(folder / compression), wheels)
                lithify.build(family, compression=compression, settings=Settings(folder / compression, jobs=2))
    return folder


@pytest.fixture(params=["zstd", "gzip"])
def layout(request: pytest.FixtureRequest, images: Path) -> Path:
    return images / str(request.param)


def test_skopeo_reads_it(layout: Path) -> None:
    reference = f"oci:{layout}:small/child"
    index = json.loads(skopeo("inspect", "--raw", reference))
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        override = ["--override-arch", architecture]
        config = json.loads(skopeo(*override, "inspect", "--config", reference))
        assert config["architecture"] == architecture
        assert config["config"]["User"] == "jovyan"
        assert (
            json.loads(skopeo(*override, "inspect", reference))["Labels"]["org.opencontainers.image.title"] == "child"
        )


def test_skopeo_copies_it_whole(layout: Path, tmp_path: Path) -> None:
    digest = open_store(layout).image("small/child").digest
    skopeo("copy", "--quiet", "--all", "--preserve-digests", f"oci:{layout}:small/child", f"oci:{tmp_path}/copy:x")
    assert judge.judge(tmp_path / "copy", digest).keys() == {"linux/amd64", "linux/arm64"}
    skopeo("copy", "--quiet", "--preserve-digests", f"oci:{layout}:small/child", f"dir:{tmp_path}/dir")
    assert (tmp_path / "dir/manifest.json").is_file()


def test_skopeo_makes_a_docker_archive_of_it(images: Path, tmp_path: Path) -> None:
    # Of gzip's layers only: skopeo refuses to put zstd's into Docker's format.
    layout = images / "gzip"
    skopeo("copy", "--quiet", f"oci:{layout}:small/child", f"docker-archive:{tmp_path}/image.tar:small/child:latest")
    config = json.loads(skopeo("inspect", "--config", f"docker-archive:{tmp_path}/image.tar"))
    platform = str(host_platform())
    expected = judge.judge(layout, open_store(layout).image("small/child").digest)[platform]
    assert config["rootfs"]["diff_ids"] == expected.diff_ids


def test_podman_runs_it(layout: Path, tmp_path: Path) -> None:
    if host_platform() != LINUX_AMD64:
        pytest.skip("its base holds this machine's programs")
    engine = tmp_path / "engine"
    identifier = podman(engine, "pull", "--quiet", f"oci:{layout}:small/child").split()[-1]
    script = 'id -un; pwd; echo "$PANGEO_ENV $COLOUR"; tool; hello; python -c "import space.one, space.two, awkward"'
    said = podman_run(engine, identifier, "bash", "-c", script).splitlines()
    assert said == ["jovyan", "/home/jovyan", "child blue", "tool runs", f"hello from /{PREFIX}"]
    # Its own listing of the environment: owner, mode and kind of every file, as we meant them.
    script = f"import os\nfor top, _, names in os.walk('/{PREFIX}/lib'):\n  for name in names:\n" + (
        "    s = os.lstat(os.path.join(top, name)); print(s.st_uid, s.st_gid, oct(s.st_mode), int(s.st_mtime))"
    )
    found = set(podman_run(engine, identifier, "python", "-c", script).splitlines())
    assert found == {"1000 1000 0o100644 315619200", "1000 1000 0o100755 315619200"}


# -- the same tree as uv's -----------------------------------------------------------------------------------------

WALK = """
import hashlib, json, os, sys
found = {}
for top, folders, names in os.walk(sys.argv[1]):
    for name in [*folders, *names]:
        path = os.path.join(top, name)
        status = os.lstat(path)
        if os.path.islink(path):
            what = ["link", os.readlink(path)]
        elif os.path.isdir(path):
            what = ["folder"]
        else:
            data = open(path, "rb").read()
            what = [oct(status.st_mode & 0o777), hashlib.sha256(data).hexdigest()]
            lines = data.decode(errors="replace").splitlines()
            if "# -*- coding: utf-8 -*-" in lines[1:2] and lines[-1].strip().startswith("sys.exit("):
                # An entry point: installers have templates of their own around the same interpreter, import and call.
                what[1:] = [lines[0], *(line for line in lines if line.startswith("from ")), lines[-1].strip()]
        found[os.path.relpath(path, sys.argv[1])] = what
print(json.dumps(found))
"""

INSTALL = f"""
set -e
cd /tmp
rm -rf /{PREFIX}/* /{PREFIX}/.??*
umask 022
uv venv --quiet --no-config --allow-existing --python /usr/bin/python3.13 /{PREFIX}
uv pip install --quiet --no-config --no-cache --offline --no-index --no-deps --find-links /wheels \\
  --python /{PREFIX}/bin/python --link-mode copy -r /wheels/requirements.txt
/usr/bin/python3.13 -c "$0" /{PREFIX}
"""

# What an environment has besides packages, and what an installer says of itself.
OF_THE_ENVIRONMENT = ("pyvenv.cfg", "CACHEDIR.TAG", ".lock", ".gitignore", "lib64", "include")


def differs_with_reason(path: str) -> bool:
    """Whether uv's tree and ours may differ in ``path``.

    - the virtual environment's own files: links to Python, activation scripts for many shells, markers of uv's;
    - RECORD, INSTALLER: the installer's own account of what it did;
    - REQUESTED, direct_url.json: whether a person asked for the package; a lock does not know;
    - __pycache__: we compile, uv does not unless told to;
    - pip3.13: uv invents this name for pip's entry point; the wheel announces pip and pip3.
    """
    name = path.rpartition("/")[2]
    folder = path.partition("/")[0]
    if path in OF_THE_ENVIRONMENT or "__pycache__" in path.split("/") or name.startswith("_virtualenv."):
        return True
    if path == "bin/pip3.13":
        return True
    if folder == "bin" and (name.startswith(("activate", "python", "deactivate")) or name == "pydoc.bat"):
        return True
    return ".dist-info/" in path and name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")


@pytest.mark.network
@pytest.mark.xdist_group("notebook")
@pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the tests run the image for linux/amd64")
def test_the_environment_is_what_uv_installs(notebook_store: Path, tmp_path: Path) -> None:
    from uv import find_uv_bin

    lock = read_lock(families.COMMITTED / "base-notebook/lithify.lock")
    packages = lock.of(LINUX_AMD64, "pypi")
    for package in packages:
        os.link(notebook_store / "artefacts" / package.sha256[:2] / package.sha256, tmp_path / package.file)
    (tmp_path / "requirements.txt").write_text("".join(f"{p.name}=={p.version}\n" for p in packages))
    tmp_path.chmod(0o755)
    uv = Path(shutil.copy(find_uv_bin(), tmp_path / "uv"))
    options = [f"--volume={tmp_path}:/wheels:ro", f"--volume={uv}:/usr/local/bin/uv:ro"]
    image = "pangeo-pypi/base-notebook"
    theirs = json.loads(families.run_inside(notebook_store, image, "bash", "-c", INSTALL, WALK, options=options).stdout)
    ours = json.loads(
        families.run_inside(notebook_store, image, "/usr/bin/python3.13", "-c", WALK, f"/{PREFIX}").stdout
    )
    compared = {path for path in (*ours, *theirs) if not differs_with_reason(path)}
    assert len(compared) > 5000
    different = {path: (ours.get(path), theirs.get(path)) for path in compared if ours.get(path) != theirs.get(path)}
    assert different == {}
    # A .pyc for every module outside of test suites, and none of another source.
    sources = {path for path in ours if path.endswith(".py")}
    for path in ours:
        folder, _, name = path.rpartition("/")
        if folder.endswith("__pycache__") and name.endswith(".cpython-313.pyc"):
            source = f"{folder.removesuffix('__pycache__')}{name.removesuffix('.cpython-313.pyc')}.py"
            assert source in sources, path


@pytest.mark.network
@pytest.mark.xdist_group("notebook")
@pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the test builds for another machine than this")
def test_an_arm64_image_holds_no_amd64_code(shared: Path, notebook_store: Path, tmp_path: Path) -> None:
    lock = read_lock(families.COMMITTED / "base-notebook/lithify.lock")
    wanted = {"pyzmq", "tornado", "psutil", "msgpack", "pip", "traitlets"}
    both = (LINUX_AMD64, LINUX_ARM64)
    packages = [p for p in lock.packages if p.base or (p.source == "pypi" and p.name in wanted)]
    family = families.write_family(
        tmp_path / "family",
        [families.Spec("one")],
        platforms=both,
        base_lines=['debian = "trixie"', 'packages = ["ca-certificates", "tzdata"]'],
        debian=packages,
    )
    store = families.clone(notebook_store, tmp_path / "store")
    built = families.build(family, Settings(store, jobs=2), "--platform", "linux/arm64")
    judged = judge.judge(store, built.digest)["linux/arm64"]
    assert judged.config["architecture"] == "arm64"
    machines = judged.elf_machines()
    assert len(machines) > 300
    assert any(path.startswith(PREFIX) for path in machines)
    foreign = {path for path, machine in machines.items() if machine != LINUX_ARM64.elf_machine}
    assert foreign == set()
