"""An image of conda environments, judged by others: conda itself, pip, py-rattler, JupyterLab, Dask and podman."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import channel_server
import conda_channel
import conda_oracle
import conda_whole
import engines
import families
from conda_whole import PREFIX, PREFIXES, Whole, altered, differences, tree
from lithify.platforms import LINUX_AMD64, host_platform
from lithify.runtime import MTIME
from lithify.sandbox import Sandbox, arguments
from lithify.sources.conda.channel import Channel, canonical_address
from lithify.store import tar
from lithify.store.compression import decompressed
from lithify.store.store import open_store
from lithify.use.running import serving

pytestmark = [
    pytest.mark.network,
    pytest.mark.xdist_group("conda-notebook"),  # one worker builds the image while the others go on
    pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the tests run the image for linux/amd64"),
]

CHANNEL = Channel(conda_channel.CHANNEL)
# Below /srv/conda, what is not the environment `base`.
NOT_OF_BASE = ("envs", "pkgs")


@pytest.fixture(scope="module")
def image(conda_notebook: Whole) -> Whole:
    return conda_notebook


@pytest.fixture(scope="module")
def channels() -> Path:
    return conda_channel.base_notebook()


@pytest.fixture(scope="module")
def root(image: Whole) -> Path:
    """The image's root file system."""
    return image.root


def below(root: Path, inside: str) -> Path:
    return root / inside.lstrip("/")


# -- conda ---------------------------------------------------------------------------------------------------------


def test_conda_lists_what_the_lock_has(image: Whole) -> None:
    script = 'for name in "$@"; do echo "= $name"; conda list --explicit --md5 --name "$name"; done'
    said = image.says("bash", "-c", script, "bash", *PREFIXES)
    listed: dict[str, list[str]] = {}
    for line in said.splitlines():
        if line.startswith("= "):
            found = listed.setdefault(line[2:], [])
        elif "://" in line:
            found.append(line)
    address = canonical_address(CHANNEL)
    for name in PREFIXES:
        expected = sorted(f"{address}/{one.file}#{one.md5}" for one in image.locked(name))
        assert len(expected) > 20
        assert sorted(listed[name]) == expected, name
    # Every package after those that it needs: the list can be installed line by line.
    names = [line.rpartition("/")[2].rsplit("-", 2)[0] for line in listed["notebook"]]
    place = {name: number for number, name in enumerate(names)}
    packages = {one.name: one for one in image.locked("notebook")}
    cycle = {"python", "pip"}  # conda's own exception
    for name, package in packages.items():
        for needed in {spec.split()[0] for spec in package.depends} & place.keys() - cycle:
            assert place[needed] < place[name] or name in cycle, (name, needed)


def test_conda_lists_nothing_but_what_the_lock_has(image: Whole) -> None:
    listed = json.loads(image.says("conda", "list", "--name", "notebook", "--json"))
    locked = {(one.name, one.version, "conda-forge") for one in image.locked("notebook")}
    assert {(one["name"], one["version"], one["channel"]) for one in listed} == locked


def test_conda_knows_the_environments_and_which_is_active(image: Whole) -> None:
    script = "conda env list --json; conda info --json"
    said = image.says("bash", "-lc", script)
    decoder = json.JSONDecoder()
    environments, end = decoder.raw_decode(said)
    about = json.loads(said[end:])
    assert environments["envs"] == list(PREFIXES.values())
    assert about["active_prefix"] == PREFIX
    assert about["active_prefix_name"] == "notebook"
    assert about["root_prefix"] == PREFIXES["base"]
    assert about["root_writable"] is True
    # No channel but those of the family's packages.
    address = canonical_address(CHANNEL)
    assert about["channels"] == [f"{address}/linux-64", f"{address}/noarch"]


def test_conda_reads_the_history(image: Whole) -> None:
    revisions = json.loads(image.says("conda", "list", "--name", "notebook", "--revisions", "--json"))
    assert [len(one["install"]) for one in revisions] == [len(image.locked("notebook"))]
    assert [one["upgrade"] + one["downgrade"] + one["remove"] for one in revisions] == [[]]
    asked = json.loads(image.says("conda", "env", "export", "--name", "notebook", "--from-history", "--json"))
    assert {"python=" + sys.version[:4].rstrip("."), "pangeo-notebook", "dask", "proj-like"} <= set(
        asked["dependencies"]
    )


