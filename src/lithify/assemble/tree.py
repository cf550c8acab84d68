"""Root file systems with every owner, as folders: packages in, a deterministic tar out.

All of this runs where every user and group of the image exists: as root, or as the root of a user namespace (see
`lithify.assemble.dpkg`). Nothing here runs code of the image.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from lithify import runtime
from lithify.errors import InputError
from lithify.runtime import User
from lithify.store import tar

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
CHUNK = 1 << 20

# Left out of every image's packages, as Debian's own slim images do. Copyright files stay: licences ask for it.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/man/*",
    "/usr/share/groff/*/man/*",
    "/usr/share/linda/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
)
INCLUDED = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")

# What differs between two runs, or is a secret or a cache of one machine. Folders of the first kind stay, empty.
_EMPTIED = re.compile(r"(dev|proc|sys|run|tmp|var/tmp|var/backups|var/lib/apt/lists|var/cache/(apt|man|ldconfig))/.*")
_DROPPED = re.compile(
    r"etc/(passwd|shadow|group|gshadow|subuid|subgid)-"
    r"|etc/\.pwd\.lock"
    r"|var/log/.*"
    r"|var/(lib/dpkg|cache/debconf)/[^/]*-old"
    r"|var/lib/dpkg/(lock|lock-frontend|triggers/Lock)"
    r"|var/lib/dbus/machine-id"
    r"|var/lib/systemd/random-seed"
    r"|etc/ssh/ssh_host_.*"
    r"|etc/ssl/(private/ssl-cert-snakeoil\.key|certs/ssl-cert-snakeoil\.pem)"
    r"|usr/sbin/policy-rc\.d"
)
_LAST_CHANGE = str(runtime.MTIME // 86400)


# -- into folders ----------------------------------------------------------------------------------------------


def unpack(archive: tarfile.TarFile, root: Path, *, wanted: Callable[[str], bool] = lambda path: True) -> None:
    """Unpack a package's data over the tree at ``root``, owners and modes included, as dpkg would.

    Symbolic links to folders are followed inside ``root`` only; no device node is made. ``wanted`` is asked for each
    path.

    Raises:
        InputError: for an archive that would write outside.
    """
    place = Places(root)
    for member in archive:
        path = member.name.removeprefix("./").strip("/")
        if path in ("", "."):
            continue
        if ".." in path.split("/") or "\0" in path:
            raise InputError(f"a package holds `{member.name}`, which lies outside of the image")
        folder, _, name = path.rpartition("/")
        if not wanted(path):
            continue
        parent = place.real(folder)
        assert parent is not None
        _write_member(archive, member, parent / name, place)


class Places:
    """Where paths of an image lie below ``root``, with its symbolic links followed inside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Path] = {"": root}

    def real(self, folder: str, *, make: bool = True) -> Path | None:
        """The folder that ``folder`` means, made where it is missing (or None)."""
        if folder in self._known:
            return self._known[folder]
        current: list[str] = []
        parts = [part for part in folder.split("/") if part][::-1]
        links = 0
        while parts:
            part = parts.pop()
            if part in (".", ""):
                continue
            if part == "..":
                current = current[:-1]
                continue
            here = self.root.joinpath(*current, part)
            try:
                status = here.lstat()
            except FileNotFoundError:
                if not make:
                    return None
                here.mkdir(mode=0o755)
                here.chmod(0o755)
                current.append(part)
                continue
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > 40:
                    raise InputError(f"too many symbolic links in `{folder}` of a package")
                target = str(here.readlink())
                if target.startswith("/"):
                    current = []
                parts += [piece for piece in target.split("/") if piece][::-1]
            elif stat.S_ISDIR(status.st_mode):
                current.append(part)
            elif make:
                raise InputError(f"`{folder}` of a package is no folder")
            else:
                return None
        self._known[folder] = self.root.joinpath(*current)
        return self._known[folder]

    def remove(self, path: Path) -> None:
        """Remove a file or a folder; what was known about folders no longer holds."""
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            self._known = {"": self.root}


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, place: Places) -> None:
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            # A package may name as a folder what the tree has as a link to one (/bin): the link stays.
            if path.is_symlink() and (place.real(str(path.relative_to(place.root)), make=False)) is not None:
                return
            place.remove(path)
            path.mkdir()
    elif member.issym():
        place.remove(path)
        path.symlink_to(member.linkname)
    elif member.islnk():
        target = member.linkname.removeprefix("./").strip("/")
        if ".." in target.split("/"):
            raise InputError(f"a package links `{member.name}` to `{member.linkname}`")
        folder = place.real(target.rpartition("/")[0], make=False)
        source = folder / target.rpartition("/")[2] if folder is not None else None
        if source is None or source.is_symlink() or not source.is_file():
            raise InputError(f"a package links `{member.name}` to `{member.linkname}`, which it does not have")
        place.remove(path)
        os.link(source, path)
        return
    elif member.isreg():
        place.remove(path)
        content = archive.extractfile(member)
        assert content is not None
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, CHUNK)
    else:
        return
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(member.mode & 0o7777)


