"""Bad input to images of conda environments: one message for people, and everything as it was before.

All through the command line, in processes of their own, with a channel that is served over HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import conda_channel
import conda_families
import judge
import making_conda
from channel_server import ChannelServer, Fault, Login, serving
from conda_place import PACKAGES, Place, images, litter, relock
from lithify.lockfile import read_lock
from lithify.platforms import LINUX_AMD64, host_platform
from lithify.store.store import open_store
from making_conda import CondaPackage, File, Symlink, hostile, victim

pytestmark = pytest.mark.skipif(host_platform() != LINUX_AMD64, reason="the channel's machine code is for linux/amd64")

BOTH = ("linux/amd64", "linux/arm64")
SECRET = "tk-5ecre7-t0ken"


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a channel of `PACKAGES`."""
    folder = tmp_path_factory.mktemp("few")
    conda_channel.write_channel(folder / conda_channel.CHANNEL, PACKAGES)
    return folder


@pytest.fixture
def server(few: Path, tmp_path: Path) -> Iterator[ChannelServer]:
    with serving(conda_channel.copied(few, tmp_path / "channels")) as served:
        yield served


@pytest.fixture
def place(server: ChannelServer, tmp_path: Path, python_layout: Path) -> Iterator[Place]:
    """A family that asks for `good`, for both platforms. Whatever a test does: put right, it is locked and built."""
    family = conda_families.write_small(tmp_path / "family", python_layout, ["good"], platforms=BOTH)
    toml = (family / "lithify.toml").read_text()
    made = Place(family, tmp_path / "store", python_layout, server)
    yield made
    server.faults.clear()
    server.logins.clear()
    shutil.rmtree(family)
    conda_families.write(
        family, {"lithify.toml": toml, "notebook/environment.yml": conda_families.environment(["good"])}
    )
    made.good("lock")
    made.good("build")
    assert images(made.store) == {"small/notebook"}


@pytest.fixture
def locked(place: Place) -> Place:
    """`place`, locked."""
    place.good("lock")
    return place


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def with_lines(place: Place, table: str, *lines: str) -> None:
    """Add lines below a table's head in lithify.toml."""
    edit(place.family / "lithify.toml", f"[{table}]\n", "\n".join((f"[{table}]", *lines, "")))


# -- requirement files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["lock", "build"])
@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("environment.yml", "dependencies:\n  - good\n  - [\n", 4),
        ("environment.yml", "dependencies:\n  - good\n - good\n", 3),
        ("environment.yml", "dependencies:\n\t- good\n", 2),
        ("virtual-packages.yml", "subdirs:\n  linux-64:\n    packages: {__cuda: '12'\n", 4),
        ("condarc.yml", "channels:\n  - conda-forge\nauto_update: : no\n", 3),
        ("dask_config.yml", "distributed:\n  a: [1, 2\nb: 1\n", 3),
    ],
)
def test_broken_yaml(locked: Place, command: str, name: str, text: str, line: int) -> None:
    conda_families.write(locked.family, {f"notebook/{name}": text})
    said = locked.refused(2, command)
    assert f"notebook/{name}:{line}: not valid YAML" in said


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("good >=>1", "good >=>1"),
        ("good 1.0 0 more words", "good 1.0 0 more words"),
        ("'[version=1]'", "[version=1]"),
        ("==1.0", "==1.0"),
        ("good >=1.0,", "good >=1.0,"),
    ],
)
def test_a_wrong_match_spec(place: Place, line: str, text: str) -> None:
    place.asks("good", line)
    said = place.refused(2, "lock")
    assert "notebook/environment.yml:6: " in said and text in said


def test_a_wrong_match_spec_in_the_family_file(place: Place) -> None:
    with_lines(place, "conda", "require = ['good >=>1']")
    said = place.refused(2, "lock")
    assert "lithify.toml: [conda] require: `good >=>1`" in said


def test_a_package_that_nobody_has(place: Place) -> None:
    place.asks("good", "goood")
    said = place.refused(3, "lock")
    assert "notebook/environment.yml:6: conda-forge has no package `goood`" in said
    assert "did you mean `good`?" in said


