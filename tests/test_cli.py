from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import lithify
from lithify import cli
from lithify.errors import FetchError, HostError, InputError, LithifyError, UnsatisfiableError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Every call of the API, none of which does anything."""
    monkeypatch.setenv("LITHIFY_STORE", str(tmp_path / "store"))
    noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def noting(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            noted.append((name, arguments, keywords))
            return {"run": 7, "init": Path("family")}.get(name, ())

        return call

    for name in lithify.__all__:
        monkeypatch.setitem(vars(lithify), name, noting(name))
    return noted


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def call(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setitem(vars(lithify), "build", call)


def lithify_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lithify", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_build_passes_what_was_asked(calls: list[Any], tmp_path: Path) -> None:
    line = ["-q", "build", "a", "b", "--family", str(tmp_path), "--platform", "linux/arm64"]
    line += ["--compression", "gzip", "--locked", "--offline", "--jobs", "3", "--label", "a.b=c=d"]
    assert cli.run(line) == 0
    (name, arguments, keywords) = calls.pop()
    assert (name, arguments) == ("build", (tmp_path, ("a", "b")))
    settings = keywords.pop("settings")
    assert (settings.offline, settings.jobs, settings.store) == (True, 3, tmp_path / "store")
    del keywords["report"]
    labels = {"a.b": "c=d"}
    assert keywords == {"platforms": ("linux/arm64",), "compression": "gzip", "locked": True, "labels": labels}


def test_lock_passes_what_was_asked(calls: list[Any]) -> None:
    line = ["lock", "a", "--upgrade", "--upgrade-package", "dask", "-P", "numpy", "--check"]
    assert cli.run(line) == 0
    (_, arguments, keywords) = calls.pop()
    assert arguments == (Path(), ("a",))
    assert (keywords["upgrade"], keywords["upgrade_packages"], keywords["check"]) == (True, ("dask", "numpy"), True)


def test_run_passes_the_command_and_gives_its_exit_code(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "there")
    monkeypatch.delenv("NOWHERE", raising=False)
    line = ["run", "image", "--port", "8890", "--volume", ".:/data:ro", "--user", "0"]
    line += ["-e", "A=b=c", "-e", "HERE", "-e", "NOWHERE", "--", "python", "-c", "print(1)", "--port", "1"]
    assert cli.run(line) == 7
    (_, arguments, keywords) = calls.pop()
    assert arguments == ("image", ("python", "-c", "print(1)", "--port", "1"))
    assert keywords["port"] == 8890
    assert keywords["volumes"] == (".:/data:ro",)
    assert keywords["environment"] == {"A": "b=c", "HERE": "there"}
    assert keywords["user"] == "0"


def test_export_passes_what_was_asked(calls: list[Any]) -> None:
    assert cli.run(["export", "image", "--oci-layout", "out", "--podman"]) == 0
    (_, arguments, keywords) = calls.pop()
    assert (arguments, keywords["oci_layout"], keywords["podman"]) == (("image",), Path("out"), True)


def test_common_options_may_stand_before_or_after_the_command(calls: list[Any], tmp_path: Path) -> None:
    for line in (["--store", "elsewhere", "build"], ["build", "--store", "elsewhere"]):
        assert cli.run(line) == 0
        assert calls.pop()[2]["settings"].store == Path("elsewhere").absolute()


@pytest.mark.parametrize(
    ("error", "code"),
    [(LithifyError, 1), (InputError, 2), (UnsatisfiableError, 3), (FetchError, 4), (HostError, 5)],
)
def test_an_error_is_told_in_one_form(
    error: type[LithifyError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, error("it went wrong", details="uv says:\n  no\n", hint="do better"))
    assert cli.run(["build"]) == code
    assert capsys.readouterr().err == "error: it went wrong\n  uv says:\n    no\nhint: do better\n"


def test_an_unforeseen_error_is_one_message_and_a_traceback_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, RuntimeError("surprise"))
    assert cli.run(["build"]) == 70
    short = capsys.readouterr().err
    assert short.startswith("internal error: RuntimeError: surprise\nhint: ")
    assert "--debug" in short
    assert "Traceback" not in short
    assert cli.run(["build", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 5, "no space is left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), 5, "/etc/x: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["full-disk", "no-permission", "interrupted"],
)
def test_the_machines_and_the_users_ways_to_stop_are_no_bugs(
    error: BaseException,
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raising(monkeypatch, error)
    assert cli.run(["build"]) == code
    message = capsys.readouterr().err.lstrip()
    assert message.startswith(("error: ", "interrupted"))
    assert told in message


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["biuld"], "Did you mean 'build'?"),
        (["build", "--lokced"], "--locked"),
        (["run"], "Missing argument 'IMAGE'"),
        (["build", "--compression", "bzip2"], "'bzip2' is not one of 'zstd', 'gzip'"),
        (["--jobs", "0", "list"], "--jobs"),
        (["run", "image", "--port", "x"], "'x' is not a valid integer"),
        (["run", "image", "--env", "=x"], "names no variable"),
    ],
)
def test_a_wrong_line_is_told_with_the_nearest_right_one(
    line: Sequence[str], told: str, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(line) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""
    assert calls == []


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run([])
    captured = capsys.readouterr()
    assert "lithify init" in captured.out + captured.err


def test_the_version_is_the_packages() -> None:
    assert lithify_process("--version").stdout == f"lithify {lithify.__version__}\n"


@pytest.mark.parametrize("command", ["init", "lock", "build", "run", "list", "inspect", "export"])
def test_every_command_has_help_and_an_api_call_of_its_name(command: str) -> None:
    result = lithify_process(command, "--help")
    assert result.returncode == 0
    assert f"Usage: lithify {command}" in result.stdout
    assert {"list": "list_images"}.get(command, command) in lithify.__all__


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lithify.cli import run; run(['--help']); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} "
        "& {'httpx', 'rich', 'tomlkit', 'installer', 'packaging', 'asyncio', 'ssl', 'multiprocessing', 'rattler', "
        "'yaml'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_package_loads_nothing_before_it_is_asked() -> None:
    code = (
        "import sys; before = set(sys.modules); import lithify; "
        "names = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(names - sys.stdlib_module_names))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "['lithify']\n"


def test_a_reader_that_leaves_ends_the_command_quietly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lithify", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    complaint = process.stderr.read()
    assert process.wait() in (0, 141)
    assert complaint == ""


def test_json_is_only_json(calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["build"], ["list"], ["lock"], ["inspect", "image"]):
        assert cli.run([*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []


def test_a_store_that_cannot_be_made_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["list", "--store", str(tmp_path / "file/store")]) == 5
    assert f"the store {tmp_path / 'file/store'} cannot be written" in capsys.readouterr().err