def merge(upper: Path, lower: Path) -> None:
    """Apply an overlay's upper folder to the tree below it, by moving: ``upper`` is used up."""
    for entry in list(os.scandir(upper)):
        here, there = Path(entry.path), lower / entry.name
        status = here.lstat()
        exists = os.path.lexists(there)
        if is_whiteout(status):
            remove(there)
        elif stat.S_ISDIR(status.st_mode) and exists and not there.is_symlink() and there.is_dir():
            if is_opaque(here):
                remove(there)
                here.rename(there)
            else:
                os.chown(there, status.st_uid, status.st_gid)
                there.chmod(stat.S_IMODE(status.st_mode))
                merge(here, there)
        else:
            if exists:
                remove(there)
            here.rename(there)


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a file of an upper folder says that the one below is gone (Linux, overlayfs.rst)."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(folder: Path) -> bool:
    """Whether a folder of an upper folder hides the one below it."""
    for name in ("user.overlay.opaque", "trusted.overlay.opaque"):
        try:
            if os.getxattr(folder, name) == b"y":
                return True
        except OSError:
            continue
    return False


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- cleaning --------------------------------------------------------------------------------------------------


def clean(root: Path, *, loader_cache: bool) -> None:
    """Remove what differs from run to run, and what belongs to one machine. ``loader_cache`` keeps ``ld.so.cache``."""
    for folder, subfolders, files in os.walk(root):
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else f"{inside}/"
        for name in [*files, *(n for n in subfolders if Path(folder, n).is_symlink())]:
            path, file = f"{prefix}{name}", Path(folder, name)
            gone = _EMPTIED.fullmatch(path) or (_DROPPED.fullmatch(path) and not is_whiteout(file.lstat()))
            if gone or (path == "etc/ld.so.cache" and not loader_cache):
                file.unlink()
            elif path == "etc/machine-id" and file.is_file():
                file.write_bytes(b"")
            elif path == "etc/shadow" and file.is_file() and not file.is_symlink():
                file.write_bytes(_pinned_shadow(file.read_bytes()))
        for name in list(subfolders):
            if _EMPTIED.fullmatch(f"{prefix}{name}"):
                remove(Path(folder, name))
                subfolders.remove(name)


def _pinned_shadow(shadow: bytes) -> bytes:
    """The shadow file with one day of last change for all: it is the build's day otherwise (shadow(5))."""
    lines = []
    for line in shadow.split(b"\n"):
        fields = line.split(b":")
        if len(fields) == 9 and fields[2]:
            fields[2] = _LAST_CHANGE.encode()
        lines.append(b":".join(fields))
    return b"\n".join(lines)


# -- out of folders --------------------------------------------------------------------------------------------