def test_a_package_of_the_index_that_no_channel_has(place: Place) -> None:
    place.asks("good", "entirely-different")
    said = place.refused(3, "lock")
    assert "has no package `entirely-different`" in said and "`pip:`" in said and "did you mean" not in said


def test_a_version_that_nobody_has(place: Place) -> None:
    place.asks("good >=7")
    said = place.refused(3, "lock")
    assert "notebook/environment.yml:5: " in said and "`good >=7`" in said and "1.0, 1.1" in said


@pytest.mark.parametrize(
    ("name", "there", "platform"),
    [("only-amd64", "linux-64", "linux-aarch64"), ("only-arm64", "linux-aarch64", "linux-64")],
)
def test_a_package_that_one_platform_lacks(place: Place, name: str, there: str, platform: str) -> None:
    place.asks("good", name)
    said = place.refused(3, "lock")
    assert f"environment.yml:6: conda-forge has `{name}` for {there}, not for {platform}" in said and "# [" in said


def test_a_package_that_no_platform_of_ours_has(place: Place) -> None:
    place.asks("good", "only-mac")
    said = place.refused(3, "lock")
    assert "environment.yml:6: conda-forge has `only-mac` for osx-arm64" in said


def test_requirements_that_exclude_each_other(place: Place) -> None:
    place.asks("good >=1.1", "needs-old")
    said = place.refused(3, "lock")
    assert "environment.yml:5: good >=1.1" in said and "environment.yml:6: needs-old" in said and "`notebook`" in said


def test_what_the_family_requires_breaks_the_solve(place: Place) -> None:
    with_lines(place, "conda", "require = ['needs-old']")
    place.asks("good >=1.1")
    said = place.refused(3, "lock")
    assert "lithify.toml: [conda] require: needs-old" in said and "environment.yml:5: good >=1.1" in said
    assert "holds in every image" in said


def test_an_environment_without_a_file(place: Place) -> None:
    with_lines(place, "images.notebook", "environments.tools = {}")
    said = place.refused(2, "lock")
    assert "`tools` of image `notebook` has no requirement file" in said and "notebook/environment-tools.yml" in said


def test_channels_in_another_order_than_the_parents(place: Place) -> None:
    with (place.family / "lithify.toml").open("a") as file:
        file.write("[images.child]\nextends = 'notebook'\n")
    channels = {"notebook": ("conda-forge", "other"), "child": ("other", "conda-forge")}
    for image, names in channels.items():
        text = conda_families.environment(["good"], channels=names)
        conda_families.write(place.family, {f"{image}/environment.yml": text})
    shutil.copytree(place.channel, place.channel.parent / "other", dirs_exist_ok=True)
    config = place.family.parent / "both.toml"
    address = place.server.address
    config.write_text(f'[sources]\nconda = "{address}"\n')
    place.good("lock", "notebook", LITHIFY_CONFIG=str(config))
    said = place.refused(2, "lock", "child", LITHIFY_CONFIG=str(config))
    assert "child/environment.yml names the channels other, conda-forge" in said
    assert "notebook/environment.yml conda-forge, other" in said


def test_a_file_that_leaves_a_platform_out(place: Place) -> None:
    with (place.family / "notebook/environment.yml").open("a") as file:
        file.write("platforms:\n  - linux-64\n")
    said = place.refused(2, "lock")
    assert "environment.yml" in said and "linux-aarch64" in said


# -- channels ------------------------------------------------------------------------------------------------------


def unconfigured(place: Place) -> str:
    """A configuration that says nothing of channels."""
    path = place.family.parent / "empty.toml"
    path.touch()
    return str(path)


def test_a_channel_that_nobody_has(place: Place) -> None:
    text = conda_families.environment(["good"], channels=(place.server.channel("nowhere"), "conda-forge"))
    conda_families.write(place.family, {"notebook/environment.yml": text})
    said = place.refused(4, "lock")
    assert "environment.yml" in said and "no channel `nowhere`" in said and place.server.address in said


