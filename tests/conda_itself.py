"""The package `conda`: conda 24.7, which conda-lock's wheel carries whole, laid out as conda-forge's package is.

It has the classic solver only; python-sat solves for it, because pycosat has no wheels.
"""

from __future__ import annotations

import ast
import re

from conda_wheels import Target, WheelFiles, python_depends, with_build
from making_conda import PLACEHOLDER, CondaPackage, File, Member, text

CARRIER = "conda-lock==4.0.3"
REQUIREMENTS = (
    "archspec",
    "boltons>=23.0.0",
    "conda-package-handling>=2.2.0",
    "distro>=1.5.0",
    "frozendict>=2.4.2",
    "jsonpatch>=1.32",
    "packaging>=23.0",
    "platformdirs>=3.10.0",
    "pluggy>=1.0.0",
    "python-sat",
    "requests>=2.28.0,<3",
    "ruamel.yaml>=0.11.14,<0.19",
    "setuptools>=60.0.0",
    "tqdm>=4",
    "truststore>=0.8.0",
    "zstandard>=0.19.0",
)
_ROOT = "conda_lock/_vendor/conda/"
# conda's own tests, and what only conda-build uses.
_LEFT_OUT = ("testing/", "__pycache__/")

_CONDA_SH = f"""\
export CONDA_EXE='{PLACEHOLDER}/bin/conda'
export _CE_M=''
export _CE_CONDA=''
export CONDA_PYTHON_EXE='{PLACEHOLDER}/bin/python'

conda() {{
    case "${{1:-}}" in
        activate | deactivate | reactivate)
            _conda_lines=$(PS1="${{PS1:-}}" "$CONDA_EXE" shell.posix "$@") || return $?
            eval "$_conda_lines"
            unset _conda_lines
            hash -r
            ;;
        install | update | upgrade | remove | uninstall)
            "$CONDA_EXE" "$@" || return $?
            conda reactivate
            ;;
        *) "$CONDA_EXE" "$@" ;;
    esac
}}

if [ -z "${{CONDA_SHLVL+x}}" ]; then
    export CONDA_SHLVL=0
    export PATH="{PLACEHOLDER}/condabin:$PATH"
    PS1="${{PS1:-}}"
fi
"""
_SCRIPT = f"""\
#!{PLACEHOLDER}/bin/python
# -*- coding: utf-8 -*-
import sys

if __name__ == "__main__":
    from conda.cli import main

    sys.exit(main())
"""


def _shell_script(command: str) -> str:
    return f'#!/bin/sh\n. "{PLACEHOLDER}/etc/profile.d/conda.sh" || exit $?\nconda {command} "$@"\n'


def conda_package(carrier: WheelFiles, target: Target) -> CondaPackage:
    """The package, out of conda-lock's wheel. `REQUIREMENTS` must be in the channel, too."""
    site = target.site_packages
    files: dict[str, Member] = {}
    version = ""
    for path, (data, _) in carrier.files.items():
        inside = path.removeprefix(_ROOT)
        if inside == path or inside.startswith(_LEFT_OUT) or "/__pycache__/" in inside:
            continue
        if inside.endswith(".py"):
            data = re.sub(rb"\bconda_lock\._?vendor\.conda\b", b"conda", data)
        if inside == "_version.py":
            version = _version(data.decode())
        files[f"{site}/conda/{inside}"] = File(data)
    assert version, "conda-lock's wheel carries no conda"
    info = f"{site}/conda-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {one}\n" for one in REQUIREMENTS)
    files |= {
        f"{info}/METADATA": File(f"Metadata-Version: 2.1\nName: conda\nVersion: {version}\n{requires}".encode()),
        f"{info}/INSTALLER": File(b"conda\n"),
        f"{info}/WHEEL": File(b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        f"{info}/RECORD": File(b""),
        "bin/conda": text(_SCRIPT, 0o755),
        "condabin/conda": text(_SCRIPT, 0o755),
        "bin/activate": text(_shell_script("activate"), 0o755),
        "bin/deactivate": text(_shell_script("deactivate"), 0o755),
        "etc/profile.d/conda.sh": text(_CONDA_SH),
        f"{site}/conda/shell/etc/profile.d/conda.sh": text(_CONDA_SH),
        "condarc.d/classic-solver.yml": File(b"solver: classic\nsat_solver: pysat\n"),
    }
    depends = python_depends(target) | {one.replace("python-sat", "python-sat *") for one in REQUIREMENTS}
    package = CondaPackage("conda", version, files, subdir=target.subdir, depends=sorted(map(_spaced, depends)))
    return with_build(package, f"{target.tag}h")


def _version(module: str) -> str:
    """The value of ``__version__ = version = "…"``."""
    for node in ast.parse(module).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return node.value.value
    return ""


def _spaced(requirement: str) -> str:
    """``name >=1`` of ``name>=1``."""
    return re.sub(r"^([\w.-]+?)([<>=!])", r"\1 \2", requirement)