def layer_of(root: Path, lower: Path | None = None, *, owner: User | None = None) -> Iterator[bytes]:
    """The tree at ``root`` as a layer's tar, end-of-archive blocks included.

    With ``lower``, ``root`` is the upper folder of an overlay over it: what it hides becomes OCI whiteouts, and
    folders that it only passes through without change are left out when nothing is in them. With ``owner``, all belongs
    to that user, whoever has it here.
    """
    members = _members(root, "", lower, {})
    if owner is not None:
        members = ((replace(entry, uid=owner.uid, gid=owner.gid), content) for entry, content in members)
    yield from tar.stream(members)
    yield tar.END


def _members(
    root: Path, inside: str, lower: Path | None, links: dict[tuple[int, int], str]
) -> Iterator[tuple[tar.Entry, Iterable[bytes]]]:
    folder = root / inside if inside else root
    for name in sorted((found.name for found in os.scandir(folder)), key=os.fsencode):
        path = f"{inside}/{name}" if inside else name
        file = root / path
        status = file.lstat()
        entry = tar.Entry(
            path,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=runtime.MTIME,
        )
        if stat.S_ISDIR(status.st_mode):
            below = lower / path if lower is not None else None
            opaque = below is not None and os.path.lexists(below) and is_opaque(file)
            content = _members(root, path, None if opaque else lower, links)
            own: tuple[tar.Entry, Iterable[bytes]] = replace(entry, kind="directory"), ()
            if opaque:
                yield own
                yield tar.Entry(f"{path}/{OPAQUE}", mtime=runtime.MTIME), ()
            elif below is None or not _same_folder(below, status):
                yield own
            else:
                first = next(content, None)
                if first is None:
                    continue
                yield own
                yield first
            yield from content
        elif is_whiteout(status):
            if lower is not None and os.path.lexists(lower / path):
                yield tar.Entry(f"{inside}/{WHITEOUT}{name}".lstrip("/"), mtime=runtime.MTIME), ()
        elif stat.S_ISLNK(status.st_mode):
            yield replace(entry, kind="symlink", link=str(file.readlink())), ()
        elif stat.S_ISREG(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and identity in links:
                yield replace(entry, kind="hardlink", link=links[identity]), ()
                continue
            links[identity] = path
            yield replace(entry, size=status.st_size), _content(file)


def _same_folder(below: Path, status: os.stat_result) -> bool:
    try:
        other = below.lstat()
    except FileNotFoundError:
        return False
    return (other.st_mode, other.st_uid, other.st_gid) == (status.st_mode, status.st_uid, status.st_gid)


def _content(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


# -- ELF -------------------------------------------------------------------------------------------------------


def elf_machine(head: bytes) -> int | None:
    """The ``e_machine`` of an ELF file that starts with ``head`` (at least 20 bytes), None for another file."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return None
    return int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")


def elf_files(root: Path) -> Iterator[tuple[str, int]]:
    """The ELF files of a tree, by path, with their machine."""
    for folder, _, files in os.walk(root):
        for name in files:
            file = Path(folder, name)
            if stat.S_ISREG(file.lstat().st_mode):
                with file.open("rb") as stream:
                    machine = elf_machine(stream.read(20))
                if machine is not None:
                    yield os.path.relpath(file, root), machine


def is_program(file: Path) -> bool:
    """Whether an ELF file (64-bit, little-endian) names an interpreter: it can be executed (elf(5), PT_INTERP)."""
    with file.open("rb") as stream:
        head = stream.read(64)
        if elf_machine(head) is None or len(head) < 64 or head[4] != 2 or head[5] != 1:
            return False
        offset, size = int.from_bytes(head[32:40], "little"), int.from_bytes(head[54:56], "little")
        count = int.from_bytes(head[56:58], "little")
        stream.seek(offset)
        table = stream.read(size * count)
    return any(table[i : i + 4] == b"\x03\0\0\0" for i in range(0, len(table), size or 1))
