"""The system's layers: the base, its user, and what each image of a lineage adds through ``apt.txt``.

Each is recorded under a key over all that it depends on, the layers below included, so that layers that are there cost
a few hashes and a look at their blobs. Those that are not there are made by `lithify.assemble.dpkg`, in a process of
its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lithify import runtime
from lithify.assemble.layers import describe, find_layer, keep_layer
from lithify.errors import FetchError, InputError, LithifyError
from lithify.lockfile import Package
from lithify.platforms import PLATFORMS, Platform, host_platform
from lithify.progress import Event, Report, silent
from lithify.read.family import DebianBase, LayoutBase
from lithify.runtime import JOVYAN
from lithify.sandbox import with_all_owners
from lithify.sources import Fetched
from lithify.sources.deb import bootstrap_set, control_stanza
from lithify.store import oci, tar
from lithify.store.compression import GZIP, ZSTD, Compression, compressor, decompressed
from lithify.store.rootfs import read_files, root_filesystem
from lithify.store.store import Store

# Part of every key: raise it when the same packages come to give other bytes.
FORMAT = 2

_LAST_CHANGE = runtime.MTIME // 86400
_ACCOUNTS = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow")
_SKELETON = (".bash_logout", ".bashrc", ".profile")


@dataclass(frozen=True)
class SystemLayer:
    """A layer below or between the packages' layers.

    ``level`` is 0 for the base and its user, and 1 and up for what the images of the lineage add, the eldest first.
    ``reused`` says that it was there already.
    """

    level: int
    layer: oci.Layer
    reused: bool


@dataclass(frozen=True)
class BaseImage:
    """A base that is somebody's image: its layers, the lowest first, and its environment."""

    layers: tuple[oci.Layer, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def system_layers(
    store: Store,
    base: DebianBase | LayoutBase,
    levels: Sequence[Sequence[Package]],
    twins: Sequence[Sequence[Package]],
    platform: Platform,
    compression: Compression,
    *,
    fetched: Fetched,
    report: Report = silent,
) -> tuple[SystemLayer, ...]:
    """The system's layers, the lowest first; those that are not in the store are made.

    ``levels`` are the Debian packages of the base (none for an image) and those that each image of the lineage adds;
    ``twins`` are the same for this machine's platform, whose programs run the packages' scripts. ``fetched`` is
    asked for the packages that a missing layer needs.

    Raises:
        HostError: when this machine cannot run the sandbox with every owner.
        InputError: for a base that is missing or unfit, or for levels and twins that do not belong together.
        LithifyError: when a package cannot be installed.
    """
    made: list[SystemLayer] = []
    if isinstance(base, LayoutBase):
        image = base_image(store, base, platform)
        made += [SystemLayer(0, layer, True) for layer in image.layers]
    chain = hashlib.sha256("\n".join(one.layer.diff_id for one in made).encode()).hexdigest()
    for step in _steps(base, levels, chain, platform):
        key = _key(step.chain, compression)
        layer = find_layer(store, key)
        reused = layer is not None
        if layer is None:
            with store.lock(f"system-{step.chain}"):
                layer = find_layer(store, key) or _other_variant(store, step.chain, compression)
                if layer is None:
                    below = [one.layer for one in made]
                    layer = _make(store, base, step, below, levels, twins, platform, compression, fetched, report)
                keep_layer(store, key, layer)
        made.append(SystemLayer(step.level, describe(layer, key, step.name, step.packages), reused))
    return tuple(made)


@dataclass(frozen=True)
class _Step:
    """One layer to have. ``chain`` is the digest of all that its tar depends on."""

    kind: str
    level: int
    name: str
    packages: tuple[Package, ...]
    chain: str


def _steps(
    base: DebianBase | LayoutBase, levels: Sequence[Sequence[Package]], chain: str, platform: Platform
) -> Iterator[_Step]:
    plan: list[tuple[str, int, str, Sequence[Package]]] = []
    if isinstance(base, DebianBase):
        plan.append(("base", 0, f"Debian {base.suite}", levels[0]))
    plan.append(("user", 0, f"user {JOVYAN.name}", ()))
    plan += [("apt", level, f"apt.txt, level {level}", packages) for level, packages in enumerate(levels) if level]
    for kind, level, name, packages in plan:
        if kind == "apt" and not packages:
            continue
        document = {
            "format": FORMAT,
            "kind": kind,
            "below": chain,
            "platform": str(platform),
            "packages": sorted([p.name, p.version, p.sha256] for p in packages),
            "user": [JOVYAN.name, JOVYAN.uid, JOVYAN.gid, JOVYAN.home, JOVYAN.shell] if kind == "user" else [],
        }
        chain = hashlib.sha256(oci.canonical(document)).hexdigest()
        yield _Step(kind, level, name, tuple(sorted(packages)), chain)


def _key(chain: str, compression: Compression) -> str:
    return hashlib.sha256(f"system {chain} {compression.identity}".encode()).hexdigest()


def _other_variant(store: Store, chain: str, compression: Compression) -> oci.Layer | None:
    """The layer, compressed anew from another compression's."""
    for other in (ZSTD, GZIP):
        found = find_layer(store, _key(chain, other)) if other.name != compression.name else None
        if found is not None:
            with store.blob_path(found.descriptor.digest).open("rb") as file:
                layer = write_layer(store, decompressed(file, found.descriptor.media_type), compression)
            if layer.diff_id == found.diff_id:
                return layer
    return None


def write_layer(store: Store, chunks: Iterable[bytes], compression: Compression) -> oci.Layer:
    """Write the tar that ``chunks`` make up as a layer's blob."""
    diff_id = hashlib.sha256()

    def compressed() -> Iterator[bytes]:
        frame = compressor(compression)
        for chunk in chunks:
            diff_id.update(chunk)
            yield frame.compress(chunk)
        yield frame.flush()

    descriptor = store.write_blob(compressed(), compression.media_type)
    return oci.Layer(descriptor, f"sha256:{diff_id.hexdigest()}")


def _make(
    store: Store,
    base: DebianBase | LayoutBase,
    step: _Step,
    below: Sequence[oci.Layer],
    levels: Sequence[Sequence[Package]],
    twins: Sequence[Sequence[Package]],
    platform: Platform,
    compression: Compression,
    fetched: Fetched,
    report: Report,
) -> oci.Layer:
    task = f"{step.name} {platform}"
    report(Event("assemble", "start", task))
    if step.kind == "user":
        layer = write_layer(store, user_layer(store, below), compression)
    else:
        host = host_platform()
        twin = ""
        if platform != host:
            check_twins(levels, twins, platform, host)
            theirs = system_layers(store, base, twins, twins, host, compression, fetched=fetched, report=report)
            # The base's programs are there without its user, too.
            until = [one.layer for one in theirs if one.level <= step.level]
            twin = str(root_filesystem(store, until, all_owners=True, report=report))
        lower = str(root_filesystem(store, below, all_owners=True, report=report)) if below else ""
        layer = _run_dpkg(store, step, fetched(step.packages), lower, twin, platform, compression)
    report(Event("assemble", "finish", task))
    return layer


def _run_dpkg(
    store: Store,
    step: _Step,
    artefacts: Mapping[Package, Path],
    lower: str,
    twin: str,
    platform: Platform,
    compression: Compression,
) -> oci.Layer:
    from lithify.assemble.dpkg import Deb, Job

    first = bootstrap_set(control_stanza(artefacts[p]) for p in step.packages) if step.kind == "base" else frozenset()
    with store.scratch("system") as folder:
        job = Job(
            platform=str(platform),
            host=str(host_platform()),
            lower=lower,
            twin=twin,
            debs=tuple(Deb(p.name, p.version, str(artefacts[p]), p.name in first) for p in step.packages),
            folder=str(folder),
            output=str(folder / "layer.tar"),
        )
        command = with_all_owners([sys.executable, "-m", "lithify.assemble.dpkg"])
        try:
            result = subprocess.run(command, input=job.document(), capture_output=True, text=True, check=False)
            _raise_as_told(store, result)
            with (folder / "layer.tar").open("rb") as file:
                return write_layer(store, iter(lambda: file.read(1 << 20), b""), compression)
        finally:
            if any(path.is_dir() for path in folder.iterdir()):
                # It was killed, and what it left belongs to users that only a namespace has.
                subprocess.run(with_all_owners(["rm", "-rf", "--", str(folder)]), check=False)


def _raise_as_told(store: Store, result: subprocess.CompletedProcess[str]) -> None:
    """Raise here what went wrong in the other process."""
    try:
        answer = json.loads(result.stdout)
    except ValueError:
        raise LithifyError(
            f"the process that installs Debian packages ended with code {result.returncode}",
            details=result.stderr.strip()[-2000:],
            hint="if it was killed for want of memory or disk, free some and build again",
        ) from None
    kinds = {"InputError": InputError, "FetchError": FetchError, "LithifyError": LithifyError}
    if kind := kinds.get(answer.get("error", "")):
        raise kind(answer["message"], hint=answer["hint"], details=answer["details"])
    if answer:
        from lithify.store.store import friendly_disk_errors

        with friendly_disk_errors(store.root):
            raise OSError(int(answer["errno"]), answer["message"])


def check_twins(
    levels: Sequence[Sequence[Package]], twins: Sequence[Sequence[Package]], platform: Platform, host: Platform
) -> None:
    """Check that the packages for ``platform`` have the versions that they have for ``host``, rebuilds aside.

    Raises:
        InputError: naming the packages that differ.
    """

    def source_version(version: str) -> str:
        return re.sub(r"\+b\d+$", "", version)

    here = {p.name: p.version for level in twins for p in level}
    wrong = [
        f"{p.name} ({p.version}, and {here[p.name]} for {host})"
        for level in levels
        for p in level
        if p.name in here and source_version(here[p.name]) != source_version(p.version)
    ]
    if not here:
        raise InputError(
            f"this machine is {host}, and the lock has no Debian packages for it, whose programs a build for "
            f"{platform} runs",
            hint=f'add "{host}" to `platforms` in lithify.toml and lock again, or build on a {platform} machine',
        )
    if wrong:
        raise InputError(
            f"the lock has other versions of Debian packages for {platform} than for {host}: {', '.join(wrong[:5])}",
            hint="`lithify lock --upgrade` locks all platforms from the same moment",
        )


# -- the user --------------------------------------------------------------------------------------------------


def user_layer(store: Store, below: Sequence[oci.Layer]) -> Iterator[bytes]:
    """The tar that adds `runtime.JOVYAN` to the image of the layers ``below``, with its home and ``/srv``."""
    skeleton = [f"etc/skel/{name}" for name in _SKELETON]
    found = read_files(store, below, [*_ACCOUNTS, *skeleton])
    files = with_user({name: data.decode("utf-8", "surrogateescape") for name, data in found.items()})
    modes = {"etc/shadow": (0o640, 42), "etc/gshadow": (0o640, 42)}
    members: list[tuple[tar.Entry, Iterable[bytes]]] = [(tar.Entry("etc", "directory", 0o755), ())]
    for name in sorted(files):
        data = files[name].encode("utf-8", "surrogateescape")
        mode, gid = modes.get(name, (0o644, 0))
        members.append((tar.Entry(name, mode=mode, gid=gid, size=len(data)), [data]))
    home = JOVYAN.home.strip("/")
    members += [(tar.Entry(parent, "directory", 0o755), ()) for parent in tar.parents([home])]
    folder = tar.Entry("", "directory", 0o755, uid=JOVYAN.uid, gid=JOVYAN.gid)
    members.append((replace(folder, path=home), ()))
    for name in _SKELETON:
        if (skel := found.get(f"etc/skel/{name}")) is not None:
            file = replace(folder, path=f"{home}/{name}", kind="file", mode=0o644, size=len(skel))
            members.append((file, [skel]))
    members.append((replace(folder, path="srv"), ()))
    yield from tar.stream((replace(entry, mtime=runtime.MTIME), content) for entry, content in members)
    yield tar.END


def with_user(accounts: Mapping[str, str]) -> dict[str, str]:
    """The account files with `runtime.JOVYAN` in them (passwd(5), group(5), shadow(5), gshadow(5)).

    Whoever has its name, or its numbers, makes room: two names for one number would let the other one show up as
    the owner of everything. ``gshadow`` is written where there was one.
    """
    user = JOVYAN
    passwd = _lines(accounts.get("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"))
    group = _lines(accounts.get("etc/group", "root:x:0:\n"))
    gone = {line[0] for line in passwd if _is(line, user.name, user.uid)} | {user.name}
    gone_groups = {line[0] for line in group if _is(line, user.name, user.gid)} | {user.name}
    passwd = [line for line in passwd if line[0] not in gone]
    group = [_without_members(line, gone) for line in group if line[0] not in gone_groups]
    shadow = [line for line in _lines(accounts.get("etc/shadow", "")) if line[0] not in gone]
    passwd.append([user.name, "x", str(user.uid), str(user.gid), "", user.home, user.shell])
    group.append([user.name, "x", str(user.gid), ""])
    shadow.append([user.name, "!", str(_LAST_CHANGE), "0", "99999", "7", "", "", ""])
    files = {"etc/passwd": _text(passwd), "etc/group": _text(group), "etc/shadow": _text(shadow)}
    if "etc/gshadow" in accounts:
        gshadow = [
            _without_members(line, gone) for line in _lines(accounts["etc/gshadow"]) if line[0] not in gone_groups
        ]
        files["etc/gshadow"] = _text([*gshadow, [user.name, "!", "", ""]])
    return files


def _lines(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines() if line.strip()]


def _text(lines: Iterable[Sequence[str]]) -> str:
    return "".join(":".join(line) + "\n" for line in lines)


def _is(line: Sequence[str], name: str, number: int) -> bool:
    return line[0] == name or (len(line) > 2 and line[2] == str(number))


def _without_members(line: Sequence[str], gone: set[str]) -> list[str]:
    """A line of a group file, without the members that are gone."""
    if len(line) != 4:
        return list(line)
    return [*line[:3], ",".join(member for member in line[3].split(",") if member and member not in gone)]


# -- a base that is an image -----------------------------------------------------------------------------------

_INDEXES = (oci.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_FOREIGN_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


def base_image(store: Store, base: LayoutBase, platform: Platform) -> BaseImage:
    """The image that ``base`` names, brought into the store blob by blob, each verified by its digest.

    Raises:
        InputError: for a missing layout, image or platform, for a damaged blob, or when the image lacks its Python.
    """
    where = f"the layout {base.layout}" if base.layout else f"the store {store.root}"
    source = Store(base.layout) if base.layout else store
    descriptor = _for_platform(source, base_descriptor(store, base), platform, base, where)
    document = source.read_document(descriptor)
    config_descriptor = oci.parse_descriptor(document.get("config"), f"the manifest {descriptor.digest}")
    config = source.read_document(config_descriptor)
    layers = []
    try:
        diff_ids = [str(one) for one in config["rootfs"]["diff_ids"]]
        pairs = list(zip(document["layers"], diff_ids, strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the base {base.image or where} is no container image: {error}") from error
    for entry, diff_id in pairs:
        blob = oci.parse_descriptor(entry, f"the manifest {descriptor.digest}")
        blob = replace(blob, media_type=_FOREIGN_LAYERS.get(blob.media_type, blob.media_type), annotations={})
        _bring(source, store, blob)
        layers.append(oci.Layer(blob, diff_id))
    described = [
        describe(layer, layer.diff_id, f"base {base.image}".strip() + f", layer {number}")
        for number, layer in enumerate(layers, 1)
    ]
    if base.python:
        _check_python(store, descriptor, described, base, where)
    given = (config.get("config") or {}).get("Env") or []
    environment = dict(str(one).split("=", 1) for one in given if "=" in str(one))
    return BaseImage(tuple(described), environment)


def base_descriptor(store: Store, base: LayoutBase) -> oci.Descriptor:
    """The index or manifest that ``base`` names, in its layout or in ``store``.

    Raises:
        InputError: for a missing layout or image.
    """
    if base.layout is None:
        return store.image(base.image)
    if not (base.layout / "oci-layout").is_file():
        raise InputError(
            f"the base {base.layout} is not an OCI image layout",
            hint="it must be a folder with `oci-layout`, `index.json` and `blobs`: `skopeo copy` makes one",
        )
    source, where = Store(base.layout), f"the layout {base.layout}"
    images = [d for d in source._index() if not base.image or d.annotations.get(oci.REF_NAME) == base.image]
    if len(images) == 1:
        return images[0]
    names = ", ".join(sorted(source.images())) or "none with a name"
    if not images:
        raise InputError(f"no image `{base.image}` in {where}", hint=f"its images are: {names}")
    raise InputError(
        f"{where} holds {len(images)} images{f' called `{base.image}`' if base.image else ''}",
        hint=f"say which one with `image` in [base]: {names}",
    )


def _for_platform(
    source: Store, image: oci.Descriptor, platform: Platform, base: LayoutBase, where: str
) -> oci.Descriptor:
    name = base.image or where
    if image.media_type in _INDEXES:
        entries = source.read_document(image).get("manifests")
        parsed = [oci.parse_descriptor(e, name) for e in (entries if isinstance(entries, list) else [])]
        for one in parsed:
            if one.platform == platform:
                return one
        there = ", ".join(str(one.platform) for one in parsed if one.platform) or "none that Lithify knows"
    else:
        document = source.read_document(image)
        config = source.read_document(oci.parse_descriptor(document.get("config"), name))
        found = PLATFORMS.get(f"{config.get('os')}/{config.get('architecture')}")
        if found == platform:
            return image
        there = str(found or f"{config.get('os')}/{config.get('architecture')}")
    raise InputError(
        f"the base {name} is not there for {platform}: its platforms are {there}",
        hint="take the platform out of lithify.toml, or use a base that has it",
    )


def _bring(source: Store, store: Store, blob: oci.Descriptor) -> None:
    """Copy a blob, verified."""
    if store.has_blob(blob):
        return
    path = source.blob_path(blob.digest)
    if not path.is_file():
        raise InputError(
            f"the base's blob {blob.digest} is missing: {path} does not exist", hint="copy the image again"
        )
    with path.open("rb") as file:
        written = store.write_blob(iter(lambda: file.read(1 << 20), b""), blob.media_type)
    if written.digest != blob.digest:
        store.blob_path(written.digest).unlink(missing_ok=True)
        raise InputError(f"the base's blob {path} is not what its digest says", hint="copy the image again")


def _check_python(
    store: Store, manifest: oci.Descriptor, layers: Sequence[oci.Layer], base: LayoutBase, where: str
) -> None:
    """Check once that the base has the Python that the family says it has."""
    program = f"usr/bin/python{base.python}"
    key = hashlib.sha256(f"{manifest.digest} {program}".encode()).hexdigest()
    if store.record("bases", key):
        return
    if program not in read_files(store, layers, [program]):
        raise InputError(
            f"the base {base.image or where} has no /{program}",
            hint="change `python` in [base] to the version that it has, or use another base",
        )
    store.write_record("bases", key, {"python": program})
