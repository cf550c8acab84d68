"""Small conda packages with what makes installing them hard, each real enough to run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from conda_python import HOST_SUBDIR
from conda_wheels import Target, with_build
from making_conda import (
    CONDA,
    OLD_PLACEHOLDER,
    PLACEHOLDER,
    TAR_BZ2,
    CondaPackage,
    File,
    Folder,
    Hardlink,
    Member,
    Symlink,
    binary,
    text,
)

LICENSE = {"info/licenses/LICENSE": b"Do as you like.\n"}
# What a long shebang's interpreter is below: the line is longer than 127 bytes whatever the prefix.
DEEP = "libexec/" + "/".join(["very-long-folder-name"] * 6)


@dataclass(frozen=True)
class Special:
    """A package, and the container that it is published in."""

    package: CondaPackage
    container: str = CONDA


def compiler() -> str | None:
    """The C compiler, if this machine has one; without it there is no `greet`."""
    return shutil.which("gcc") or shutil.which("cc")


def specials(target: Target) -> list[Special]:
    """All of them. They are of this machine's kind or noarch, `greet` only where there is a `compiler`."""
    packages = [
        *_prefixes(),
        *_layout(),
        *_scripts(),
        *_clobbering(),
        *_published(),
        *_virtual(),
        *_versions(),
    ]
    if compiler() is not None:
        packages.append(Special(greet()))
    return packages


def _native(name: str, files: Mapping[str, Member], **options: object) -> CondaPackage:
    package = CondaPackage(name, files=files, subdir=HOST_SUBDIR)
    return with_build(replace(package, **options))  # type: ignore[arg-type]


def _generic(name: str, files: Mapping[str, Member], **options: object) -> CondaPackage:
    package = CondaPackage(name, files=files, noarch="generic")
    return with_build(replace(package, **options))  # type: ignore[arg-type]


# -- machine code --------------------------------------------------------------------------------------------------

_LIBRARY = """\
#include <stdio.h>
#include "greet.h"

static const char *volatile message = PREFIX "/share/greet/message.txt";
static const char *volatile search = PREFIX "/share/greet:" PREFIX "/etc/greet:/etc";

const char *greet_search(void) { return search; }

int greet(void) {
    char line[256];
    FILE *file = fopen(message, "r");
    if (!file || !fgets(line, sizeof line, file)) {
        fprintf(stderr, "greet: cannot read %s\\n", message);
        return 1;
    }
    fputs(line, stdout);
    return 0;
}
"""
_PROGRAM = """\
#include <stdio.h>
#include <string.h>
#include "greet.h"

int main(int count, char **arguments) {
    if (count > 1 && !strcmp(arguments[1], "--prefix")) {
        const char *volatile prefix = PREFIX;
        puts(prefix);
        return 0;
    }
    if (count > 1 && !strcmp(arguments[1], "--search")) {
        puts(greet_search());
        return 0;
    }
    return greet();
}
"""
_HEADER = "int greet(void);\nconst char *greet_search(void);\n"


def greet() -> CondaPackage:
    """A C library and a program that prints a file whose path is in it: binary placeholders, one string with two."""
    gcc = compiler()
    assert gcc is not None, "no C compiler here"
    with tempfile.TemporaryDirectory(prefix="lithify-test-") as name:
        folder = Path(name)
        for file, content in {"greet.c": _LIBRARY, "main.c": _PROGRAM, "greet.h": _HEADER}.items():
            (folder / file).write_text(content)

        def run(*command: str) -> None:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

        options = ["-O1", f'-DPREFIX="{PLACEHOLDER}"', "-fPIC", "-Wl,--build-id=none"]
        run(gcc, *options, "-c", "greet.c", "-o", "greet.o")
        run(gcc, *options, "-shared", "greet.o", "-Wl,-soname,libgreet.so.1", "-o", "libgreet.so.1.0.0")
        run("ar", "rcsD", "libgreet.a", "greet.o")
        run(gcc, *options, "main.c", "libgreet.so.1.0.0", "-Wl,-rpath,$ORIGIN/../lib", "-o", "greet")
        library, archive, program = (
            (folder / file).read_bytes() for file in ("libgreet.so.1.0.0", "libgreet.a", "greet")
        )
    files: dict[str, Member] = {
        "bin/greet": binary(program),
        "lib/libgreet.so.1.0.0": binary(library),
        "lib/libgreet.so.1": Symlink("libgreet.so.1.0.0"),
        "lib/libgreet.so": Symlink("libgreet.so.1"),
        "lib/libgreet.a": binary(archive, 0o644),
        "lib/pkgconfig/greet.pc": text(f"prefix={PLACEHOLDER}\nName: greet\nVersion: 1.0.0\nLibs: -L${{prefix}}/lib\n"),
        "include/greet.h": File(_HEADER.encode()),
        "share/greet/message.txt": File(b"hello from the prefix\n"),
    }
    return _native("greet", files, version="1.0.0", depends=["__glibc >=2.17,<3.0.a0"], info=LICENSE)


