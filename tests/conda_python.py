"""The running CPython as conda packages: `python` itself, and the shared libraries that it needs, under conda-forge's
names.

They run wherever they are installed: every path in them is relative, or a placeholder. Packages for a machine of
another kind are made of them too; those are only laid out.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import platform
import re
import sqlite3
import ssl
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from conda_wheels import Target, with_build
from making_conda import LINUX_64, LINUX_AARCH64, MTIME, NOARCH, PLACEHOLDER, CondaPackage, File, Member, Symlink, text

HOST_SUBDIR = LINUX_AARCH64 if platform.machine() in ("aarch64", "arm64") else LINUX_64
FOREIGN_SUBDIR = LINUX_64 if HOST_SUBDIR == LINUX_AARCH64 else LINUX_AARCH64
_MACHINES = {LINUX_64: ("x86_64", 62), LINUX_AARCH64: ("aarch64", 183)}

_LEFT_OUT = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "tkinter", "lib2to3", "ensurepip"),
    *("turtledemo", "EXTERNALLY-MANAGED", "sitecustomize.py", "_distutils_system_mod.py", "turtle.py"),
}
# Modules that bring half a system with them, and CPython's own tests.
_LEFT_OUT_MODULES = re.compile(
    r"(_tkinter|nis|_dbm|_gdbm|_test\w*|_ctypes_test|_xxtestfuzz|xxlimited\w*|ossaudiodev)\."
)
_GLIBC = re.compile(r"(ld-linux.*|linux-vdso|lib(c|m|dl|pthread|rt|util|resolv|anl|nsl|mvec|nss_\w+))\.so")
# Which package has a library. The rest is bundled in `python-libraries`.
_PACKAGES = {
    "libssl": "openssl",
    "libcrypto": "openssl",
    "libffi": "libffi",
    "libz": "libzlib",
    "libbz2": "bzip2",
    "liblzma": "liblzma",
    "libsqlite3": "libsqlite",
    "libreadline": "readline",
    "libncursesw": "ncurses",
    "libpanelw": "ncurses",
    "libtinfo": "ncurses",
    "libuuid": "libuuid",
    "libexpat": "libexpat",
    "libcrypt": "libxcrypt",
    "libmpdec": "mpdecimal",
    "libgcc_s": "libgcc",
    "libstdc++": "libstdcxx",
}


def host_target(subdir: str = HOST_SUBDIR) -> Target:
    """The running Python's version, and a platform."""
    return Target(platform.python_version(), subdir)


def python_packages(target: Target) -> list[CondaPackage]:
    """Python, its libraries, `python_abi` and `tzdata`, for this machine or the other kind."""
    host = replace(target, subdir=HOST_SUBDIR)
    files, needed = _interpreter(host)
    libraries = _library_packages(needed)
    compiled = {package.name: package for package in libraries}
    depends = [
        *(f"{name} >={package.version}" for name, package in sorted(compiled.items())),
        "__glibc >=2.17,<3.0.a0",
        "tzdata",
    ]
    python = with_build(
        CondaPackage(
            "python",
            target.python,
            files,
            subdir=HOST_SUBDIR,
            depends=depends,
            constrains=[f"python_abi {target.minor}.* *_cp{target.minor.replace('.', '')}"],
            license="Python-2.0",
            index={"python_site_packages_path": target.site_packages},
        )
    )
    python = replace(python, build=f"{python.build}_cpython")
    packages = [python, *libraries]
    if target.subdir != HOST_SUBDIR:
        packages = [foreign(package, target.subdir) for package in packages]
    return [*packages, python_abi(target), tzdata()]


def python_abi(target: Target) -> CondaPackage:
    """The package that says which machine code a Python takes."""
    return CondaPackage(
        "python_abi",
        target.minor,
        build=f"8_cp{target.minor.replace('.', '')}",
        build_number=8,
        noarch="generic",
        constrains=[f"python {target.minor}.* *_cpython"],
    )


def tzdata() -> CondaPackage:
    """Some of this machine's time zones; only UTC where it has none."""
    files: dict[str, Member] = {}
    root = Path("/usr/share/zoneinfo")
    for path in [root / "UTC", *root.glob("Etc/*"), *root.glob("Europe/*"), *root.glob("America/N*")]:
        if path.is_file():
            files[f"share/zoneinfo/{path.relative_to(root)}"] = File(path.read_bytes())
    if not files:
        # https://www.rfc-editor.org/rfc/rfc8536: version 1, one type of local time.
        empty = b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">iBB", 0, 0, 0) + b"UTC\0"
        files["share/zoneinfo/UTC"] = File(empty)
    package = CondaPackage(
        "tzdata", "2025b", files, subdir=NOARCH, noarch="generic", license="LicenseRef-Public-Domain"
    )
    return with_build(package)


# -- the interpreter -----------------------------------------------------------------------------------------------


