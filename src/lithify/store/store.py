"""The store: an OCI image layout on disk, the caches beside it, and the rules by which they are written.

::

    oci-layout, index.json, blobs/sha256/   the images (OCI image-layout.md): any OCI tool can read them
    artefacts/                              what was fetched, by sha256
    fragments/                              packages as compressed tar slices, by key
    records/KIND/                           small facts by key: which blob a layer's key gave, ...
    rootfs/                                 images unpacked for the sandbox, by manifest digest
    locks/, tmp/

Nothing is half-written: a file is written under ``tmp/``, flushed to disk, and renamed. Two processes may share a
store: whoever renames last has written the same bytes, and what is expensive is done under a lock of its own.

A finished blob or artefact is **sealed**: read-only, with a fixed modification time. Whatever changes it later
changes that time, so a glance at the file's status tells whether its bytes must be hashed again before use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lithify.errors import HostError, InputError, LithifyError
from lithify.store import oci

SEAL = 1  # seconds since the epoch: no file of today has it by chance
CHUNK = 1 << 20
GRACE = 60.0  # seconds


@dataclass(frozen=True)
class Store:
    """A store below ``root``. Make one with `open_store`."""

    root: Path

    # -- files ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, destination: Path, *, seal: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
        """A new file that becomes ``destination`` when the block ends well, and nothing when it does not.

        ``durable`` flushes it to disk first; only what is verified at each use may go without.

        Raises:
            HostError: when the disk is full or the store cannot be written.
        """
        with friendly_disk_errors(self.root):
            destination.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.root / "tmp", prefix="write-")
            fcntl.flock(handle, fcntl.LOCK_EX)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file
                    file.flush()
                    os.fchmod(file.fileno(), 0o444 if seal else 0o644)
                    if durable:
                        os.fsync(file.fileno())
                if seal:
                    os.utime(temporary, (SEAL, SEAL))
                temporary.replace(destination)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            if durable:
                _sync_folder(destination.parent)

    @contextlib.contextmanager
    def scratch(self, prefix: str) -> Iterator[Path]:
        """An empty folder that is gone when the block ends.

        It is locked while it is used: whoever asks for the next one removes what a killed process left.
        """
        with self.lock("scratch"), friendly_disk_errors(self.root):
            for left in (self.root / "tmp").glob("scratch-*"):
                _remove_unused(left)
            folder = Path(tempfile.mkdtemp(dir=self.root / "tmp", prefix=f"scratch-{prefix}-"))
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            remove_tree(folder)
            os.close(handle)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock called ``name``: one process at a time, released even when it is killed."""
        with friendly_disk_errors(self.root):
            path = self.root / "locks" / name.replace("/", "_").replace(":", "_")
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # -- blobs ---------------------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Where the blob with ``digest`` lies, whether or not it is there."""
        algorithm, _, encoded = digest.partition(":")
        return self.root / "blobs" / algorithm / encoded

    def has_blob(self, descriptor: oci.Descriptor) -> bool:
        """Whether the blob is there and whole: by its size and seal, or else by its digest.

        A blob that is not what its name says is removed, so that it is made anew.
        """
        return self.verified(self.blob_path(descriptor.digest), descriptor.digest, descriptor.size)

    def verified(self, path: Path, digest: str, size: int) -> bool:
        """Whether the file at ``path`` is the content with ``digest``; see `has_blob`."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size == size and status.st_mtime_ns == SEAL * 10**9:
            return True
        if status.st_size == size and digest_of_file(path) == digest:
            with friendly_disk_errors(self.root):
                path.chmod(0o444)
                os.utime(path, (SEAL, SEAL))
            return True
        with friendly_disk_errors(self.root):
            path.unlink(missing_ok=True)
        return False

    def write_blob(self, content: Iterable[bytes], media_type: str) -> oci.Descriptor:
        """Write a blob, whose name is the digest of what ``content`` yields."""
        digest, size = hashlib.sha256(), 0
        with friendly_disk_errors(self.root):
            handle, name = tempfile.mkstemp(dir=self.root / "tmp", prefix="blob-")
            fcntl.flock(handle, fcntl.LOCK_EX)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    for chunk in content:
                        digest.update(chunk)
                        size += len(chunk)
                        file.write(chunk)
                    file.flush()
                    os.fchmod(file.fileno(), 0o444)
                    os.fsync(file.fileno())
                descriptor = oci.Descriptor(media_type, f"sha256:{digest.hexdigest()}", size)
                os.utime(temporary, (SEAL, SEAL))
                temporary.replace(self.blob_path(descriptor.digest))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(self.blob_path(descriptor.digest).parent)
        return descriptor

    def write_document(self, document: dict[str, Any], media_type: str) -> oci.Descriptor:
        """Write a JSON document as a blob."""
        return self.write_blob([oci.canonical(document)], media_type)

    def read_blob(self, descriptor: oci.Descriptor) -> bytes:
        """A small blob, verified against its digest.

        Raises:
            LithifyError: when it is missing or is not what its digest says.
        """
        path = self.blob_path(descriptor.digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise LithifyError(
                f"blob {descriptor.digest} is missing from the store {self.root}",
                hint="build the image again",
            ) from None
        if oci.digest_of(data) != descriptor.digest:
            raise corrupt(descriptor.digest, self.root)
        return data

    def read_document(self, descriptor: oci.Descriptor) -> dict[str, Any]:
        """A JSON document, verified against its digest.

        Raises:
            LithifyError: when it is missing, is not what its digest says, or is no JSON object.
        """
        try:
            document = json.loads(self.read_blob(descriptor))
        except ValueError as error:
            raise LithifyError(f"{descriptor.digest} is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise LithifyError(f"{descriptor.digest} is not a JSON object")
        return document

    # -- images --------------------------------------------------------------------------------------------

    def images(self) -> dict[str, oci.Descriptor]:
        """The named images, by name."""
        return {d.annotations[oci.REF_NAME]: d for d in self._index() if oci.REF_NAME in d.annotations}

    def image(self, name: str) -> oci.Descriptor:
        """The index or manifest of the image that ``name`` means.

        That is its whole name (``family/image``), its last part where only one image ends so, or its digest (at
        least 7 digits of it).

        Raises:
            InputError: when the store has no such image.
        """
        images = self.images()
        if name in images:
            return images[name]
        short = [full for full in images if full.rpartition("/")[2] == name]
        if len(short) == 1:
            return images[short[0]]
        if short:
            raise InputError(f"`{name}` may be {' or '.join(short)}", hint="give the whole name")
        for descriptor in images.values():
            if descriptor.digest == name or (
                len(name) >= 7 and descriptor.digest.removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
            ):
                return descriptor
        import difflib

        close = difflib.get_close_matches(name, list(images), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"`lithify build {name}` makes it; `lithify list` shows all"
        raise InputError(f"no image `{name}` in the store {self.root}", hint=hint)

    def name_image(self, name: str, descriptor: oci.Descriptor) -> None:
        """Let ``name`` be the image of ``descriptor`` from now on."""
        with self.lock("index"):
            rest = [d for d in self._index() if d.annotations.get(oci.REF_NAME) != name]
            named = oci.Descriptor(
                descriptor.media_type,
                descriptor.digest,
                descriptor.size,
                {**descriptor.annotations, oci.REF_NAME: name},
                descriptor.platform,
            )
            if named in self._index():
                return
            manifests = sorted([*rest, named], key=lambda d: (d.annotations.get(oci.REF_NAME, ""), d.digest))
            document = {
                "schemaVersion": 2,
                "mediaType": oci.INDEX,
                "manifests": [d.document() for d in manifests],
            }
            with self.writing(self.root / "index.json") as file:
                file.write(oci.canonical(document))

    def _index(self) -> list[oci.Descriptor]:
        path = self.root / "index.json"
        try:
            manifests = json.loads(path.read_bytes())["manifests"]
            if not isinstance(manifests, list):
                raise TypeError("`manifests` is not a list")
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise LithifyError(
                f"{path} is not an OCI index: {error}",
                hint="remove it and build again: nothing that is still there will be made twice",
            ) from error
        return [oci.parse_descriptor(manifest, str(path)) for manifest in manifests]

    # -- caches --------------------------------------------------------------------------------------------

    def artefact_path(self, sha256: str) -> Path:
        """Where the artefact with ``sha256`` lies, whether or not it is there."""
        return self.root / "artefacts" / sha256[:2] / sha256

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The fact recorded under ``key``, or None; a damaged record counts as none."""
        try:
            return parse_checked((self.root / "records" / kind / key).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_record(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """Record a fact under ``key``. Written without a flush: a lost record is only work done again."""
        with self.writing(self.root / "records" / kind / key, durable=False) as file:
            file.write(checked(value))


def checked(value: Mapping[str, Any]) -> bytes:
    """``value`` as a line of JSON and a line with its sha256: records decide what goes into images, as blobs do."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data = body.encode("utf-8", "surrogateescape")
    return b"%b\n%b\n" % (data, hashlib.sha256(data).hexdigest().encode())


def parse_checked(data: bytes) -> dict[str, Any] | None:
    """What `checked` made ``data`` of, or None where a byte of it was changed."""
    body, _, rest = data.partition(b"\n")
    if rest != b"%b\n" % hashlib.sha256(body).hexdigest().encode():
        return None
    value = json.loads(body.decode("utf-8", "surrogateescape"))
    return value if isinstance(value, dict) else None


def open_store(root: Path) -> Store:
    """The store below ``root``, made if it is not there.

    Raises:
        HostError: when it cannot be made.
    """
    with friendly_disk_errors(root):
        try:
            for folder in ("blobs/sha256", "locks", "tmp"):
                (root / folder).mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError) as error:
            raise HostError(
                f"the store {root} cannot be written: {error}",
                hint="choose another one with --store or LITHIFY_STORE",
            ) from error
        if not (root / "oci-layout").exists():
            store = Store(root)
            with store.writing(root / "oci-layout") as file:
                file.write(b'{"imageLayoutVersion":"1.0.0"}')
    _remove_leftovers(root)
    return Store(root)


def digest_of_file(path: Path) -> str:
    """The OCI digest of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def corrupt(digest: str, root: Path) -> LithifyError:
    """The error for a blob that is not what its name says."""
    return LithifyError(
        f"blob {digest} in the store {root} is not what its digest says: the file was changed or the disk is failing",
        hint="`lithify build` notices it and makes it anew",
    )


@contextlib.contextmanager
def friendly_disk_errors(root: Path) -> Iterator[None]:
    """Turn what an operating system says of a full or read-only disk into a `HostError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostError(
                f"no space is left for the store {root}",
                hint="free some, or put the store on another disk with --store or LITHIFY_STORE",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise HostError(
                f"the store {root} cannot be written: {error}",
                hint="choose another one with --store or LITHIFY_STORE",
            ) from error
        raise


def remove_tree(folder: Path) -> None:
    """Remove a folder, with what it holds that its owner may not read or write (an overlay's ``work`` is such)."""
    failures: list[str] = []
    shutil.rmtree(folder, onerror=lambda function, path, error: failures.append(path))
    if not failures:
        return
    # Folders only: a link's target, and a file's other names, lie elsewhere.
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
        for parent, names, _ in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    """Remove what killed processes left under ``tmp/``: whatever nobody holds a lock on.

    Not what is younger than `GRACE`, which its owner may be about to lock or to rename. Partial downloads stay, to be
    gone on with, and the folders of `lithify run` are looked after there.
    """
    with contextlib.suppress(OSError), os.scandir(root / "tmp") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if time.time() - entry.stat(follow_symlinks=False).st_ctime < GRACE:
                    continue
                if entry.name.startswith(("write-", "blob-", "scratch-")):
                    _remove_unused(Path(entry))
                elif entry.name.startswith("rootfs-"):  # its lock lies elsewhere: see `lithify.store.rootfs`
                    _remove_unused(Path(entry), held_by=root / "locks" / entry.name)


def _remove_unused(path: Path, held_by: Path | None = None) -> None:
    """Remove a file or folder unless a process holds the lock on it (or on ``held_by``)."""
    with contextlib.suppress(OSError):
        handle = os.open(held_by or path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink()
        finally:
            os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