def test_conda_finds_the_environments_healthy(image: Whole) -> None:
    script = 'for name in "$@"; do conda doctor --verbose --name "$name" 2>/dev/null; done'
    said = image.says("bash", "-c", script, "bash", *PREFIXES)
    assert said.count("There are no packages with missing files") == len(PREFIXES), said
    assert said.count("There are no packages with altered files") == len(PREFIXES), said


@pytest.mark.parametrize("name", PREFIXES)
def test_every_file_is_as_its_record_says(root: Path, name: str) -> None:
    assert altered(below(root, PREFIXES[name])) == []


@pytest.mark.parametrize("name", PREFIXES)
def test_every_file_is_in_a_record(root: Path, name: str) -> None:
    prefix = below(root, PREFIXES[name])
    listed = {path for record in conda_whole.records(prefix).values() for path in record["files"]}
    found = {path for path, (_, kind, _) in tree(prefix, NOT_OF_BASE).items() if kind != "folder"}
    unknown = {path for path in found - listed if not path.startswith("conda-meta/")}
    contract = {"base": {".condarc", "etc/dask.yml"}, "notebook": {"share/jupyter/kernels/tools/kernel.json"}}
    assert unknown == contract.get(name, set())


# Installs by the name alone, from the channels that /srv/conda/.condarc names, and removes again.
CHANGE = f"""\
set -e
export CONDA_CHANNEL_ALIAS=$1 CONDA_PKGS_DIRS=/tmp/pkgs
walk() {{ python - {PREFIX} > /tmp/$1.json <<'END'
{conda_whole.WALK}
END
}}
walk before
conda install --yes --quiet --prefix {PREFIX} {conda_whole.LEFT_FOR_USERS} generic >&2
walk installed
python -c 'import jupyter_resource_usage'
conda remove --yes --quiet --prefix {PREFIX} {conda_whole.LEFT_FOR_USERS} generic >&2
walk removed
conda list --prefix {PREFIX} --revisions --json > /tmp/revisions.json
cd /tmp
python -c 'import json, sys; print(json.dumps([json.load(open(f"{{one}}.json")) for one in sys.argv[1:]]))' \
  before installed removed revisions
"""


def test_conda_installs_and_removes_a_package(image: Whole, channels: Path) -> None:
    with channel_server.serving(channels) as server:
        said = image.says("bash", "-c", CHANGE, "bash", server.address)
    before, installed, removed, revisions = json.loads(said.splitlines()[-1])
    new = differences(before, installed)
    assert {"share/generic/data.txt", "etc/jupyter/jupyter_server_config.d/jupyter_resource_usage.json"} <= new
    # Nothing that was there has changed, but what tells what happened.
    assert {path for path in new if path in before} == {"conda-meta/history"}
    assert differences(before, removed) == {"conda-meta/history"}
    assert [len(one["install"]) for one in revisions[1:]] == [2, 0]
    assert [len(one["remove"]) for one in revisions[1:]] == [0, 2]


@pytest.mark.slow
def test_conda_makes_the_same_environment_of_its_own_list(image: Whole, channels: Path) -> None:
    """`conda create --file` of what it lists: what people do with a published `conda-linux-64.lock`."""
    address = canonical_address(CHANNEL)
    script = f"""\
set -e
export CONDA_PKGS_DIRS=/tmp/pkgs
conda list --explicit --md5 --name tools | sed "s|{address}|$1|" > /tmp/list.txt
conda create --yes --quiet --offline --name again --file /tmp/list.txt >&2
/srv/conda/envs/again/bin/python -c 'import ipykernel; print(ipykernel.__file__)'
conda list --explicit --md5 --name again | sed "s|$1|{address}|" | grep :// | sort > /tmp/again.txt
conda list --explicit --md5 --name tools | grep :// | sort | diff - /tmp/again.txt
"""
    options = [f"--volume={channels}:/channels:ro"]
    said = image.says("bash", "-c", script, "bash", f"file:///channels/{conda_channel.CHANNEL}", options=options)
    assert said.startswith("/srv/conda/envs/again/lib/")


