"""The files of the runtime contract (docs/reference/image-contract.md) that no package brings.

Two layers: the **environment** (the virtual environment, the activation for login shells, conda's and Dask's
configuration), the same for a whole family; and the image's **own** files on top (``/srv/start``, its lock, its Jupyter
configuration). Both are pure functions of what they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from lithify import runtime
from lithify.errors import InputError
from lithify.runtime import CONDA_DIR, JOVYAN, MTIME, PREFIX
from lithify.store import tar

LOCK_PATH = "usr/share/lithify/lithify.lock"

_CONDARC = b"""\
channels:
  - conda-forge
  - nodefaults
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


def image_layer(image: str, files: Mapping[str, bytes], lock: bytes) -> Contents:
    """The topmost layer: what is this image's alone.

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
    ]
    if (configuration := files.get("jupyter_notebook_config.py")) is not None:
        members.append(_file("etc/jupyter/jupyter_notebook_config.py", configuration, owned=False))
    present = {entry.path for entry, _ in members}
    for folder in tar.parents(present):
        if folder not in present:
            members.append((_entry(folder, "directory", 0o755), b""))
    return _contents("image", members)


def image_environment(image: str, base: Mapping[str, str], added: Mapping[str, str]) -> dict[str, str]:
    """The environment variables of an image's configuration.

    The contract's, over those of a ``base`` that is somebody's image (whose PATH stays behind ours), under those that
    ``lithify.toml`` has ``added``.
    """
    path = f"{PREFIX}/bin:{CONDA_DIR}/bin:{base.get('PATH', runtime.SYSTEM_PATH)}"
    own = {"PATH": path, "VIRTUAL_ENV": PREFIX, "PANGEO_ENV": image}
    return {**base, **runtime.ENVIRONMENT, **own, **added}


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
