"""`run`: what a command in an image sees, how it ends, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import images
from images import Member, file, folder, symlink
from lithify.errors import HostError, InputError, LithifyError
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, host_platform
from lithify.progress import Event
from lithify.read.settings import Settings
from lithify.sandbox import bubblewrap
from lithify.store.store import Store, open_store
from lithify.use.running import run, serving

try:
    bubblewrap()
except HostError as error:  # pragma: no cover
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)

_PASSWD = "root:x:0:0:root:/root:/bin/sh\njovyan:x:1000:1000::/home/jovyan:/bin/sh\nother:x:1001:100::/home/o:/bin/sh\n"
_GROUP = "root:x:0:\nusers:x:100:\njovyan:x:1000:\n"
# A stand-in for Jupyter's server, as far as `run` deals with it: it listens where it is told to, knows the token,
# and ends by SIGTERM. `make demo` runs the real one.
_JUPYTER = """\
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("stopped cleanly", file=sys.stderr), sys.exit(0)))
options = dict(option[2:].partition("=")[::2] for option in sys.argv[1:] if option.startswith("--"))
if os.environ.get("FAIL"):
    sys.exit("cannot start: " + os.environ["FAIL"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers["Authorization"] == "token " + os.environ["JUPYTER_TOKEN"]
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(repr((sys.argv[1:], os.getuid())).encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer((options["ip"], int(options["port"])), Handler).serve_forever()
"""


@functools.cache
def _python() -> tuple[Member, ...]:
    """This machine's Python with its standard library, at its own place."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = Path(sys.base_prefix)
    skip = ["test", "tests", "__pycache__", "site-packages", "dist-packages", "idlelib", "ensurepip", "tkinter"]
    library = images.tree(base / f"lib/{version}", f"{base}/lib/{version}".lstrip("/"), skip=[*skip, "config-3.11"])
    binary = Path(sys.executable).resolve()
    modules = (base / f"lib/{version}/lib-dynload").glob("*.so")
    listing = subprocess.run(["ldd", binary, *modules], capture_output=True, text=True).stdout
    needed = sorted({word for word in listing.split() if word.startswith("/") and not word.endswith(":")})
    return (
        *library,
        *(file(path.lstrip("/"), Path(path).read_bytes(), 0o755) for path in [str(binary), *needed]),
        symlink("usr/bin/python3", str(binary)),
    )


def _system() -> list[Member]:
    return [
        *images.programs("sh", "cat", "id", "env", "ls", "sleep", "stty", "touch"),
        folder("tmp", 0o1777),
        file("etc/passwd", _PASSWD),
        file("etc/group", _GROUP),
        folder("home/jovyan", uid=1000, gid=1000),
        # Debian's arrangement for systemd: a link that leads nowhere in an image.
        symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ]


_CONFIG = {
    "User": "jovyan",
    "Env": ["PATH=/usr/bin:/bin", "HOME=/home/jovyan", "GREETING=hi"],
    "WorkingDir": "/home/jovyan",
    "Cmd": ["sh", "-c", "echo default; exit 7"],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


@pytest.fixture
def settings(store: Store) -> Settings:
    return Settings(store.root, 2)


@pytest.fixture
def plain(store: Store, settings: Settings) -> Settings:
    """A store with an image of a shell, without Python."""
    images.image(store, [images.layer(store, _system())], "test/plain", _CONFIG)
    return settings


@pytest.fixture(scope="session")
def notebook_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("notebook") / "store"
    store = open_store(root)
    jupyter = f"#!/usr/bin/python3\n{_JUPYTER}"
    members = [file("usr/bin/jupyter", jupyter, 0o755), file("usr/bin/jupyter-lab", jupyter, 0o755)]
    members.append(file("srv/start", '#!/bin/sh\nexport STARTED=yes\nexec "$@"\n', 0o755))
    layers = [images.layer(store, _system()), images.layer(store, _python()), images.layer(store, members)]
    images.image(store, layers, "test/notebook", {**_CONFIG, "Entrypoint": ["/srv/start"]})
    return root


@pytest.fixture
def notebook(notebook_root: Path) -> Settings:
    """A store with an image that has a server like Jupyter's."""
    return Settings(notebook_root, 2)


def _output(
    capfd: pytest.CaptureFixture[str], settings: Settings, command: Sequence[str], image: str = "plain", **more: Any
) -> str:
    capfd.readouterr()
    code = run(image, command, settings=settings, **more)
    output = capfd.readouterr()
    assert code == 0, output
    return output.out


# -- a command ---------------------------------------------------------------------------------------------------


def test_the_exit_code_is_the_commands(plain: Settings) -> None:
    assert run("plain", ["sh", "-c", "exit 3"], settings=plain) == 3
    assert run("plain", ["sh", "-c", "kill -TERM $$"], settings=plain) == 128 + signal.SIGTERM
    assert run("plain", ["true-or-nothing"], settings=plain) != 0


def test_without_a_command_an_image_without_jupyter_runs_its_own(
    plain: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("plain", settings=plain) == 7
    assert capfd.readouterr().out == "default\n"


def test_the_command_has_the_images_user_environment_and_folder(
    plain: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    output = _output(capfd, plain, ["sh", "-c", "id; pwd; env"])
    first, second, *variables = output.splitlines()

    assert first.startswith("uid=1000(jovyan) gid=1000(jovyan)")
    assert second == "/home/jovyan"
    assert {"GREETING=hi", "HOME=/home/jovyan", "PATH=/usr/bin:/bin"} <= set(variables)
    assert not any(one.startswith(("USER=", "LANG=", "LITHIFY", "PYTEST")) for one in variables)


def test_variables_are_added_and_replaced(plain: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    environment = {"GREETING": "hello", "NEW": "a=b c"}
    assert _output(capfd, plain, ["sh", "-c", "echo $GREETING $NEW"], environment=environment) == "hello a=b c\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "1000 1000 /home/jovyan"),
        ("root", "0 0 /root"),
        ("other", "1001 100 /home/o"),
        ("1001", "1001 100 /home/o"),
        ("4321", "4321 0 /"),
        ("jovyan:users", "1000 100 /home/jovyan"),
        ("1000:77", "1000 77 /home/jovyan"),
    ],
)
def test_the_user_is_found_by_name_or_number(
    plain: Settings, capfd: pytest.CaptureFixture[str], user: str | None, expected: str
) -> None:
    assert _output(capfd, plain, ["sh", "-c", "echo $(id -u) $(id -g) $HOME"], user=user) == f"{expected}\n"


def test_the_entry_point_stays_before_the_command(notebook: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    assert _output(capfd, notebook, ["sh", "-c", "echo $STARTED"], "notebook") == "yes\n"


def test_the_command_may_write_anywhere_and_nothing_of_it_stays(
    plain: Settings, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "touch /new /etc/new /home/jovyan/new && echo changed > /etc/passwd && ls / /etc"
    assert "new" in _output(capfd, plain, ["sh", "-c", script], user="root")

    assert _output(capfd, plain, ["cat", "/etc/passwd"]) == _PASSWD
    assert "new" not in _output(capfd, plain, ["ls", "/", "/etc"])
    assert list((store.root / "tmp").iterdir()) == []


def test_names_are_resolved_as_on_the_host(plain: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        if Path(path).is_file():
            assert _output(capfd, plain, ["cat", path]) == Path(path).read_text()


def test_the_host_is_not_seen(plain: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").touch()
    assert run("plain", ["ls", str(tmp_path)], settings=plain) != 0
    output = capfd.readouterr().out + _output(capfd, plain, ["sh", "-c", "ls /proc"])
    assert len([one for one in output.split() if one.isdigit()]) < 6


def test_a_missing_working_folder_is_made(store: Store, settings: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    members = [*_system(), symlink("link", "/home")]
    images.image(store, [images.layer(store, members)], "a/b", {**_CONFIG, "WorkingDir": "/link/jovyan/deep/er"})
    assert _output(capfd, settings, ["sh", "-c", "touch x; echo *; pwd -P"], "a/b") == "x\n/home/jovyan/deep/er\n"


# -- volumes -----------------------------------------------------------------------------------------------------


def test_a_volume_is_a_folder_of_the_host(
    plain: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/in").write_text("from outside")
    monkeypatch.chdir(tmp_path)
    script = "cat in; echo from inside > out; id -u > owner; ls -n | cat"
    output = _output(capfd, plain, ["sh", "-c", f"cd /mnt/deep && {script}"], volumes=["data:/mnt/deep"])

    assert output.startswith("from outside")
    assert (tmp_path / "data/out").read_text() == "from inside\n"
    assert (tmp_path / "data/out").stat().st_uid == os.geteuid()


def test_a_read_only_volume_cannot_be_written(plain: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    volumes = [f"{tmp_path}/file:/etc/mine:ro"]
    assert run("plain", ["sh", "-c", "echo x > /etc/mine"], volumes=volumes, settings=plain) != 0
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("volume", ["data", "data:", ":/x", "data:relative", "data:/x:rx", "data:/x:ro:y", ""])
def test_a_volume_that_is_not_understood_is_an_error(plain: Settings, volume: str) -> None:
    with pytest.raises(InputError, match="not understood"):
        run("plain", ["true"], volumes=[volume], settings=plain)


def test_a_volume_that_is_missing_is_an_error_that_names_it(plain: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/none does not exist"):
        run("plain", ["true"], volumes=[f"{tmp_path}/none:/x"], settings=plain)


# -- what cannot be run ------------------------------------------------------------------------------------------


def test_an_unknown_user_is_an_error_that_names_the_known_ones(plain: Settings) -> None:
    with pytest.raises(InputError) as caught:
        run("plain", ["true"], user="jovian", settings=plain)
    assert "jovyan" in (caught.value.hint or "")


def test_an_image_for_other_platforms_is_an_error_that_names_them(store: Store, settings: Settings) -> None:
    other = next(one for one in (LINUX_AMD64, LINUX_ARM64) if one != host_platform())
    images.image(store, [images.layer(store, _system())], "test/other", _CONFIG, [other])
    with pytest.raises(InputError, match=f"not made for {host_platform()}: it is for {other}"):
        run("other", ["true"], settings=settings)


def test_an_image_without_any_command_is_an_error(store: Store, settings: Settings) -> None:
    images.image(store, [images.layer(store, [file("a")])], "test/empty")
    with pytest.raises(InputError, match="neither JupyterLab nor a command"):
        run("empty", settings=settings)


@pytest.mark.parametrize("config", [{"Env": 3}, {"Cmd": "sh"}, {"User": [1]}, {"Entrypoint": [1]}, {"WorkingDir": 3}])
def test_a_broken_configuration_is_an_error(store: Store, settings: Settings, config: Mapping[str, Any]) -> None:
    images.image(store, [images.layer(store, _system())], "test/broken", config)
    with pytest.raises(InputError, match="configuration is broken"):
        run("broken", ["sh"] if "Cmd" not in config else [], settings=settings)


def test_a_damaged_layer_is_not_run(store: Store, settings: Settings) -> None:
    layer = images.layer(store, _system())
    images.image(store, [layer], "test/damaged", _CONFIG)
    path = store.blob_path(layer.descriptor.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(LithifyError, match="not what its digest says"):
        run("damaged", ["true"], settings=settings)


# -- signals and terminals ---------------------------------------------------------------------------------------


def _until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for something that must come; the limit only ends a broken test."""
    for _ in range(600):
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen")


def _processes_with(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                found.append(int(entry.name))
    return found


def _start(settings: Settings, script: str, **more: Any) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from lithify.use.running import run\n"
        "from lithify.read.settings import Settings\n"
        "sys.exit(run('plain', ['sh', '-c', sys.argv[2]], settings=Settings(Path(sys.argv[1]), 2)))"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(settings.store), script], **more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_command_which_decides(plain: Settings, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught; exit 5' {name}; echo ready; while :; do sleep 0.1; done"
    with _start(plain, script, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.read() == b"caught\n"
        assert process.wait() == 5


def test_a_killed_run_takes_its_processes_along_and_the_next_one_removes_its_folder(plain: Settings) -> None:
    mark = f"9{os.getpid()}"
    with _start(plain, f"sleep {mark} & sleep {mark}", stdin=subprocess.DEVNULL) as process:
        _until(lambda: len(_processes_with(mark)) == 2, "the start of the command")
        process.kill()
    _until(lambda: not _processes_with(mark), "the end of the command")
    (left,) = (plain.store / "tmp").glob("scratch-run-*")

    assert run("plain", ["sh", "-c", ":"], settings=plain) == 0
    assert not left.exists()
    assert list((plain.store / "tmp").iterdir()) == []


def test_what_the_command_left_running_ends_with_it(plain: Settings) -> None:
    mark = f"8{os.getpid()}"
    assert run("plain", ["sh", "-c", f"sleep {mark} & exit 0"], settings=plain) == 0
    assert _processes_with(mark) == []


def test_two_runs_at_once_do_not_see_each_other(plain: Settings) -> None:
    script = "echo ready; read line; ls /new && exit 1; touch /new; exit 0"
    processes = [_start(plain, script, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        process.communicate(b"\n")
        assert process.returncode == 0


def test_a_terminal_is_passed_through(plain: Settings) -> None:
    """Interactive: a terminal of its own size, what is typed arrives, Ctrl-C interrupts what runs inside."""
    ours, theirs = pty.openpty()
    subprocess.run(["stty", "rows", "33", "cols", "99"], stdin=theirs, check=True)
    script = "trap 'echo interrupted' INT; stty size; read line; echo got $line; sleep 600; exit 4"
    process = _start(
        plain, script, stdin=theirs, stdout=theirs, start_new_session=True, env={**os.environ, "TERM": "vt100"}
    )
    shown = bytearray()

    def see(text: bytes) -> None:
        while text not in shown:
            shown.extend(os.read(ours, 1000))

    see(b"33 99")
    os.write(ours, b"typed\r")
    see(b"got typed")
    _until(lambda: _processes_with("600"), "the start of sleep")
    os.write(ours, b"\x03")
    see(b"interrupted")
    assert process.wait() == 4
    os.close(theirs)
    os.close(ours)


# -- JupyterLab --------------------------------------------------------------------------------------------------


def _get(url: str, token: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Authorization": f"token {token}"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_server_answers_who_knows_its_token_and_is_gone_afterwards(notebook: Settings) -> None:
    with serving("notebook", settings=notebook) as server:
        status, body = _get(server.url, server.token)
        assert status == 200
        assert _get(server.url, "wrong")[0] == 403
        assert "'lab'" in body
        assert "--no-browser" in body
        assert server.token not in body
        assert server.link == f"{server.url}lab?token={server.token}"
        assert Path(f"/proc/{server.pid}").exists()
    assert not Path(f"/proc/{server.pid}").exists()
    with pytest.raises(ConnectionRefusedError):
        _get(server.url, server.token)
    assert list((notebook.store / "tmp").iterdir()) == []


def test_two_servers_at_once_have_different_ports_and_tokens(notebook: Settings) -> None:
    with serving("notebook", settings=notebook) as one, serving("notebook", settings=notebook) as two:
        assert one.url != two.url
        assert one.token != two.token
        assert _get(two.url, one.token)[0] == 403


def test_the_port_and_the_token_can_be_chosen(notebook: Settings) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving("notebook", port=port, environment={"JUPYTER_TOKEN": "mine"}, settings=notebook) as server:
        assert server.url == f"http://127.0.0.1:{port}/"
        assert server.token == "mine"


def test_root_is_told_to_jupyter(notebook: Settings) -> None:
    with serving("notebook", user="root", settings=notebook) as server:
        assert "--allow-root" in _get(server.url, server.token)[1]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_taken_is_an_error(notebook: Settings, taken: int) -> None:
    with pytest.raises(InputError, match=f"port {taken} cannot be used"):
        run("notebook", port=taken, settings=notebook)
    for port in (0, 70000):
        with pytest.raises(InputError, match="is no port"):
            run("notebook", port=port, settings=notebook)


def test_a_port_for_another_command_is_an_error(notebook: Settings) -> None:
    with pytest.raises(InputError, match="a port is for JupyterLab"):
        run("notebook", ["true"], port=8888, settings=notebook)


def test_a_server_that_ends_at_once_is_an_error_with_its_own_words(notebook: Settings) -> None:
    with pytest.raises(LithifyError) as caught, serving("notebook", environment={"FAIL": "why"}, settings=notebook):
        pass
    assert "ended before it answered, exit code 1" in caught.value.message
    assert "cannot start: why" in (caught.value.details or "")
    with pytest.raises(LithifyError, match="ended before it answered"):
        run("notebook", environment={"FAIL": "why"}, settings=notebook)


def test_a_server_that_never_answers_is_stopped_after_a_while(notebook: Settings) -> None:
    mark = f"7{os.getpid()}"
    with pytest.raises(LithifyError, match=r"did not answer within 0\.5 seconds"):
        with serving("notebook", ["sleep", mark], timeout=0.5, settings=notebook):
            pass
    assert _processes_with(mark) == []


def test_an_image_without_jupyter_serves_nothing(plain: Settings) -> None:
    with pytest.raises(InputError, match="has no JupyterLab"), serving("plain", settings=plain):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_reports_the_address_and_ctrl_c_stops_the_server_cleanly(
    notebook: Settings, number: signal.Signals
) -> None:
    code = (
        "import sys; from pathlib import Path; from lithify.use.running import run\n"
        "from lithify.read.settings import Settings\n"
        "report = lambda event: event.kind == 'note' and print(event.message, flush=True)\n"
        "sys.exit(run('notebook', settings=Settings(Path(sys.argv[1]), 2), report=report))"
    )
    command = [sys.executable, "-c", code, str(notebook.store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        address, _, rest = line.removeprefix("JupyterLab answers at ").partition("lab?token=")
        token = rest.split()[0]
        assert _get(address, token)[0] == 200
        process.send_signal(number)
        _, errors = process.communicate()
    assert b"stopped cleanly" in errors
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        _get(address, token)


def test_unpacking_is_reported_once(plain: Settings) -> None:
    first: list[Event] = []
    second: list[Event] = []
    run("plain", ["sh", "-c", ":"], settings=plain, report=first.append)
    run("plain", ["sh", "-c", ":"], settings=plain, report=second.append)

    assert [event.task for event in first if event.kind == "start"] == ["unpack"]
    assert second == []
