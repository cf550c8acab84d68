"""The runtime contract: what hubs rely on, in an image that was built, and in what a process inside sees."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import families
import judge
import lithify
from lithify import runtime
from lithify.assemble import contract
from lithify.errors import InputError
from lithify.platforms import LINUX_AMD64, host_platform
from lithify.read.settings import Settings
from lithify.store.store import open_store

PREFIX = "/srv/conda/envs/notebook"
START = b'#!/bin/bash -l\nexport OWN_START=yes\nexec "$@"\n'
CONFIGURATION = b"c.ServerApp.answer = 42\n"


@pytest.fixture(scope="session")
def contract_store(shared: Path, python_layout: Path, wheels: tuple[families.Wheel, ...]) -> Path:
    """A store with the images ``plain`` and ``own``: nothing of their own, and all that a folder may hold."""
    with families.made_once(shared, "contract") as (folder, empty):
        if empty:
            specs = [
                families.Spec("plain", wheels),
                families.Spec(
                    "own",
                    extends="plain",
                    files={"start": START, "jupyter_notebook_config.py": CONFIGURATION, "dask_config.yml": "a: 1\n"},
                    lines=[
                        'cmd = ["env"]',
                        'environment = { OWN = "a value", TZ = "Asia/Kathmandu" }',
                        'labels = { "org.example" = "label" }',
                    ],
                ),
                families.Spec("heir", extends="own"),
            ]
            source = 'source = "https://example.org/repository"'
            families.write_family(folder / "family", specs, base=python_layout, lines=[source])
            families.provide(open_store(folder / "store"), wheels)
            lithify.build(folder / "family", settings=Settings(folder / "store", jobs=2))
    return folder / "store"


def image(store: Path, name: str) -> judge.Judged:
    return judge.judge(store, open_store(store).image(name).digest)[str(LINUX_AMD64)]


def inside(store: Path, name: str, *command: str, **variables: str) -> str:
    """What ``command`` prints in the image, through `lithify run`."""
    if host_platform() != LINUX_AMD64:
        pytest.skip("the image is for another machine")
    options = [f"--env={key}={value}" for key, value in variables.items()]
    result = subprocess.run(
        [sys.executable, "-m", "lithify", "--store", str(store), "-q", "run", *options, name, "--", *command],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def environment_of(store: Path, name: str) -> Mapping[str, str]:
    return dict(one.split("=", 1) for one in image(store, name).config["config"]["Env"])


# -- the configuration ---------------------------------------------------------------------------------------------


def test_the_environment(contract_store: Path) -> None:
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
        "PANGEO_ENV": "plain",
    }
    found = environment_of(contract_store, "plain")
    assert {key: found[key] for key in expected} == expected
    assert found["PATH"].startswith(f"{PREFIX}/bin:/srv/conda/bin:/usr/local/")


def test_user_port_and_command(contract_store: Path) -> None:
    config = image(contract_store, "plain").config["config"]
    assert config["User"] == "jovyan"
    assert config["WorkingDir"] == "/home/jovyan"
    assert config["Entrypoint"] == ["/srv/start"]
    assert config["ExposedPorts"] == {"8888/tcp": {}}
    assert config["Cmd"] == ["/bin/bash"]
    assert image(contract_store, "own").config["config"]["Cmd"] == ["env"]
    assert image(contract_store, "heir").config["config"]["Cmd"] == ["env"]


def test_labels(contract_store: Path) -> None:
    labels = image(contract_store, "plain").config["config"]["Labels"]
    assert labels["org.opencontainers.image.source"] == "https://example.org/repository"
    assert labels["org.opencontainers.image.created"] == "2026-01-02T03:04:05Z"
    assert labels["org.opencontainers.image.title"] == "plain"
    assert image(contract_store, "heir").config["config"]["Labels"]["org.example"] == "label"


def test_an_image_s_own_environment(contract_store: Path) -> None:
    for name in ("own", "heir"):
        found = environment_of(contract_store, name)
        assert (found["OWN"], found["TZ"], found["PANGEO_ENV"]) == ("a value", "Asia/Kathmandu", name)


def test_owners_and_modes(contract_store: Path) -> None:
    members = image(contract_store, "plain").members()
    for path in ("srv", "srv/conda", PREFIX[1:], f"{PREFIX[1:]}/bin", "home/jovyan", "srv/start", "srv/conda/.condarc"):
        assert (members[path].uid, members[path].gid) == (1000, 1000), path
    below = [member for path, member in members.items() if path.startswith("srv/")]
    assert {(member.uid, member.gid) for member in below} == {(1000, 1000)}
    assert members["srv/start"].mode == 0o755
    for path in ("etc", "etc/profile.d/init_conda.sh", "etc/passwd"):
        assert members[path].uid == 0, path
    assert {member.uname for member in members.values() if member.name.startswith("srv/")} == {""}


def test_a_child_s_layers_begin_with_its_parent_s(contract_store: Path) -> None:
    parent, child = image(contract_store, "plain").diff_ids, image(contract_store, "heir").diff_ids
    # All but the topmost one, and Dask's configuration, which the child replaces.
    assert len(set(parent) - set(child)) == 2
    assert [one for one in parent if one in child] == [one for one in child if one in parent]


def test_files_of_a_folder_land_where_they_are_read(contract_store: Path) -> None:
    for name in ("own", "heir"):
        judged = image(contract_store, name)
        assert judged.read("etc/jupyter/jupyter_notebook_config.py") == CONFIGURATION
        assert judged.read("srv/conda/etc/dask.yml") == b"a: 1\n"
        assert judged.read("srv/start") == START
    assert "etc/jupyter/jupyter_notebook_config.py" not in image(contract_store, "plain").members()


def test_the_lock_lies_inside(contract_store: Path) -> None:
    lock = contract_store.parent / "family/plain/lithify.lock"
    assert image(contract_store, "plain").read("usr/share/lithify/lithify.lock") == lock.read_bytes()


def test_every_file_has_the_one_time(contract_store: Path) -> None:
    judged = image(contract_store, "plain")
    times = {member.mtime for path, member in judged.members().items() if path.startswith("srv/")}
    assert times == {315619200}


def test_a_build_s_own_labels(contract_store: Path, tmp_path: Path) -> None:
    (built,) = lithify.build(
        contract_store.parent / "family",
        ["plain"],
        labels={"org.opencontainers.image.revision": "abc"},
        settings=Settings(families.clone(contract_store, tmp_path / "store"), jobs=1),
    )
    labels = judge.judge(tmp_path / "store", built.digest)[str(LINUX_AMD64)].config["config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == "abc"


# -- a process inside ----------------------------------------------------------------------------------------------


def test_start_says_which_image_it_is(contract_store: Path) -> None:
    assert inside(contract_store, "plain", "bash", "-c", 'echo "$PANGEO_ENV/${PANGEO_SCRATCH-none}"') == "plain/none"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PANGEO_SCRATCH_PREFIX": "gs://bucket", "JUPYTERHUB_USER": "ann"}, "gs://bucket/ann/"),
        ({"PANGEO_SCRATCH_PREFIX": "gs://bucket"}, "none"),
        ({"JUPYTERHUB_USER": "ann"}, "none"),
        ({"PANGEO_SCRATCH_PREFIX": "", "JUPYTERHUB_USER": "ann"}, "none"),
    ],
)
def test_scratch_needs_both_variables(contract_store: Path, variables: dict[str, str], expected: str) -> None:
    found = inside(contract_store, "plain", "bash", "-c", 'echo "${PANGEO_SCRATCH-none}"', **variables)
    assert found == expected


def test_start_becomes_what_it_is_asked_for(contract_store: Path) -> None:
    assert inside(contract_store, "plain", "bash", "-c", 'printf "%s|" "$@"', "x", "a b", "", "*") == "a b||*|"
    # Not a child of a shell: signals reach it. (Process 1 is the sandbox's own.)
    parents = inside(contract_store, "plain", "python", "-c", "print(open(f'/proc/self/status').read())")
    assert "PPid:\t1\n" in parents


def test_an_image_s_own_start(contract_store: Path) -> None:
    assert inside(contract_store, "own", "bash", "-c", "echo $OWN_START") == "yes"


def test_the_python_of_the_environment(contract_store: Path) -> None:
    script = "import sys, tool; print(sys.prefix, tool.__file__, sys.flags.no_user_site)"
    prefix, file, _ = inside(contract_store, "plain", "python", "-c", script).split()
    assert prefix == PREFIX
    assert file == f"{PREFIX}/lib/python{families.HOST_PYTHON}/site-packages/tool/__init__.py"


def test_scripts_and_entry_points_run(contract_store: Path) -> None:
    assert inside(contract_store, "plain", "tool") == "tool runs"
    assert inside(contract_store, "plain", "hello") == f"hello from {PREFIX}"
    assert inside(contract_store, "plain", "shell-hello") == "hello from sh"


def test_namespace_packages_and_awkward_paths(contract_store: Path) -> None:
    script = (
        "import space.one, space.two, awkward;"
        "file = open(awkward.__path__[0] + '/grüße/привет.txt', encoding='utf-8');"
        "print(space.one.one + space.two.two, file.read().strip())"
    )
    assert inside(contract_store, "plain", "python", "-c", script) == "3 unicode"


def test_modules_come_compiled(contract_store: Path) -> None:
    script = "import sys; sys.stderr = sys.stdout; sys.flags; import tool.sets"
    said = inside(contract_store, "plain", "python", "-v", "-c", script)
    assert "matches" in next(line for line in said.splitlines() if "tool/__pycache__/sets" in line)


@pytest.mark.parametrize("shell", [["bash", "-l", "-c"], ["bash", "-c"], ["sh", "-l", "-c"]])
def test_every_shell_finds_the_environment_first(contract_store: Path, shell: list[str]) -> None:
    assert inside(contract_store, "plain", *shell, "echo $PATH").startswith(f"{PREFIX}/bin:/srv/conda/bin:")


def test_who_and_where(contract_store: Path) -> None:
    script = 'id -u; id -g; id -un; pwd; echo x > "$HOME/x" && echo x > /srv/x && echo x > /tmp/x && echo written'
    assert inside(contract_store, "plain", "bash", "-c", script).split() == [
        "1000", "1000", "jovyan", "/home/jovyan", "written",
    ]  # fmt: skip


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("#!/bin/bash\necho hello\n", 'does not end in `exec "$@"`'),
        ('#!/bin/bash\n# exec "$@"\n', 'does not end in `exec "$@"`'),
        ('#!/bin/bash\nexec "$@"\necho after\n', 'does not end in `exec "$@"`'),
        ('exec "$@"\n', "no interpreter line"),
        ("", "no interpreter line"),
    ],
)
def test_a_start_that_runs_nothing_is_refused(
    tmp_path: Path, python_layout: Path, settings: Settings, start: str, message: str
) -> None:
    specs = [families.Spec("one", files={"start": start})]
    family = families.write_family(tmp_path / "family", specs, base=python_layout)
    with pytest.raises(InputError) as caught:
        lithify.build(family, settings=settings)
    assert message in caught.value.message and "`one`" in caught.value.message and caught.value.hint
    assert open_store(settings.store).images() == {}


def test_a_base_s_variables_stay_below_the_contract_s_and_its_path_behind() -> None:
    base = {"CUDA_VERSION": "13.0", "LANG": "C", "PATH": "/usr/local/cuda/bin:/usr/bin"}
    found = contract.image_environment("ml", base, {}, {"EXTRA": "1"})
    assert found["CUDA_VERSION"] == "13.0"
    assert found["LANG"] == "C.UTF-8"
    assert found["PATH"] == f"{runtime.PREFIX}/bin:{runtime.CONDA_DIR}/bin:/usr/local/cuda/bin:/usr/bin"
    assert found["EXTRA"] == "1"
    assert contract.image_environment("x", {}, {}, {})["PATH"] == runtime.ENVIRONMENT["PATH"]
