"""The ``lithify`` command: parses, calls the API, draws. Whatever it can do, a program can do too.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong input, 3 no solution,
4 not to be fetched, 5 the machine lacks something, 70 a bug of Lithify's, 130 interrupted; ``lithify run`` exits as
the command in the sandbox does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

INTERNAL = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that ``arguments`` (by default the process's own) ask for, and exit."""
    status = run(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
        _forget_stdout()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code; every failure is told on stderr, none raised."""
    import click

    from lithify.cli.commands import Options, lithify
    from lithify.errors import LithifyError

    options = Options()
    try:
        status = lithify.main(list(arguments), prog_name="lithify", standalone_mode=False, obj=options)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        _usage(error)
        return error.exit_code
    except click.ClickException as error:
        _tell(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted; what was finished is kept, and the next build goes on from there", "")
        return INTERRUPTED
    except LithifyError as error:
        if options.debug:
            _traceback()
        _tell(error.message, details=error.details, hint=error.hint)
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        # click leaves with SystemExit when whoever read our output has gone.
        _forget_stdout()
        return BROKEN_PIPE
    except Exception as error:
        return _unexpected(error, options.debug)
    return status if isinstance(status, int) else 0


def _unexpected(error: Exception, debug: bool) -> int:
    """Tell what nothing of ours foresaw: the machine's trouble as such, the rest as a bug."""
    if debug:
        _traceback()
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        _tell(
            f"no space is left on the disk{place}",
            hint="free some, or use another disk: --store or LITHIFY_STORE for the store, TMPDIR for temporary files",
        )
        return 5
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        _tell(f"{error.filename}: {error.strerror}", hint="see who owns it and what its mode is")
        return 5
    hint = "this is a bug: please report it with this message"
    if not debug:
        hint += " and with what the same command prints with --debug"
    _tell(f"{type(error).__name__}: {error}", "internal error", hint=f"{hint}, at {_home()}")
    return INTERNAL


def _home() -> str:
    """Where bugs are reported, as the package's metadata have it."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.metadata("lithify").get_all("Project-URL") or []:
            kind, _, address = line.partition(", ")
            if kind.lower() in ("issues", "bug tracker"):
                return str(address)
    return "the project's issue tracker"


def _usage(error: object) -> None:
    """Tell a wrong command line: what is wrong, and how to see what is right."""
    import click

    assert isinstance(error, click.UsageError)
    command = error.ctx.command_path if error.ctx else "lithify"
    _tell(error.format_message(), hint=f"`{command} --help` shows what can be asked")


def _tell(message: str, kind: str = "error", *, details: str | None = None, hint: str | None = None) -> None:
    from lithify.cli.display import tell

    tell(message, kind, details=details, hint=hint)


def _traceback() -> None:
    import traceback

    traceback.print_exc()


def _forget_stdout() -> None:
    """Whoever read our output has gone: let the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
