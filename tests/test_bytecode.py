"""Compiling: the same code whatever was compiled before, usable by Python, and never a crash."""

import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from lithify import runtime
from lithify.fragment import compile_server
from lithify.fragment.bytecode import Compiler, Interpreter, cached_path, compiling, is_compiled

# Modules whose constants once made the code depend on what was compiled before: equal sets in several functions.
SETS = b"""
def f(x): return x in {"alpha", "beta", "gamma"}
def g(x): return x in {"gamma", "beta", "alpha"}
def h(x): return x in {1, 2.5, True, None, ("a", frozenset())} or x in {1.0, 2.5, "1"}
class C:
    def m(self, x): return [y for y in x if y in {"alpha", "beta", "gamma"}]
"""


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    # The interpreter itself: a virtual environment below /tmp would not be seen in the sandbox.
    with compiling(Interpreter((Path("/"),), str(Path(sys.executable).resolve()))) as running:
        yield running


def standard_library() -> list[Path]:
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(path for part in ("asyncio", "email", "json", "unittest") for path in (folder / part).rglob("*.py"))


def test_the_order_of_compiling_does_not_matter() -> None:
    sources = {str(path): path.read_bytes() for path in standard_library()} | {"sets.py": SETS}
    first = {path: compile_server.compiled(path, source) for path, source in sources.items()}
    shuffled = list(sources)
    random.Random(7).shuffle(shuffled)
    kept = []  # code that stays alive must not matter either
    for path in shuffled:
        kept.append(compile(sources[path], path, "exec"))
        assert compile_server.compiled(path, sources[path]) == first[path], path


def test_the_hash_seed_does_not_matter() -> None:
    script = (
        "import sys, hashlib; from lithify.fragment import compile_server as c; from pathlib import Path\n"
        f"d = hashlib.sha256(c.compiled('sets.py', {SETS!r}))\n"
        "for path in sys.argv[1:]: d.update(c.compiled(path, Path(path).read_bytes()))\n"
        "print(d.hexdigest())"
    )
    files = [str(path) for path in standard_library()]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script, *files], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1


def test_equal_sets_keep_their_meaning() -> None:
    import marshal

    namespace: dict[str, object] = {}
    exec(marshal.loads(compile_server.compiled("sets.py", SETS)), namespace)
    f, g, h = (namespace[name] for name in "fgh")
    assert callable(f) and callable(g) and callable(h)
    assert f("alpha") and g("gamma") and not f("delta")
    assert h(None) and h(("a", frozenset())) and h("1") and not h("2")


def test_python_uses_the_pyc_and_notices_an_edit(tmp_path: Path, compiler: Compiler) -> None:
    import os

    source = tmp_path / "module.py"
    source.write_bytes(b"value = 1\n")
    os.utime(source, (runtime.MTIME, runtime.MTIME))
    # Code that says something else than the source shows which of the two Python reads.
    pyc = compiler.compile(str(source), b"value = 2\n")
    assert pyc is not None
    Path(cache_from_source(str(source))).parent.mkdir()
    Path(cache_from_source(str(source))).write_bytes(pyc)
    show = [sys.executable, "-c", "import module; print(module.value)"]
    assert subprocess.run(show, cwd=tmp_path, capture_output=True, check=True).stdout == b"2\n"
    source.write_bytes(b"value = 3\n")
    assert subprocess.run(show, cwd=tmp_path, capture_output=True, check=True).stdout == b"3\n"


def test_what_is_no_python_has_no_pyc(compiler: Compiler) -> None:
    assert compiler.compile("/x.py", b"print 'two'\n") is None
    assert compiler.compile("/x.py", b"\xff\xfe") is None
    assert compiler.compile("/x.py", b"a\0b") is None
    assert compiler.compile("/x.py", b"x = 1\n") is not None


def test_a_source_that_breaks_the_compiler_does_not_break_the_next(compiler: Compiler) -> None:
    compiler.compile("/deep.py", b"(" * 100_000 + b")" * 100_000)
    compiler.compile("/deep.py", b"x = " + b"-" * 200_000 + b"1\n")
    assert compiler.compile("/x.py", b"x = 1\n") is not None


def test_a_compiler_that_was_killed_starts_again(compiler: Compiler) -> None:
    assert compiler.compile("/x.py", b"x = 1\n") is not None
    assert compiler.process is not None
    compiler.process.kill()
    compiler.process.wait()
    assert compiler.compile("/x.py", b"x = 1\n") is not None


def test_test_suites_are_left_out() -> None:
    assert is_compiled("lib/pandas/core/frame.py")
    assert not is_compiled("lib/pandas/tests/test_frame.py")
    assert not is_compiled("lib/sympy/core/tests/x/y.py")
    assert not is_compiled("lib/pandas/data.txt")
    assert is_compiled("lib/numpy/testing/utils.py")


def test_the_pyc_lies_where_python_looks() -> None:
    tag = sys.implementation.cache_tag
    assert cached_path("/lib/a/b.py", tag) == cache_from_source("/lib/a/b.py")
