"""Layers to a folder: an image's root file system, unpacked once and kept in the store's cache.

Each layer is unpacked on its own (several at once), then the layers are joined from the bottom up, by renaming: what
a layer removes (OCI layer.md, "Whiteouts"), what it replaces, what it adds. Nothing in a layer is trusted: its bytes
are checked against both digests while they are read, and no path of it leads outside its folder, for a symbolic link
is never followed when writing.

A folder of ``rootfs/`` has one owner, the caller, unless every owner of the image is asked for (`root_filesystem`).
Device nodes are left out (the sandbox brings its own), and so are extended attributes.
"""

# Paths are bytes here, as they stand in the archive; pathlib knows text only.
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH115, PTH208, PTH211

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from lithify.errors import HostError, InputError, LithifyError
from lithify.progress import Event, Report, silent
from lithify.store import oci, tar
from lithify.store.compression import CHUNK, decompressed
from lithify.store.store import Store, corrupt, friendly_disk_errors, open_store, remove_tree

# Part of every cached folder's name: raise it when the same layers come to give another tree.
FORMAT = 1
TASK = "unpack"
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
# Deeper than any real tree, and shallow enough for every program that walks it by recursion.
_MAX_DEPTH = 200


def root_filesystem(
    store: Store, layers: Sequence[oci.Layer], *, all_owners: bool = False, report: Report = silent
) -> Path:
    """The folder that holds ``layers`` unpacked over each other, the first one lowest.

    Made once and kept in the store, by the layers' diffIDs; two processes that ask for it at once make it once.
    It must not be changed: put an overlay over it.

    Every file belongs to the caller and has the image's mode without the set-uid and set-gid bits; folders can be
    read and written by their owner. With ``all_owners`` owners and modes are the image's: it needs root, or else
    a range of subordinate ids, whose first becomes the image's user 1 and so on (``unshare --map-auto``).

    Raises:
        LithifyError: for a layer that is missing, damaged or hostile; nothing is left of it.
        HostError: when the disk is full, or cannot be written, or the owners cannot be had.
    """
    final = store.root / "rootfs" / _key(layers, all_owners)
    if final.is_dir():
        return final
    if all_owners and os.geteuid() != 0:
        _in_user_namespace(store, layers)
        return final
    with store.lock(f"rootfs-{final.name}"):
        if final.is_dir():
            return final
        with store.scratch("rootfs") as scratch, friendly_disk_errors(store.root):
            final.parent.mkdir(exist_ok=True)
            _unpack_all(store, layers, scratch, all_owners, report)
            _flush(scratch)
            (scratch / "0").rename(final)
    return final


def unpack(
    store: Store, layers: Sequence[oci.Layer], destination: Path, *, all_owners: bool = False, report: Report = silent
) -> None:
    """Make the folder ``destination`` of ``layers``, outside the cache; see `root_filesystem`.

    It appears when it is complete. It may be there before if it is empty.

    Raises:
        LithifyError: for a layer that is missing, damaged or hostile; nothing is left of it.
        HostError: when the disk is full, or cannot be written.
    """
    with friendly_disk_errors(destination):
        scratch = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}-"))
        try:
            _unpack_all(store, layers, scratch, all_owners, report)
            _flush(scratch)
            (scratch / "0").rename(destination)
        finally:
            remove_tree(scratch)


def read_files(store: Store, layers: Sequence[oci.Layer], paths: Iterable[str]) -> dict[str, bytes]:
    """The content of the regular files ``paths`` of an image, without unpacking it; what it lacks is left out.

    Reads the topmost layer first, each whole and verified, and stops when all are found. Symbolic links are not
    followed.

    Raises:
        LithifyError: for a layer that is missing, damaged or hostile.
    """
    return _read_files(store, layers, paths, links=8)


