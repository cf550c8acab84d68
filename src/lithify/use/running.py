"""Run an image in the sandbox: a command, or JupyterLab on a loopback port.

The image's root file system lies below, never written; what the command changes goes into a folder that is removed
afterwards. No engine, no root: whoever runs it appears inside as the image's user.

A terminal is passed through as a pseudo-terminal of the command's own. The caller's terminal itself stays outside:
a process that holds it could type into it (TIOCSTI, see bubblewrap's ``--new-session``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import select
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from lithify.errors import InputError, LithifyError
from lithify.platforms import host_platform
from lithify.progress import Event, Report, silent
from lithify.read.settings import Settings, read_settings
from lithify.runtime import SYSTEM_PATH
from lithify.sandbox import Bind, Sandbox, arguments
from lithify.store.manifests import manifest_for
from lithify.store.rootfs import inside, root_filesystem
from lithify.store.store import Store, friendly_disk_errors, open_store

LOOPBACK = "127.0.0.1"
# Seconds that a server has to stop by itself once it was asked to.
PATIENCE = 10.0
_TYPED = (signal.SIGINT, signal.SIGQUIT)
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Server:
    """A JupyterLab that answers. ``url`` is its root, ``pid`` the process on this machine that runs its sandbox."""

    url: str
    token: str
    pid: int

    @property
    def link(self) -> str:
        """The address for a browser, the token included."""
        return f"{self.url}lab?token={self.token}"


def run(
    image: str,
    command: Sequence[str] = (),
    *,
    port: int | None = None,
    volumes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    settings: Settings | None = None,
    report: Report = silent,
) -> int:
    """Run ``command`` in ``image``, or JupyterLab where none is given; returns its exit code when it has ended.

    JupyterLab listens on ``port`` of the loopback interface (a free one by default); once it answers, its address
    is reported as a note. An image without JupyterLab runs what its configuration says. Ctrl-C stops either.

    Args:
        image: a name or digest in the store.
        command: replaces the image's ``Cmd``; its entry point stays.
        port: for JupyterLab.
        volumes: files or folders of this machine that appear inside: ``HOST:INSIDE`` or ``HOST:INSIDE:ro``.
        environment: variables on top of the image's.
        user: a name or number, ``root`` included, instead of the image's.
        settings: where the store is.
        report: hears of progress, and the address.

    Raises:
        InputError: for an unknown image, one for other platforms, a missing volume or user, a port that is taken.
        HostError: where the sandbox does not work.
        LithifyError: for an image that is damaged.
    """
    job = _prepare(image, command, volumes, environment, user, settings, report)
    if job.command is None:
        return _run_server(job, _choose_port(port), report)
    if port is not None:
        raise InputError("a port is for JupyterLab, and another command was asked for", hint="leave `--port` out")
    with _workspace(job) as sandbox:
        if os.isatty(0) and os.isatty(1) and "TERM" in os.environ:
            environment = {"TERM": os.environ["TERM"], **sandbox.environment}
            return _run_in_terminal(replace(sandbox, environment=environment), job.command)
        with _running(sandbox, job.command) as (process, _):
            return _exit_code(process)


@contextlib.contextmanager
def serving(
    image: str,
    command: Sequence[str] = (),
    *,
    port: int | None = None,
    volumes: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
    timeout: float = 120.0,
    settings: Settings | None = None,
    report: Report = silent,
) -> Iterator[Server]:
    """JupyterLab in ``image``, answering while the block runs, gone after it.

    ``command`` starts another server of Jupyter's kind instead, which must listen where ``$LITHIFY_PORT`` says and
    take ``$JUPYTER_TOKEN``. ``timeout`` is how many seconds it has to answer. The rest is `run`'s.

    Raises:
        LithifyError: when it ends or does not answer in time, with what it wrote; and what `run` raises.
    """
    job = _prepare(image, command, volumes, environment, user, settings, report)
    if not command and not job.has_jupyter:
        raise InputError(f"image `{image}` has no JupyterLab")
    with tempfile.TemporaryFile() as log, _serving(job, _choose_port(port), log, timeout) as server:
        yield server


# -- what to run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A command and what it will see; no ``command`` means JupyterLab behind ``entrypoint``."""

    image: str
    store: Store
    root: Path
    command: tuple[str, ...] | None
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    user: _User
    directory: str
    binds: tuple[Bind, ...]
    has_jupyter: bool