def test_a_channel_that_does_not_answer(place: Place) -> None:
    text = conda_families.environment(["good"], channels=("http://127.0.0.1:9/dead",))
    conda_families.write(place.family, {"notebook/environment.yml": text})
    said = place.refused(4, "lock")
    assert "environment.yml" in said and "`dead`" in said and "127.0.0.1:9" in said


@pytest.mark.parametrize("sharded", [True, False], ids=["shards", "repodata"])
def test_a_channel_that_dies_half_way(locked: Place, sharded: bool) -> None:
    if not sharded:
        locked.server.faults["*repodata_shards*"] = Fault(status=404)
    locked.server.faults["*noarch/*"] = Fault(die=40)
    locked.asks("needs-old")
    said = locked.refused(4, "lock")
    assert "`conda-forge`" in said and locked.server.address in said


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>Please log in", b"[1, 2]", b'{"packages.conda": 7}', b""])
def test_a_channel_that_is_no_channel(place: Place, body: bytes) -> None:
    for name in ("*repodata_shards*", "*.zst", "*.bz2"):
        place.server.faults[name] = Fault(status=404)
    place.server.faults["*repodata.json"] = Fault(body=body)
    said = place.refused(4, "lock")
    assert "`conda-forge`" in said and place.server.address in said


def test_a_channel_that_is_broken_inside(place: Place) -> None:
    place.server.faults["*"] = Fault(status=503)
    said = place.refused(4, "lock")
    assert "`conda-forge`" in said and place.server.address in said


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_a_channel_refuses(place: Place, status: int) -> None:
    if status == 403:
        place.server.faults["*"] = Fault(status=403)
    place.server.logins["conda-forge"] = Login(token="another")
    address = place.server.channel("conda-forge", token=SECRET)
    text = conda_families.environment(["good"], channels=(address,))
    conda_families.write(place.family, {"notebook/environment.yml": text})
    for arguments in (["lock"], ["lock", "--debug"], ["lock", "--json", "-v"]):
        result = place.run(*arguments, LITHIFY_CONFIG=unconfigured(place))
        assert result.returncode == 4, result.stderr
        assert "credentials" in result.stderr and "environment.yml" in result.stderr
        assert SECRET not in result.stdout + result.stderr
    place.refused(4, "lock", LITHIFY_CONFIG=unconfigured(place))
    assert not place.lock.exists()


def test_credentials_that_are_refused_at_the_build(place: Place) -> None:
    place.server.logins["conda-forge"] = Login(token=SECRET)
    address = place.server.channel("conda-forge", token=SECRET)
    text = conda_families.environment(["good"], channels=(address,))
    conda_families.write(place.family, {"notebook/environment.yml": text})
    place.good("lock", LITHIFY_CONFIG=unconfigured(place))
    assert SECRET not in place.lock.read_text()
    place.server.logins["conda-forge"] = Login(token="another")
    said = place.refused(4, "build", LITHIFY_CONFIG=unconfigured(place))
    assert "good 1.1" in said and "401" in said and "credentials" in said and SECRET not in said


def test_a_lock_offline_without_a_cache(place: Place) -> None:
    said = place.refused(4, "lock", "--offline")
    assert "`conda-forge`" in said and "without --offline" in said
    assert place.server.asked() == []


def test_a_build_offline_without_a_cache(locked: Place) -> None:
    said = locked.refused(4, "build", "--offline")
    assert "good 1.1" in said and "offline" in said


# -- artefacts -----------------------------------------------------------------------------------------------------


def test_a_package_whose_file_is_gone(locked: Place) -> None:
    locked.server.faults["*good-1.1*"] = Fault(status=404)
    said = locked.refused(4, "build")
    assert "good 1.1" in said and "404" in said and "good-1.1-0.conda" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"sha256": "0" * 64}, "expected sha256 0000"), ({"size": 99}, "99 bytes"), ({"size": 10**6}, "1000000 bytes")],
    ids=["sha256", "smaller", "larger"],
)
def test_a_file_that_is_not_the_locked_one(locked: Place, changes: dict[str, Any], words: str) -> None:
    relock(locked.lock, "good", **changes)
    said = locked.refused(4, "build")
    assert "good 1.1" in said and "is not what was locked" in said and words in said