def _read_files(store: Store, layers: Sequence[oci.Layer], paths: Iterable[str], links: int) -> dict[str, bytes]:
    """`read_files`, with so many hard links still to follow."""
    wanted = {path.strip("/").encode("utf-8", "surrogateescape"): path for path in paths}
    found: dict[str, bytes] = {}
    for number in reversed(range(len(layers))):
        if not wanted:
            break
        layer = layers[number]
        here: dict[bytes, bytes | None] = {}
        linked: dict[bytes, str] = {}
        hidden: set[bytes] = set()
        with _members(store, layer, lambda size: None) as members:
            for member, content in members:
                path = _clean(member.path, layer)
                folder, _, name = path.rpartition(b"/")
                if name == _OPAQUE:
                    hidden.add(folder + b"/" if folder else b"")
                    continue
                if name.startswith(_WHITEOUT):
                    gone = _join(folder, name.removeprefix(_WHITEOUT))
                    hidden |= {gone, gone + b"/"}
                    continue
                # What lies above a member is a folder, whatever a lower layer has there.
                hidden.update([one for one in wanted if path.startswith(one + b"/")])
                for one in here:  # what this layer had there before: the last of one name counts
                    if one == path or (one.startswith(path + b"/") and member.type != tar.DIRECTORY):
                        here[one] = None
                        linked.pop(one, None)
                if member.type == tar.DIRECTORY:
                    hidden.add(path)
                else:
                    hidden |= {path, path + b"/"}
                    if path in wanted:
                        here[path] = b"".join(content) if member.type in tar.REGULAR else None
                        if member.type == tar.HARDLINK:
                            linked[path] = _clean(member.link, layer).decode("utf-8", "surrogateescape")
        for path, target in linked.items() if links else ():
            here[path] = _read_files(store, layers[: number + 1], [target], links - 1).get(target)
        for path, data in here.items():
            if data is not None:
                found[wanted[path]] = data
        wanted = {
            path: name
            for path, name in wanted.items()
            if path not in here and not any(_hides(one, path) for one in hidden)
        }
    return found


def inside(root: Path, path: str) -> Path | None:
    """Where ``path`` of an image lies in its unpacked ``root``, links followed as a process inside would.

    None where it leads nowhere. Never a path outside ``root``.
    """
    found = _resolve(os.fsencode(root), path.encode("utf-8", "surrogateescape"))
    return None if found is None else Path(os.fsdecode(found))


def _key(layers: Sequence[oci.Layer], all_owners: bool) -> str:
    chain = hashlib.sha256("\n".join([f"format {FORMAT}", *(layer.diff_id for layer in layers)]).encode())
    return f"{chain.hexdigest()}{'-owners' if all_owners else ''}"


# -- reading -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _members(
    store: Store, layer: oci.Layer, progress: Callable[[int], None]
) -> Iterator[Iterator[tuple[tar.Member, Iterator[memoryview]]]]:
    """The members of a layer's tar; the block ends well only if both digests are what they should be."""
    path = store.blob_path(layer.descriptor.digest)
    diff_id = hashlib.sha256()

    def uncompressed(file: _Hashing) -> Iterator[bytes]:
        for chunk in decompressed(cast(BinaryIO, file), layer.descriptor.media_type):
            diff_id.update(chunk)
            yield chunk

    try:
        blob = path.open("rb")
    except FileNotFoundError:
        raise LithifyError(
            f"layer {layer.descriptor.digest} is missing from the store {store.root}", hint="build the image again"
        ) from None
    with blob:
        file = _Hashing(blob, progress)
        failure: tar.TarError | LithifyError | None = None
        try:
            yield tar.members(uncompressed(file))
        except HostError:
            raise
        except (tar.TarError, LithifyError) as error:
            failure = error
        # Damage shows itself as any nonsense: it is the digest that tells a damaged layer from a bad one.
        while file.read(CHUNK):
            pass
        if file.digest() != layer.descriptor.digest:
            raise corrupt(layer.descriptor.digest, store.root) from failure
        if isinstance(failure, (tar.TarError, InputError)):
            raise _bad(layer, str(failure)) from failure
        if failure is not None:
            raise failure
        if f"sha256:{diff_id.hexdigest()}" != layer.diff_id:
            raise _bad(layer, f"its uncompressed digest is not {layer.diff_id}, as the configuration says")