def test_conda_keeps_the_same_one_of_two_files_for_a_path(image: Whole, channels: Path) -> None:
    pair = ["clobber-different-a", "clobber-different-b"]
    script = f"""\
set -e
export CONDA_PKGS_DIRS=/tmp/pkgs
conda create --yes --quiet --offline --override-channels --channel "$1" --name pair {" ".join(pair)} >&2
cat /srv/conda/envs/pair/share/clobber/different {PREFIX}/share/clobber/different
"""
    options = [f"--volume={channels}:/channels:ro"]
    said = image.says("bash", "-c", script, "bash", f"file:///channels/{conda_channel.CHANNEL}", options=options)
    assert said.split("\n") == ["of b", "of b"]


# -- pip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXES)
def test_pip_finds_nothing_broken(image: Whole, name: str) -> None:
    # conda's own environment and the tools' have no pip: the notebook's looks into them.
    python = f"--python={PREFIXES[name]}/bin/python"
    assert "No broken requirements" in image.says(f"{PREFIX}/bin/python", "-m", "pip", python, "check")


def test_a_user_can_install_a_wheel_on_top(image: Whole, tmp_path: Path) -> None:
    extra = families.wheel(
        "extra", {"extra.py": "print('extra runs')\n"}, entry_points="[console_scripts]\nx = extra:f"
    )
    (tmp_path / extra.file).write_bytes(extra.data)
    script = f"pip install --quiet --no-index /wheels/{extra.file} && python -c 'import extra' && command -v x"
    said = image.says("bash", "-c", script, options=[f"--volume={tmp_path}:/wheels:ro"])
    assert said.split("\n") == ["extra runs", f"{PREFIX}/bin/x"]


# -- py-rattler ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIXES)
def test_rattler_reads_every_record(image: Whole, root: Path, name: str) -> None:
    from rattler import PrefixRecord

    paths = sorted(below(root, PREFIXES[name]).glob("conda-meta/*.json"))
    found = [PrefixRecord.from_path(path) for path in paths]
    address = canonical_address(CHANNEL)
    assert {(record.url, record.sha256.hex() if record.sha256 else "") for record in found} == {
        (f"{address}/{one.file}", one.sha256) for one in image.locked(name)
    }
    assert {(one.name.normalized, tuple(one.depends)) for one in found} == {
        (one.name, one.depends) for one in image.locked(name)
    }
    assert all(record.files for record in found if record.name.normalized in ("python", "ipykernel"))


def test_rattler_installs_and_removes_a_package(root: Path, channels: Path, tmp_path: Path) -> None:
    from rattler import PrefixRecord

    prefix = tmp_path / "prefix"
    # A small one: it is copied, for rattler writes into it.
    subprocess.run(["cp", "-a", str(below(root, PREFIXES["tools"])), str(prefix)], check=True)
    there = [PrefixRecord.from_path(path) for path in sorted(prefix.glob("conda-meta/*.json"))]
    more = conda_oracle.solve([(channels / conda_channel.CHANNEL).as_uri()], ["generic", "upgrade"])
    before = tree(prefix)
    conda_oracle.install([*there, *more], prefix, final=PREFIXES["tools"])
    installed = tree(prefix)
    new = differences(before, installed)
    assert "share/generic/data.txt" in new and "share/upgrade/1.1" in new
    assert not new & before.keys()
    conda_oracle.install(there, prefix, final=PREFIXES["tools"])
    assert differences(before, tree(prefix)) - {"CACHEDIR.TAG"} == set()


