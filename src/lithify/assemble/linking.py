"""Link scripts: what conda packages run when they are installed, in the sandbox, for packages that the family names.

A script of a package (``bin/.NAME-post-link.sh``) may do anything, so a package that has one is refused unless
``[conda] link-scripts`` of lithify.toml names it. Then the scripts of one level run over all layers so far, as the
image's user, without network, and what they change below the environment's prefix becomes a layer.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lithify import runtime
from lithify.assemble import tree
from lithify.assemble.layers import find_layer, keep_layer
from lithify.errors import InputError, LithifyError
from lithify.lockfile import Package
from lithify.platforms import Platform, host_platform
from lithify.progress import Event, Report, silent
from lithify.sandbox import Sandbox, arguments
from lithify.store import oci
from lithify.store.compression import Compression
from lithify.store.rootfs import root_filesystem
from lithify.store.store import Store

# Raise it when the same scripts come to be run otherwise.
FORMAT = 1
# Scripts by conda's names; those that run when a package is removed harm nothing here.
_KINDS = ("pre-link", "post-link")


@dataclass(frozen=True)
class LinkScript:
    """A package's script: ``path`` is relative to the image's root, ``prefix`` the environment's."""

    package: Package
    prefix: str
    path: str


def link_scripts(packages: Mapping[Package, Mapping[str, str]], prefixes: Mapping[str, str]) -> list[LinkScript]:
    """The scripts among the packages' paths, in the packages' order. ``prefixes`` are the environments', by name."""
    found = []
    for package, paths in packages.items():
        if package.kind != "conda":
            continue
        prefix = prefixes[package.environment]
        for kind in _KINDS:
            path = f"{prefix.strip('/')}/bin/.{package.name}-{kind}.sh"
            if path in paths:
                found.append(LinkScript(package, prefix, path))
    return found


def check_allowed(names: Sequence[str], allowed: Sequence[str]) -> None:
    """Refuse packages with link scripts that the family does not name.

    Raises:
        InputError: naming them.
    """
    refused = sorted(set(names) - set(allowed))
    if refused:
        one = len(refused) == 1
        listed = ", ".join(f'"{name}"' for name in sorted({*names, *allowed}))
        raise InputError(
            f"the package{'' if one else 's'} {', '.join(refused)} run{'s' if one else ''} a script when "
            f"{'it is' if one else 'they are'} installed",
            hint=f"to let {'it' if one else 'them'}, in the sandbox: `link-scripts = [{listed}]` in [conda] of "
            "lithify.toml; else leave the package out",
        )


def script_layer(
    store: Store,
    scripts: Sequence[LinkScript],
    below: Sequence[oci.Layer],
    platform: Platform,
    compression: Compression,
    report: Report = silent,
) -> tuple[str, oci.Layer | None, bool]:
    """The layer of what ``scripts`` change over the layers ``below``: its key, itself, and whether it was there.

    None where they change nothing.

    Raises:
        LithifyError: when a script fails, or writes outside of its environment.
        InputError: for another machine's platform, whose programs cannot run here.
    """
    names = ", ".join(sorted({script.package.name for script in scripts}))
    document = {
        "format": FORMAT,
        "below": [layer.diff_id for layer in below],
        "scripts": [[script.package.sha256, script.path] for script in scripts],
    }
    chain = hashlib.sha256(oci.canonical(document)).hexdigest()
    key = hashlib.sha256(f"scripts {chain} {compression.identity}".encode()).hexdigest()
    if found := find_layer(store, key):
        return key, found, True
    if store.record("layers-without-change", key) is not None:
        return key, None, True
    if platform != host_platform():
        raise InputError(
            f"the link scripts of {names} cannot run here: they are for {platform}, and this machine is "
            f"{host_platform()}",
            hint=f"build for {platform} on such a machine, or leave the package out on that platform",
        )
    report(Event("assemble", "start", f"link scripts of {names}"))
    root = root_filesystem(store, below, report=report)
    with store.scratch("scripts") as scratch:
        upper, work = scratch / "upper", scratch / "work"
        upper.mkdir()
        work.mkdir()
        for script in scripts:
            _run(script, root, upper, work, report)
        _check_changes(upper, scripts)
        layer = _layer(store, upper, root, compression)
    report(Event("assemble", "finish", f"link scripts of {names}"))
    if layer is None:
        store.write_record("layers-without-change", key, {})
    else:
        keep_layer(store, key, layer)
    return key, layer, False


def _run(script: LinkScript, root: Path, upper: Path, work: Path, report: Report) -> None:
    package, user = script.package, runtime.JOVYAN
    build = re.sub(r"\.(conda|tar\.bz2)$", "", package.file).rpartition("-")[2]
    number = re.search(r"(?:^|_)(\d+)$", build)
    environment = {
        **runtime.ENVIRONMENT,
        "PATH": f"{script.prefix}/bin:{runtime.SYSTEM_PATH}",
        "PREFIX": script.prefix,
        "CONDA_PREFIX": script.prefix,
        "ROOT_PREFIX": runtime.CONDA_DIR,
        "PKG_NAME": package.name,
        "PKG_VERSION": package.version,
        "PKG_BUILDNUM": number[1] if number else "0",
        "SOURCE_DATE_EPOCH": str(runtime.MTIME),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
    sandbox = Sandbox(
        lower=(root,), upper=upper, work=work, environment=environment, uid=user.uid, gid=user.gid, directory="/tmp"
    )
    result = subprocess.run(
        arguments(sandbox, ["/bin/bash", f"/{script.path}"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0:
        raise LithifyError(
            f"the link script of {package.name} {package.version} failed with code {result.returncode}",
            details=result.stdout.strip()[-2000:],
            hint="it ran in the sandbox, as the image's user and without network; leave the package out",
        )
    # What a package wants to tell its user goes here, and conda shows it.
    messages = upper / script.prefix.strip("/") / ".messages.txt"
    if messages.is_file():
        report(
            Event("assemble", "note", message=f"{package.name} says: {messages.read_text(errors='replace').strip()}")
        )
        messages.unlink()


def _check_changes(upper: Path, scripts: Sequence[LinkScript]) -> None:
    prefixes = [script.prefix.strip("/") for script in scripts]
    for folder, names, files in os.walk(upper):
        inside = os.path.relpath(folder, upper)
        for name in [*files, *(name for name in names if Path(folder, name).is_symlink())]:
            path = name if inside == "." else f"{inside}/{name}"
            if not any(path.startswith(f"{prefix}/") for prefix in prefixes):
                raise LithifyError(
                    f"a link script of {', '.join(sorted({s.package.name for s in scripts}))} changed /{path}, outside "
                    f"of its environment",
                    hint="leave the package out, or do what its script does in another way",
                )


def _layer(store: Store, upper: Path, lower: Path, compression: Compression) -> oci.Layer | None:
    from lithify.assemble.system import write_layer

    if not any(files for _, _, files in os.walk(upper)):
        return None
    return write_layer(store, tree.layer_of(upper, lower, owner=runtime.JOVYAN), compression)