def test_a_download_that_is_cut_short(locked: Place) -> None:
    locked.server.faults["*good-1.1*"] = Fault(truncate=50)
    said = locked.refused(4, "build")
    assert "good 1.1" in said and "50 bytes" in said


# -- packages ------------------------------------------------------------------------------------------------------

# What is odd and harmless; see tests/test_conda_link.py.
HARMLESS = {"absolute symlink", "placeholder that is not there"}
# The others are built only by `make test-all`: tests/test_conda_link.py refuses each in a moment.
OF_EACH_SORT = {"wrong sha256", "path with ..", "symlink out", "missing file", "cut", "zstd bomb", "absolute symlink"}


@pytest.mark.parametrize(
    "kind", [kind if kind in OF_EACH_SORT else pytest.param(kind, marks=pytest.mark.slow) for kind in hostile()]
)
def test_a_hostile_package(locked: Place, kind: str) -> None:
    package, lies = hostile()[kind]
    # Some lie so much that no index would have them: the index is that of an honest one, the lock is of the liar.
    locked.publish(victim())
    edit(locked.family / "lithify.toml", "'linux/amd64', 'linux/arm64'", "'linux/amd64'")
    locked.asks("good", "victim")
    locked.good("lock")
    data = package.write(locked.channel, lies=lies).read_bytes()
    relock(locked.lock, "victim", sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    if kind in HARMLESS:
        locked.good("build")
        return
    said = locked.refused(1, "build")
    assert "conda package linux-64/victim-1.0-h0_0.conda: " in said and "hint: " in said
    assert not list(locked.family.parent.rglob("*escaped*"))
    assert not images(locked.store)


def test_a_prefix_longer_than_the_room_for_it(place: Place) -> None:
    prefix = "/srv/" + "/".join(["a-very-long-folder"] * 15)
    with_lines(place, "images.notebook", f"environments.deep = {{prefix = '{prefix}'}}")
    path = "lib/binary"
    short = File(f"\0{making_conda.PLACEHOLDER}\0".encode(), 0o755, making_conda.PLACEHOLDER, binary=True)
    place.publish(CondaPackage("short", "1.0", {path: short}, noarch="generic"))
    conda_families.write(place.family, {"notebook/environment-deep.yml": conda_families.environment(["short"])})
    place.good("lock")
    said = place.refused(1, "build")
    assert "short-1.0-0.conda" in said and path in said and prefix in said
    assert "do not fit where 255 are" in said and "hint: a shorter `prefix`" in said


def test_two_packages_with_different_files_for_one_path(place: Place) -> None:
    for name in ("one", "two"):
        place.publish(CondaPackage(name, files={"share/x": File(name.encode())}, noarch="generic"))
    place.asks("one", "two")
    place.good("lock")
    result = place.run("build")
    assert result.returncode == 0, result.stderr
    (warning,) = {line for line in result.stderr.splitlines() if line.startswith("warning: ")}
    assert "one 1.0 does not bring" in warning and "share/x" in warning and "two 1.0 brings it, too" in warning


def test_a_file_where_another_package_has_a_folder(place: Place) -> None:
    place.publish(CondaPackage("one", files={"share/x": File(b"one")}, noarch="generic"))
    place.publish(CondaPackage("two", files={"share/x/y": File(b"two")}, noarch="generic"))
    place.asks("one", "two")
    place.good("lock")
    said = place.refused(1, "build")
    assert "one package brings a file where another has a folder" in said
    assert "one 1.0 and two 1.0: /srv/conda/envs/notebook/share/x" in said


def test_a_file_where_another_package_has_a_link(place: Place) -> None:
    place.publish(
        CondaPackage("one", files={"share/x": Symlink("elsewhere"), "share/elsewhere/z": File(b"z")}, noarch="generic")
    )
    place.publish(CondaPackage("two", files={"share/x/y": File(b"two")}, noarch="generic"))
    place.asks("one", "two")
    place.good("lock")
    said = place.refused(1, "build")
    assert "one package brings a file where another has a folder" in said
    assert "one 1.0 and two 1.0: /srv/conda/envs/notebook/share/x" in said


def test_a_link_script_that_nobody_allowed(place: Place) -> None:
    script = File(b"#!/bin/sh\n", 0o755)
    place.publish(CondaPackage("scripted", files={"bin/.scripted-post-link.sh": script}, noarch="generic"))
    place.asks("scripted")
    place.good("lock")
    said = place.refused(2, "build")
    assert "scripted" in said and "link-scripts" in said


# -- locks ---------------------------------------------------------------------------------------------------------


def test_a_lock_with_another_python_for_the_other_platform(place: Place) -> None:
    for subdir in (making_conda.LINUX_64, making_conda.LINUX_AARCH64):
        place.publish(CondaPackage("python", "3.12.1", {"bin/python3.12": File(b"")}, subdir=subdir))
    place.asks("python")
    place.good("lock")
    relock(place.lock, "python", "linux/arm64", version="3.12.2", file="linux-aarch64/python-3.12.2-0.conda")
    said = place.refused(2, "build")
    assert "Python 3.12.2 for linux/arm64" in said and "Python 3.12.1 for linux/amd64" in said


def test_a_lock_of_an_environment_that_the_image_does_not_have(locked: Place) -> None:
    relock(locked.lock, "good", environment="tools")
    said = locked.refused(2, "build")
    assert "`tools`" in said and "lithify lock" in said


def test_a_lock_of_requirements_that_changed(locked: Place) -> None:
    locked.asks("needs-old")
    for arguments in (["build", "--locked"], ["lock", "--check"]):
        said = locked.refused(2, *arguments)
        assert "`notebook`" in said and "lithify lock notebook" in said


# -- locks of other tools ------------------------------------------------------------------------------------------


def explicit(place: Place, subdir: str, *lines: str) -> None:
    """Write a list of addresses beside the requirement files, where it is taken over."""
    text = "\n".join((f"# platform: {subdir}", "@EXPLICIT", *lines, ""))
    conda_families.write(place.family, {f"notebook/conda-{subdir}.lock": text})


def address(place: Place, package: CondaPackage, md5: str | None = None) -> str:
    path = package.path(place.channel)
    digest = md5 or hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return f"{place.server.channel('conda-forge')}/{package.subdir}/{path.name}#{digest}"


def for_one_platform(place: Place) -> None:
    edit(place.family / "lithify.toml", "'linux/amd64', 'linux/arm64'", "'linux/amd64'")


def test_another_tools_lock_is_taken_over(place: Place) -> None:
    for_one_platform(place)
    explicit(place, "linux-64", address(place, PACKAGES[0]))
    place.good("lock")
    assert [one.version for one in read_lock(place.lock).packages] == ["1.0"]
    place.good("build")


def test_a_wrong_md5_in_another_tools_lock(place: Place) -> None:
    for_one_platform(place)
    explicit(place, "linux-64", address(place, PACKAGES[0], "0" * 32))
    said = place.refused(4, "lock")
    assert "good 1.0" in said and "0" * 32 in said


def test_another_tools_lock_of_a_package_that_is_gone(place: Place) -> None:
    for_one_platform(place)
    gone = CondaPackage("good", "0.1", noarch="generic")
    explicit(place, "linux-64", address(place, PACKAGES[0]).replace("good-1.0", gone.stem.removesuffix("-0")))
    said = place.refused(4, "lock")
    assert "good 0.1" in said and "404" in said


def test_another_tools_lock_without_one_of_our_platforms(place: Place) -> None:
    explicit(place, "linux-64", address(place, PACKAGES[0]))
    said = place.refused(2, "lock")
    assert "conda-linux-64.lock" in said and "linux/arm64" in said


def test_another_tools_lock_for_a_platform_that_is_not_built(place: Place) -> None:
    explicit(place, "osx-arm64", address(place, PACKAGES[0]))
    said = place.refused(2, "lock", "notebook", "--import", "notebook/conda-osx-arm64.lock")
    assert "conda-osx-arm64.lock" in said and "osx-arm64" in said and "linux-64" in said


def test_another_tools_lock_of_another_python(place: Place) -> None:
    for_one_platform(place)
    python = CondaPackage("python", "3.12.1", {"bin/python3.12": File(b"")}, subdir=making_conda.LINUX_64)
    place.publish(python)
    place.asks("python =3.13")
    explicit(place, "linux-64", address(place, python))
    said = place.refused(2, "lock")
    assert "conda-linux-64.lock holds Python 3.12.1" in said and "environment.yml:5 asks for `python =3.13`" in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not an address", "conda-linux-64.lock:3"),
        ("https://example.org/c/noarch/good-1.0-0.conda#12", "conda-linux-64.lock:3"),
        ("https://example.org/c/osx-64/good-1.0-0.conda", "conda-linux-64.lock:3"),
        ("https://example.org/c/noarch/good.conda", "conda-linux-64.lock:3"),
    ],
)
def test_another_tools_lock_with_a_wrong_line(place: Place, line: str, words: str) -> None:
    for_one_platform(place)
    explicit(place, "linux-64", line)
    assert words in place.refused(2, "lock")


