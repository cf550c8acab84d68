"""Small real families for tests: wheels made here, a base made of this machine's Python, locks that name both.

Nothing in them floats: the same call gives the same wheels and locks, byte for byte.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import images
from lithify.lockfile import Lock, Package, read_lock, write_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, PLATFORMS, Platform, host_platform
from lithify.read.family import FAMILY_FILE, lock_path, read_family
from lithify.read.settings import Settings
from lithify.resolve import fingerprint_of
from lithify.store.compression import GZIP
from lithify.store.store import Store, open_store

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOST_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


# -- wheels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheel:
    """A wheel's file name and bytes."""

    file: str
    data: bytes

    @property
    def name(self) -> str:
        return self.file.split("-")[0].replace("_", "-")

    @property
    def version(self) -> str:
        return self.file.split("-")[1]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def package(self, platform: Platform = LINUX_AMD64, **changes: Any) -> Package:
        package = Package("pypi", self.name, platform, self.version, self.file, self.sha256, len(self.data))
        return replace(package, **changes)


def wheel(
    name: str,
    files: Mapping[str, bytes | str] | None = None,
    *,
    version: str = "1.0",
    tag: str = "py3-none-any",
    requires: Sequence[str] = (),
    entry_points: str = "",
    modes: Mapping[str, int] | None = None,
    record: Callable[[list[tuple[str, str, str]]], list[tuple[str, str, str]]] = lambda rows: rows,
) -> Wheel:
    """A wheel (https://packaging.python.org/specifications/binary-distribution-format/) of ``files``.

    Not compressed, so that its bytes depend on no library. ``record`` may change RECORD's rows, to lie.
    """
    distribution = re.sub(r"[-_.]+", "_", name)
    info = f"{distribution}-{version}.dist-info"
    contents: dict[str, bytes] = {}
    for path, content in (files if files is not None else {f"{distribution}.py": f"name = {name!r}\n"}).items():
        contents[path] = content.encode() if isinstance(content, str) else content
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    contents[f"{info}/METADATA"] = metadata.encode()
    pure = str(tag.endswith("-any")).lower()
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: {tag}\n".encode()
    if entry_points:
        contents[f"{info}/entry_points.txt"] = entry_points.encode()
    rows = []
    for path, data in contents.items():
        hashed = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append((path, f"sha256={hashed}", str(len(data))))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(record([*rows, (f"{info}/RECORD", "", "")]))
    contents[f"{info}/RECORD"] = text.getvalue().encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zipped:
        for path, data in contents.items():
            member = zipfile.ZipInfo(path, (2020, 2, 2, 2, 2, 2))
            member.create_system = 3
            member.external_attr = (0o100000 | (modes or {}).get(path, 0o644)) << 16
            zipped.writestr(member, data)
    return Wheel(f"{distribution}-{version}-{tag}.whl", archive.getvalue())


def compiled_tag(platform: Platform = LINUX_AMD64, python: str = HOST_PYTHON) -> str:
    """The tag of a wheel that holds machine code."""
    return f"cp{python.replace('.', '')}-cp{python.replace('.', '')}-manylinux_2_17_{platform.machine}"