def _interpreter(target: Target) -> tuple[dict[str, Member], set[Path]]:
    """The files of this machine's Python below a prefix, and the libraries that they need."""
    minor, stdlib = target.minor, Path(sysconfig.get_path("stdlib"))
    inside = f"lib/python{minor}"
    sources: dict[str, bytes] = {}
    files: dict[str, Member] = {}
    needed: set[Path] = set()
    with Patcher() as patch:
        for path in _files(stdlib):
            relative = path.relative_to(stdlib).as_posix()
            data = path.read_bytes()
            if data.startswith(b"\x7fELF"):
                needed |= needed_libraries(path)
                files[f"{inside}/{relative}"] = File(patch.relocated(data, f"{inside}/{relative}"), 0o755)
                continue
            if relative.endswith(".py"):
                data = _patched(relative, data, minor)
                sources[f"{inside}/{relative}"] = data
            files[f"{inside}/{relative}"] = _with_placeholder(relative, data)
        program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
        needed |= needed_libraries(program)
        files[f"bin/python{minor}"] = File(patch.relocated(program.read_bytes(), f"bin/python{minor}"), 0o755)
        for library in [path for path in needed if path.name.startswith("libpython")]:
            needed.remove(library)
            data = library.resolve().read_bytes()
            files[f"lib/{library.name}"] = File(patch.relocated(data, f"lib/{library.name}"), 0o755)
    files |= {f"bin/{name}": Symlink(f"python{minor}") for name in ("python", "python3")}
    files[f"bin/pydoc{minor}"] = text(f"#!{PLACEHOLDER}/bin/python{minor}\nimport pydoc\npydoc.cli()\n", 0o755)
    files["bin/pydoc3"] = files["bin/pydoc"] = Symlink(f"pydoc{minor}")
    files[f"{target.site_packages}/README.txt"] = File(b"Distributions are installed here.\n")
    headers = Path(sysconfig.get_path("include"))
    for path in _files(headers):
        files[f"include/python{minor}/{path.relative_to(headers)}"] = File(path.read_bytes())
    for module, code in compiled(sources).items():
        folder, _, name = module.removesuffix(".py").rpartition("/")
        files[f"{folder}/__pycache__/{name}.{sys.implementation.cache_tag}.pyc"] = File(code)
    return files, needed


def _files(root: Path) -> Iterator[Path]:
    """The files below ``root`` in order, without what is left out."""
    if not root.is_dir():
        return
    for path in sorted(root.iterdir()):
        if path.name in _LEFT_OUT or path.name.startswith("config-") or _LEFT_OUT_MODULES.match(path.name):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file() and path.suffix not in (".a", ".exe", ".o", ".pyc"):
            yield path


def _patched(relative: str, data: bytes, minor: str) -> bytes:
    """A module of the standard library as its authors wrote it, where Debian looks for distributions elsewhere."""
    if relative == "site.py" and b"dist-packages" in data:
        content = data.decode()
        start = content.index("def getsitepackages(")
        end = content.index("\ndef ", start + 1)
        function = (
            "def getsitepackages(prefixes=None):\n"
            "    return [\n"
            f'        os.path.join(prefix, "lib", "python{minor}", "site-packages")\n'
            "        for prefix in dict.fromkeys(PREFIXES if prefixes is None else prefixes)\n"
            "        if prefix\n"
            "    ]\n\n"
        )
        return (content[:start] + function + content[end:]).encode()
    if relative == "sysconfig.py" or relative.startswith("sysconfig/"):
        return re.sub(
            rb"(?m)^( +)prefix_scheme = '(deb_system|posix_local)'$", rb"\1prefix_scheme = 'posix_prefix'", data
        )
    return data


def _with_placeholder(relative: str, data: bytes) -> File:
    """A file of the standard library, this Python's prefix replaced where it is configuration."""
    if not Path(relative).name.startswith("_sysconfigdata"):
        return File(data)
    prefix = re.escape(sys.base_prefix.encode())
    return text(re.sub(rb"(?<![\w./-])" + prefix + rb"(?![\w.-])", PLACEHOLDER.encode(), data).decode())


_COMPILE = """\
import importlib.util, marshal, pickle, struct, sys, warnings
warnings.simplefilter("ignore")
mtime, placeholder, sources = pickle.load(sys.stdin.buffer)
done = {}
for path, data in sources:
    try:
        code = compile(data, f"{placeholder}/{path}", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError):
        continue
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, mtime, len(data))
    done[path] = header + marshal.dumps(code)
sys.stdout.buffer.write(pickle.dumps(done))
"""


