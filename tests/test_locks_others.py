"""@EXPLICIT lists, pixi.lock, pylock.toml, requirements with hashes, packages.txt: read, written, judged by others."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreign_locks import CHANNEL, PLACES, SHARED, both, conda_package, real_packages, wheel
from lithify.addresses import channel_name, split_address, split_file_name, without_credentials
from lithify.errors import FetchError, InputError
from lithify.lockfile import Package
from lithify.locks import FORMATS, Found, Places, complete, read_foreign, write_foreign
from lithify.locks.explicit import parse_explicit, write_explicit
from lithify.locks.packages_txt import parse_packages_txt, read_packages_txt, write_packages_txt
from lithify.locks.pixi import read_pixi, write_pixi
from lithify.locks.pylock import read_pylock, write_pylock
from lithify.locks.writing import topological
from lithify.platforms import LINUX_AMD64, LINUX_ARM64

LIST = Path("conda-linux-64.lock")
MD5 = "0" * 31 + "1"


# -- file names and addresses ------------------------------------------------------------------------------


def test_a_file_name_is_taken_apart() -> None:
    file = split_file_name("ca-certificates-2024.7.4-h_b1_0.tar.bz2")
    assert (file.name, file.version, file.build, file.extension) == (
        "ca-certificates",
        "2024.7.4",
        "h_b1_0",
        ".tar.bz2",
    )
    assert str(split_file_name("_x-1!2.0+local-0.conda")) == "_x-1!2.0+local-0.conda"


@pytest.mark.parametrize(
    "file", ["", "a.conda", "a-1.conda", "a-1-0.zip", "../a-1-0.conda", "a-1-\0.conda", "a-1-0", "é-1-0.conda"]
)
def test_what_is_no_file_name_of_a_conda_package_is_an_error(file: str) -> None:
    with pytest.raises(InputError, match="no conda package's file name"):
        split_file_name(file)


def test_every_artefact_of_the_history_and_its_lists_parse() -> None:
    archive = SHARED / "layering-history.json.gz"
    if not archive.exists():
        pytest.skip(f"there is no {archive.name} beside this repository")
    history = json.loads(gzip.decompress(archive.read_bytes()))
    rows = history["packages"]
    lines = []
    for name, version, build, subdir, channel, extension, md5, *_ in rows:
        file = split_file_name(f"{name}-{version}-{build}{extension}")
        assert (file.name, file.version, file.build, file.extension) == (name, version, build, extension)
        lines.append(f"https://conda.example.org/{channel}/{subdir}/{file}#{md5}")
    assert len(history["tags"]) == 169
    lists = 0
    for tag in history["tags"]:
        for image, numbers in tag["images"].items():
            text = "# platform: linux-64\n@EXPLICIT\n" + "".join(f"{lines[number]}\n" for number in numbers)
            found = parse_explicit(text, Path(f"{tag['tag']}-{image}.lock")).found
            assert [one.md5 for one in found] == [rows[number][6] for number in numbers]
            lists += 1
    assert lists >= 169


@pytest.mark.parametrize(
    ("address", "clean", "name"),
    [
        ("https://a.invalid/conda-forge", "https://a.invalid/conda-forge", "conda-forge"),
        ("https://u:p@a.invalid/t/tk-1/pkgs/main/", "https://a.invalid/pkgs/main/", "pkgs/main"),
        ("https://a.invalid/t/<TOKEN>/c/label/dev", "https://a.invalid/c/label/dev", "c/label/dev"),
        ("https://a.invalid/c?key=s#x", "https://a.invalid/c#x", "c#x"),
        ("file:///srv/channels/mine", "file:///srv/channels/mine", "mine"),
        ("conda-forge", "conda-forge", "conda-forge"),
    ],
)
def test_credentials_are_taken_out_of_addresses(address: str, clean: str, name: str) -> None:
    assert without_credentials(address) == clean
    assert channel_name(address) == name


@settings(deadline=None)
@given(st.text(alphabet="abc-_.~$%!", min_size=1, max_size=12), st.text(alphabet="ab:%", min_size=1, max_size=6))
def test_no_token_survives(token: str, user: str) -> None:
    secret = f"SECRET{token}"
    address = f"https://{user}{secret}@a.invalid/t/{secret}/conda-forge/linux-64/a-1-0.conda?x={secret}"
    assert "SECRET" not in without_credentials(f"before {address} after")
    assert split_address(address).channel == "https://a.invalid/conda-forge"


# -- @EXPLICIT ---------------------------------------------------------------------------------------------


def test_a_list_is_read_with_all_its_spellings() -> None:
    text = f"""\
