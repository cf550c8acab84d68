"""The store: nothing half-written, two processes at once, full and read-only disks, damage found."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import images
from lithify.errors import HostError, InputError, LithifyError
from lithify.store import oci
from lithify.store.store import SEAL, Store, open_store, remove_tree

BYTES = "application/octet-stream"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def _python(code: str, *arguments: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def _with_disk(options: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with a file system of its own mounted at ``folder``, in a private namespace."""
    folder.mkdir()
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount -t tmpfs {options} none "$1" && shift && exec "$@"'
    before = ("unshare", *own, "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(folder))
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no private mount")
    return _python(code, folder, before=before)


def test_a_killed_writer_leaves_the_old_file_and_a_store_that_works(store: Store) -> None:
    target = store.root / "records/test/key"
    store.write_record("test", "key", {"is": "old"})
    result = _python(
        "import os, sys, signal; from pathlib import Path; from lithify.store.store import open_store\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "with store.writing(Path(sys.argv[2])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)",
        store.root,
        target,
    )
    assert result.returncode == -signal.SIGKILL
    assert store.record("test", "key") == {"is": "old"}
    store.write_record("test", "key", {"is": "new"})
    assert store.record("test", "key") == {"is": "new"}


def test_a_killed_writer_leaves_no_blob(store: Store) -> None:
    _python(
        "import os, sys, signal; from pathlib import Path; from lithify.store.store import open_store\n"
        "def content():\n"
        "    yield b'x' * 1000000\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_store(Path(sys.argv[1])).write_blob(content(), 'x/y')",
        store.root,
    )
    assert list((store.root / "blobs/sha256").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_scratch(store: Store) -> None:
    _python(
        "import os, sys, signal; from pathlib import Path; from lithify.store.store import open_store\n"
        "with open_store(Path(sys.argv[1])).scratch('test') as folder:\n"
        "    (folder / 'file').touch(); os.kill(os.getpid(), signal.SIGKILL)",
        store.root,
    )
    (left,) = (store.root / "tmp").iterdir()
    with store.scratch("one") as one:
        (one / "kept").touch()
        with store.scratch("two"):
            assert not left.exists()
            assert (one / "kept").exists()
    assert list((store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "what",
    [
        "with store.writing(root / 'x') as file: stop()",
        "store.write_blob((stop() for _ in 'x'), 'x')",
        "with store.scratch('x'): stop()",
    ],
    ids=["file", "blob", "folder"],
)
def test_what_a_killed_process_left_is_removed_when_the_store_is_opened(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    script = (
        "import os, sys, signal; from pathlib import Path; from lithify.store.store import open_store\n"
        "root = Path(sys.argv[1])\n"
        "store = open_store(root)\n"
        "def stop(): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{what}"
    )
    _python(script, store.root)
    (left,) = (store.root / "tmp").iterdir()
    open_store(store.root)
    assert left.exists()  # it may be somebody's who is about to lock it
    monkeypatch.setattr("lithify.store.store.GRACE", 0)
    with store.writing(store.root / "mine") as file, store.scratch("mine") as folder:
        file.write(b"whole")
        open_store(store.root)
        assert not left.exists()
        assert folder.is_dir()
    assert (store.root / "mine").read_bytes() == b"whole"
    assert list((store.root / "tmp").iterdir()) == []


def test_an_unpacked_tree_that_was_not_finished_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lithify.store.store.GRACE", 0)
    for name in ("rootfs-held", "rootfs-left"):
        (store.root / "tmp" / name / "0").mkdir(parents=True)
    with store.lock("rootfs-left"):
        pass
    with store.lock("rootfs-held"):
        open_store(store.root)
    assert [path.name for path in (store.root / "tmp").iterdir()] == ["rootfs-held"]


def _name_images(root: Path, number: int) -> None:
    store = open_store(root)
    for turn in range(10):
        store.name_image(f"family/{number}-{turn}", store.write_blob([b"%d" % number], BYTES))


def test_two_processes_that_name_images_at_once_lose_none(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_name_images, args=(store.root, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(store.images()) == 40


def test_the_same_blob_from_two_processes_is_one_file(store: Store) -> None:
    first = store.write_blob([b"da", b"ta"], BYTES)
    assert store.write_blob([b"data"], BYTES) == first
    assert store.read_blob(first) == b"data"
    assert len(list((store.root / "blobs/sha256").iterdir())) == 1


def test_an_error_while_writing_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.writing(store.root / "target") as file:
        file.write(b"half")
        raise RuntimeError
    assert not (store.root / "target").exists()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_full_disk_is_an_error_for_people_and_leaves_nothing(tmp_path: Path) -> None:
    result = _with_disk(
        "-o size=1m",
        "import sys; from pathlib import Path; from lithify.errors import HostError\n"
        "from lithify.store.store import open_store\n"
        "root = Path(sys.argv[1]); store = open_store(root)\n"
        "try: store.write_blob((b'x' * 100000 for _ in range(100)), 'x/y')\n"
        "except HostError as error: print(error)\n"
        "try:\n"
        "    with store.writing(root / 'file') as file: file.write(b'x' * 10000000)\n"
        "except HostError as error: print(error)\n"
        "print(sorted(p.name for p in root.rglob('*') if p.is_file()))\n"
        "print(store.read_blob(store.write_blob([b'small'], 'x/y')))",
        tmp_path / "disk",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no space is left for the store") == 2
    assert result.stdout.endswith("['oci-layout']\nb'small'\n")


def test_a_read_only_store_can_be_read_and_says_why_it_cannot_be_written(tmp_path: Path) -> None:
    result = _with_disk(
        "-o size=1m",
        "import subprocess, sys; from pathlib import Path; from lithify.errors import HostError\n"
        "from lithify.store.store import open_store\n"
        "root = Path(sys.argv[1]); store = open_store(root); blob = store.write_blob([b'x'], 'x/y')\n"
        "store.name_image('family/image', blob)\n"
        "subprocess.run(['mount', '-o', 'remount,bind,ro', str(root)], check=True)\n"
        "store = open_store(root); print(store.read_blob(store.image('image')), store.has_blob(blob))\n"
        "for act in (lambda: store.write_blob([b'y'], 'x/y'), lambda: store.name_image('n', blob),\n"
        "            lambda: store.write_record('kind', 'key', {}), lambda: store.scratch('x').__enter__()):\n"
        "    try: act()\n"
        "    except HostError as error: print(error.message.split(':')[0])",
        tmp_path / "disk",
    )
    assert result.returncode == 0, result.stderr
    first, *rest = result.stdout.splitlines()
    assert first == "b'x' True"
    assert len(rest) == 4
    assert all(line.endswith("cannot be written") for line in rest)


def test_a_folder_that_cannot_be_made_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot be written"):
        open_store(tmp_path / "file" / "store")


def test_a_flipped_byte_in_a_blob_is_found_and_the_blob_made_anew(store: Store) -> None:
    blob = store.write_blob([b"content"], BYTES)
    path = store.blob_path(blob.digest)
    assert store.has_blob(blob)
    path.chmod(0o644)
    path.write_bytes(b"cOntent")

    with pytest.raises(LithifyError, match="not what its digest says"):
        store.read_blob(blob)
    assert not store.has_blob(blob)
    assert not path.exists()
    assert store.has_blob(store.write_blob([b"content"], BYTES))


def test_a_flipped_byte_that_kept_the_file_time_is_found_by_who_reads_the_blob(store: Store) -> None:
    blob = store.write_blob([b"content"], BYTES)
    path = store.blob_path(blob.digest)
    path.chmod(0o644)
    path.write_bytes(b"cOntent")
    os.utime(path, (SEAL, SEAL))

    with pytest.raises(LithifyError, match="not what its digest says"):
        store.read_blob(blob)


def test_a_cut_blob_is_found(store: Store) -> None:
    blob = store.write_blob([b"content"], BYTES)
    path = store.blob_path(blob.digest)
    path.chmod(0o644)
    path.write_bytes(b"cont")
    os.utime(path, (SEAL, SEAL))

    assert not store.has_blob(blob)


def test_a_blob_of_another_tool_is_checked_once_and_sealed(store: Store) -> None:
    data = b"brought by another tool"
    blob = oci.Descriptor(BYTES, oci.digest_of(data), len(data))
    store.blob_path(blob.digest).write_bytes(data)

    assert store.has_blob(blob)
    assert store.blob_path(blob.digest).stat().st_mtime == SEAL


def test_a_missing_blob_says_what_to_do(store: Store) -> None:
    with pytest.raises(LithifyError) as caught:
        store.read_blob(oci.Descriptor(BYTES, oci.digest_of(b"no"), 2))
    assert "missing" in caught.value.message
    assert caught.value.hint


def test_an_image_is_found_by_its_name_its_last_part_and_its_digest(store: Store) -> None:
    one = store.write_blob([b"1"], BYTES)
    two = store.write_blob([b"2"], BYTES)
    store.name_image("family/one", one)
    store.name_image("other/two", two)

    assert store.image("family/one").digest == one.digest
    assert store.image("two").digest == two.digest
    assert store.image(two.digest[:20]).digest == two.digest
    assert store.image(two.digest.removeprefix("sha256:")[:7]).digest == two.digest


def test_a_name_of_two_images_and_an_unknown_name_are_errors_that_help(store: Store) -> None:
    store.name_image("a/notebook", store.write_blob([b"1"], BYTES))
    store.name_image("b/notebook", store.write_blob([b"2"], BYTES))

    with pytest.raises(InputError, match="may be a/notebook or b/notebook"):
        store.image("notebook")
    with pytest.raises(InputError) as caught:
        store.image("a/notebok")
    assert caught.value.hint == "did you mean `a/notebook`?"


def test_renaming_an_image_replaces_it_and_the_index_is_the_same_in_any_order(tmp_path: Path) -> None:
    texts = []
    for order in (["x", "y"], ["y", "x"]):
        store = open_store(tmp_path / "".join(order))
        store.name_image("x", store.write_blob([b"old"], BYTES))
        for name in order:
            store.name_image(name, store.write_blob([name.encode()], BYTES))
        texts.append((store.root / "index.json").read_bytes())
    assert texts[0] == texts[1]
    assert len(json.loads(texts[0])["manifests"]) == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"manifests": 3}', '{"manifests": [{}]}', '{"manifests": [3]}', "\xff"]
)
def test_a_broken_index_is_an_error_that_names_it(store: Store, text: str) -> None:
    (store.root / "index.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LithifyError, match=r"index\.json"):
        store.images()


def test_a_damaged_record_counts_as_none(store: Store) -> None:
    store.write_record("kind", "key", {"a": 1})
    (store.root / "records/kind/key").write_bytes(b"\xff{")
    assert store.record("kind", "key") is None
    assert store.record("kind", "other") is None


def test_removing_a_tree_follows_no_link_and_enters_what_nobody_may_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch(0o644)
    tree = tmp_path / "tree"
    (tree / "closed").mkdir(parents=True)
    (tree / "closed/link").symlink_to(outside)
    (tree / "closed/file-link").symlink_to(outside / "file")
    (tree / "closed").chmod(0)

    remove_tree(tree)

    assert not tree.exists()
    assert (outside / "file").stat().st_mode & 0o777 == 0o644


def test_the_store_is_a_layout_that_other_tools_read(store: Store) -> None:
    layer = images.layer(store, [images.file("etc/hostname", "x")])
    images.image(store, [layer], "family/one")
    try:
        result = subprocess.run(
            ["skopeo", "inspect", "--raw", f"oci:{store.root}:family/one"], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("no skopeo here")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["mediaType"] == oci.INDEX