@pytest.fixture(scope="module")
def installed_by_rattler(
    image: Whole, channels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """The prefixes that rattler makes of the same packages, by environment."""
    folder = tmp_path_factory.mktemp("rattler")
    made = {}
    for name, prefix in PREFIXES.items():
        records = conda_whole.channel_records(channels / conda_channel.CHANNEL, image.locked(name))
        made[name] = conda_oracle.install(records, folder / name, final=prefix, cache=folder / "cache")
    yield made
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", PREFIXES)
def test_every_difference_from_rattlers_prefix_has_a_reason(
    root: Path, installed_by_rattler: dict[str, Path], name: str
) -> None:
    assert unexplained(below(root, PREFIXES[name]), installed_by_rattler[name]) == {}


def unexplained(our_prefix: Path, their_prefix: Path, clobbered: Sequence[str] = ("share/clobber/different",)) -> dict:  # type: ignore[type-arg]
    """Where two prefixes differ without a reason, and what each has there."""
    ours, theirs = tree(our_prefix, NOT_OF_BASE), tree(their_prefix, NOT_OF_BASE)
    assert len(ours.keys() & theirs.keys()) > 2000
    found: dict[str, object] = {
        path: (ours.get(path), theirs.get(path))
        for path in differences(ours, theirs)
        if not conda_whole.reason(path, ours.get(path), theirs.get(path), clobbered)
    }
    our_records, their_records = conda_whole.records(our_prefix), conda_whole.records(their_prefix)
    # Of a file that several packages bring alike, rattler writes down one owner; we all, as conda does.
    owners = Counter(path for record in our_records.values() for path in conda_whole.files_of(record))
    assert our_records.keys() == their_records.keys()
    for file, record in our_records.items():
        told, expected = conda_whole.described(record), conda_whole.described(their_records[file])
        if told != expected:
            found[file] = {key: (told.get(key), expected.get(key)) for key in differences(told, expected)}
        files, expected_files = conda_whole.files_of(record), conda_whole.files_of(their_records[file])
        for path in differences(files, expected_files):
            alike = path in files and owners[path] > 1 and ours[path] == theirs[path]
            left_out = path not in files and conda_whole.reason(path, None, theirs.get(path))
            if path not in clobbered and not alike and not left_out:
                found[f"{file}: {path}"] = (files.get(path), expected_files.get(path))
    return found


# -- Python --------------------------------------------------------------------------------------------------------


def test_every_requested_distribution_imports(image: Whole) -> None:
    wanted = conda_whole.names(conda_channel.BASE_NOTEBOOK)
    wanted = [name for name in wanted if name != conda_whole.LEFT_FOR_USERS]
    result = image.run("python", "-W", "ignore", "-c", conda_whole.IMPORT_ALL, *wanted)
    assert json.loads(result.stdout.splitlines()[-1]) == [], result.stderr


@pytest.mark.parametrize("name", PREFIXES)
def test_every_module_is_compiled_for_its_source(root: Path, name: str) -> None:
    prefix = below(root, PREFIXES[name])
    stale, missing, good = [], [], 0
    for source in sorted((prefix / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}").rglob("*.py")):
        cached = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        if not cached.is_file():
            missing += [] if {"test", "tests"} & set(source.parts) else [source]
            continue
        header, status = cached.read_bytes()[:16], source.stat()
        told = (int.from_bytes(header[4:8], "little"), int.from_bytes(header[8:12], "little"))
        if told != (0, int(status.st_mtime)) or int.from_bytes(header[12:], "little") != status.st_size:
            stale.append(source)
        good += 1
    assert stale == [] and good > 500
    # Those that no Python compiles: templates, and what is of another age.
    for source in missing:
        with pytest.raises((SyntaxError, ValueError)):
            compile(source.read_bytes(), str(source), "exec", dont_inherit=True)


def test_a_start_compiles_nothing_and_needs_no_writing(image: Whole) -> None:
    sandbox = Sandbox(
        lower=(image.root,), environment={**image.variables, "HOME": "/tmp"}
    )  # the root cannot be written
    script = "import dask.dataframe, distributed, ipykernel.kernelapp, jupyterlab.labapp, jupyterhub.singleuser"
    result = subprocess.run(
        arguments(sandbox, ["python", "-v", "-c", script]), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = [line for line in result.stderr.splitlines() if line.startswith("# code object from ")]
    # From a source it is `code object from '/…/name.py'`.
    assert len(loaded) > 1000
    assert [line for line in loaded if line.rstrip("'").endswith(".py")] == []
    assert "# wrote" not in result.stderr


# -- the contract --------------------------------------------------------------------------------------------------


def test_the_contract_s_variables(image: Whole) -> None:
    expected = {
        "CONDA_ENV": "notebook",
        "CONDA_DIR": "/srv/conda",
        "NB_PYTHON_PREFIX": PREFIX,
        "NB_USER": "jovyan",
        "NB_UID": "1000",
        "HOME": "/home/jovyan",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "DASK_ROOT_CONFIG": "/srv/conda/etc",
        "DEBIAN_FRONTEND": "noninteractive",
        "PANGEO_ENV": "base-notebook",
        "CONDA_PREFIX": PREFIX,
        "CONDA_DEFAULT_ENV": "notebook",
        "TEST_PROJ_DATA": f"{PREFIX}/share/proj-like",
        "TEST_ENV_VARS": "of env-vars",
    }
    script = (
        "import json, os, sys; print(json.dumps([dict(os.environ), sys.prefix, os.getcwd(), os.getuid(), os.getgid()]))"
    )
    variables, prefix, folder, uid, gid = json.loads(image.says("python", "-c", script))
    assert {key: variables.get(key) for key in expected} == expected
    assert variables["PATH"].startswith(f"{PREFIX}/bin:/srv/conda/bin:/usr/")
    assert (prefix, folder, uid, gid) == (PREFIX, "/home/jovyan", 1000, 1000)
    config = image.manifest.runtime
    assert (config["User"], config["WorkingDir"], config["Entrypoint"]) == ("jovyan", "/home/jovyan", ["/srv/start"])
    assert config["ExposedPorts"] == {"8888/tcp": {}}
    assert config["Cmd"][:2] == ["jupyter", "lab"]


@pytest.mark.parametrize("options", ["-l", ""])
def test_every_shell_has_the_environment(image: Whole, options: str) -> None:
    script = 'echo "$PATH"; type -P python conda; echo "$CONDA_PREFIX $CONDA_DEFAULT_ENV $TEST_PROJ_DATA"'
    path, python, conda, active = image.says("env", "bash", *options.split(), "-c", script).splitlines()
    assert path.startswith(f"{PREFIX}/bin:/srv/conda/bin:")
    assert (python, conda) == (f"{PREFIX}/bin/python", "/srv/conda/bin/conda")
    assert active == f"{PREFIX} notebook {PREFIX}/share/proj-like"


def test_a_shell_can_go_to_another_environment_and_back(image: Whole) -> None:
    script = """\
conda activate tools && echo "$CONDA_DEFAULT_ENV $(command -v python) $OF_TOOLS"
conda deactivate && echo "$CONDA_DEFAULT_ENV $(command -v python) [${OF_TOOLS-}]"
"""
    assert image.says("bash", "-lc", script).splitlines() == [
        f"tools {PREFIXES['tools']}/bin/python yes",
        f"notebook {PREFIX}/bin/python []",
    ]


def test_all_of_the_environments_belongs_to_the_user(image: Whole) -> None:
    found = {}
    for layer in image.manifest.layers:
        with open_store(image.settings.store).blob_path(layer.descriptor.digest).open("rb") as file:
            for member, _ in tar.members(decompressed(file, layer.descriptor.media_type)):
                if member.path.split(b"/")[0] == b"srv":
                    found[member.path] = (member.uid, member.gid, member.mtime, member.mode & 0o7000)
    assert set(found.values()) == {(1000, 1000, MTIME, 0)}


def test_dask_reads_our_configuration(image: Whole) -> None:
    script = (
        "import dask; print('/srv/conda/etc' in map(str, dask.config.paths),"
        " dask.config.get('labextension.factory.class'))"
    )
    assert image.says("python", "-c", script) == "True LocalCluster"


# -- running -------------------------------------------------------------------------------------------------------

CELL = "import os, sys; print(sys.prefix, os.environ.get('TEST_PROJ_DATA'), os.environ.get('OF_TOOLS'))"
CELLS = {
    "python3": f"{PREFIX} {PREFIX}/share/proj-like None",
    "tools": f"{PREFIXES['tools']} {PREFIXES['tools']}/share/proj-like yes",
}


def test_jupyterlab_runs_cells_in_both_kernels(image: Whole) -> None:
    with serving(image.name, settings=image.settings) as server:
        with urllib.request.urlopen(server.link) as answer:
            assert "JupyterLab" in answer.read().decode()
        with urllib.request.urlopen(f"{server.url}api/kernelspecs?token={server.token}") as answer:
            specs = json.load(answer)["kernelspecs"]
        assert {name: spec["spec"]["display_name"] for name, spec in specs.items()} == {
            "python3": "Python 3 (ipykernel)",
            "tools": "Tools",
        }
        for kernel, expected in CELLS.items():
            asked = ["python", "-c", conda_whole.ASK_KERNEL, server.url, server.token, kernel, CELL]
            assert image.says(*asked) == expected


def test_dask_computes_on_a_local_cluster(image: Whole) -> None:
    said = image.says("bash", "-c", 'cat > "$HOME/x.py" <<< "$0" && python "$HOME/x.py"', conda_whole.COMPUTE)
    assert said.split() == ["160000.0", "2", f"{PREFIX}/share/proj-like"]


# JupyterLab, a kernel of each kind and Dask, in one container.
IN_PODMAN = """\
jupyter lab --ip=127.0.0.1 --port=0 --no-browser --IdentityProvider.token=t >"$HOME/log" 2>&1 &
for _ in $(seq 240); do
  url=$(grep -ao 'http://127.0.0.1:[0-9]*/' "$HOME/log" | head -n 1)
  [ -n "$url" ] && break
  sleep 0.25
done
[ -n "$url" ] || { cat "$HOME/log"; exit 1; }
set -e
python -c "$1" "$url" t python3 "$2"
python -c "$1" "$url" t tools "$2"
echo "$3" > "$HOME/x.py"
python "$HOME/x.py"
conda list --name notebook | wc -l
python -c 'import os; print(os.stat("/srv").st_uid, os.getuid(), os.environ["CONDA_PREFIX"])'
"""


def test_podman_runs_jupyterlab_kernels_dask_and_conda(image: Whole) -> None:
    with engines.engine_folder() as engine:
        identifier = engines.podman(engine, "pull", "--quiet", f"oci:{image.settings.store}:{image.name}").split()[-1]
        command = [identifier, "bash", "-c", IN_PODMAN, "bash", conda_whole.ASK_KERNEL, CELL, conda_whole.COMPUTE]
        said = engines.podman_run(engine, *command).splitlines()
    assert said == [
        *CELLS.values(),
        "160000.0 2",
        f"{PREFIX}/share/proj-like",
        str(len(image.locked("notebook")) + 3),
        f"1000 1000 {PREFIX}",
    ]


# -- slow ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pangeo(shared: Path) -> Whole:
    """The same with all that the committed family's pangeo-notebook asks for."""
    with families.made_once(shared, "conda-pangeo") as (folder, empty):
        if empty:
            conda_whole.build(folder, conda_channel.pangeo_notebook(), PANGEO, OF_THE_SYSTEM)
    return Whole(folder)


PANGEO = (*conda_channel.BASE_NOTEBOOK, *conda_whole.lines(families.COMMITTED / "pangeo-notebook/requirements.txt"))


# What wheels expect of every system; packages that conda's builders make look for it in their prefix.
OF_THE_SYSTEM = "libexpat1\nlibgomp1\nlibstdc++6\n"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pangeo_notebook_is_whole(pangeo: Whole) -> None:
    assert len(pangeo.locked("notebook")) > 300
    assert "No broken requirements" in pangeo.run("pip", "check", check=False).stdout
    wanted = [name for name in conda_whole.names(PANGEO) if name != conda_whole.LEFT_FOR_USERS]
    result = pangeo.run("python", "-W", "ignore", "-c", conda_whole.IMPORT_ALL, *wanted)
    assert json.loads(result.stdout.splitlines()[-1]) == [], result.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pangeo_notebook_is_what_rattler_makes_of_it(pangeo: Whole, tmp_path: Path) -> None:
    channel = conda_channel.pangeo_notebook() / conda_channel.CHANNEL
    records = conda_whole.channel_records(channel, pangeo.locked("notebook"))
    theirs = conda_oracle.install(records, tmp_path / "prefix", final=PREFIX)
    ours = below(pangeo.root, PREFIX)
    assert altered(ours) == []
    assert unexplained(ours, theirs) == {}
