"""What a person is told when something cannot be done."""

from __future__ import annotations


class LithifyError(Exception):
    """A failure with a cause that the user can act on.

    ``message`` says what was asked and what was found; ``details`` holds another tool's own
    explanation, shown as it is; ``hint`` says what to do next. The command line prints the three and
    exits with ``exit_code``; a program can read them as attributes.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, details: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        parts = [self.message]
        if self.details:
            parts.append(self.details.rstrip())
        if self.hint:
            parts.append(f"hint: {self.hint}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive a process pool on their own.
        return _rebuild, (type(self), self.message, self.hint, self.details)


def _rebuild(kind: type[LithifyError], message: str, hint: str | None, details: str | None) -> LithifyError:
    return kind(message, hint=hint, details=details)


class InputError(LithifyError):
    """A file or an argument that the user wrote is wrong; the message names the file and the line."""

    exit_code = 2


class UnsatisfiableError(LithifyError):
    """A resolver found no solution; ``details`` holds its explanation."""

    exit_code = 3


class FetchError(LithifyError):
    """An artefact could not be had, or is not the one that was locked."""

    exit_code = 4


class HostError(LithifyError):
    """The machine lacks something that the command needs (a tool, a kernel feature, disk space)."""

    exit_code = 5
