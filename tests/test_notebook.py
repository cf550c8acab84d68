"""The committed family, as its users have it: JupyterLab and Dask work, and all that was asked for is there."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import families
from engines import podman, podman_run
from lithify.lockfile import read_lock
from lithify.platforms import LINUX_AMD64, host_platform
from lithify.read.family import read_family
from lithify.read.requirements import read_requirements
from lithify.read.settings import Settings
from lithify.use.running import serving

pytestmark = [
    pytest.mark.network,
    pytest.mark.xdist_group("notebook"),  # one worker builds the image while the others go on
    pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the tests run the image for linux/amd64"),
]

NOTEBOOK = "pangeo-pypi/base-notebook"
PREFIX = "/srv/conda/envs/notebook"
# Modules whose names are not their distributions'.
MODULES = {
    "scikit-learn": "sklearn",
    "scikit-image": "skimage",
    "netcdf4": "netCDF4",
    "odc-stac": "odc.stac",
}


def requested(*images: str) -> list[str]:
    family = read_family(families.COMMITTED)
    found = [one for name in images for one in read_requirements(family.image(name)).python]
    return sorted({canonicalize_name(re.split(r"[\[<>=!~; ]", one.text)[0]) for one in found})


def python(store: Path, image: str, script: str, *options: str) -> str:
    return families.run_inside(store, image, "python", "-c", script, options=options).stdout.strip()


def import_of(name: str) -> str:
    return MODULES.get(name, name.replace("-", "_"))


@pytest.mark.parametrize("name", requested("base-image", "base-notebook"))
def test_a_requested_package_imports(notebook_store: Path, name: str) -> None:
    python(notebook_store, NOTEBOOK, f"import {import_of(name)}")


def test_what_is_installed_is_what_is_locked(notebook_store: Path) -> None:
    lock = read_lock(families.COMMITTED / "base-notebook/lithify.lock")
    listed = families.run_inside(notebook_store, NOTEBOOK, "pip", "list", "--format=json").stdout
    installed = {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed)}
    assert installed == {p.name: p.version for p in lock.of(LINUX_AMD64, "pypi")}


def test_pip_finds_nothing_broken(notebook_store: Path) -> None:
    assert "No broken requirements" in families.run_inside(notebook_store, NOTEBOOK, "pip", "check").stdout


def test_a_user_can_install_on_top(notebook_store: Path, tmp_path: Path) -> None:
    extra = families.wheel(
        "extra", {"extra.py": "print('extra runs')\n"}, entry_points="[console_scripts]\nx = extra:f"
    )
    (tmp_path / extra.file).write_bytes(extra.data)
    script = f"pip install --quiet --no-index /wheels/{extra.file} && python -c 'import extra' && command -v x"
    options = [f"--volume={tmp_path}:/wheels:ro"]
    result = families.run_inside(notebook_store, NOTEBOOK, "bash", "-c", script, options=options)
    assert result.stdout.split("\n")[:2] == ["extra runs", f"{PREFIX}/bin/x"]


def test_a_user_can_upgrade_what_is_there(notebook_store: Path, tmp_path: Path) -> None:
    newer = families.wheel("toolz", {"toolz.py": "newer = True\n"}, version="99.0")
    (tmp_path / newer.file).write_bytes(newer.data)
    script = f"pip install --quiet --no-index /wheels/{newer.file} && python -c 'import toolz; print(toolz.newer)'"
    options = [f"--volume={tmp_path}:/wheels:ro"]
    assert families.run_inside(notebook_store, NOTEBOOK, "bash", "-c", script, options=options).stdout == "True\n"


def test_a_login_shell_on_debian(notebook_store: Path) -> None:
    found = families.run_inside(notebook_store, NOTEBOOK, "bash", "-l", "-c", "echo $PATH; command -v python").stdout
    path, command = found.split()
    assert path.startswith(f"{PREFIX}/bin:/srv/conda/bin:")
    assert command == f"{PREFIX}/bin/python"
    assert python(notebook_store, NOTEBOOK, "import sys; print(sys.prefix, sys.version[:4])") == f"{PREFIX} 3.13"


def test_dask_reads_our_configuration(notebook_store: Path) -> None:
    script = (
        "import dask, os; print('/srv/conda/etc' in map(str, dask.config.paths),"
        " dask.config.get('labextension.factory.class'))"
    )
    assert python(notebook_store, NOTEBOOK, script) == "True LocalCluster"


def test_dask_computes_on_a_local_cluster(notebook_store: Path) -> None:
    script = (
        "from dask.distributed import Client, LocalCluster\n"
        "import dask.array as da\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c, Client(c) as client:\n"
        "        print(da.ones((400, 400), chunks=100).sum().compute(), len(client.scheduler_info()['workers']))\n"
    )
    found = families.run_inside(
        notebook_store, NOTEBOOK, "bash", "-c", 'cat > "$HOME/x.py" <<< "$0" && python "$HOME/x.py"', script
    )
    assert found.stdout.split() == ["160000.0", "2"]


def test_jupyterlab_answers(notebook_store: Path) -> None:
    with serving(NOTEBOOK, settings=Settings(notebook_store, jobs=2)) as server:
        with urllib.request.urlopen(f"{server.url}api/status?token={server.token}") as answer:
            assert json.load(answer)["kernels"] == 0
        with urllib.request.urlopen(server.link) as answer:
            assert "JupyterLab" in answer.read().decode()


def test_jupyterlab_answers_in_podman(notebook_store: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    identifier = podman(engine, "pull", "--quiet", f"oci:{notebook_store}:{NOTEBOOK}").split()[-1]
    script = """