def pure_wheels() -> tuple[Wheel, ...]:
    """Pure wheels that together have what makes installing wheels hard."""
    big = "".join(f"value_{number} = {number}\n" for number in range(3000))
    return (
        wheel("plain", requires=["tool"]),
        wheel(
            "tool",
            {
                "tool/__init__.py": "def main():\n    print('tool runs')\n    return 0\n",
                "tool/sets.py": "def f(x): return x in {'a', 'b'}\ndef g(x): return x in {'b', 'a'}\n",
                "tool/broken.py": "print 'of another age'\n",
                "tool/tests/test_tool.py": "assert True\n",
                "tool-1.0.data/scripts/hello": "#!python\nimport sys\nprint('hello from', sys.prefix)\n",
                "tool-1.0.data/scripts/shell-hello": "#!/bin/sh\necho hello from sh\n",
                "tool-1.0.data/data/share/tool/data.txt": "data\n",
                "tool-1.0.data/data/etc/jupyter/tool.json": "{}\n",
                "tool-1.0.data/headers/tool.h": "int tool;\n",
            },
            entry_points="[console_scripts]\ntool = tool:main\n[gui_scripts]\ntool-window = tool:main\n",
        ),
        wheel(
            "awkward",
            {
                "awkward/__init__.py": "",
                "awkward/grüße/привет.txt": "unicode\n",
                "awkward/with space/and'quote.txt": "",
                f"awkward/{'long' * 20}/{'longer' * 12}/{'longest' * 10}.py": "x = 1\n",
                "awkward/run.sh": "#!/bin/sh\n",
                "awkward/empty.bin": b"",
                "awkward/large.py": big,
            },
            modes={"awkward/run.sh": 0o755},
        ),
        wheel("space.one", {"space/one/__init__.py": "one = 1\n", "space/shared.txt": "the same\n"}),
        wheel("space.two", {"space/two/__init__.py": "two = 2\n", "space/shared.txt": "the same\n"}),
        *(wheel(f"filler{number}", {f"filler{number}.py": f"x = {number}\n" * 50}) for number in range(8)),
    )


def machine_wheels() -> tuple[Wheel, ...]:
    """A distribution of 4 MB with machine code, as a wheel for each platform: this machine's, and made up."""
    made = []
    for platform in PLATFORMS.values():
        code = Path(sys.executable).resolve().read_bytes() if platform == host_platform() else elf(platform.elf_machine)
        noise = hashlib.shake_256(str(platform).encode()).digest(4_200_000)
        suffix = f"cpython-{HOST_PYTHON.replace('.', '')}-{platform.triplet}.so"
        files: dict[str, bytes | str] = {
            "machine/__init__.py": "",
            f"machine/code.{suffix}": code,
            "machine/table.bin": noise,
        }
        made.append(wheel("machine", files, tag=compiled_tag(platform)))
    return tuple(made)


def elf(machine: int) -> bytes:
    """The smallest thing that is an ELF header of ``machine``."""
    return b"\x7fELF\x02\x01\x01" + b"\0" * 9 + (3).to_bytes(2, "little") + machine.to_bytes(2, "little") + b"\0" * 44


