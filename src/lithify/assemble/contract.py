"""The files of the runtime contract (docs/reference/image-contract.md) that no package brings.

Two layers: the **environment** (the virtual environment, the activation for login shells, conda's and Dask's
configuration), the same for a whole family; and the image's **own** files on top (``/srv/start``, its lock, its Jupyter
configuration). Both are pure functions of what they are given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from lithify import runtime
from lithify.errors import InputError
from lithify.read.family import Environment
from lithify.runtime import CONDA_DIR, JOVYAN, MTIME, PREFIX
from lithify.store import tar

# What conda and mamba take for an environment's own history, without which there is none.
_HISTORY = """\
==> {moment} <==
# cmd: lithify build
{packages}# update specs: {specs}
"""

# As `conda activate` would have it, without the half second that it takes.
_CONDA_PROFILE = """\
# The notebook environment, for login shells.
if [ -r "{conda}/etc/profile.d/conda.sh" ]; then
  . "{conda}/etc/profile.d/conda.sh"
fi
case ":$PATH:" in
  *":{prefix}/bin:"*) ;;
  *) export PATH="{prefix}/bin:{conda}/bin:$PATH" ;;
esac
export CONDA_PREFIX="{prefix}" CONDA_DEFAULT_ENV="{name}" CONDA_SHLVL=1
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
  if [ -r "$script" ]; then
    . "$script"
  fi
done
unset script
"""

LOCK_PATH = "usr/share/lithify/lithify.lock"

# Without `nodefaults`, which many of these files have: conda takes it for a channel's name, asks for it, and fails.
_CONDARC = b"""\
channels:
  - conda-forge
channel_priority: strict
"""

_DASK = b"""\
labextension:
  factory:
    module: dask.distributed
    class: LocalCluster
    args: []
    kwargs: {}
"""

# Debian's /etc/profile sets PATH anew, so a login shell (and /srv/start is one) must get it back.
_PROFILE = """\
# The notebook environment, for login shells.
case ":$PATH:" in
  *":{prefix}/bin:"*) ;;
  *) export PATH="{prefix}/bin:{conda}/bin:$PATH" ;;
esac
export VIRTUAL_ENV="{prefix}"
"""

_START = """\
#!/bin/bash -l

export PANGEO_ENV="{image}"
if [ -n "${{PANGEO_SCRATCH_PREFIX:-}}" ] && [ -n "${{JUPYTERHUB_USER:-}}" ]; then
  export PANGEO_SCRATCH="${{PANGEO_SCRATCH_PREFIX}}/${{JUPYTERHUB_USER}}/"
fi

exec "$@"
"""

_ACTIVATE = """\
# `source {prefix}/bin/activate`, as in any virtual environment.
export VIRTUAL_ENV="{prefix}"
export PATH="$VIRTUAL_ENV/bin:$PATH"
unset PYTHONHOME
hash -r 2>/dev/null
"""


Files = Sequence[tuple[tar.Entry, bytes]]


@dataclass(frozen=True)
class Contents:
    """Files of a layer that are ours, not a package's: entries with their bytes, parents before children."""

    name: str
    members: tuple[tuple[tar.Entry, bytes], ...]