class _Hashing(io.RawIOBase):
    """A file that knows the digest of what was read from it."""

    def __init__(self, file: BinaryIO, progress: Callable[[int], None]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._progress = progress

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self._progress(len(data))
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def _bad(layer: oci.Layer, why: str) -> LithifyError:
    return LithifyError(f"layer {layer.descriptor.digest} cannot be unpacked: {why}")


def _show(path: bytes) -> str:
    return f"`{path.decode('utf-8', 'backslashreplace')}`"


def _clean(path: bytes, layer: oci.Layer) -> bytes:
    """``path`` without empty parts, and below the root."""
    if b"//" not in path and b"." not in path[:2] and b"/." not in path:
        cleaned = path.strip(b"/")
    else:
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise _bad(layer, f"{_show(path)} leads outside")
        cleaned = b"/".join(parts)
    if b"\0" in cleaned:
        raise _bad(layer, f"{_show(path)} holds a zero byte")
    if cleaned.count(b"/") >= _MAX_DEPTH:
        raise _bad(layer, f"a path of more than {_MAX_DEPTH} folders: {_show(path)[:100]}...")
    return cleaned


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _hides(hidden: bytes, path: bytes) -> bool:
    """Whether ``hidden`` (a path, or with a slash at its end everything below it; empty for all) hides ``path``."""
    return hidden == path or (path.startswith(hidden) if hidden.endswith(b"/") or not hidden else False)


# -- one layer ---------------------------------------------------------------------------------------------------


@dataclass
class _Unpacked:
    """One layer on its own: what lies in its folder, and what it asks of the layers below."""

    layer: oci.Layer
    folder: bytes
    whiteouts: list[bytes] = field(default_factory=list)
    opaque: list[bytes] = field(default_factory=list)
    # Folders that the layer names, as opposed to those that only its files' paths imply.
    folders: dict[bytes, tar.Member] = field(default_factory=dict)
    # Hard links to files of the layers below: the new path and its target.
    links: list[tuple[bytes, bytes]] = field(default_factory=list)


def _unpack(
    store: Store, layer: oci.Layer, folder: Path, all_owners: bool, progress: Callable[[int], None]
) -> _Unpacked:
    """Unpack one layer into the new ``folder``.

    The folder is ours alone while we write, so what we made so far (``folders``, ``others``) is all there is in it,
    and a path is safe when all its parents are folders that we made.
    """
    folder.mkdir()
    result = _Unpacked(layer, os.fsencode(folder))
    root = result.folder + b"/"
    made: set[bytes] = {b""}
    others: set[bytes] = set()

    def parents(path: bytes) -> None:
        """Make the folders above ``path``."""
        missing = []
        parent = path.rpartition(b"/")[0]
        while parent not in made:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        for parent in reversed(missing):
            if parent in others:
                raise _bad(layer, f"{_show(path)} lies below {_show(parent)}, which is not a folder")
            os.mkdir(root + parent, 0o755)
            made.add(parent)

    def replace(path: bytes) -> None:
        """Make room at ``path``: within a layer, too, the last of one name counts."""
        if path in others:
            os.unlink(root + path)
            others.discard(path)
        elif path in made:
            remove_tree(Path(os.fsdecode(root + path)))
            below = path + b"/"
            made.difference_update([one for one in made if one == path or one.startswith(below)])
            others.difference_update([one for one in others if one.startswith(below)])
            for one in [one for one in result.folders if one == path or one.startswith(below)]:
                del result.folders[one]
            result.links = [(new, old) for new, old in result.links if not new.startswith(below)]

    with _members(store, layer, progress) as members:
        for member, content in members:
            path = _clean(member.path, layer)
            name = path.rpartition(b"/")[2]
            if name.startswith(_WHITEOUT):
                _note_whiteout(result, path)
                continue
            if not path and member.type != tar.DIRECTORY:
                raise _bad(layer, "its root is not a folder")
            try:
                if path.rpartition(b"/")[0] not in made:
                    parents(path)
                target = root + path
                if member.type == tar.DIRECTORY:
                    if path not in made:
                        replace(path)
                        os.mkdir(target, 0o755)
                        made.add(path)
                    result.folders[path] = member
                    continue
                if path in others or path in made:
                    replace(path)
                if result.links:
                    result.links = [link for link in result.links if link[0] != path]
                if member.type in tar.REGULAR:
                    _write_file(target, member, content, all_owners)
                elif member.type == tar.SYMLINK:
                    os.symlink(member.link, target)
                    if all_owners:
                        os.chown(target, member.uid, member.gid, follow_symlinks=False)
                    os.utime(target, ns=_times(member), follow_symlinks=False)
                elif member.type == tar.HARDLINK:
                    linked = _clean(member.link, layer)
                    if linked in others:
                        os.link(root + linked, target, follow_symlinks=False)
                    else:
                        result.links.append((path, linked))
                        continue
                else:
                    continue  # a device node or a named pipe
                others.add(path)
            except tar.TarError:
                raise
            except (OSError, ValueError, OverflowError) as error:
                with friendly_disk_errors(store.root):
                    if isinstance(error, OSError) and error.errno in _DISK:
                        raise
                raise _bad(layer, f"{_show(path)}: {error}") from error
    # Deepest first, for a folder's time changes with what is made in it.
    for path, member in sorted(result.folders.items(), reverse=True):
        target = root + path
        mode = member.mode if all_owners else member.mode & 0o1777 | 0o700
        if all_owners:
            os.chown(target, member.uid, member.gid, follow_symlinks=False)
        os.chmod(target, mode)
        os.utime(target, ns=_times(member))
    return result


def _write_file(target: bytes, member: tar.Member, content: Iterator[memoryview], all_owners: bool) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for piece in content:
            while piece:
                piece = piece[os.write(handle, piece) :]
        if all_owners:
            os.fchown(handle, member.uid, member.gid)
        os.fchmod(handle, member.mode if all_owners else member.mode & 0o777)
        os.utime(handle, ns=_times(member))
    finally:
        os.close(handle)


def _times(member: tar.Member) -> tuple[int, int]:
    nanoseconds = int(member.mtime * 10**9)
    return nanoseconds, nanoseconds


def _note_whiteout(result: _Unpacked, path: bytes) -> None:
    folder, _, name = path.rpartition(b"/")
    if name == _OPAQUE:
        result.opaque.append(folder)
    elif not name.startswith(b".wh..wh."):  # other names of the kind are bookkeeping of AUFS
        gone = name.removeprefix(_WHITEOUT)
        if gone in (b"", b".", b".."):
            raise _bad(result.layer, f"a whiteout of {_show(gone)}")
        result.whiteouts.append(_join(folder, gone))


# -- all layers --------------------------------------------------------------------------------------------------


def _unpack_all(store: Store, layers: Sequence[oci.Layer], scratch: Path, all_owners: bool, report: Report) -> None:
    """Unpack ``layers`` below ``scratch`` and join them in its folder ``0``."""
    total = sum(layer.descriptor.size for layer in layers)
    report(Event("use", "start", TASK, total=total, unit="bytes"))
    done = 0
    guard = threading.Lock()

    def progress(count: int) -> None:
        nonlocal done
        with guard:
            done += count
            report(Event("use", "advance", TASK, done=done, total=total, unit="bytes"))

    if not layers:
        (scratch / "0").mkdir()
    workers = max(1, min(len(os.sched_getaffinity(0)), 8, len(layers)))
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_unpack, store, layer, scratch / str(number), all_owners, progress)
            for number, layer in enumerate(layers)
        ]
        try:
            root = b""
            for number, job in enumerate(jobs):
                unpacked = job.result()
                if number == 0:
                    root = unpacked.folder
                    _make_links(unpacked, root)
                else:
                    _join_layer(unpacked, root)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    report(Event("use", "finish", TASK, done=total, total=total, unit="bytes"))