# -- prefixes ------------------------------------------------------------------------------------------------------


def _prefixes() -> list[Special]:
    here = PLACEHOLDER
    configuration = f"home = {here}/share\r\npath = {here}/bin:{here}/sbin:/usr/bin\r\nself={here}\r\n"
    table = f"\0first\0{here}/lib\0{here}/a:{here}/b:{here}\0last\0".encode() + bytes(range(256))
    deep = f"{here}/{DEEP}/python"
    return [
        Special(
            _native(
                "text-prefix",
                {
                    "bin/text-prefix": text(f"#!{here}/bin/python\nprint('{here}/share')\n", 0o755),
                    "bin/text-prefix-sh": text(f"#!/bin/sh\n# sh of {here}\necho {here}\n", 0o755),
                    "etc/text-prefix.ini": text(configuration),
                    "etc/text-prefix.latin1": File(b"gr\xfc\xdfe = " + here.encode() + b"/x\n", 0o644, here),
                    "etc/text-prefix.none": File(b"says it has a prefix and has none\n", 0o644, here),
                    "share/text-prefix/other": File(b"of /another/prefix here\n", 0o644, "/another/prefix"),
                    "lib/text-prefix/link.ini": Symlink("../../etc/text-prefix.ini"),
                },
                depends=["python"],
            )
        ),
        Special(
            _native(
                "binary-prefix",
                {"share/binary-prefix/table.bin": binary(table, 0o644), "lib/twice.bin": binary(table * 2, 0o644)},
            )
        ),
        Special(
            _native(
                "long-shebang",
                {
                    f"{DEEP}/python": Symlink("../" * (DEEP.count("/") + 1) + "bin/python"),
                    "bin/long-shebang": text(f"#!{deep} -s\nimport sys\nprint(sys.prefix)\n", 0o755),
                    "bin/long-shebang-space": text(f"#! {deep} -s -u\nimport sys\nprint(sys.prefix)\n", 0o755),
                    "bin/long-shebang-crlf": text(f"#!{here}/bin/python\r\nprint('crlf')\r\n", 0o755),
                    "share/long-shebang/not-at-start": text(f"first\n#!{deep}\n"),
                },
                depends=["python"],
            )
        ),
    ]


# -- layout --------------------------------------------------------------------------------------------------------