jupyter lab --ip=127.0.0.1 --port=0 --no-browser --IdentityProvider.token=t >"$HOME/log" 2>&1 &
for _ in $(seq 240); do
  url=$(grep -ao 'http://127.0.0.1:[0-9]*/' "$HOME/log" | head -n 1)
  [ -n "$url" ] && curl -fsS "${url}api/status?token=t" && exit 0
  sleep 0.25
done
cat "$HOME/log"; exit 1
"""
    answer = podman_run(engine, identifier, "bash", "-c", script)
    assert json.loads(answer)["kernels"] == 0


def test_the_default_command_starts_jupyterlab(notebook_store: Path) -> None:
    result = families.lithify("--store", notebook_store, "inspect", NOTEBOOK, "--json")
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert re.search(r'"jupyter",\s*"lab",\s*"--ip=0.0.0.0"', text)


# -- slow ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pangeo_store(shared: Path, notebook_store: Path) -> Path:
    """A store with pangeo-notebook."""
    with families.made_once(shared, "pangeo") as (folder, empty):
        if empty:
            families.clone(notebook_store, folder)
            families.build_committed(folder, ["pangeo-notebook"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", requested("pangeo-notebook"))
def test_a_requested_package_of_pangeo_notebook_imports(pangeo_store: Path, name: str) -> None:
    python(pangeo_store, "pangeo-pypi/pangeo-notebook", f"import {import_of(name)}")


@pytest.mark.slow
def test_pangeo_notebook_is_whole(pangeo_store: Path) -> None:
    result = families.run_inside(pangeo_store, "pangeo-pypi/pangeo-notebook", "pip", "check", check=False)
    assert "No broken requirements" in result.stdout, result.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", requested("ml-notebook"))
def test_a_requested_package_of_ml_notebook_imports(shared: Path, pangeo_store: Path, name: str) -> None:
    with families.made_once(shared, "ml") as (folder, empty):
        if empty:
            if shutil.disk_usage(shared).free < 40 << 30:
                pytest.skip("ml-notebook needs 40 GB of disk")
            families.clone(pangeo_store, folder)
            families.build_committed(folder, ["ml-notebook"])
    python(folder, "pangeo-pypi/ml-notebook", f"import {import_of(name)}")


@pytest.mark.slow
def test_a_cell_runs_in_a_browser(notebook_store: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian's package `chromium`)")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (`pip install -e .[browser]`)"
    )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with serving(NOTEBOOK, settings=Settings(notebook_store, jobs=2)) as server, playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=flags, headless=True)
        try:
            page = browser.new_page()
            page.goto(server.link, timeout=120_000)
            page.locator(".jp-LauncherCard[data-category='Notebook']").first.click(timeout=120_000)
            cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
            cell.click(timeout=120_000)
            page.keyboard.type("1+1")
            # The kernel may still be starting; a cell that waits for it runs then.
            page.keyboard.press("Shift+Enter")
            output = page.locator(".jp-OutputArea-executeResult .jp-OutputArea-output").first
            output.wait_for(timeout=120_000)
            assert output.inner_text().strip() == "2"
        finally:
            browser.close()