def _flush(folder: Path) -> None:
    """Write the folder's file system to disk: one system call, where a flush of each file would take minutes."""
    subprocess.run(["sync", "--file-system", str(folder)], capture_output=True, check=False)


def _join_layer(upper: _Unpacked, root: bytes) -> None:
    """Lay ``upper`` over the folder ``root``."""
    for folder in upper.opaque:
        place = _resolve(root, folder)
        if place is not None and stat.S_ISDIR(os.lstat(place).st_mode):
            for name in os.listdir(place):
                _remove(_join(place, name))
    for path in upper.whiteouts:
        folder, _, name = path.rpartition(b"/")
        place = _resolve(root, folder)
        if place is not None:
            _remove(_join(place, name))
    _merge(upper, b"", root, root)
    _make_links(upper, root)


def _merge(upper: _Unpacked, path: bytes, place: bytes, root: bytes) -> None:
    """Move what lies at ``path`` of ``upper`` into the folder ``place``."""
    source = upper.folder + b"/" + path if path else upper.folder
    before = os.lstat(place)
    with os.scandir(source) as entries:
        children = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in children:
        child, target = _join(path, name), place + b"/" + name
        try:
            there = os.lstat(target).st_mode
        except FileNotFoundError:
            os.rename(source + b"/" + name, target)
            continue
        if is_folder and stat.S_ISDIR(there):
            _merge(upper, child, target, root)
            continue
        if is_folder and stat.S_ISLNK(there) and child not in upper.folders:
            # `bin/x` over Debian's link from `bin` to `usr/bin`: the layer does not say that `bin` is a folder.
            behind = _resolve(root, target.removeprefix(root).lstrip(b"/"))
            if behind is not None and stat.S_ISDIR(os.lstat(behind).st_mode):
                _merge(upper, child, behind, root)
                continue
        if is_folder or stat.S_ISDIR(there):
            _remove(target)
        os.rename(source + b"/" + name, target)
    after = before
    if path in upper.folders:
        after = os.lstat(source)
        member = upper.folders[path]
        if (after.st_uid, after.st_gid) != (before.st_uid, before.st_gid):
            os.chown(place, after.st_uid, after.st_gid, follow_symlinks=False)
        os.chmod(place, stat.S_IMODE(after.st_mode))
        os.utime(place, ns=_times(member))
    else:
        os.utime(place, ns=(after.st_atime_ns, after.st_mtime_ns))


