"""The runtime contract: what JupyterHub, BinderHub and dask-gateway rely on inside every image.

The facts behind each value are the field's, not ours: a built image that differs in one of them breaks
somebody's hub. See docs/reference/image-contract.md.
"""

from __future__ import annotations

from dataclasses import dataclass

CONDA_DIR = "/srv/conda"
PREFIX = "/srv/conda/envs/notebook"
HOME = "/home/jovyan"

# 1980-01-02T00:00:00Z: every file's time. Not 0: the zip format starts at 1980 in any time zone, and users
# zip what they find in site-packages.
MTIME = 315619200


@dataclass(frozen=True)
class User:
    """The user that owns the environment and runs the notebook server."""

    name: str = "jovyan"
    uid: int = 1000
    gid: int = 1000
    home: str = HOME
    shell: str = "/bin/bash"


JOVYAN = User()

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ENVIRONMENT: dict[str, str] = {
    "CONDA_ENV": "notebook",
    "CONDA_DIR": CONDA_DIR,
    "NB_PYTHON_PREFIX": PREFIX,
    "NB_USER": JOVYAN.name,
    "NB_UID": str(JOVYAN.uid),
    "HOME": HOME,
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "DASK_ROOT_CONFIG": f"{CONDA_DIR}/etc",
    "DEBIAN_FRONTEND": "noninteractive",
    "PATH": f"{PREFIX}/bin:{CONDA_DIR}/bin:{SYSTEM_PATH}",
}
