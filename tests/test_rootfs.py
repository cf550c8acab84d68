"""Layers to a folder: every rule of OCI's layers, hostile archives, damage, and two processes at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import images
from images import Member, device, file, folder, hardlink, symlink
from lithify.errors import LithifyError
from lithify.progress import Event
from lithify.store import oci
from lithify.store.compression import GZIP, ZSTD, Compression
from lithify.store.rootfs import inside, read_files, root_filesystem, unpack
from lithify.store.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def _unpack(store: Store, *layers: list[Member]) -> Path:
    return root_filesystem(store, [images.layer(store, members) for members in layers])


def _tree(root: Path) -> dict[str, str]:
    """Every path with its content, target or kind."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = path.read_text()
    return found


def _names(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())


def _left_behind(store: Store) -> list[Path]:
    return [*(store.root / "tmp").iterdir(), *(store.root / "rootfs").glob("*")]


# -- what layers mean --------------------------------------------------------------------------------------------


def test_files_folders_and_links_have_the_layers_modes_times_and_contents(store: Store) -> None:
    root = _unpack(
        store, [folder("d", 0o750), file("d/f", "text", 0o640), symlink("d/s", "../x"), hardlink("h", "d/f")]
    )

    assert _tree(root) == {"d": "folder", "d/f": "text", "d/s": "-> ../x", "h": "text"}
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o640
    assert (root / "d/f").samefile(root / "h")
    for path in ("d", "d/f", "d/s"):
        assert (root / path).lstat().st_mtime == images.MTIME


@pytest.mark.parametrize("compression", [ZSTD, GZIP, None], ids=["zstd", "gzip", "plain"])
def test_every_compression_gives_the_same_tree(store: Store, compression: Compression | None) -> None:
    root = root_filesystem(store, [images.layer(store, [file("a", "1" * 5000)], compression)])

    assert _tree(root) == {"a": "1" * 5000}


def test_an_upper_file_replaces_a_lower_one_of_any_kind(store: Store) -> None:
    root = _unpack(
        store,
        [file("a", "1"), folder("b"), file("b/x"), symlink("c", "a"), file("d", "1")],
        [file("a", "2"), file("b", "2"), file("c", "2"), folder("d"), file("d/x", "2")],
    )
    assert _tree(root) == {"a": "2", "b": "2", "c": "2", "d": "folder", "d/x": "2"}


def test_an_upper_folder_adds_to_a_lower_one_and_sets_its_mode(store: Store) -> None:
    root = _unpack(store, [folder("d", 0o700), file("d/a", "1")], [folder("d", 0o755), file("d/b", "2")])

    assert _tree(root) == {"d": "folder", "d/a": "1", "d/b": "2"}
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755


def test_a_folder_that_only_a_path_implies_keeps_the_lower_mode_and_time(store: Store) -> None:
    root = _unpack(store, [folder("d", 0o700)], [file("d/b", "2")])

    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700
    assert (root / "d").stat().st_mtime == images.MTIME


def test_whiteouts_remove_what_lies_below_and_nothing_of_their_own_layer(store: Store) -> None:
    root = _unpack(
        store,
        [file("a", "1"), folder("d"), file("d/x", "1"), file("d/y", "1"), file("e/z", "1")],
        [file(".wh.a"), file("d/.wh.x"), file("d/new", "2"), file(".wh.e"), file("e/z2", "2"), file("gone/.wh.q")],
    )
    assert _tree(root) == {"d": "folder", "d/y": "1", "d/new": "2", "e": "folder", "e/z2": "2"}


def test_an_opaque_folder_hides_the_lower_one_wherever_its_mark_stands(store: Store) -> None:
    lower = [folder("d"), file("d/x", "1"), file("d/s/y", "1")]
    for upper in (
        [folder("d"), file("d/.wh..wh..opq"), file("d/new", "2")],
        [folder("d"), file("d/new", "2"), file("d/.wh..wh..opq")],
    ):
        assert _tree(_unpack(store, lower, upper)) == {"d": "folder", "d/new": "2"}


def test_a_folder_removed_and_made_anew_starts_empty(store: Store) -> None:
    root = _unpack(store, [folder("d", 0o700), file("d/x", "1")], [file(".wh.d")], [file("d/y", "3")])

    assert _tree(root) == {"d": "folder", "d/y": "3"}
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755