def _layout() -> list[Special]:
    large = hashlib.shake_256(b"static").digest(400_000).hex().encode()
    long = "/".join(["long" * 15] * 5)
    return [
        Special(
            _native(
                "links",
                {
                    "share/links/file": File(b"a file\n"),
                    "share/links/folder/inside": File(b"inside\n"),
                    "share/links/to-file": Symlink("file"),
                    "share/links/to-folder": Symlink("folder"),
                    "share/links/chain": Symlink("to-file"),
                    "share/links/through": Symlink("to-folder/inside"),
                    "share/links/dangling": Symlink("nowhere"),
                    "share/links/outside": Symlink("/usr/share/links"),
                    "share/links/other": Symlink("../generic/data.txt"),
                    "bin/links": Symlink("../share/links/program"),
                    "share/links/program": File(b"#!/bin/sh\necho links\n", 0o755),
                    "share/links/hard": Hardlink("share/links/file"),
                },
            )
        ),
        # A row of `path_type: directory`, which rattler 0.28 fails at.
        Special(_native("empty-folder", {"share/empty-folder": Folder()})),
        Special(
            _native(
                "modes",
                {
                    "share/modes/private": File(b"0600\n", 0o600),
                    "share/modes/read-only": File(b"0444\n", 0o444),
                    "share/modes/everyone": File(b"0777\n", 0o777),
                    "share/modes/group": File(b"0664\n", 0o664),
                    "share/modes/setuid": File(b"04755\n", 0o4755),
                    "share/modes/unlinked": File(b"no_link\n", no_link=True),
                    "share/modes/empty": File(b""),
                },
            )
        ),
        Special(
            _generic(
                "awkward-names",
                {
                    "share/awkward/grüße/привет.txt": File(b"unicode\n"),
                    "share/awkward/with space/and'quote\".txt": File(b"quotes\n"),
                    "share/awkward/-dash": File(b"dash\n"),
                    "share/awkward/@at$dollar": File(b"signs\n"),
                    f"share/awkward/{long}/file": File(b"a long path\n"),
                    "share/awkward/long-link": Symlink(f"{long}/file"),
                },
            )
        ),
        Special(
            _generic(
                "clutter",
                {
                    "lib/libclutter.a": File(b"!<arch>\n" + large[:50_000]),
                    "lib/libclutter.la": text(f"libdir='{PLACEHOLDER}/lib'\n"),
                    "share/clutter/static/clutter.min.js": File(b"/*! clutter */" + large),
                    "share/clutter/static/clutter.js": File(b"/* clutter */\n" + large * 2),
                    "share/clutter/static/clutter.min.js.map": File(b'{"version":3,"mappings":"' + large * 2 + b'"}'),
                    "share/clutter/static/index.html": File(b"<script src=clutter.min.js></script>\n"),
                    "share/man/man1/clutter.1": File(b".TH clutter 1\n"),
                    "share/doc/clutter/README": File(b"clutter\n"),
                    "share/locale/de/LC_MESSAGES/clutter.mo": File(b"\xde\x12\x04\x95" + bytes(24)),
                },
            )
        ),
        Special(_generic("generic", {"share/generic/data.txt": File(b"generic\n")}, info=LICENSE)),
        Special(CondaPackage("metapackage", depends=["generic", "links"], noarch="generic")),
        Special(
            _generic(
                "menu",
                {
                    "Menu/menu.json": File(
                        json.dumps(
                            {
                                "$schema": "menuinst-1.schema.json",
                                "menu_name": "Menu",
                                "menu_items": [{"name": "Item", "command": ["{{ PREFIX }}/bin/python"]}],
                            }
                        ).encode()
                    )
                },
            )
        ),
    ]


# -- scripts -------------------------------------------------------------------------------------------------------


def _scripts() -> list[Special]:
    activate = """\
if [ -n "${TEST_PROJ_DATA:-}" ]; then
    export _CONDA_SET_TEST_PROJ_DATA="$TEST_PROJ_DATA"
fi
if [ -f "${CONDA_PREFIX}/share/proj-like/proj.db" ]; then
    export TEST_PROJ_DATA="${CONDA_PREFIX}/share/proj-like"
fi
if [ -f "${CONDA_PREFIX}/share/proj-like/network" ]; then
    export TEST_PROJ_NETWORK="ON"
fi
"""
    deactivate = """\
unset TEST_PROJ_DATA TEST_PROJ_NETWORK
if [ -n "${_CONDA_SET_TEST_PROJ_DATA:-}" ]; then
    export TEST_PROJ_DATA="$_CONDA_SET_TEST_PROJ_DATA"
    unset _CONDA_SET_TEST_PROJ_DATA
fi
"""
    fish = 'set -gx TEST_PROJ_DATA "$CONDA_PREFIX/share/proj-like"\n'
    variables = {"TEST_ENV_VARS": "of env-vars", "TEST_QUOTED": 'it\'s "quoted" $HOME'}
    post_link = """\
#!/bin/bash
set -eu
mkdir -p "$PREFIX/share/post-link"
echo "$PKG_NAME $PKG_VERSION $PKG_BUILDNUM" > "$PREFIX/share/post-link/made"
echo "post-link was here" >> "$PREFIX/.messages.txt"
"""
    pre_unlink = '#!/bin/bash\nrm -f "$PREFIX/share/pre-unlink/made"\ntouch "$PREFIX/pre-unlink-was-here"\n'
    return [
        Special(
            _native(
                "proj-like",
                {
                    "share/proj-like/proj.db": File(b"SQLite format 3\0"),
                    "etc/conda/activate.d/proj-like-activate.sh": File(activate.encode()),
                    "etc/conda/activate.d/proj-like-activate.fish": File(fish.encode()),
                    "etc/conda/deactivate.d/proj-like-deactivate.sh": File(deactivate.encode()),
                },
            )
        ),
        Special(
            _generic(
                "env-vars",
                {"etc/conda/env_vars.d/env-vars.json": File(json.dumps(variables).encode())},
            )
        ),
        Special(_native("post-link", {"bin/.post-link-post-link.sh": File(post_link.encode(), 0o755)})),
        Special(
            _native(
                "pre-unlink",
                {
                    "bin/.pre-unlink-pre-unlink.sh": File(pre_unlink.encode(), 0o755),
                    "share/pre-unlink/data": File(b"data\n"),
                },
            )
        ),
        Special(_native("pre-link", {"bin/.pre-link-pre-link.sh": File(b"#!/bin/bash\nexit 1\n", 0o755)})),
    ]