@dataclass(frozen=True)
class _User:
    uid: int
    gid: int
    home: str


def _prepare(
    image: str,
    command: Sequence[str],
    volumes: Sequence[str],
    environment: Mapping[str, str] | None,
    user: str | None,
    settings: Settings | None,
    report: Report,
) -> _Job:
    settings = settings or read_settings()
    binds = tuple(_volume(text) for text in volumes)
    store = open_store(settings.store)
    manifest = manifest_for(store, image, host_platform())
    root = root_filesystem(store, manifest.layers, report=report)
    runtime = manifest.runtime
    account = _find_user(root, user or _text(runtime, "User") or "0", image)
    variables = {"PATH": SYSTEM_PATH, "HOME": account.home}
    variables.update(_assignments(_texts(runtime, "Env")))
    if user is not None and "HOME" not in (environment or {}):
        variables["HOME"] = account.home
    variables.update(environment or {})
    entrypoint = _texts(runtime, "Entrypoint")
    has_jupyter = _find_program(root, "jupyter-lab", variables["PATH"])
    full: tuple[str, ...] | None = (*entrypoint, *command)
    if not command:
        full = None if has_jupyter else (*entrypoint, *_texts(runtime, "Cmd"))
        if full == ():
            raise InputError(
                f"image `{image}` has neither JupyterLab nor a command of its own",
                hint=f"give one: lithify run {image} -- COMMAND",
            )
    return _Job(
        image=image,
        store=store,
        root=root,
        command=full,
        entrypoint=entrypoint,
        environment=variables,
        user=account,
        directory=_text(runtime, "WorkingDir") or "/",
        binds=binds,
        has_jupyter=has_jupyter,
    )


def _text(runtime: Mapping[str, Any], key: str) -> str:
    value = runtime.get(key) or ""
    if not isinstance(value, str):
        raise InputError(f"the image's configuration is broken: `{key}` is {value!r}, not a text")
    return value


def _texts(runtime: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = runtime.get(key) or []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InputError(f"the image's configuration is broken: `{key}` is {value!r}, not a list of texts")
    return tuple(value)


def _assignments(lines: Sequence[str]) -> dict[str, str]:
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if key and equals}


def _volume(text: str) -> Bind:
    """``HOST:INSIDE[:ro]``, as container engines have it."""
    parts = text.split(":")
    options = parts.pop() if len(parts) > 2 and parts[-1] in ("ro", "rw") else "rw"
    if len(parts) != 2 or not parts[0] or not parts[1].startswith("/"):
        raise InputError(
            f"volume `{text}` is not understood",
            hint="write HOST:INSIDE or HOST:INSIDE:ro, INSIDE being an absolute path, such as `.:/home/jovyan/work`",
        )
    source = Path(parts[0]).expanduser().absolute()
    if not source.exists():
        raise InputError(f"volume `{text}`: {source} does not exist", hint=f"mkdir -p {source}")
    return Bind(source, parts[1], writable=options == "rw")


def _find_user(root: Path, wanted: str, image: str) -> _User:
    """What ``USER`` of an image means: ``NAME``, ``NUMBER``, each with an optional ``:GROUP`` (OCI config.md)."""
    name, _, group = wanted.partition(":")
    accounts = [line.split(":") for line in _lines(root, "/etc/passwd")]
    accounts = [fields for fields in accounts if len(fields) >= 6 and fields[2].isdigit() and fields[3].isdigit()]
    for fields in accounts:
        if name in (fields[0], fields[2]):
            user = _User(int(fields[2]), int(fields[3]), fields[5] or "/")
            break
    else:
        if name == "root":
            user = _User(0, 0, "/root")
        elif name.isdigit():
            user = _User(int(name), 0, "/")
        else:
            known = ", ".join(fields[0] for fields in accounts if fields[2] == "0" or int(fields[2]) >= 1000)
            raise InputError(
                f"image `{image}` has no user `{name}`",
                hint=f"its users are {known}; a number works too" if known else "give a number",
            )
    if not group:
        return user
    groups = [line.split(":") for line in _lines(root, "/etc/group")]
    for fields in groups:
        if len(fields) >= 3 and fields[2].isdigit() and group in (fields[0], fields[2]):
            return _User(user.uid, int(fields[2]), user.home)
    if group.isdigit():
        return _User(user.uid, int(group), user.home)
    raise InputError(f"image `{image}` has no group `{group}`")