def _make_links(upper: _Unpacked, root: bytes) -> None:
    """Make the hard links of ``upper`` to files of the layers below it (or to later members of its own)."""
    for path, linked in upper.links:
        old, new = _place(root, linked), _place(root, path)
        if old is None or new is None or not os.path.lexists(old) or stat.S_ISDIR(os.lstat(old).st_mode):
            raise _bad(upper.layer, f"{_show(path)} is a link to {_show(linked)}, which is no file")
        if new != old:
            _remove(new)
            os.link(old, new, follow_symlinks=False)


def _place(root: bytes, path: bytes) -> bytes | None:
    """Where ``path`` lies below ``root``; its last part is not followed. None if its folder is not there."""
    folder, _, name = path.rpartition(b"/")
    place = _resolve(root, folder)
    return None if place is None or not name else place + b"/" + name


def _resolve(root: bytes, path: bytes) -> bytes | None:
    """Where ``path`` leads for a process whose root is ``root``, links followed; None if nowhere."""
    done: list[bytes] = []
    rest = _parts_reversed(path)
    links = 0
    while rest:
        part = rest.pop()
        if part == b"..":
            done = done[:-1]
            continue
        here = b"/".join([root, *done, part])
        try:
            mode = os.lstat(here).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(mode):
            links += 1
            if links > 40:  # as many as Linux follows
                return None
            target = os.readlink(here)
            if target.startswith(b"/"):
                done = []
            rest += _parts_reversed(target)
        else:
            done.append(part)
    return b"/".join([root, *done])


def _parts_reversed(path: bytes) -> list[bytes]:
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except IsADirectoryError:
        remove_tree(Path(os.fsdecode(path)))


# -- every owner, for who is not root ----------------------------------------------------------------------------


def _in_user_namespace(store: Store, layers: Sequence[oci.Layer]) -> None:
    """Unpack with all owners as the root of a user namespace, in a process of its own."""
    unshare = shutil.which("unshare")
    if unshare is None or shutil.which("newuidmap") is None:
        raise HostError(
            "the image's owners cannot be kept: `unshare` or `newuidmap` is missing",
            hint="install your distribution's packages `util-linux` and `uidmap`, or do it as root",
        )
    document = [
        [layer.descriptor.media_type, layer.descriptor.digest, layer.descriptor.size, layer.diff_id] for layer in layers
    ]
    result = subprocess.run(
        [unshare, "--user", "--map-root-user", "--map-auto", "--", sys.executable, "-m", __name__, str(store.root)],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise HostError(
            "the image could not be unpacked with all of its owners",
            details=result.stderr.strip(),
            hint=f"it needs a range of subordinate ids for {getpass.getuser()} in /etc/subuid and /etc/subgid",
        )


def _main() -> int:
    """Do what `_in_user_namespace` asks for."""
    try:
        root_filesystem(
            open_store(Path(sys.argv[1])),
            [oci.Layer(oci.Descriptor(*fields), diff_id) for *fields, diff_id in json.load(sys.stdin)],
            all_owners=True,
        )
    except LithifyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
