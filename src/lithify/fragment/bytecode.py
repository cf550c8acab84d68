"""`.pyc` files, compiled by the image's own Python inside the sandbox.

Timestamp-checked (PEP 552, "Python bytecode files"): the header holds the modification time that every file of
ours has and the source's size, so a user who edits an installed file in a running container gets the edit. The code is
the same on every architecture for one Python, so the host's interpreter serves all platforms.

Test suites (files below a folder called ``tests`` or ``test``) are left out. In a scientific image they are half of
all Python code, nobody imports them at start, and where somebody does, Python writes the files then.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lithify import runtime
from lithify.errors import HostError
from lithify.sandbox import Sandbox, arguments

# Goes into every fragment's key: raise it when the bytes change.
RULES = 1


@dataclass(frozen=True)
class Interpreter:
    """Root file systems, the topmost first, and the Python in them that compiles, by its path inside."""

    roots: tuple[Path, ...]
    path: str


@dataclass
class Compiler:
    """A running compiler. Make one with `compiling`; it is restarted when a source makes it crash."""

    interpreter: Interpreter
    process: subprocess.Popen[bytes] | None = None

    def compile(self, path: str, source: bytes) -> bytes | None:
        """The ``.pyc`` of ``source``, whose file will be at ``path`` (absolute, inside the image).

        None for a source that does not compile: it is no module of this Python's.

        Raises:
            HostError: when the interpreter cannot be started.
        """
        code = self._ask(path, source)
        if code is None:  # It died. Alone, in a fresh process, the file has a second chance.
            self.close()
            code = self._ask(path, source)
            if code is None:
                self.close()
                return None
        if not code:
            return None
        header = (0).to_bytes(4, "little") + runtime.MTIME.to_bytes(4, "little")
        return self.magic + header + (len(source) & 0xFFFFFFFF).to_bytes(4, "little") + code

    @property
    def magic(self) -> bytes:
        """The four bytes that open the interpreter's ``.pyc`` files."""
        return self._magic

    def close(self) -> None:
        """End the interpreter's process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    _magic: bytes = b""

    def _ask(self, path: str, source: bytes) -> bytes | None:
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        encoded = path.encode("utf-8", "surrogateescape")
        try:
            process.stdin.write(len(encoded).to_bytes(4, "big") + len(source).to_bytes(8, "big") + encoded)
            process.stdin.write(source)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        head = process.stdout.read(8)
        if len(head) < 8:
            return None
        length = int.from_bytes(head, "big")
        code = process.stdout.read(length)
        return code if len(code) == length else None

    def _start(self) -> subprocess.Popen[bytes]:
        server = Path(__file__).with_name("compile_server.py").read_text(encoding="utf-8")
        sandbox = Sandbox(
            lower=self.interpreter.roots,
            # -I would ignore the seed; -S and a safe path (`-P`, which Python has from 3.11 on) keep everything but the
            # standard library out.
            environment={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "LC_ALL": "C.UTF-8"},
        )
        command = [self.interpreter.path, "-S", "-B", "-c", server]
        process = subprocess.Popen(
            arguments(sandbox, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        magic = process.stdout.read(4)
        if len(magic) < 4:
            complaint = process.communicate()[1].decode(errors="replace").strip()
            raise HostError(
                f"the image's Python ({self.interpreter.path}) does not start in the sandbox",
                details=complaint,
                hint="the image's packages must hold that interpreter and all that it needs",
            )
        self.process, self._magic = process, magic
        return process


@contextmanager
def compiling(interpreter: Interpreter) -> Iterator[Compiler]:
    """A compiler for the length of the block; its process starts at the first file."""
    compiler = Compiler(interpreter)
    try:
        yield compiler
    finally:
        compiler.close()


def is_compiled(path: str) -> bool:
    """Whether the source at ``path`` gets a ``.pyc``: not those of test suites."""
    folders = path.split("/")[:-1]
    return path.endswith(".py") and "tests" not in folders and "test" not in folders


def cached_path(path: str, tag: str) -> str:
    """Where Python looks for the ``.pyc`` of the source at ``path`` (PEP 3147); ``tag`` is ``cpython-313``."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