def _lines(root: Path, path: str) -> list[str]:
    file = inside(root, path)
    if file is None or not file.is_file():
        return []
    return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def _find_program(root: Path, name: str, path: str) -> bool:
    for folder in path.split(":"):
        file = inside(root, f"{folder}/{name}") if folder.startswith("/") else None
        if file is not None and file.is_file() and file.stat().st_mode & 0o111:
            return True
    return False


# -- where it runs -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workspace(job: _Job) -> Iterator[Sandbox]:
    """The sandbox with a folder for its changes, which is gone afterwards."""
    with job.store.scratch("run") as folder:
        with friendly_disk_errors(job.store.root):
            upper, work = folder / "upper", folder / "work"
            upper.mkdir()
            upper.chmod(stat.S_IMODE(job.root.stat().st_mode))
            work.mkdir()
            _make_folder(job.root, upper, job.directory)
            binds = [
                Bind(Path(path), path)
                for path in ("/etc/resolv.conf", "/etc/hosts")
                if Path(path).is_file() and _make_mount_point(job.root, upper, path)
            ]
        yield Sandbox(
            lower=(job.root,),
            upper=upper,
            work=work,
            binds=(*binds, *job.binds),
            environment=job.environment,
            uid=job.user.uid,
            gid=job.user.gid,
            directory=job.directory,
            network=True,
            new_session=False,  # it gets a session of its own before, with or without a terminal
        )


def _make_folder(root: Path, upper: Path, path: str) -> Path | None:
    """See to it that ``path`` will be a folder inside, by adding to the folder of changes what is missing.

    Returns its place in ``upper``; None where a file is in the way.
    """
    place = upper
    below: Path | None = root
    for part in path.split("/"):
        if part in ("", ".", ".."):
            continue
        if below is not None:
            below = inside(root, f"{below.relative_to(root)}/{part}")
        if below is None:
            place /= part
        elif not below.is_dir():
            return None
        else:
            place = upper / below.relative_to(root)
        for folder in reversed([place, *place.parents]):
            if folder.is_relative_to(upper) and not folder.exists():
                folder.mkdir()
                lower = root / folder.relative_to(upper)
                folder.chmod(stat.S_IMODE(lower.stat().st_mode) if lower.is_dir() else 0o755)
    return place


def _make_mount_point(root: Path, upper: Path, path: str) -> bool:
    """Put an empty file at ``path``, in place of a link that may lead nowhere."""
    folder, _, name = path.rpartition("/")
    place = _make_folder(root, upper, folder)
    if place is None:
        return False
    (place / name).touch()
    return True


# -- the process -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Process:
    """A sandbox at work: bubblewrap, and the process that is number 1 inside, if it came so far.

    ``init`` is that one's id, ``ended`` a descriptor that can be read from once it has ended (pidfd_open(2)).
    """

    popen: subprocess.Popen[bytes]
    init: int | None
    ended: int | None


