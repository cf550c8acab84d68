"""Layers of packages: fragments joined.

A layer blob is the concatenation of compressed frames: one of folders, the packages' slices, one of end-of-archive
blocks. Only its two digests are computed anew, and a layer whose key is known costs nothing at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from lithify import runtime
from lithify.assemble.contract import Contents
from lithify.errors import InputError, LithifyError
from lithify.fragment.fragment import Fragment, forget_fragment
from lithify.fragment.slice import folders
from lithify.lockfile import Package
from lithify.plan import PlannedLayer
from lithify.store import oci, tar
from lithify.store.compression import Compression, compress, compressor, decompressed, decompressor
from lithify.store.store import Store, digest_of_file

FORMAT = 1
_PIECE = 1 << 17  # bytes of a fragment read at once: a piece of source code grows tenfold when it is decompressed


class DamagedFragment(LithifyError):
    """A fragment in the store is not what its record says; it has been removed and can be made anew."""


def layer_key(fragment_keys: Sequence[str], compression: Compression) -> str:
    """What a layer of packages depends on: its fragments, in order, and how its own frames are compressed."""
    document = {"format": FORMAT, "fragments": list(fragment_keys), "compression": compression.identity}
    return hashlib.sha256(oci.canonical(document)).hexdigest()


def find_layer(store: Store, key: str) -> oci.Layer | None:
    """The layer that was made for ``key``, if its blob is there and whole."""
    record = store.record("layers", key)
    if record is None:
        return None
    try:
        layer = oci.Layer(oci.parse_descriptor(record["descriptor"], key), str(record["diff_id"]))
    except (KeyError, InputError):
        return None
    return layer if store.has_blob(layer.descriptor) else None


def keep_layer(store: Store, key: str, layer: oci.Layer) -> None:
    """Record the layer that was made for ``key``."""
    store.write_record("layers", key, {"descriptor": layer.descriptor.document(), "diff_id": layer.diff_id})


def describe(layer: oci.Layer, key: str, name: str, packages: Sequence[Package] = ()) -> oci.Layer:
    """The layer with annotations that say what it was built from and what it holds."""
    annotations = {oci.LAYER_KEY: key, oci.LAYER_NAME: name, oci.LAYER_DIFF_ID: layer.diff_id}
    if packages:
        annotations[oci.LAYER_PACKAGES] = " ".join(f"{p.source}:{p.name}={p.version}" for p in packages)
    descriptor = layer.descriptor
    return oci.Layer(
        oci.Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations), layer.diff_id
    )


def join_fragments(
    store: Store, planned: PlannedLayer, fragments: Mapping[Package, Fragment], key: str, compression: Compression
) -> oci.Layer:
    """Join the fragments of a planned layer into a blob, and record it under ``key``.

    Raises:
        DamagedFragment: when a fragment's file was changed; it is gone then, and can be made anew.
    """
    members = [fragments[package] for package in planned.packages]
    paths = [path for fragment in members for path in fragment.paths]
    seen: set[str] = set()
    repeated: list[frozenset[str]] = []
    for fragment in members:
        again = frozenset(fragment.paths) & seen if len(members) > 1 else frozenset()
        repeated.append(again)
        seen.update(fragment.paths)
    alone = len(members) == 1
    diff = hashlib.sha256()

    def frames() -> Iterator[bytes]:
        yield from _frame(folders(paths), compression, diff)
        for fragment, again in zip(members, repeated, strict=True):
            if again:
                yield from _without(store, fragment, again, compression, diff)
            else:
                yield from _copied(store, fragment, compression, None if alone else diff)
        yield from _frame(tar.END, compression, diff)

    descriptor = store.write_blob(frames(), compression.media_type)
    layer = oci.Layer(descriptor, members[0].alone if alone else f"sha256:{diff.hexdigest()}")
    keep_layer(store, key, layer)
    return layer


def write_contents(store: Store, contents: Contents, compression: Compression) -> tuple[str, oci.Layer]:
    """A layer of files of ours, and its key."""
    diff = hashlib.sha256()
    data = b"".join(tar.stream((entry, [data] if data else []) for entry, data in contents.members)) + tar.END
    key = hashlib.sha256(
        oci.canonical({"contents": hashlib.sha256(data).hexdigest(), "compression": compression.identity})
    ).hexdigest()
    if found := find_layer(store, key):
        return key, found
    descriptor = store.write_blob(_frame(data, compression, diff), compression.media_type)
    layer = oci.Layer(descriptor, f"sha256:{diff.hexdigest()}")
    keep_layer(store, key, layer)
    return key, layer


def _frame(data: bytes, compression: Compression, diff: hashlib._Hash) -> Iterator[bytes]:
    diff.update(data)
    yield compress(data, compression)


def _copied(store: Store, fragment: Fragment, compression: Compression, diff: hashlib._Hash | None) -> Iterator[bytes]:
    """The bytes of a fragment as they are, checked against its record; uncompressed, they are added to ``diff``."""
    compressed, frame = hashlib.sha256(), decompressor(compression)
    with fragment.file.open("rb") as file:
        while chunk := file.read(_PIECE):
            compressed.update(chunk)
            yield chunk
            if diff is not None:
                with suppress(Exception):  # What does not decompress does not have the digest either: see below.
                    diff.update(frame.decompress(chunk))
    if compressed.hexdigest() != fragment.sha256:
        forget_fragment(store, fragment.key)
        raise DamagedFragment(f"a cached fragment in {store.root} was changed: {fragment.key}")


def _without(
    store: Store, fragment: Fragment, dropped: frozenset[str], compression: Compression, diff: hashlib._Hash
) -> Iterator[bytes]:
    """A fragment without the paths that a fragment before it in the layer holds, too, with the same bytes.

    Rare (an empty ``__init__.py`` of a shared namespace), so it may cost a new compression.
    """
    if digest_of_file(fragment.file) != f"sha256:{fragment.sha256}":
        forget_fragment(store, fragment.key)
        raise DamagedFragment(f"a cached fragment in {store.root} was changed: {fragment.key}")
    frame = compressor(compression)

    def kept() -> Iterator[bytes]:
        with fragment.file.open("rb") as file:
            for member, content in tar.members(decompressed(file, compression.media_type)):
                path = member.path.decode("utf-8", "surrogateescape")
                if path in dropped:
                    continue
                kind: tar.Kind = "symlink" if member.type == tar.SYMLINK else "file"
                link = member.link.decode("utf-8", "surrogateescape")
                entry = tar.Entry(path, kind, member.mode, member.uid, member.gid, member.size, link, runtime.MTIME)
                yield from tar.stream([(entry, (bytes(piece) for piece in content))])

    for piece in kept():
        diff.update(piece)
        yield frame.compress(piece)
    yield frame.flush()