def environment_layer(python: str, files: Mapping[str, bytes]) -> Contents:
    """The layer below the packages: an empty virtual environment over the base's ``/usr/bin/pythonX.Y``.

    ``files`` may hold a ``condarc.yml`` and a ``dask_config.yml``, which replace ours.
    """
    prefix = PREFIX.lstrip("/")
    conda = CONDA_DIR.lstrip("/")
    configuration = (
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
        f"executable = /usr/bin/python{python}\n"
    )
    folders = [
        f"{prefix}/bin",
        f"{prefix}/include",
        f"{prefix}/lib/python{python}/site-packages",
        f"{conda}/bin",
        f"{conda}/etc",
    ]
    owned = [*tar.parents([f"{folder}/x" for folder in folders])]
    members = [(_entry(folder, "directory", 0o755, owned=True), b"") for folder in owned]
    members += [
        _file(f"{prefix}/pyvenv.cfg", configuration.encode()),
        _link(f"{prefix}/bin/python", f"/usr/bin/python{python}"),
        _link(f"{prefix}/bin/python3", "python"),
        _link(f"{prefix}/bin/python{python}", "python"),
        _link(f"{prefix}/lib64", "lib"),
        _file(f"{prefix}/bin/activate", _ACTIVATE.format(prefix=PREFIX).encode()),
        _file(f"{conda}/.condarc", files.get("condarc.yml", _CONDARC)),
        _file(f"{conda}/etc/dask.yml", files.get("dask_config.yml", _DASK)),
        (_entry("etc", "directory", 0o755), b""),
        (_entry("etc/profile.d", "directory", 0o755), b""),
        _file("etc/profile.d/init_conda.sh", _PROFILE.format(prefix=PREFIX, conda=CONDA_DIR).encode(), owned=False),
    ]
    return _contents("environment", members)


def conda_layer(environment: Environment) -> Contents:
    """The layer below the packages of an image with conda environments: folders, and the activation for login shells.

    ``environment`` is the notebook's.
    """
    prefix, conda = environment.prefix.lstrip("/"), CONDA_DIR.lstrip("/")
    owned = tar.parents([f"{folder}/x" for folder in (f"{prefix}/conda-meta", f"{conda}/etc", f"{conda}/bin")])
    members = [(_entry(folder, "directory", 0o755, owned=True), b"") for folder in owned]
    profile = _CONDA_PROFILE.format(prefix=environment.prefix, conda=CONDA_DIR, name=environment.name)
    members += [
        (_entry("etc", "directory", 0o755), b""),
        (_entry("etc/profile.d", "directory", 0o755), b""),
        _file("etc/profile.d/init_conda.sh", profile.encode(), owned=False),
    ]
    return _contents("environment", members)


@dataclass(frozen=True)
class EnvironmentRecord:
    """What an image's topmost layer says of one of its conda environments.

    ``packages`` are conda's own names of them (``CHANNEL/SUBDIR::NAME-VERSION-BUILD``), ``specs`` what was asked for.
    ``variables`` are those that the requirement files set, ``activation`` those and what the packages' scripts set.
    """

    environment: Environment
    packages: Sequence[str]
    specs: Sequence[str]
    variables: Mapping[str, str]
    activation: Mapping[str, str]
    has_python: bool