def _clobbering() -> list[Special]:
    return [
        Special(_generic("clobber-same-a", {"share/clobber/same": File(b"the same\n")})),
        Special(_generic("clobber-same-b", {"share/clobber/same": File(b"the same\n")})),
        Special(_generic("clobber-different-a", {"share/clobber/different": File(b"of a\n")})),
        Special(_generic("clobber-different-b", {"share/clobber/different": File(b"of b\n")})),
        Special(_generic("clobber-folder", {"share/clobber/different/below": File(b"below a file\n")})),
    ]


# -- how it is published -------------------------------------------------------------------------------------------


def _published() -> list[Special]:
    def old(name: str) -> CondaPackage:
        files: dict[str, Member] = {
            f"bin/{name}": File(f"#!/bin/sh\necho {OLD_PLACEHOLDER}/share\n".encode(), 0o755, OLD_PLACEHOLDER),
            f"etc/{name} with space.conf": text(f"home = {PLACEHOLDER}\n"),
            f"share/{name}/table.bin": binary(f"\0{PLACEHOLDER}/lib\0".encode(), 0o644),
            f"share/{name}/unlinked": File(b"no_link\n", no_link=True),
            f"share/{name}/link": Symlink("unlinked"),
        }
        return _native(name, files, old=True)

    def tagged(name: str) -> CondaPackage:
        return _generic(name, {f"share/{name}/data": File(name.encode())})

    return [
        Special(old("old-style"), TAR_BZ2),
        Special(old("old-style-conda")),
        Special(
            _native("new-style-bz2", {"bin/new-style-bz2": text(f"#!/bin/sh\necho {PLACEHOLDER}\n", 0o755)}),
            TAR_BZ2,
        ),
        # Both containers of one package in one channel.
        Special(tagged("both-containers")),
        Special(tagged("both-containers"), TAR_BZ2),
        Special(replace(tagged("pax"), tar_format=2).with_files({"share/pax/" + "ü" * 80: File(b"pax\n")})),
        Special(replace(tagged("epoch"), version="1!2.0", mtime=315_532_800)),
        Special(
            replace(
                tagged("more-info"),
                info={
                    **LICENSE,
                    "info/run_exports.json": b'{"weak": ["more-info >=1.0"]}',
                    "info/recipe/meta.yaml": b"package:\n  name: more-info\n",
                    "info/test/run_test.sh": b"exit 0\n",
                    "info/git": b"",
                    "info/hash_input.json": b"{}",
                },
            )
        ),
    ]


def _virtual() -> list[Special]:
    def of(name: str, build: str, number: int, *depends: str) -> Special:
        files: dict[str, Member] = {f"share/{name}/kind": File(f"{build}\n".encode())}
        return Special(
            CondaPackage(
                name, files=files, build=f"{build}_{number}", build_number=number, subdir=HOST_SUBDIR, depends=depends
            )
        )

    return [
        of("needs-cuda", "cuda12", 0, "__cuda >=12"),
        of("needs-glibc", "h", 0, "__glibc >=2.17,<3.0.a0"),
        of("needs-future-glibc", "h", 0, "__glibc >=99"),
        # A solver takes the one with the higher number where there is a GPU.
        of("accelerated", "cpu", 0),
        of("accelerated", "cuda12", 200, "__cuda"),
    ]


def _versions() -> list[Special]:
    """`upgrade` 1.0 and 1.1, of different paths, and something that does not go with the newer one."""
    return [
        Special(_generic("upgrade", {"share/upgrade/1.0": File(b"1.0\n"), "share/upgrade/v": File(b"1.0\n")})),
        Special(
            _generic("upgrade", {"share/upgrade/1.1": File(b"1.1\n"), "share/upgrade/v": File(b"1.1\n")}, version="1.1")
        ),
        Special(_generic("holds-back", {"share/holds-back": File(b"old\n")}, constrains=["upgrade <1.1"])),
        Special(_generic("impossible", {}, depends=["upgrade >=2"])),
    ]