def compiled(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """The bytecode of modules, as other builders ship it: it is good as long as the source has `MTIME`."""

    # What is compiled before, and hashes, can change bytecode: always the same parts in processes of their own.
    def part(modules: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
        result = subprocess.run(
            [sys.executable, "-S", "-s", "-B", "-c", _COMPILE],
            input=pickle.dumps((MTIME, PLACEHOLDER, modules)),
            stdout=subprocess.PIPE,
            check=True,
            env={"PYTHONHASHSEED": "0"},
        )
        done: dict[str, bytes] = pickle.loads(result.stdout)
        return done

    ordered = sorted(sources.items())
    parts = [ordered[start::8] for start in range(8)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(itertools.chain.from_iterable(done.items() for done in threads.map(part, parts)))


# -- machine code --------------------------------------------------------------------------------------------------


class Patcher:
    """Makes machine code find its libraries in the prefix that it is in, by ``patchelf``."""

    def __enter__(self) -> Patcher:
        self._folder = tempfile.TemporaryDirectory(prefix="lithify-test-")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def relocated(self, data: bytes, path: str) -> bytes:
        """A program or library that goes to ``path`` below the prefix, looking for others in ``lib``.

        In DT_RPATH, as conda-build writes: what it loads inherits that, so wheels' modules find the C++ library.
        """
        up = os.path.relpath("lib", Path(path).parent)
        rpath = "$ORIGIN" if up == "." else f"$ORIGIN/{up}"
        file = Path(self._folder.name) / "code"
        file.write_bytes(data)
        subprocess.run([patchelf(), "--force-rpath", "--set-rpath", rpath, file], check=True, capture_output=True)
        return file.read_bytes()


def patchelf() -> Path:
    """The program of the distribution `patchelf`."""
    found = Path(sys.executable).parent / "patchelf"
    assert found.exists(), "the tests need the distribution `patchelf`"
    return found


def needed_libraries(program: Path) -> set[Path]:
    """The libraries, all but glibc's, that machine code of this machine loads."""
    listing = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"=> (/\S+) \(0x", listing)}
    return {path for path in found if not _GLIBC.match(path.name)}


def system_library(soname: str) -> Path | None:
    """This machine's library of a name."""
    triplet = f"{platform.machine()}-linux-gnu"
    folders = (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/usr/lib")
    return next((path for folder in folders if (path := Path(folder, soname)).is_file()), None)


def _library_packages(needed: set[Path]) -> list[CondaPackage]:
    found = {path.name: path for path in needed}
    for soname in ("libgcc_s.so.1", "libstdc++.so.6"):
        if (library := system_library(soname)) is not None:
            found[soname] = library
    groups: dict[str, dict[str, Path]] = {}
    for soname, path in sorted(found.items()):
        name = _PACKAGES.get(re.split(r"\.so|-\d", soname)[0], "python-libraries")
        groups.setdefault(name, {})[soname] = path
    packages = []
    with Patcher() as patch:
        for name, libraries in sorted(groups.items()):
            files: dict[str, Member] = {}
            depends = {"__glibc >=2.17,<3.0.a0"}
            for soname, path in libraries.items():
                real = path.resolve()
                files[f"lib/{real.name}"] = File(patch.relocated(real.read_bytes(), f"lib/{real.name}"), 0o755)
                if real.name != soname:
                    files[f"lib/{soname}"] = Symlink(real.name)
                for other in needed_libraries(path):
                    owner = next((group for group, members in groups.items() if other.name in members), name)
                    depends |= {owner} - {name}
            version = _version(name, libraries)
            packages.append(with_build(CondaPackage(name, version, files, subdir=HOST_SUBDIR, depends=sorted(depends))))
    return packages


def _version(name: str, libraries: Mapping[str, Path]) -> str:
    if name == "openssl":
        return ssl.OPENSSL_VERSION.split()[1]
    if name == "libsqlite":
        return sqlite3.sqlite_version
    if name == "python-libraries":
        return "1.0"
    real = next(iter(libraries.values())).resolve().name
    match = re.search(r"\.so\.([\d.]+)$", real)
    return match[1] if match else "1.0"


# -- another kind of machine ---------------------------------------------------------------------------------------


def elf(subdir: str, content: bytes = b"") -> bytes:
    """A header of machine code for a platform, and ``content``: nothing that runs."""
    machine = _MACHINES[subdir][1]
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 3, machine, 1)
    return header.ljust(64, b"\0") + content


def foreign(package: CondaPackage, subdir: str = FOREIGN_SUBDIR) -> CondaPackage:
    """A package of this machine's kind as one of the other kind: the same but for machine code, which does not run."""
    ours, theirs = _MACHINES[package.subdir][0], _MACHINES[subdir][0]
    files: dict[str, Member] = {}
    for path, member in package.files.items():
        if isinstance(member, File) and member.data.startswith(b"\x7fELF"):
            content = f"{package.stem} {path}\0".encode() + hashlib.sha256(member.data).digest() + b"\0"
            if member.binary and member.placeholder:
                content += f"{member.placeholder}/share/{package.name}\0".encode()
            member = replace(member, data=elf(subdir, content))
        files[path.replace(f"{ours}-linux-gnu", f"{theirs}-linux-gnu")] = member
    return replace(package, subdir=subdir, files=files)