def test_another_tools_lock_with_a_token(place: Place) -> None:
    for_one_platform(place)
    place.server.logins["conda-forge"] = Login(token="another")
    channel = place.server.channel("conda-forge", token=SECRET)
    text = conda_families.environment(["good"], channels=(channel,))
    conda_families.write(place.family, {"notebook/environment.yml": text})
    explicit(place, "linux-64", f"{channel}/noarch/good-1.0-0.conda#{'0' * 32}")
    for arguments in (["lock"], ["lock", "-v", "--debug"]):
        result = place.run(*arguments, LITHIFY_CONFIG=unconfigured(place))
        assert result.returncode == 4, result.stderr
        assert SECRET not in result.stdout + result.stderr


# -- the solver ----------------------------------------------------------------------------------------------------


def crashing(folder: Path, body: str) -> dict[str, str]:
    """The variable that puts a solver in rattler's place which does as ``body`` says."""
    (folder / "rattler").mkdir(parents=True)
    (folder / "rattler/__init__.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import os; os._exit(0)",
        "raise ImportError('libssl.so.3: cannot open shared object file')",
        "print('{\"answer\": '); import os; os._exit(0)",
    ],
    ids=["abort", "segfault", "silence", "import", "half an answer"],
)
def test_a_solver_that_crashes(locked: Place, tmp_path: Path, body: str) -> None:
    locked.asks("needs-old")
    result = locked.run("lock", **crashing(tmp_path / "modules", body))
    assert result.returncode == 5, result.stderr
    locked.check_message(result)
    assert "conda packages" in result.stderr and "py-rattler" in result.stderr and "hint: " in result.stderr
    assert [one.version for one in read_lock(locked.lock).packages] == ["1.1", "1.1"]