# -- an index ------------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@contextlib.contextmanager
def index(folder: Path, wheels: Sequence[Wheel], *, hashes: bool = True) -> Iterator[str]:
    """A simple index (PEP 503) of ``wheels`` on a loopback port: its address."""
    by_name: dict[str, list[Wheel]] = {}
    for one in wheels:
        by_name.setdefault(one.name, []).append(one)
    for name, members in by_name.items():
        page = folder / "simple" / name
        page.mkdir(parents=True, exist_ok=True)
        links = []
        for one in members:
            (page / one.file).write_bytes(one.data)
            fragment = f"#sha256={one.sha256}" if hashes else ""
            links.append(f'<a href="{one.file}{fragment}">{one.file}</a>')
        (page / "index.html").write_text("<!DOCTYPE html><html><body>" + "".join(links) + "</body></html>")
    (folder / "simple").mkdir(exist_ok=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- bases ---------------------------------------------------------------------------------------------------------

_ETC_PROFILE = """\
PATH="/usr/local/bin:/usr/bin:/bin"
export PATH
for file in /etc/profile.d/*.sh; do . "$file"; done
"""


def python_base(layout: Path, platforms: Sequence[Platform] = (LINUX_AMD64,)) -> None:
    """Make the image ``test/base`` in ``layout``: this machine's Python and a few programs, the same for all platforms.

    Not a base for use: but one that is made in a second, and whose Python compiles and runs.
    """
    store = open_store(layout)
    python = Path(sysconfig.get_path("stdlib"))
    inside = f"usr/lib/python{HOST_PYTHON}"
    members = [
        *_system(),
        *_interpreter(),
        *images.tree(
            python,
            inside,
            skip=(
                "site-packages",
                "dist-packages",
                "test",
                "idlelib",
                "__pycache__",
                "tkinter",
                "lib2to3",
                f"config-{HOST_PYTHON}-x86_64-linux-gnu",
                "ensurepip",
                "turtledemo",
            ),
        ),
    ]
    layer = images.layer(store, _with_folders(members), compression=GZIP)
    images.image(store, [layer], "test/base", platforms=platforms)


def plain_base(layout: Path, platforms: Sequence[Platform] = (LINUX_AMD64,)) -> None:
    """Make the image ``test/base`` in ``layout`` of a few files that are the same on every machine.

    Its Python is called 3.13 and does not run: for wheels without Python code only.
    """
    store = open_store(layout)
    members = [
        images.file("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        images.file("etc/group", "root:x:0:\n"),
        images.file("usr/bin/python3.13", "not run\n", 0o755),
    ]
    # Not compressed: its digest depends on no library.
    layer = images.layer(store, _with_folders(members), compression=None)
    images.image(store, [layer], "test/base", platforms=platforms)


def _system() -> list[images.Member]:
    return [
        images.file("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
        images.file("etc/group", "root:x:0:\n"),
        images.file("etc/profile", _ETC_PROFILE),
        *images.programs("bash", "sh", "env", "cat", "id", "ls", "stat", "mkdir", "touch"),
        images.symlink("usr/bin/env", "/bin/env"),
        images.folder("tmp", 0o1777),
        images.folder("run"),
        images.folder("proc"),
        images.folder("dev"),
    ]


def _interpreter() -> list[images.Member]:
    """This Python as ``/usr/bin/pythonX.Y``, with the libraries that it needs where its linker looks."""
    path = Path(sys.executable).resolve()
    return [
        images.file(f"usr/bin/python{HOST_PYTHON}", path.read_bytes(), 0o755),
        *images.libraries(path),
    ]


def _with_folders(members: Sequence[images.Member]) -> list[images.Member]:
    """``members`` without repeated paths, after the folders above them."""
    unique = {info.name: (info, data) for info, data in members}
    from lithify.store import tar

    folders = [path for path in tar.parents(unique) if path not in unique]
    return [images.folder(path) for path in folders] + [unique[path] for path in sorted(unique)]


# -- families ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """An image to declare: its own wheels (the parents' are added), files of its folder, lines of its table."""

    name: str
    wheels: Sequence[Wheel] = ()
    extends: str | None = None
    files: Mapping[str, bytes | str] = field(default_factory=dict)
    lines: Sequence[str] = ()


def write_family(
    root: Path,
    specs: Sequence[Spec],
    *,
    base: Path | None = None,
    platforms: Sequence[Platform] = (LINUX_AMD64,),
    python: str = HOST_PYTHON,
    debian: Sequence[Package] = (),
    base_lines: Sequence[str] | None = None,
    lines: Sequence[str] = (),
    lock: bool = True,
) -> Path:
    """Write a family on the image ``test/base`` of the layout ``base``, locked; its folder.

    With ``debian``, packages of a lock, the base is Debian's.
    """
    root.mkdir(parents=True, exist_ok=True)
    if base_lines is None:
        base_lines = [f'oci-layout = "{base}"', 'image = "test/base"', f'python = "{python}"']
    text = ["[family]", 'name = "small"', f"platforms = {json.dumps([str(p) for p in platforms])}", *lines]
    text += ["[base]", *base_lines]
    for spec in specs:
        text += [f"[images.{spec.name}]", *([f'extends = "{spec.extends}"'] if spec.extends else []), *spec.lines]
        folder = root / spec.name
        folder.mkdir(exist_ok=True)
        (folder / "requirements.txt").write_text("".join(f"{one.name}=={one.version}\n" for one in spec.wheels))
        for name, content in spec.files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (root / FAMILY_FILE).write_text("\n".join(text) + "\n")
    if lock:
        lock_family(root, {spec.name: spec.wheels for spec in specs}, debian)
    return root


def write_small(root: Path, layout: Path, wheels: Sequence[Wheel], **options: Any) -> Path:
    """The family that most tests build: ``parent`` and ``child`` share ``wheels``, for both platforms."""
    cut = len(wheels) // 2
    specs = [
        Spec("parent", wheels[:cut]),
        Spec("child", wheels[cut:], extends="parent", lines=['environment = { COLOUR = "blue" }']),
    ]
    return write_family(root, specs, base=layout, **{"platforms": (LINUX_AMD64, LINUX_ARM64), **options})


def lock_family(root: Path, wheels: Mapping[str, Sequence[Wheel]], debian: Sequence[Package] = ()) -> None:
    """Write every image's lock: its wheels and its parents', for the platforms that their tags allow."""
    family = read_family(root)
    for name, image in family.images.items():
        own = {one.file: one for ancestor in family.lineage(name) for one in wheels[ancestor.name]}
        packages = [
            one.package(platform)
            for platform in family.platforms
            for one in own.values()
            if not any(other.machine in one.file for other in PLATFORMS.values() if other != platform)
        ]
        fingerprint = fingerprint_of(family, image)
        locked = [package for package in debian if package.platform in family.platforms]
        lock = Lock(fingerprint, CREATED, tuple(sorted([*packages, *locked])))
        lock_path(image).write_text(write_lock(lock))


def debian_base(families: Path) -> tuple[Package, ...]:
    """The packages of the Debian base of the committed family in ``families``."""
    lock = read_lock(families / "pypi" / "base-image" / "lithify.lock")
    return tuple(package for package in lock.packages if package.base)


def provide(store: Store, wheels: Sequence[Wheel]) -> None:
    """Put ``wheels`` into the store's cache of artefacts, as if they had been fetched."""
    for one in wheels:
        path = store.artefact_path(one.sha256)
        with store.writing(path, seal=True, durable=False) as file:
            file.write(one.data)


# -- building ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """What `lithify build --json` said of one image."""

    document: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return str(self.document["digest"])

    @property
    def platforms(self) -> dict[str, str]:
        """The digest of each platform's image."""
        return {entry["platform"]: entry["digest"] for entry in self.document["platforms"]}


def lithify(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lithify", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def build(family: Path, settings: Settings, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Built:
    """Build the last image of ``family`` through the command line."""
    line = [*prefix, sys.executable, "-m", "lithify", "--store", str(settings.store), "-j", str(settings.jobs)]
    line += ["build", "--family", str(family), "--json", *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert result.returncode == 0, result.stderr
    return Built(json.loads(result.stdout)[-1])


# -- shared between workers ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def made_once(shared: Path, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder of the whole test session, and whether it still has to be filled; held by one worker at a time."""
    with open(shared / f"{name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        folder, done = shared / name, shared / f"{name}.done"
        if not done.exists() and folder.exists():
            shutil.rmtree(folder)
        yield folder, not done.exists()
        done.touch()


def clone(source: Path, destination: Path, *parts: str) -> Path:
    """``parts`` of a store (all of it, by default) by hard links, in a store of their own.

    A sealed file stays sealed; whoever writes into a shared file must break its link before.
    """
    destination.mkdir(parents=True, exist_ok=True)
    chosen = [source / part for part in parts] if parts else [p for p in source.iterdir() if p.name != "locks"]
    for part in chosen:
        if part.exists():
            target = destination / part.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-al", str(part), str(target)], check=True)
    return destination


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A new folder that every user can reach, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="lithify-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the committed family ------------------------------------------------------------------------------------------

COMMITTED = Path(__file__).parents[1] / "families" / "pypi"


def build_committed(store: Path, names: Sequence[str], *options: str) -> None:
    """Build images of `COMMITTED` into ``store``, for this machine's platform unless ``options`` say otherwise."""
    kept = os.environ.get("LITHIFY_TEST_ARTEFACTS")
    if kept and Path(kept).is_dir():
        clone(Path(kept), store, "artefacts")
    if "--platform" not in options:
        options = (*options, "--platform", str(host_platform()))
    result = lithify("--store", store, "-q", "build", "--family", COMMITTED, "--locked", *names, *options)
    assert result.returncode == 0, result.stderr
    if kept:
        subprocess.run(["cp", "-anl", str(store / "artefacts"), kept], check=True)


def run_inside(
    store: Path, image: str, *command: str | Path, options: Sequence[str] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command in an image, through `lithify run`."""
    line = [sys.executable, "-m", "lithify", "--store", str(store), "-q", "run", *options, image, "--"]
    result = subprocess.run(
        [*line, *map(str, command)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert not check or result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result
