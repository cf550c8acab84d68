"""Reading the text files of a family: what cannot be read names the file, and the line where there is one."""

from __future__ import annotations

from pathlib import Path

from lithify.errors import InputError


def read_text(path: Path, asked_at: str | None = None) -> str:
    """The text of ``path``, which ``asked_at`` (a ``FILE:LINE``) asks for; a byte order mark is left out.

    Raises:
        InputError: for a file that is missing, cannot be read, or is not UTF-8.
    """
    before = f"{asked_at}: " if asked_at else ""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{before}{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{asked_at or path}: {path} cannot be read: {error.strerror}") from error
    return decoded(data, path)


def decoded(data: bytes, path: Path) -> str:
    """The text that ``data``, the content of ``path``, holds.

    Raises:
        InputError: naming the line that is not UTF-8 or holds a NUL.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8: {error.reason}", hint="save the file as UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path}:{text[: text.index(chr(0))].count(chr(10)) + 1}: holds a NUL character")
    return text


def read_bytes(path: Path) -> bytes | None:
    """The content of ``path``, or nothing where there is no such file.

    Raises:
        InputError: for a file that cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