def test_a_path_below_a_lower_link_to_a_folder_goes_where_the_link_leads(store: Store) -> None:
    """Debian's `bin` is a link to `usr/bin`; a layer with `bin/x` must not replace it."""
    root = _unpack(store, [folder("usr/bin"), symlink("bin", "usr/bin")], [file("bin/x", "2")])

    assert _tree(root) == {"usr": "folder", "usr/bin": "folder", "usr/bin/x": "2", "bin": "-> usr/bin"}


def test_a_hard_link_may_lead_to_a_lower_layer_or_to_a_later_member(store: Store) -> None:
    root = _unpack(store, [file("a", "1")], [hardlink("d/b", "a"), hardlink("c", "later"), file("later", "2")])

    assert (root / "d/b").samefile(root / "a")
    assert (root / "c").samefile(root / "later")


def test_the_last_member_of_a_path_counts(store: Store) -> None:
    root = _unpack(store, [file("a", "1"), file("a", "2"), folder("b"), file("b/x"), file("b", "3"), folder("a")])

    assert _tree(root) == {"a": "folder", "b": "3"}


def test_devices_and_set_uid_bits_are_left_out_and_folders_stay_usable(store: Store) -> None:
    root = _unpack(store, [file("su", "x", 0o6755), folder("d", 0o2000), file("d/x"), device("dev/null")])

    assert stat.S_IMODE((root / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700
    assert _tree(root)["dev"] == "folder"
    assert "dev/null" not in _tree(root)
    assert {path.lstat().st_uid for path in root.rglob("*")} == {os.geteuid()}


def test_names_may_hold_any_byte_but_zero_and_slash(store: Store) -> None:
    name = bytes(set(range(1, 256)) - {ord("/")})
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    root = root_filesystem(store, [images.layer(store, info.tobuf(tarfile.GNU_FORMAT, "utf-8") + bytes(1024))])

    assert [os.fsencode(path.name) for path in root.iterdir()] == [name]


def test_an_image_without_layers_is_an_empty_folder(store: Store) -> None:
    assert _tree(root_filesystem(store, [])) == {}


def test_the_umask_changes_nothing(store: Store) -> None:
    before = os.umask(0o077)
    try:
        root = _unpack(store, [file("d/f", "", 0o664), folder("e", 0o775)])
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((root / path).stat().st_mode) for path in ("d/f", "e")]
    assert modes == [0o664, 0o775]


# Few names, so that layers meet; a model that keeps paths in a dictionary says what is right.
_FILES = st.tuples(st.sampled_from(["file", "gone", "opaque"]), st.sampled_from(["a", "b", "d/a", "d/e/a", "d/e", "d"]))


@given(st.lists(st.lists(_FILES, max_size=6), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_stack_of_layers_gives_what_the_specification_says(stack: list[list[tuple[str, str]]]) -> None:
    model: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = open_store(Path(temporary) / "store")
        layers = []
        for number, actions in enumerate(stack):
            members, added = [], dict[str, str]()
            for action, path in actions:
                parents = [path[:at] for at, letter in enumerate(path) if letter == "/"]
                if action == "gone":
                    members.append(file("/".join([*path.split("/")[:-1], f".wh.{path.split('/')[-1]}"])))
                    model = {one: text for one, text in model.items() if not f"{one}/".startswith(f"{path}/")}
                elif action == "opaque":
                    members.append(file(f"{path}/.wh..wh..opq"))
                    model = {one: text for one, text in model.items() if not one.startswith(f"{path}/")}
                elif not any(parent in added for parent in parents):
                    members.append(file(path, f"{number} {path}"))
                    added = {one: text for one, text in added.items() if not one.startswith(f"{path}/")}
                    added[path] = f"{number} {path}"
            for path in added:
                model = {
                    one: text
                    for one, text in model.items()
                    if not one.startswith(f"{path}/") and not path.startswith(f"{one}/")
                }
            model |= added
            layers.append(images.layer(store, members))
        root = root_filesystem(store, layers)

        assert {path: text for path, text in _tree(root).items() if text != "folder"} == model
        asked = ["a", "b", "d/a", "d/e/a", "d/e", "d"]
        assert {path: data.decode() for path, data in read_files(store, layers, asked).items()} == model


# -- owners ------------------------------------------------------------------------------------------------------

_OWNED = [
    folder("d", 0o2755, uid=5, gid=6),
    file("d/f", "x", 0o4755, uid=1000, gid=50),
    symlink("s", "d", uid=7, gid=8),
]


def _can_map() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--map-auto", "true"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0 and not _can_map(), reason="no range of subordinate ids")
def test_all_owners_keeps_the_owners_and_every_bit_of_the_modes(store: Store) -> None:
    layers = [images.layer(store, _OWNED), images.layer(store, [file("d/g", "", uid=9, gid=9)])]
    root = root_filesystem(store, layers, all_owners=True)
    own = root_filesystem(store, layers)
    command = ["find", str(root), "-mindepth", "1", "-printf", "%P %U:%G %m\n"]
    if os.geteuid() != 0:
        command = ["unshare", "--user", "--map-root-user", "--map-auto", "--", *command]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert sorted(listing.splitlines()) == ["d 5:6 2755", "d/f 1000:50 4755", "d/g 9:9 644", "s 7:8 777"]
    assert root != own
    assert {path.lstat().st_uid for path in own.rglob("*")} == {os.geteuid()}


# -- hostile -----------------------------------------------------------------------------------------------------

_HOSTILE = {
    "a path that climbs": [file("../escaped", "x")],
    "a path that climbs later": [file("a/../../escaped", "x")],
    "a file below a link out": [symlink("a", "/OUTSIDE"), file("a/escaped", "x")],
    "a file below a relative link out": [symlink("a", "../../.."), file("a/escaped", "x")],
    "a folder over a link out": [symlink("a", "/OUTSIDE"), folder("a"), file("a/escaped", "x")],
    "a file over a link out": [symlink("a", "/OUTSIDE/kept"), file("a", "x")],
    "a hard link to the outside": [hardlink("a", "../../../../../../../OUTSIDE/kept")],
    "a hard link to an absolute path": [hardlink("a", "/OUTSIDE/kept"), file("a", "x")],
    "a hard link through a link": [symlink("d", "/OUTSIDE"), hardlink("a", "d/kept")],
    "a hard link to a folder": [folder("d"), hardlink("a", "d")],
    "a hard link to itself": [hardlink("a", "a")],
    "a whiteout of the parent": [file(".wh..."), file(".wh..")],
    "a whiteout through a link": [symlink("a", "/OUTSIDE"), file("a/.wh.kept")],
    "a root that is a link": [symlink(".", "/OUTSIDE")],
    "a root that is a file": [file("./", "x")],
    "an empty name": [file("", "x")],
    "a very deep path": [file("d/" * 1500 + "f", "x")],
    "a very long name": [file("n" * 300, "x")],
    "a file below a file": [file("a", "x"), file("a/b", "x")],
    "a time out of range": [file("a", "x", mtime=2**60)],
}


@pytest.mark.parametrize("name", _HOSTILE)
@pytest.mark.parametrize("where", ["one layer", "over a layer", "two layers"])
def test_a_hostile_layer_changes_nothing_outside_and_is_no_traceback(tmp_path: Path, name: str, where: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (outside / "kept").chmod(0o600)
    members = []
    for info, data in _HOSTILE[name]:
        changed = tarfile.TarInfo(info.name)
        changed.type, changed.mode, changed.mtime, changed.size = info.type, info.mode, info.mtime, info.size
        changed.linkname = info.linkname.replace("/OUTSIDE", str(outside))
        members.append((changed, data))
    store = open_store(tmp_path / "a/b/store")
    stack = {
        "one layer": [members],
        "over a layer": [[file("a/x", "1"), file("d/y", "1")], members],
        "two layers": [[member] for member in members],
    }[where]
    layers = [images.layer(store, one) for one in stack]

    with contextlib.suppress(LithifyError):
        root = root_filesystem(store, layers)
        for path in root.rglob("*"):
            assert path.is_symlink() or not path.is_file() or not path.samefile(outside / "kept")
    with contextlib.suppress(LithifyError):
        read_files(store, layers, ["a", "a/b", "d"])

    assert (outside / "kept").read_text() == "kept"
    assert stat.S_IMODE((outside / "kept").stat().st_mode) == 0o600
    assert _names(outside) == ["kept"]
    assert _names(tmp_path) == ["a", "outside"]
    assert _names(tmp_path / "a") == ["b"]
    assert _names(tmp_path / "a/b") == ["store"]
    assert list((store.root / "tmp").iterdir()) == []


_HOSTILE_PATH = st.lists(st.sampled_from(["..", ".", "", "a", "b", "link", ".wh.a", ".wh..wh..opq"]), max_size=5)
_MEMBERS = st.lists(
    st.tuples(
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]),
        _HOSTILE_PATH.map("/".join),
        st.one_of(_HOSTILE_PATH.map("/".join), st.just("/OUTSIDE"), st.just("../../../../outside")),
    ),
    max_size=6,
)


@given(st.lists(_MEMBERS, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_no_archive_writes_outside(stack: list[list[tuple[bytes, str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        outside = base / "outside"
        outside.mkdir()
        (outside / "a").write_text("kept")
        store = open_store(base / "store")
        layers = []
        for entries in stack:
            members = []
            for kind, path, target in entries:
                info = tarfile.TarInfo(path)
                info.type, info.linkname = kind, target.replace("/OUTSIDE", str(outside))
                members.append((info, b""))
            layers.append(images.layer(store, members))
        with contextlib.suppress(LithifyError):
            root_filesystem(store, layers)

        assert _names(outside) == ["a"]
        assert (outside / "a").read_text() == "kept"
        assert (outside / "a").stat().st_nlink == 1
        assert _names(base) == ["outside", "store"]
        assert list((store.root / "tmp").iterdir()) == []


# -- damage ------------------------------------------------------------------------------------------------------


def _damage(path: Path, at: int) -> None:
    status = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as blob:
        blob.seek(at)
        byte = blob.read(1)
        blob.seek(at)
        blob.write(bytes([byte[0] ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a failing disk changes no time


@pytest.mark.parametrize("compression", [ZSTD, GZIP, None], ids=["zstd", "gzip", "plain"])
def test_a_flipped_byte_anywhere_is_found_and_nothing_is_left(store: Store, compression: Compression | None) -> None:
    content = os.urandom(3_000_000)  # more than one chunk of every reader
    for turn in range(12):
        layer = images.layer(store, [file("a", content + bytes([turn])), folder("d")], compression)
        path = store.blob_path(layer.descriptor.digest)
        _damage(path, turn * path.stat().st_size // 12)

        with pytest.raises(LithifyError, match="not what its digest says"):
            root_filesystem(store, [layer])
        with pytest.raises(LithifyError, match="not what its digest says"):
            read_files(store, [layer], ["a"])
        assert _left_behind(store) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_blob_is_an_error_that_says_what_to_do(store: Store, number: int) -> None:
    layers = [images.layer(store, [file("a")]), images.layer(store, [file("b")])]
    store.blob_path(layers[number].descriptor.digest).unlink()

    with pytest.raises(LithifyError) as caught:
        root_filesystem(store, layers)
    assert caught.value.hint == "build the image again"
    assert _left_behind(store) == []


def test_a_wrong_diff_id_is_found(store: Store) -> None:
    layer = images.layer(store, [file("a")])
    wrong = oci.Layer(layer.descriptor, oci.digest_of(b"other"))

    with pytest.raises(LithifyError, match="as the configuration says"):
        root_filesystem(store, [wrong])
    assert _left_behind(store) == []


@pytest.mark.parametrize("data", [b"", b"no archive", b"x" * 2000, bytes(512)])
def test_a_layer_that_is_no_archive_is_an_error_or_empty(store: Store, data: bytes) -> None:
    layer = images.layer(store, data)
    if data.strip(b"\0"):
        with pytest.raises(LithifyError, match="cannot be unpacked"):
            root_filesystem(store, [layer])
    else:
        assert _tree(root_filesystem(store, [layer])) == {}


def test_a_full_disk_is_an_error_for_people_and_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    before = ["unshare", *own, "--mount", "--propagation", "private", "sh", "-c"]
    before += ['mount -t tmpfs -o size=2m none "$1" && shift && exec "$@"', "sh", str(disk)]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no private mount")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import images\n"
        "from lithify.errors import HostError\n"
        "from lithify.store.store import open_store; from lithify.store.rootfs import root_filesystem\n"
        "store = open_store(Path(sys.argv[1])); layer = images.layer(store, [images.file('big', bytes(5000000))])\n"
        "try: root_filesystem(store, [layer])\n"
        "except HostError as error: print(error.message)\n"
        "print(list((store.root / 'tmp').iterdir()), list((store.root / 'rootfs').iterdir()))"
    )
    command = [*before, sys.executable, "-c", code, str(disk), str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)

    assert result.stdout == f"no space is left for the store {disk}\n[] []\n", result.stderr


# -- the cache ---------------------------------------------------------------------------------------------------


def test_the_folder_is_made_once_and_depends_on_the_layers_only(store: Store) -> None:
    zstd, gzip = (images.layer(store, [file("a", "1")], compression) for compression in (ZSTD, GZIP))
    other = images.layer(store, [file("b", "1")])
    root = root_filesystem(store, [zstd])

    assert root_filesystem(store, [gzip]) == root
    assert len({root, root_filesystem(store, [zstd, other]), root_filesystem(store, [other, zstd])}) == 3
    store.blob_path(zstd.descriptor.digest).unlink()
    assert root_filesystem(store, [zstd]) == root


def _ask(root: Path, layers: list[oci.Layer]) -> None:
    root_filesystem(open_store(root), layers)


def test_two_processes_at_once_make_it_once(store: Store) -> None:
    layers = [images.layer(store, [file(f"{number}/{n}", "x") for n in range(300)]) for number in range(3)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_ask, args=(store.root, layers)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(_left_behind(store)) == 1
    assert len(_tree(root_filesystem(store, layers))) == 903


def test_a_killed_one_leaves_a_store_that_the_next_one_uses(store: Store) -> None:
    layers = [images.layer(store, [file("a", "1")]), images.layer(store, [file("b", "2")])]
    code = (
        "import os, signal, sys, pickle; from pathlib import Path; from lithify.store import rootfs\n"
        "from lithify.store.store import open_store\n"
        "rootfs._flush = lambda folder: os.kill(os.getpid(), signal.SIGKILL)\n"
        "rootfs.root_filesystem(open_store(Path(sys.argv[1])), pickle.loads(sys.stdin.buffer.read()))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(store.root)], input=pickle.dumps(layers))
    assert result.returncode == -9
    assert len(list((store.root / "tmp").iterdir())) == 1

    assert _tree(root_filesystem(store, layers)) == {"a": "1", "b": "2"}
    assert list((store.root / "tmp").iterdir()) == []


def test_progress_is_reported_in_bytes(store: Store) -> None:
    layers = [images.layer(store, [file("a", "1")]), images.layer(store, [file("b", "2")])]
    events: list[Event] = []
    root_filesystem(store, layers, report=events.append)
    total = sum(layer.descriptor.size for layer in layers)

    assert events[0] == Event("use", "start", "unpack", total=total, unit="bytes")
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1] == Event("use", "finish", "unpack", done=total, total=total, unit="bytes")


# -- the rest ----------------------------------------------------------------------------------------------------


def test_unpack_makes_a_folder_elsewhere_and_only_a_whole_one(store: Store, tmp_path: Path) -> None:
    layer = images.layer(store, [file("a", "1")])
    unpack(store, [layer], tmp_path / "made")
    assert _tree(tmp_path / "made") == {"a": "1"}

    _damage(store.blob_path(layer.descriptor.digest), 20)
    with pytest.raises(LithifyError):
        unpack(store, [layer], tmp_path / "broken")
    assert _names(tmp_path) == ["made", "store"]


@pytest.fixture
def links(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").touch()
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "climbing").symlink_to("../../../etc/passwd")
    (root / "circle").symlink_to("circle")
    yield root


def test_a_link_is_followed_as_a_process_inside_would(links: Path) -> None:
    for path in ("/etc/passwd", "absolute", "climbing", "etc/../../etc/./passwd"):
        assert inside(links, path) == links / "etc/passwd"
    for path in ("circle", "none", "etc/passwd/x", "circle/x"):
        assert inside(links, path) is None