@contextlib.contextmanager
def _running(
    sandbox: Sandbox,
    command: Sequence[str],
    *,
    instead: signal.Signals | None = None,
    terminal: int | None = None,
    ignore: bool = False,
    stdin: int | None = None,
    output: IO[bytes] | int | None = None,
) -> Iterator[tuple[_Process, list[int]]]:
    """``command`` while the block runs; what is left of it is stopped after it.

    Signals that we get meanwhile go to it (or ``instead`` of each of them another one), and are kept in the list.
    ``terminal`` becomes its controlling terminal; with ``ignore`` it starts ignoring the signals that are typed there.
    """
    process: _Process | None = None
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            _send(process, instead or number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread can have handlers
        before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        process = _start(sandbox, command, terminal, ignore, stdin, output)
        for number in received:
            _send(process, instead or number)
        yield process, received
    finally:
        if process is not None:
            _stop(process)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(
    sandbox: Sandbox,
    command: Sequence[str],
    terminal: int | None,
    ignore: bool,
    stdin: int | None,
    output: IO[bytes] | int | None,
) -> _Process:
    """Start ``command`` in a session of its own: a Ctrl-C reaches us alone, and we decide what it means."""
    line = arguments(sandbox, command)
    reading, writing = os.pipe()

    def take_terminal() -> None:
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # Ctrl-C goes to all in the terminal's foreground, bubblewrap too: it must not die of it.
        for number in _TYPED if ignore else ():
            signal.signal(number, signal.SIG_IGN)

    with os.fdopen(reading, "rb") as information:
        try:
            popen = subprocess.Popen(
                [line[0], "--info-fd", str(writing), *line[1:]],
                stdin=stdin if terminal is None else terminal,
                stdout=output if terminal is None else terminal,
                stderr=output if terminal is None else terminal,
                pass_fds=[writing],
                start_new_session=True,
                preexec_fn=None if terminal is None else take_terminal,
            )
        finally:
            os.close(writing)
        # bubblewrap writes it as soon as the process exists, and closes the pipe when it ends before.
        match = re.search(rb'"child-pid": *([0-9]+)', information.read())
    init = int(match[1]) if match else None
    ended = None
    if init is not None:
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(init)
    return _Process(popen, init, ended)


def _send(process: _Process, number: int) -> None:
    """Send a signal to the command inside; bubblewrap itself would die of it and take the command along."""
    if process.popen.poll() is None:
        inner = _child_of(process.init) if process.init is not None else None
        with contextlib.suppress(ProcessLookupError):
            if inner is not None:
                os.kill(inner, number)
            else:
                process.popen.send_signal(number)


def _child_of(parent: int) -> int | None:
    """The eldest child of a process: for number 1 inside, the command that it was started for."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                # The fields after the name, which stands in brackets and may hold anything (proc(5), "stat").
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    children.append((int(fields[19]), int(entry.name)))
    return min(children)[1] if children else None


def _stop(process: _Process) -> None:
    """End what still runs: by asking, then, after a while, by force. All processes inside end with the first."""
    if process.popen.poll() is None:
        _send(process, signal.SIGTERM)
        try:
            process.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
    if process.ended is not None:
        # bubblewrap may be gone a moment before the rest: number 1 ends last, when all others inside have.
        poll = select.poll()
        poll.register(process.ended, select.POLLIN)
        poll.poll(PATIENCE * 1000)
        os.close(process.ended)


def _exit_code(process: _Process) -> int:
    """Wait for the end; a command that a signal ended gives 128 + its number, as in a shell."""
    code = process.popen.wait()
    return code if code >= 0 else 128 - code


def _run_in_terminal(sandbox: Sandbox, command: Sequence[str]) -> int:
    """Run with a pseudo-terminal as the command's own, joined to ours."""
    import pty
    import termios
    import tty

    ours, theirs = pty.openpty()

    def resize(*_: object) -> None:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)
        fcntl.ioctl(ours, termios.TIOCSWINSZ, size)

    # What bubblewrap ignores its child would ignore as well; coreutils' env, from 8.31, undoes that.
    undo = ["env", "--default-signal=INT,QUIT"]
    probe = subprocess.run(arguments(sandbox, [*undo, "env"]), capture_output=True, check=False)
    ignore = probe.returncode == 0
    attributes = termios.tcgetattr(0)
    before = signal.signal(signal.SIGWINCH, resize)
    try:
        resize()
        with _running(sandbox, [*undo, *command] if ignore else command, terminal=theirs, ignore=ignore) as (
            process,
            _,
        ):
            os.close(theirs)
            tty.setraw(0)
            sources = [0, ours]
            while ours in sources:
                ready, _, _ = select.select(sources, [], [])
                if 0 in ready:
                    if typed := os.read(0, 4096):
                        os.write(ours, typed)
                    else:
                        sources.remove(0)
                if ours in ready:
                    try:
                        shown = os.read(ours, 65536)
                    except OSError:  # the other side is closed: the command has ended
                        shown = b""
                    if shown:
                        os.write(1, shown)
                    else:
                        sources.remove(ours)
            return _exit_code(process)
    finally:
        signal.signal(signal.SIGWINCH, before)
        termios.tcsetattr(0, termios.TCSADRAIN, attributes)
        os.close(ours)


