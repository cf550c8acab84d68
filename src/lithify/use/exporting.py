"""An image out of the store: as an OCI layout or archive, for Docker, as a folder, or into an engine.

Every blob is checked against its digest while it is copied, and what is written appears when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from lithify.errors import HostError, InputError, LithifyError
from lithify.platforms import Platform, host_platform, parse_platform
from lithify.progress import Event, Report, silent
from lithify.read.settings import Settings, read_settings
from lithify.runtime import MTIME
from lithify.store import oci, tar
from lithify.store.compression import decompressed
from lithify.store.manifests import INDEXES, MANIFESTS, manifest_for
from lithify.store.rootfs import unpack
from lithify.store.store import Store, corrupt, friendly_disk_errors, open_store, remove_tree

CHUNK = 1 << 20
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def export(
    image: str,
    *,
    oci_layout: Path | str | None = None,
    oci_archive: Path | str | None = None,
    docker_archive: Path | str | None = None,
    rootfs: Path | str | None = None,
    podman: bool = False,
    docker: bool = False,
    platform: Platform | str | None = None,
    settings: Settings | None = None,
    report: Report = silent,
) -> None:
    """Copy ``image`` out of the store, to each place that is given.

    Args:
        image: a name or digest in the store.
        oci_layout: a folder, new or an OCI image layout already; only the blobs that it lacks are copied.
        oci_archive: a file: a tar of an OCI image layout, the same bytes for the same image.
        docker_archive: a file for ``docker load``, the layers uncompressed.
        rootfs: a new or empty folder for the image's files. Exported by root, they have the image's owners; else
            they are the caller's.
        podman: into podman's storage, as ``localhost/NAME:latest``.
        docker: into Docker, as ``NAME:latest``.
        platform: of several, one. By default the OCI forms hold all, and the others this machine's.
        settings: where the store is.
        report: hears of progress.

    Raises:
        InputError: for an unknown image, one that is not for ``platform``, a place that is taken, or no place.
        HostError: when the engine is missing or refuses, or the disk is full.
        LithifyError: for an image that is damaged.
    """
    if isinstance(platform, str):
        platform = parse_platform(platform)
    places = [_absolute(one) for one in (oci_layout, oci_archive, docker_archive, rootfs)]
    if not any(places) and not podman and not docker:
        raise InputError(
            f"image `{image}` is to be exported, and nothing says where to",
            hint="give one of --oci-layout, --oci-archive, --docker-archive, --rootfs, --podman, --docker",
        )
    layout, archive, docker_file, folder = places
    if layout:
        _check_layout(layout)
    for file in (archive, docker_file):
        if file:
            _check_file(file)
    if folder:
        _check_empty(folder)
    if podman:
        _program("podman")
    if docker:
        _program("docker")

    store = open_store((settings or read_settings()).store)
    entry = store.image(image)
    name = entry.annotations.get(oci.REF_NAME, image)
    single = None
    if platform or docker_file or folder or podman or docker:
        single = manifest_for(store, image, platform or host_platform())
    if platform and single:
        entry = single.descriptor
    named = replace(entry, annotations={**entry.annotations, oci.REF_NAME: name})
    if layout:
        _to_layout(store, named, layout, report)
    if archive:
        _to_archive(store, named, archive, report)
    if docker_file and single:
        with _replacing(docker_file) as output:
            _write_docker_archive(store, single.layers, single.config_descriptor, reference(name), output, report)
    if folder and single:
        unpack(store, single.layers, folder, all_owners=os.geteuid() == 0, report=report)
    if podman and single:
        # Not straight from a layout: podman would name the image by the layout's path, and refuse capitals in it.
        with store.scratch("podman") as scratch:
            tagged = replace(single.descriptor, annotations={oci.REF_NAME: reference(name)})
            _to_archive(store, tagged, scratch / "image.tar", report)
            _engine(["podman", "load", "--quiet", "--input", str(scratch / "image.tar")])
    if docker and single:
        with store.scratch("docker") as scratch:
            with (scratch / "image.tar").open("w+b") as output:
                _write_docker_archive(store, single.layers, single.config_descriptor, reference(name), output, report)
            _engine(["docker", "load", "--quiet", "--input", str(scratch / "image.tar")])


def reference(name: str) -> str:
    """``name`` as container engines accept it (lower case, few signs), with the tag ``latest``."""
    parts = [re.sub(r"[^a-z0-9._-]+", "-", part.lower()) for part in name.split("/")]
    # One sign between letters, at most: what the grammar of references allows is not much more.
    parts = [re.sub(r"([._-])[._-]+", r"\1", part).strip("._-") or "image" for part in parts]
    return f"{'/'.join(parts)}:latest"


# -- places ------------------------------------------------------------------------------------------------------


def _absolute(place: Path | str | None) -> Path | None:
    return None if place is None else Path(place).expanduser().absolute()


def _check_parent(place: Path) -> None:
    if not place.parent.is_dir():
        raise InputError(f"{place} cannot be made: there is no folder {place.parent}", hint=f"mkdir -p {place.parent}")


def _check_file(place: Path) -> None:
    _check_parent(place)
    if place.is_dir():
        raise InputError(f"{place} is a folder, not a file")


def _check_empty(place: Path) -> None:
    _check_parent(place)
    if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} is there already, and not an empty folder", hint="choose a new one, or remove it")


def _check_layout(place: Path) -> None:
    if not (place / "oci-layout").is_file():
        _check_empty(place)


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[IO[bytes]]:
    """A new file, readable too, that becomes ``place`` when the block ends well."""
    with friendly_disk_errors(place):
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w+b") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                os.fsync(file.fileno())
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _umask() -> int:
    # Reading it by os.umask would change it for a moment, for every thread.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


# -- OCI ---------------------------------------------------------------------------------------------------------


def _closure(store: Store, entry: oci.Descriptor) -> list[oci.Descriptor]:
    """``entry`` and all that it refers to, each once, what is referred to first."""
    found: dict[str, oci.Descriptor] = {}

    def visit(descriptor: oci.Descriptor) -> None:
        if descriptor.digest in found:
            return
        if descriptor.media_type in (*INDEXES, *MANIFESTS):
            document = store.read_document(descriptor)
            config = document.get("config")
            children = [*([config] if config else []), *(document.get("layers") or document.get("manifests") or [])]
            for child in children:
                visit(oci.parse_descriptor(child, descriptor.digest))
        found[descriptor.digest] = descriptor

    visit(entry)
    return list(found.values())


def _blob(store: Store, descriptor: oci.Descriptor) -> Iterator[bytes]:
    """The bytes of a blob; the end is reached only if they are what the digest says."""
    digest, size = hashlib.sha256(), 0
    try:
        file = store.blob_path(descriptor.digest).open("rb")
    except FileNotFoundError:
        raise LithifyError(
            f"blob {descriptor.digest} is missing from the store {store.root}", hint="build the image again"
        ) from None
    with file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if size > descriptor.size:
                break
            yield chunk
    if size != descriptor.size or f"sha256:{digest.hexdigest()}" != descriptor.digest:
        raise corrupt(descriptor.digest, store.root)


def _index(entries: list[oci.Descriptor]) -> bytes:
    ordered = sorted(entries, key=lambda entry: (entry.annotations.get(oci.REF_NAME, ""), entry.digest))
    return oci.canonical(
        {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [entry.document() for entry in ordered]}
    )


def _to_layout(store: Store, entry: oci.Descriptor, place: Path, report: Report) -> None:
    """Add the image to the layout ``place``, or make it (OCI image-layout.md)."""
    if (place / "oci-layout").is_file():
        _add_to_layout(store, entry, place, report)
        return
    with friendly_disk_errors(place):
        scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
        try:
            scratch.chmod(0o777 & ~_umask())
            _add_to_layout(store, entry, scratch, report)
            scratch.rename(place)
        except BaseException:
            remove_tree(scratch)
            raise


def _add_to_layout(store: Store, entry: oci.Descriptor, place: Path, report: Report) -> None:
    closure = _closure(store, entry)
    others = [one for one in _layout_entries(place) if one.annotations.get(oci.REF_NAME) != _name(entry)]
    with friendly_disk_errors(place):
        (place / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        missing = [one for one in closure if not _holds(place, one)]
        with _progress(report, sum(one.size for one in missing)) as advance:
            for one in missing:
                with _replacing(place / "blobs/sha256" / one.digest.removeprefix("sha256:")) as file:
                    for chunk in _blob(store, one):
                        file.write(chunk)
                        advance(len(chunk))
        if not (place / "oci-layout").exists():
            with _replacing(place / "oci-layout") as file:
                file.write(_LAYOUT)
        with _replacing(place / "index.json") as file:
            file.write(_index([*others, entry]))


def _name(entry: oci.Descriptor) -> str | None:
    return entry.annotations.get(oci.REF_NAME)


def _holds(place: Path, descriptor: oci.Descriptor) -> bool:
    path = place / "blobs/sha256" / descriptor.digest.removeprefix("sha256:")
    if not path.is_file() or path.stat().st_size != descriptor.size:
        return False
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == descriptor.digest


def _layout_entries(place: Path) -> list[oci.Descriptor]:
    path = place / "index.json"
    if not path.exists():
        return []
    try:
        manifests = json.loads(path.read_bytes())["manifests"]
        if not isinstance(manifests, list):
            raise TypeError("`manifests` is no list")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{path} is not an OCI index: {error}", hint="export into a new folder") from error
    return [oci.parse_descriptor(manifest, str(path)) for manifest in manifests]


def _to_archive(store: Store, entry: oci.Descriptor, place: Path, report: Report) -> None:
    closure = sorted(_closure(store, entry), key=lambda one: one.digest)
    index = _index([entry])
    with (
        _replacing(place) as output,
        _progress(report, sum(one.size for one in closure)) as advance,
    ):

        def members() -> Iterator[tuple[tar.Entry, Iterator[bytes]]]:
            yield tar.Entry("blobs", "directory", 0o755, mtime=MTIME), iter(())
            yield tar.Entry("blobs/sha256", "directory", 0o755, mtime=MTIME), iter(())
            for one in closure:
                path = f"blobs/sha256/{one.digest.removeprefix('sha256:')}"
                yield tar.Entry(path, size=one.size, mtime=MTIME), _blob(store, one)
                advance(one.size)
            yield tar.Entry("index.json", size=len(index), mtime=MTIME), iter([index])
            yield tar.Entry("oci-layout", size=len(_LAYOUT), mtime=MTIME), iter([_LAYOUT])

        for chunk in tar.stream(members()):
            output.write(chunk)
        output.write(tar.END)


# -- Docker's format ---------------------------------------------------------------------------------------------


def _write_docker_archive(
    store: Store,
    layers: tuple[oci.Layer, ...],
    config: oci.Descriptor,
    tag: str,
    output: IO[bytes],
    report: Report,
) -> None:
    """What ``docker load`` reads: ``manifest.json``, the configuration, and each layer as a plain tar."""
    config_name = f"{config.digest.removeprefix('sha256:')}.json"
    names = [f"{layer.diff_id.removeprefix('sha256:')}.tar" for layer in layers]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [tag], "Layers": names}], sort_keys=True).encode()
    for name, data in (("manifest.json", manifest), (config_name, store.read_blob(config))):
        for chunk in tar.stream([(tar.Entry(name, size=len(data), mtime=MTIME), [data])]):
            output.write(chunk)
    with _progress(report, sum(layer.descriptor.size for layer in layers)) as advance:
        written = set()
        for layer, name in zip(layers, names, strict=True):
            if name not in written:
                _write_plain_layer(store, layer, name, output)
            written.add(name)
            advance(layer.descriptor.size)
    output.write(tar.END)


def _write_plain_layer(store: Store, layer: oci.Layer, name: str, output: IO[bytes]) -> None:
    """One layer, uncompressed. Its size is known at its end only: the header is written then, in its place."""
    start = output.tell()
    output.write(bytes(tar.BLOCK))
    diff_id, size = hashlib.sha256(), 0
    for _ in _blob(store, layer.descriptor):
        pass
    with store.blob_path(layer.descriptor.digest).open("rb") as file:
        for chunk in decompressed(file, layer.descriptor.media_type):
            diff_id.update(chunk)
            size += len(chunk)
            output.write(chunk)
    if f"sha256:{diff_id.hexdigest()}" != layer.diff_id:
        raise LithifyError(
            f"layer {layer.descriptor.digest}: its uncompressed digest is not {layer.diff_id}, "
            "as the image's configuration says"
        )
    header = tar.header(tar.Entry(name, size=size, mtime=MTIME))
    if len(header) != tar.BLOCK:
        raise LithifyError(
            f"layer {layer.descriptor.digest} of {size} bytes is too large for a Docker archive",
            hint="use --oci-archive, which Docker 25 and newer loads, too",
        )
    output.write(tar.padding(size))
    end = output.tell()
    output.seek(start)
    output.write(header)
    output.seek(end)


# -- engines -----------------------------------------------------------------------------------------------------


def _program(name: str) -> None:
    if shutil.which(name) is None:
        raise HostError(f"no `{name}` on this machine", hint="install it, or export to a file for another machine")


def _engine(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise HostError(
            f"`{' '.join(command[:2])}` failed with exit code {result.returncode}",
            details=result.stderr.strip() or result.stdout.strip(),
        )
    return result.stdout


@contextlib.contextmanager
def _progress(report: Report, total: int) -> Iterator[Callable[[int], None]]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(Event("use", "advance", "export", done=done, total=total, unit="bytes"))

    report(Event("use", "start", "export", total=total, unit="bytes"))
    yield advance
    report(Event("use", "finish", "export", done=total, total=total, unit="bytes"))