def conda_files(records: Sequence[EnvironmentRecord], created: datetime, files: Mapping[str, bytes]) -> Files:
    """The files of the topmost layer that are about conda: histories, variables, kernels, configuration.

    ``files`` may hold a ``condarc.yml`` and a ``dask_config.yml``, which replace ours.

    Raises:
        InputError: for a kernel of an environment without Python.
    """
    conda = CONDA_DIR.lstrip("/")
    members = [
        _file(f"{conda}/.condarc", files.get("condarc.yml", _CONDARC)),
        _file(f"{conda}/etc/dask.yml", files.get("dask_config.yml", _DASK)),
    ]
    moment = created.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    notebook = PREFIX.lstrip("/")
    for record in records:
        environment = record.environment
        meta = f"{environment.prefix.lstrip('/')}/conda-meta"
        packages = "".join(f"+{name}\n" for name in record.packages)
        history = _HISTORY.format(moment=moment, packages=packages, specs=json.dumps(list(record.specs)))
        members.append(_file(f"{meta}/history", history.encode()))
        if record.variables:
            state = {"env_vars": dict(sorted(record.variables.items()))}
            members.append(_file(f"{meta}/state", json.dumps(state).encode()))
        if environment.kernel is not None:
            if not record.has_python:
                raise InputError(
                    f"the environment `{environment.name}` has no Python, and is to be offered as the kernel "
                    f"`{environment.kernel}`",
                    hint=f"ask for `ipykernel` in {environment.file}, or leave `kernel` out",
                )
            path = f"{environment.prefix}/bin:{CONDA_DIR}/bin:{runtime.SYSTEM_PATH}"
            kernel = {
                "argv": [f"{environment.prefix}/bin/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": environment.kernel,
                "language": "python",
                "env": {"PATH": path, **dict(sorted(record.activation.items()))},
                "metadata": {"debugger": True},
            }
            where = f"{notebook}/share/jupyter/kernels/{environment.name}/kernel.json"
            members.append(_file(where, (json.dumps(kernel, indent=1) + "\n").encode()))
    return tuple(members)


def image_layer(image: str, files: Mapping[str, bytes], lock: bytes, more: Files = ()) -> Contents:
    """The topmost layer: what is this image's alone, and ``more``.

    ``files`` may hold a ``start`` and a ``jupyter_notebook_config.py``; ``lock`` is the lock file as it is.

    Raises:
        InputError: for a ``start`` that does not run its arguments.
    """
    start = files.get("start", _START.format(image=image).encode())
    _check_start(image, start)
    members = [
        (_entry("srv", "directory", 0o755, owned=True), b""),
        _file("srv/start", start, mode=0o755),
        _file(LOCK_PATH, lock, owned=False),
        *more,
    ]
    if (configuration := files.get("jupyter_notebook_config.py")) is not None:
        members.append(_file("etc/jupyter/jupyter_notebook_config.py", configuration, owned=False))
    present = {entry.path for entry, _ in members}
    for folder in tar.parents(present):
        if folder not in present:
            members.append((_entry(folder, "directory", 0o755, owned=folder.startswith("srv")), b""))
    return _contents("image", members)


def image_environment(
    image: str, base: Mapping[str, str], activation: Mapping[str, str], added: Mapping[str, str]
) -> dict[str, str]:
    """The environment variables of an image's configuration.

    The contract's, over those of a ``base`` that is somebody's image (whose PATH stays behind ours), under what the
    environment's ``activation`` sets and what ``lithify.toml`` has ``added``.
    """
    path = f"{PREFIX}/bin:{CONDA_DIR}/bin:{base.get('PATH', runtime.SYSTEM_PATH)}"
    own = {"PATH": path, "PANGEO_ENV": image}
    return {**base, **runtime.ENVIRONMENT, **own, **activation, **added}


def _check_start(image: str, start: bytes) -> None:
    lines = [line.strip() for line in start.decode("utf-8", "replace").splitlines() if line.strip()]
    code = [line for line in lines if not line.startswith("#")]
    if not start.startswith(b"#!"):
        raise InputError(
            f"the `start` of image `{image}` has no interpreter line", hint="begin it with `#!/bin/bash -l`"
        )
    if not code or not code[-1].startswith('exec "$@"'):
        raise InputError(
            f'the `start` of image `{image}` does not end in `exec "$@"`',
            hint="hubs start their server through it: its last line must run its arguments",
        )


def _contents(name: str, members: list[tuple[tar.Entry, bytes]]) -> Contents:
    ordered = sorted(members, key=lambda member: PurePosixPath(member[0].path).parts)
    return Contents(name, tuple(ordered))


def _entry(path: str, kind: tar.Kind, mode: int, *, size: int = 0, link: str = "", owned: bool = False) -> tar.Entry:
    uid, gid = (JOVYAN.uid, JOVYAN.gid) if owned else (0, 0)
    return tar.Entry(path, kind, mode, uid, gid, size, link, MTIME)


def _file(path: str, data: bytes, *, mode: int = 0o644, owned: bool = True) -> tuple[tar.Entry, bytes]:
    return _entry(path, "file", mode, size=len(data), owned=owned), data


def _link(path: str, target: str) -> tuple[tar.Entry, bytes]:
    return _entry(path, "symlink", 0o777, link=target, owned=True), b""
