"""Activation without a shell: what an environment's `activate.d` scripts set, as variables of the image.

conda packages set variables (``PROJ_DATA``, ``GDAL_DATA``, ...) by shell scripts in ``etc/conda/activate.d`` and by
JSON files in ``etc/conda/env_vars.d``, which only reach what a login shell started. So the scripts are sourced once, in
the sandbox, over the base and the environment's files by name (empty: scripts look whether a file is there, no more),
and what they set goes into the image's configuration.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lithify.assemble.environments import FORMAT, on_disk
from lithify.errors import LithifyError
from lithify.fragment.fragment import Fragment
from lithify.read.family import Environment
from lithify.sandbox import Sandbox, arguments
from lithify.store import oci, tar
from lithify.store.compression import Compression, decompressed
from lithify.store.store import Store

_SCRIPTS = "etc/conda/activate.d"
_VARIABLES = "etc/conda/env_vars.d"
# Where no script looks, and where most files are.
_UNSEEN = re.compile(r"(lib/python3\.\d+t?|conda-meta|include|pkgs)/|.*/__pycache__/")
_SHELL = """\
set +u
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
  [ -r "$script" ] && . "$script" </dev/null >&2
done
exec env -0
"""
# What a shell keeps for itself.
_SHELLS_OWN = frozenset(("_", "SHLVL", "PWD", "OLDPWD", "BASH_ENV", "PS1"))


def conda_variables(environment: Environment) -> dict[str, str]:
    """What ``conda activate`` sets for an environment, its scripts aside."""
    return {"CONDA_PREFIX": environment.prefix, "CONDA_DEFAULT_ENV": environment.name, "CONDA_SHLVL": "1"}


def activation_files(paths: Iterable[str], prefix: str) -> list[str]:
    """Those of ``paths`` (relative to the image's root) that activate the environment at ``prefix``."""
    prefix = prefix.strip("/")
    scripts, variables = f"{prefix}/{_SCRIPTS}/", f"{prefix}/{_VARIABLES}/"
    return sorted(
        path
        for path in paths
        if (path.startswith(scripts) and path.endswith(".sh"))
        or (path.startswith(variables) and path.endswith(".json"))
    )


def activation_variables(
    store: Store,
    environment: Environment,
    fragments: Sequence[Fragment],
    base: Callable[[], Path],
    variables: Mapping[str, str],
    compression: Compression,
) -> dict[str, str]:
    """The variables that activating ``environment`` adds to ``variables`` or changes there.

    ``fragments`` are the environment's; ``base`` gives a root file system of this machine's architecture with a
    ``bash``, and is asked only where a script has to run.

    Raises:
        LithifyError: when a script fails, with what it said.
    """
    prefix = environment.prefix.strip("/")
    holders: dict[str, Fragment] = {}
    seen: set[str] = set()
    for fragment in fragments:
        holders.update(dict.fromkeys(activation_files(fragment.paths, environment.prefix), fragment))
        seen.update(path for path in fragment.paths if not _UNSEEN.match(path.removeprefix(f"{prefix}/")))
    if not holders:
        return {}
    contents = _contents(holders, compression)
    start = {**variables, **conda_variables(environment)}
    facts = {
        "format": FORMAT,
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()},
        "paths": hashlib.sha256("\n".join(sorted(seen)).encode("utf-8", "surrogateescape")).hexdigest(),
        "environment": [environment.name, environment.prefix],
        "variables": dict(start),
    }
    key = hashlib.sha256(oci.canonical(facts)).hexdigest()
    if (known := store.record("activation", key)) is not None:
        return {str(name): str(value) for name, value in known.items()}
    found = _from_json(contents, f"{prefix}/{_VARIABLES}/")
    if any(path.endswith(".sh") for path in contents):
        found = _from_scripts(store, environment, seen, contents, base(), {**start, **found}) | found
    changed = {name: value for name, value in found.items() if variables.get(name) != value}
    store.write_record("activation", key, dict(sorted(changed.items())))
    return changed


def _contents(holders: Mapping[str, Fragment], compression: Compression) -> dict[str, bytes]:
    """The bytes of files in fragments, by path."""
    found: dict[str, bytes] = {}
    for fragment in {fragment.key: fragment for fragment in holders.values()}.values():
        with fragment.file.open("rb") as file:
            for member, content in tar.members(decompressed(file, compression.media_type)):
                path = member.path.decode("utf-8", "surrogateescape")
                if holders.get(path) is fragment and member.type in tar.REGULAR:
                    found[path] = b"".join(content)
    return dict(sorted(found.items()))


def _from_json(contents: Mapping[str, bytes], folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, data in contents.items():
        if not path.startswith(folder):
            continue
        try:
            document = json.loads(data)
            if not isinstance(document, dict):
                raise ValueError("no object of names and values")
        except ValueError as error:
            raise LithifyError(
                f"/{path} does not hold variables: {error}", hint="leave the package out that brings it"
            ) from error
        found |= {str(name): str(value) for name, value in document.items()}
    return found


def _from_scripts(
    store: Store,
    environment: Environment,
    seen: Iterable[str],
    contents: Mapping[str, bytes],
    base: Path,
    variables: Mapping[str, str],
) -> dict[str, str]:
    with store.scratch("activation") as scratch:
        skeleton, upper, work = (scratch / name for name in ("skeleton", "upper", "work"))
        for folder in (skeleton, upper, work):
            folder.mkdir()
        made: set[str] = set()
        for path in sorted(seen):
            parent = path.rpartition("/")[0]
            if parent not in made:
                (skeleton / on_disk(parent)).mkdir(parents=True, exist_ok=True)
                made.add(parent)
            (skeleton / on_disk(path)).write_bytes(contents.get(path, b""))
        sandbox = Sandbox(lower=(skeleton, base), upper=upper, work=work, environment=variables)
        result = subprocess.run(
            arguments(sandbox, ["/bin/bash", "-c", _SHELL]), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    if result.returncode != 0:
        scripts = ", ".join(f"/{path}" for path in contents if path.endswith(".sh"))
        raise LithifyError(
            f"activating the environment `{environment.name}` failed: bash ended with code {result.returncode}",
            details=result.stderr.decode(errors="replace").strip()[-2000:],
            hint=f"the scripts are {scripts}; [files] exclude in lithify.toml leaves one out",
        )
    pairs = (entry.partition(b"=") for entry in result.stdout.split(b"\0") if entry)
    found = {name.decode(errors="replace"): value.decode("utf-8", "surrogateescape") for name, _, value in pairs}
    return {
        name: value
        for name, value in found.items()
        if name not in _SHELLS_OWN and not name.startswith("BASH_FUNC_") and variables.get(name) != value
    }