# -- the machine ---------------------------------------------------------------------------------------------------


def in_a_namespace(place: Place, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own, or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    line = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if subprocess.run([*line, "mount -t tmpfs none /mnt"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount")
    return subprocess.run(
        [*line, script], check=False, capture_output=True, text=True, env=place.environment(), cwd=place.family
    )


def large(size: int = 6 << 20) -> CondaPackage:
    data = hashlib.shake_256(b"large").digest(size)
    return CondaPackage("large", files={f"share/large/{n}": File(data[n::8]) for n in range(8)}, noarch="generic")


@pytest.mark.parametrize("size", ["1M", pytest.param("8M", marks=pytest.mark.slow), "14M"])
def test_a_full_disk(place: Place, size: str) -> None:
    place.publish(large())
    place.asks("good", "large")
    place.good("lock")
    mounted = place.store.parent / "small disk"
    mounted.mkdir()
    line = " ".join(f"'{part}'" for part in place.line("build")).replace(str(place.store), f"{mounted}/store")
    result = in_a_namespace(
        place,
        f"mount -t tmpfs -o size={size} none '{mounted}' && {line}; code=$?;"
        f" [ -z \"$(find '{mounted}/store/tmp' -type f -size +0 | grep -v partial)\" ] || echo litter >&2;"
        f" grep -q small/notebook '{mounted}/store/index.json' && echo named >&2; exit $code",
    )
    assert result.returncode == 5, result.stderr
    assert "no space is left" in result.stderr and "hint: " in result.stderr
    assert "litter" not in result.stderr and "named" not in result.stderr
    place.check_message(result)


@pytest.mark.parametrize("command", ["lock", "build"])
def test_a_read_only_store(locked: Place, command: str) -> None:
    if command == "lock":
        locked.asks("needs-old")
    store, line = locked.store, " ".join(f"'{part}'" for part in locked.line(command))
    before = locked.kept()
    result = in_a_namespace(locked, f"mount --bind '{store}' '{store}' && mount -o remount,ro,bind '{store}' && {line}")
    assert result.returncode == 5, result.stderr
    assert "cannot be written" in result.stderr and "hint: " in result.stderr
    locked.check_message(result)
    locked.check_kept(before)


# -- interrupted ---------------------------------------------------------------------------------------------------


def held(place: Place, pattern: str) -> Fault:
    """A server that does not answer for ``pattern``; its `times` say how often it was asked."""
    fault = Fault(wait=600, times=1000)
    place.server.faults[pattern] = fault
    return fault


def wait_until_asked(fault: Fault, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while fault.times == 1000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def members(session: int) -> set[str]:
    """The processes of a session, without those that have ended."""
    line = ["ps", "-o", "pid=,stat=", "-s", str(session)]
    found = subprocess.run(line, capture_output=True, text=True, check=False).stdout.splitlines()
    return {one.split()[0] for one in found if not one.split()[1].startswith("Z")}


@pytest.mark.parametrize("group", [True, False], ids=["terminal", "alone"])
@pytest.mark.parametrize("command", ["lock", "build"])
def test_an_interrupt(locked: Place, command: str, group: bool) -> None:
    fault = held(locked, "*noarch*" if command == "lock" else "*good-1.1*")
    if command == "lock":
        locked.asks("needs-old")
    before = locked.kept()
    process = locked.start(command)
    wait_until_asked(fault, process)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err and "error" not in err and out == ""
    assert members(process.pid) == set()
    locked.check_kept(before)


@pytest.mark.parametrize("command", ["lock", "build"])
def test_a_killed_command_leaves_a_store_that_the_next_one_uses(locked: Place, command: str) -> None:
    fault = held(locked, "*noarch*" if command == "lock" else "*good-1.1*")
    if command == "lock":
        locked.asks("needs-old")
    before = locked.kept()
    process = locked.start(command)
    wait_until_asked(fault, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert {name: locked.kept().get(name) for name in before} == before
    # The solver of a command that is gone goes, too.
    end = time.monotonic() + 60
    while members(process.pid):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("delay", [0.3, pytest.param(0.8, marks=pytest.mark.slow), 1.2])
def test_a_build_that_is_killed_at_work(place: Place, delay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    place.publish(large())
    place.asks("good", "large")
    place.good("lock")
    process = place.start("build")
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    # What was being written lies there for a while, for it may be another's.
    assert place.run("build").returncode == 0
    remove_litter(place, monkeypatch)
    judge.judge(place.store, digest_of(place.store))


def remove_litter(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next command does a minute later."""
    monkeypatch.setattr("lithify.store.store.GRACE", 0)
    open_store(place.store)
    assert litter(place.store) == []


def digest_of(store: Path) -> str:
    return str(json.loads((store / "index.json").read_bytes())["manifests"][-1]["digest"])


def test_two_builds_share_a_store(place: Place) -> None:
    place.publish(large())
    place.asks("good", "large")
    place.good("lock")
    processes = [place.start("build", "--json") for _ in range(2)]
    digests = set()
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        digests.add(json.loads(out)[-1]["digest"])
    (digest,) = digests
    judge.judge(place.store, digest)
    assert litter(place.store) == []
    assert len(place.server.asked("large-1.0")) == 1