# -- JupyterLab --------------------------------------------------------------------------------------------------


def _choose_port(port: int | None) -> int:
    """``port`` if it is free, or any free one."""
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"{port} is no port", hint="a port is a number from 1 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port or 0))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be used: {error.strerror}",
                hint="another program listens there: choose another port, or leave `--port` out for a free one",
            ) from error
        return int(probe.getsockname()[1])


def _server_command(job: _Job, port: int) -> tuple[tuple[str, ...], Mapping[str, str], str]:
    """The command, its environment, and the token. The token is no argument: every user could see those."""
    token = job.environment.get("JUPYTER_TOKEN") or secrets.token_hex(24)
    environment = {**job.environment, "JUPYTER_TOKEN": token, "LITHIFY_PORT": str(port)}
    if job.command is not None:
        return job.command, environment, token
    command = ["jupyter", "lab", f"--ip={LOOPBACK}", f"--port={port}", "--no-browser", "--log-level=WARN"]
    command.append("--ServerApp.port_retries=0")
    if job.user.uid == 0:
        command.append("--allow-root")
    return (*job.entrypoint, *command), environment, token


def _run_server(job: _Job, port: int, report: Report) -> int:
    command, environment, token = _server_command(job, port)
    with _workspace(job) as sandbox:
        sandbox = replace(sandbox, environment=environment)
        # SIGINT makes Jupyter ask whether it is meant; SIGTERM makes it stop its kernels and end.
        with _running(sandbox, command, instead=signal.SIGTERM, stdin=subprocess.DEVNULL) as (process, received):
            server = Server(f"http://{LOOPBACK}:{port}/", token, process.popen.pid)
            if _answers(process, server, None):
                report(Event("use", "note", "run", f"JupyterLab answers at {server.link} (Ctrl-C stops it)"))
            elif not received:
                raise LithifyError(
                    f"JupyterLab of image `{job.image}` ended before it answered, exit code {_exit_code(process)}",
                    hint="what it wrote stands above",
                )
            code = _exit_code(process)
    return 0 if received else code


@contextlib.contextmanager
def _serving(job: _Job, port: int, log: IO[bytes], timeout: float) -> Iterator[Server]:
    command, environment, token = _server_command(job, port)
    with _workspace(job) as sandbox:
        sandbox = replace(sandbox, environment=environment)
        with _running(sandbox, command, stdin=subprocess.DEVNULL, output=log) as (process, _):
            server = Server(f"http://{LOOPBACK}:{port}/", token, process.popen.pid)
            if not _answers(process, server, timeout):
                ended = process.popen.poll() is not None
                log.seek(0)
                raise LithifyError(
                    f"the server of image `{job.image}` ended before it answered, exit code {_exit_code(process)}"
                    if ended
                    else f"the server of image `{job.image}` did not answer within {timeout:g} seconds",
                    details=log.read().decode(errors="replace")[-4000:],
                )
            yield server


def _answers(process: _Process, server: Server, timeout: float | None) -> bool:
    """Wait until ``server`` answers who knows the token; False when it ended, or when the time is over."""
    import http.client

    host = server.url.removeprefix("http://").rstrip("/")
    deadline = None if timeout is None else time.monotonic() + timeout
    while process.popen.poll() is None:
        connection = http.client.HTTPConnection(host, timeout=5)
        try:
            connection.request("GET", "/api/status", headers={"Authorization": f"token {server.token}"})
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return False