# This file may be used to create an environment
# platform: linux-64
@EXPLICIT
{CHANNEL}/linux-64/a-1-0.conda#{MD5}
{CHANNEL}/noarch/B-1.0-py_0.tar.bz2#sha256:{"2" * 64}

https://u:sesame@b.invalid/t/sesame/c/linux-64/c-1-0.conda
# pip dask @ https://f.invalid/dask-2.0-py3-none-any.whl#sha256={"3" * 64}
"""
    found = parse_explicit(text, LIST)
    assert [(one.name, one.file, one.md5[-1:], one.sha256[:1]) for one in found.found] == [
        ("a", "linux-64/a-1-0.conda", "1", ""),
        ("b", "noarch/B-1.0-py_0.tar.bz2", "", "2"),
        ("c", "linux-64/c-1-0.conda", "", ""),
        ("dask", "dask-2.0-py3-none-any.whl", "", "3"),
    ]
    assert [one.where for one in found.found][:2] == ["conda-linux-64.lock:4", "conda-linux-64.lock:5"]
    assert found.channels == (CHANNEL, "https://b.invalid/c")
    assert "sesame" not in repr(found)


@pytest.mark.parametrize(
    ("name", "text", "subdir"),
    [
        ("x", f"@EXPLICIT\n{CHANNEL}/noarch/a-1-0.conda\n{CHANNEL}/linux-aarch64/b-1-0.conda\n", "linux-aarch64"),
        ("conda-linux-aarch64.lock", f"@EXPLICIT\n{CHANNEL}/noarch/a-1-0.conda\n", "linux-aarch64"),
        (
            "conda-linux-64.lock",
            f"# platform: linux-aarch64\n@EXPLICIT\n{CHANNEL}/noarch/a-1-0.conda\n",
            "linux-aarch64",
        ),
    ],
)
def test_the_platform_of_a_list_is_found(name: str, text: str, subdir: str) -> None:
    assert [platform.subdir for platform in parse_explicit(text, Path(name)).platforms] == [subdir]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no line `@EXPLICIT`"),
        ("# platform: osx-64\n@EXPLICIT\n", "is for osx-64 only"),
        (f"@EXPLICIT\n{CHANNEL}/linux-64/a-1-0.conda\n{CHANNEL}/osx-64/a-1-0.conda\n", "for linux-64 and osx-64"),
        ("# platform: linux-64\n@EXPLICIT\nnumpy\n", ":3: `numpy` is no address"),
        (f"# platform: linux-64\n@EXPLICIT\n{CHANNEL}/linux-64/a-1-0.conda#12\n", ":3: `12` is no hash"),
        (
            f"# platform: linux-64\n@EXPLICIT\n{CHANNEL}/linux-aarch64/a-1-0.conda\n",
            ":3: linux-aarch64/a-1-0.conda is not",
        ),
        (
            f"# platform: linux-64\n@EXPLICIT\n{CHANNEL}/linux-64/a-1-0.conda\n{CHANNEL}/noarch/a-2-0.conda\n",
            "locked twice",
        ),
        ("# platform: linux-64\n@EXPLICIT\n# pip x @ https://f.invalid/x-1.tar.gz#sha256=1\n", ":3: x is no wheel"),
    ],
)
def test_a_wrong_list_is_a_clear_error(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_explicit(text, LIST)
    assert said in str(caught.value)


def test_a_list_that_does_not_say_its_platform_is_an_error() -> None:
    with pytest.raises(InputError, match="does not say which platform"):
        parse_explicit(f"@EXPLICIT\n{CHANNEL}/noarch/a-1-0.conda\n", Path("x.lock"))


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.sampled_from(
                [
                    "@EXPLICIT",
                    "# platform: linux-64",
                    "# pip",
                    "# pip a @ b",
                    f"{CHANNEL}/linux-64/a-1-0.conda",
                    f"{CHANNEL}/x/a-1-0.conda#",
                    "#",
                ]
            ),
        ),
        max_size=6,
    ).map("\n".join)
)
def test_any_list_is_read_or_is_a_clear_error(text: str) -> None:
    try:
        parse_explicit(text, LIST)
    except InputError as error:
        assert error.message.startswith("conda-linux-64.lock")


def test_what_is_written_is_read_back_and_by_rattler(tmp_path: Path) -> None:
    packages = [package for package in real_packages() if package.platform == LINUX_AMD64]
    text = write_explicit(packages, PLACES, LINUX_AMD64)
    found = parse_explicit(text, LIST).found
    assert sorted((one.file, one.md5) for one in found) == sorted((one.file, one.md5) for one in packages)

    from rattler.explicit_environment import ExplicitEnvironmentSpec

    spec = ExplicitEnvironmentSpec.from_str(text)
    assert str(spec.platform) == "linux-64" and len(spec.packages) == len(packages)


def test_the_list_has_the_lines_of_conda_lock(tmp_path: Path) -> None:
    program = pytest.importorskip("conda_lock.conda_lock")
    lockfile = pytest.importorskip("conda_lock.lockfile")
    dask = wheel("dask")
    packages = [*both("tz"), conda_package("python", depends=("tz",)), conda_package("a", depends=("python",)), dask]
    places = Places(PLACES.channels, {dask: f"https://f.example.org/{dask.file}"})
    path = tmp_path / "conda-lock.yml"
    hashes = {"linux-64": "0" * 64, "linux-aarch64": "0" * 64}
    path.write_text(write_foreign("conda-lock", packages, places, content_hash=hashes))
    theirs = program.render_lockfile_for_platform(
        lockfile=lockfile.parse_conda_lock_file(path),
        include_dev_dependencies=True,
        extras=None,
        kind="explicit",
        platform="linux-64",
    )
    ours = write_explicit(packages, places, LINUX_AMD64).splitlines()
    assert ours[1:] == [line for line in theirs if line != "#" and "input_hash" not in line][1:]


def test_packages_come_after_what_they_depend_on() -> None:
    packages = [package for package in real_packages() if package.platform == LINUX_AMD64]
    place = {package.name: number for number, package in enumerate(topological(packages))}
    assert len(place) == len(packages)
    wrong = [
        (package.name, depend)
        for package in packages
        for depend in (text.partition(" ")[0] for text in package.depends)
        if depend in place and place[depend] > place[package.name]
    ]
    # Only circles are left, as pip and python make one.
    assert len(wrong) < 10
    circle = [
        conda_package("pip", depends=("python",)),
        conda_package("python", depends=("pip", "z")),
        conda_package("z"),
    ]
    assert [package.name for package in topological(circle)] == ["z", "python", "pip"]
    assert topological(circle) == topological(reversed(circle))


# -- completing --------------------------------------------------------------------------------------------


def found(**more: Any) -> Found:
    return Found("conda", "a", "1", LINUX_AMD64, "linux-64/a-1-0.conda", "f:3", channel=CHANNEL, **more)


def test_what_a_lock_does_not_say_is_asked_for_once() -> None:
    asked: list[Found] = []
    answer = Package("conda/conda-forge", "a", LINUX_AMD64, "1", "linux-64/a-1-0.conda", "a" * 64, 7, md5=MD5)

    def lookup(open_: Any) -> dict[Found, Package]:
        asked.extend(open_)
        return dict.fromkeys(open_, answer)

    whole = found(md5=MD5, sha256="b" * 64)
    assert complete([whole], lookup)[0].sha256 == "b" * 64 and not asked
    assert complete([found(md5=MD5)], lookup) == (answer,)
    assert asked == [found(md5=MD5)]
    with pytest.raises(FetchError, match=r"f:3: linux-64/a-1-0\.conda is not the file that was locked"):
        complete([found(md5="2" * 32)], lookup)
    with pytest.raises(FetchError, match="the sha256 of 1 package could not be learned") as caught:
        complete([found(md5=MD5)])
    assert "f:3: linux-64/a-1-0.conda" in str(caught.value)


# -- pixi.lock ---------------------------------------------------------------------------------------------


def test_a_pixi_lock_is_read_back_by_rattler_with_all_that_we_wrote(tmp_path: Path) -> None:
    python = conda_package(
        "python",
        "3.12.1",
        build="h1_0_cpython",
        depends=("tz", "libc >=2.17,<3.0.a0"),
        constrains=("x <2 *_0",),
        site_packages="lib/python3.12/site-packages",
    )
    mine = wheel("dask", "2024.1.0")
    packages = [python, *both("tz"), *both("attrs", depends=("python >=3.9",)), mine]
    places = Places(PLACES.channels, {mine: f"https://f.example.org/{mine.file}"})
    path = tmp_path / "pixi.lock"
    path.write_text(write_pixi(packages, places, channels=[CHANNEL], index="https://f.example.org/simple"))
    lock = read_pixi(path)
    assert (lock.platforms, lock.channels, lock.notes) == ((LINUX_AMD64, LINUX_ARM64), (CHANNEL,), ())
    back = complete(lock.found)
    assert [(p.source, p.name, p.platform, p.version, p.file, p.sha256, p.md5) for p in back] == [
        (p.source, p.name, p.platform, p.version, p.file, p.sha256, p.md5) for p in sorted(packages)
    ]
    (again,) = (p for p in back if p.name == "python")
    assert (again.depends, again.constrains, again.site_packages) == (
        python.depends,
        python.constrains,
        python.site_packages,
    )

    from rattler import LockFile

    environment = LockFile.from_path(path).default_environment()
    assert environment is not None
    records = environment.conda_repodata_records()["linux-64"]
    assert {record.name.normalized: (record.noarch.python, record.noarch.generic) for record in records} == {
        "attrs": (True, False),
        "python": (False, False),
        "tz": (False, True),
    }
    LockFile.from_path(path).to_path(tmp_path / "again.lock")
    newer = complete(read_pixi(tmp_path / "again.lock").found)  # version 7, as rattler writes it
    assert [p.file for p in newer] == [p.file for p in back]


def test_a_large_pixi_lock_is_read_back(tmp_path: Path) -> None:
    packages = real_packages()
    path = tmp_path / "pixi.lock"
    path.write_text(write_pixi(packages, PLACES, channels=[CHANNEL]))
    back = complete(read_foreign(path).found)
    assert [(p.file, p.sha256, p.md5, p.depends) for p in back] == [
        (p.file, p.sha256, p.md5, p.depends) for p in packages
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 99\nenvironments: {}\npackages: []\n", "up to including version 7"),
        (
            "version: 6\nenvironments:\n  docs: {channels: [], packages: {}}\npackages: []\n",
            "has no environment `default`",
        ),
        ("version: 6\nenvironments: [\n", "is no pixi.lock that can be read"),
    ],
)
def test_a_wrong_pixi_lock_is_a_clear_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pixi.lock").write_text(text)
    with pytest.raises(InputError) as caught:
        read_foreign(tmp_path / "pixi.lock")
    assert said in str(caught.value)


# -- pylock.toml, requirements with hashes -----------------------------------------------------------------


def real_wheel(folder: Path, name: str, version: str) -> tuple[Package, str]:
    from making_wheels import make_wheel

    folder.mkdir(exist_ok=True)
    path = make_wheel(folder, {f"{name}.py": b"x = 1\n"}, name=name, version=version)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("pypi", name, LINUX_AMD64, version, path.name, sha256, path.stat().st_size), path.as_uri()


def test_a_pylock_is_one_that_uv_installs(tmp_path: Path) -> None:
    from uv import find_uv_bin

    package, address = real_wheel(tmp_path, "alpha", "1.0")
    other, elsewhere = real_wheel(tmp_path, "beta", "2.0")
    arm = Package("pypi", "alpha", LINUX_ARM64, "1.0", package.file, package.sha256, package.size)
    only_arm = Package("pypi", "gamma", LINUX_ARM64, "1.0", "gamma-1.0-py3-none-any.whl", "a" * 64, 5)
    places = Places(files={package: address, arm: address, other: elsewhere, only_arm: "https://f.invalid/g.whl"})
    path = tmp_path / "pylock.toml"
    path.write_text(write_pylock([package, arm, other, only_arm], places, python="3.11"))
    command = [find_uv_bin(), "pip", "install", "--offline", "--no-cache", "--dry-run", "-r", str(path)]
    command += [
        "--python-platform",
        "x86_64-manylinux_2_28",
        "--target",
        str(tmp_path / "out"),
        "--python",
        sys.executable,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "alpha==1.0" in said.stderr and "beta==2.0" in said.stderr and "gamma" not in said.stderr
    back = complete(read_pylock(path, "3.11").found)
    assert [(p.name, p.platform, p.file, p.sha256, p.size) for p in back] == [
        (p.name, p.platform, p.file, p.sha256, p.size)
        for p in sorted(
            [package, arm, only_arm, Package("pypi", "beta", LINUX_AMD64, "2.0", other.file, other.sha256, other.size)]
        )
    ]


def test_the_wheel_of_a_pylock_is_chosen_by_python_and_platform(tmp_path: Path) -> None:
    def entry(file: str, digit: str) -> str:
        return f'{{ url = "https://u:sesame@f.invalid/{file}", hashes = {{ sha256 = "{digit * 64}" }} }}'

    wheels = [
        entry("x-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "1"),
        entry("x-1-cp313-cp313-manylinux_2_17_x86_64.whl", "2"),
        entry("x-1-cp313-cp313-manylinux_2_17_aarch64.whl", "3"),
        entry("x-1-cp313-cp313-macosx_11_0_arm64.whl", "4"),
    ]
    path = tmp_path / "pylock.toml"
    path.write_text(
        f'lock-version = "1.0"\n[[packages]]\nname = "X"\nversion = "1"\nwheels = [{", ".join(wheels)}]\n'
        '[[packages]]\nname = "mac"\nversion = "1"\nmarker = "sys_platform == \'darwin\'"\nwheels = []\n'
    )
    assert [one.sha256[:1] for one in read_pylock(path, "3.13").found] == ["2", "3"]
    assert "sesame" not in repr(read_pylock(path, "3.13"))
    with pytest.raises(InputError, match=r"X has no wheel for linux/arm64 and Python 3\.12"):
        read_pylock(path, "3.12")
    open_ = read_foreign(path).found
    assert [(len(one.hashes), one.sha256[:1]) for one in open_] == [(2, ""), (0, "3")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lock-version = 1.0", "lock-version 1.0"),
        ('lock-version = "1.0"\npackages = 1', "not a list of tables"),
        ('lock-version = "1.0"\n[[packages]]\n', "has no `name`"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\n', "a has no wheel"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nvcs = {}\n', "a has no wheel, but a vcs"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nmarker = "x"\n', "is no marker"),
        ('lock-version = "1.0"\n[[packages]]\nname = "a"\nwheels = [{ name = "a.whl" }]\n', "has no sha256"),
        ("lock-version = ", "not valid TOML"),
    ],
)
def test_a_wrong_pylock_is_a_clear_error(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "pylock.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_foreign(tmp_path / "pylock.toml")
    assert said in str(caught.value)


def test_requirements_with_hashes_are_ones_that_pip_installs(tmp_path: Path) -> None:
    package, _ = real_wheel(tmp_path / "wheels", "alpha", "1.0")
    arm = Package("pypi", "alpha", LINUX_ARM64, "1.0", package.file, package.sha256, package.size)
    only = Package("pypi", "gamma", LINUX_ARM64, "1.0", "gamma-1.0-py3-none-any.whl", "a" * 64, 5)
    path = tmp_path / "requirements.txt"
    path.write_text(write_foreign("requirements", [package, arm, only], Places()))
    command = [sys.executable, "-m", "pip", "download", "--no-index", "--no-deps", "--require-hashes", "-q"]
    command += [
        "--disable-pip-version-check",
        "-r",
        str(path),
        "-f",
        str(tmp_path / "wheels"),
        "-d",
        str(tmp_path / "out"),
    ]
    if LINUX_AMD64.machine == __import__("platform").machine():
        subprocess.run(command, check=True, capture_output=True)
        assert [file.name for file in (tmp_path / "out").iterdir()] == [package.file]
    back = read_foreign(path)
    assert [(one.name, one.version, one.platform, one.hashes) for one in back.found] == [
        ("alpha", "1.0", LINUX_AMD64, (package.sha256,)),
        ("alpha", "1.0", LINUX_ARM64, (package.sha256,)),
        ("gamma", "1.0", LINUX_ARM64, ("a" * 64,)),
    ]
    path.write_text(f"alpha>=1 --hash=sha256:{'a' * 64}\n")
    with pytest.raises(InputError, match=r"requirements\.txt:1: `alpha>=1` is not pinned"):
        read_foreign(path)


# -- packages.txt ------------------------------------------------------------------------------------------


def test_both_spellings_of_packages_txt_are_read(tmp_path: Path) -> None:
    text = "_libgcc_mutex==0.1\nca-certificates-2019.11.28\nPython-3.7.6\nldap==1!2.0\n\n# why\ntzdata==2024a\n"
    assert list(parse_packages_txt(text, Path("packages.txt"))) == [
        ("_libgcc_mutex", "0.1"),
        ("ca-certificates", "2019.11.28"),
        ("python", "3.7.6"),
        ("ldap", "1!2.0"),
        ("tzdata", "2024a"),
    ]
    with pytest.raises(InputError, match=r"packages\.txt:2: `x` is no package and version"):
        list(parse_packages_txt("a==1\nx\n", Path("packages.txt")))
    (tmp_path / "packages.txt").write_text(text)
    assert len(read_packages_txt(tmp_path / "packages.txt")) == 5
    with pytest.raises(InputError, match="names and versions, and no files"):
        read_foreign(tmp_path / "packages.txt")


def test_the_names_and_versions_of_the_history_are_read_in_the_spelling_of_2020() -> None:
    archive = SHARED / "layering-history.json.gz"
    if not archive.exists():
        pytest.skip(f"there is no {archive.name} beside this repository")
    rows = json.loads(gzip.decompress(archive.read_bytes()))["packages"]
    pairs = sorted({(row[0], row[1]) for row in rows})
    text = "".join(f"{name}-{version}\n" for name, version in pairs)
    wrong = [(a, b) for a, b in zip(parse_packages_txt(text, Path("p")), pairs, strict=True) if a != b]
    assert not wrong


def test_packages_txt_is_sorted_and_of_one_platform() -> None:
    packages = [*both("tz"), conda_package("numpy", "1.26.0"), wheel("dask", "2.0"), wheel("x", platform=LINUX_ARM64)]
    text = write_packages_txt(packages, LINUX_AMD64)
    assert text == "dask==2.0\nnumpy==1.26.0\ntz==1.0\n"


# -- all of them -------------------------------------------------------------------------------------------


def test_a_file_of_no_format_is_an_error(tmp_path: Path) -> None:
    for name, text in (("x.txt", "hello\n"), ("environment.yml", "dependencies: [a]\n"), ("empty", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="is no lock that can be read"):
            read_foreign(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_foreign(tmp_path / "missing")


def test_a_format_that_is_not_known_or_lacks_its_platform_is_an_error() -> None:
    with pytest.raises(InputError, match="unknown format `x`"):
        write_foreign("x", [], Places())
    with pytest.raises(InputError, match="none is named"):
        write_foreign("explicit", [], Places())
    for kind in FORMATS:
        assert write_foreign(kind, [], Places(), platform=LINUX_AMD64) is not None


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.sampled_from(
                [
                    "@EXPLICIT",
                    'lock-version = "1.0"',
                    "[[packages]]",
                    "version: 6",
                    "environments:",
                    "  default:",
                    "metadata:",
                    "package:",
                    "version: 1",
                    "a==1 --hash=sha256:x",
                    "- name: x",
                    "packages: []",
                ]
            ),
        ),
        max_size=8,
    ).map("\n".join)
)
def test_any_file_is_read_or_is_a_clear_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.lock"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        read_foreign(path)
    except InputError as error:
        assert "any.lock" in error.message
