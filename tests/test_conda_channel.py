"""The channel that the tests make is one that others' tools take, solve, install and run."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

import conda_channel
import conda_oracle
import families
from channel_server import ChannelServer, Fault, Login, serving
from conda_channel import CHANNEL, OTHER_CHANNEL, copied, write_channel
from conda_python import FOREIGN_SUBDIR, HOST_SUBDIR, host_target, python_packages
from conda_special import Special, compiler, specials
from conda_wheels import Target, match_spec, read_wheel, wanted_requirements, wheel_package
from making_conda import CONDA, TAR_BZ2, CondaPackage, File, hostile, unpacked, victim

TARGET = host_target()
# One worker installs.
one_worker = pytest.mark.xdist_group("conda-prefix")
PYTHON_MODULES = "bz2, ctypes, curses, hashlib, lzma, readline, sqlite3, ssl, uuid, zlib"


@pytest.fixture(scope="module")
def channels() -> Path:
    return conda_channel.small()


@pytest.fixture
def server(channels: Path) -> Iterator[ChannelServer]:
    with serving(channels) as served:
        yield served


@pytest.fixture(scope="module")
def prefix(channels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Much of the channel, installed by rattler."""
    wanted = ["python", "pip", "rich", "pyyaml", "links", "long-shebang", "text-prefix", "old-style", "old-style-conda"]
    if compiler():
        wanted.append("greet")
    with serving(channels) as served:
        records = conda_oracle.solve([served.channel(CHANNEL)], wanted)
        return conda_oracle.install(records, tmp_path_factory.mktemp("installed") / "prefix")


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def info_of(archive: bytes) -> dict[str, bytes]:
    """The files of ``info/`` in a package of either container."""
    return {path: data for path, data in unpacked(archive).items() if path.startswith("info/")}


# -- packages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("special", specials(TARGET), ids=lambda one: one.package.stem + one.container)
def test_a_special_package_is_made_alike_twice(channels: Path, special: Special) -> None:
    made = special.package.path(channels / CHANNEL, special.container)
    assert special.package.archive(special.container) == made.read_bytes()


def test_python_is_made_alike_twice(channels: Path) -> None:
    for package in python_packages(TARGET):
        assert package.archive() == package.path(channels / CHANNEL).read_bytes(), package.name


@pytest.mark.parametrize("container", [CONDA, TAR_BZ2])
def test_an_old_package_has_no_paths_json(container: str) -> None:
    package = next(one.package for one in specials(TARGET) if one.package.name == "old-style")
    info = info_of(package.archive(container))
    assert "info/paths.json" not in info
    assert info["info/files"].decode().splitlines() == sorted(package.files)
    assert "bin/old-style" in info["info/has_prefix"].decode().splitlines()
    assert 'text "etc/old-style with space.conf"\n' in info["info/has_prefix"].decode()
    assert info["info/no_link"].decode() == "share/old-style/unlinked\n"


def test_a_row_has_the_digest_of_what_a_link_leads_to() -> None:
    rows = {row["_path"]: row for row in victim().rows()}
    digest = hashlib.sha256(b"victim\n").hexdigest()
    assert rows["share/victim/link"] == {
        "_path": "share/victim/link",
        "path_type": "softlink",
        "sha256": digest,
        "size_in_bytes": 7,
    }


@pytest.mark.parametrize("kind", hostile())
def test_a_hostile_package_is_not_the_honest_one(kind: str) -> None:
    package, lies = hostile()[kind]
    archive = package.archive(lies=lies)
    assert archive != victim().archive()
    assert len(archive) < 2_000_000


# -- wheels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    wheel = families.wheel(
        "hello-there",
        {
            "hello_there/__init__.py": "def main():\n    print('hello there')\n",
            "hello_there-1.0.data/scripts/hello-script": "#!python\nimport hello_there\nhello_there.main()\n",
            "hello_there-1.0.data/data/share/hello/data.txt": "data\n",
        },
        entry_points="[console_scripts]\nhello = hello_there:main\nextra = hello_there:main [fast]\n",
        requires=["click>=8", "colorama; sys_platform == 'win32'", "rich ~=14.1; extra == 'fancy'"],
    )
    path = tmp_path / wheel.file
    path.write_bytes(wheel.data)
    return path


def test_a_pure_wheel_becomes_a_noarch_package(hello: Path) -> None:
    package = wheel_package(read_wheel(hello), TARGET)
    assert (package.noarch, package.subdir, package.name) == ("python", "noarch", "hello-there")
    assert package.entry_points == ["hello = hello_there:main", "extra = hello_there:main"]
    assert package.depends == ["click >=8", "python"]
    assert set(package.files) == {
        "python-scripts/hello-script",
        "share/hello/data.txt",
        "site-packages/hello_there/__init__.py",
        *(
            f"site-packages/hello_there-1.0.dist-info/{name}"
            for name in ("INSTALLER", "METADATA", "RECORD", "REQUESTED", "WHEEL", "entry_points.txt")
        ),
    }


def test_what_a_wheel_installs_is_as_its_record_says(hello: Path, channels: Path, tmp_path: Path) -> None:
    own = write_channel(tmp_path / "own", [wheel_package(read_wheel(hello), TARGET)])
    with serving(channels) as served:
        records = conda_oracle.solve([f"file://{own}", served.channel(CHANNEL)], ["hello-there", "python"])
        prefix = conda_oracle.install(records, tmp_path / "prefix")
    assert run(prefix / "bin/hello") == run(prefix / "bin/hello-script") == "hello there"
    site = prefix / TARGET.site_packages
    rows = list(csv.reader((site / "hello_there-1.0.dist-info/RECORD").read_text().splitlines()))
    assert len(rows) == 9
    for path, digest, _ in rows:
        data = (site / path).read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert digest in ("", f"sha256={expected}") or path.endswith("bin/hello-script")


def metadata(*requires: str) -> Message:
    message = Message()
    for one in requires:
        message["Requires-Dist"] = one
    return message


def test_wanted_extras_are_those_that_the_closure_asks_for() -> None:
    closure = {
        "top": metadata("middle[fast]>=1", "never; sys_platform == 'win32'"),
        "middle": metadata("quick; extra == 'fast'", "slow; extra == 'slow'", "middle[more]; extra == 'fast'"),
        "quick": metadata(),
    }
    found = wanted_requirements(closure, [Requirement("top")], Target("3.11.7"))
    assert [str(one) for one in found["top"]] == ["middle[fast]>=1"]
    assert [one.name for one in found["middle"]] == ["quick"]


@pytest.mark.parametrize(
    ("requirement", "spec"),
    [
        ("typing-extensions", "typing_extensions"),
        ("msgpack>=1,!=1.0.3", "msgpack-python !=1.0.3,>=1"),
        ("mdurl~=0.1", "mdurl >=0.1,<1.0a0"),
        ("thing~=1.4.2", "thing >=1.4.2,<1.5.0a0"),
        ("thing==2.*", "thing 2.*"),
        ("thing===1.0", "thing ==1.0"),
    ],
)
def test_a_requirement_as_a_match_spec(requirement: str, spec: str) -> None:
    assert match_spec(Requirement(requirement)) == spec


# -- installed -----------------------------------------------------------------------------------------------------


@one_worker
def test_python_runs_where_it_is_installed(prefix: Path) -> None:
    script = (
        f"import {PYTHON_MODULES}, json, sys, sysconfig; print(json.dumps([sys.prefix, sysconfig.get_path('purelib')]))"
    )
    found = json.loads(run(prefix / "bin/python", "-I", "-c", script))
    assert found == [str(prefix), str(prefix / TARGET.site_packages)]


@one_worker
def test_python_looks_for_distributions_in_its_prefix_only(prefix: Path) -> None:
    script = "import sys, site; print(*sys.path, *site.getsitepackages(), sep='\\n')"
    found = run(prefix / "bin/python", "-I", "-c", script).splitlines()
    assert all(path.startswith(str(prefix)) for path in found)
    assert str(prefix / TARGET.site_packages) in found


@one_worker
def test_what_python_loads_is_in_its_prefix(prefix: Path) -> None:
    script = f"import {PYTHON_MODULES}; print(open('/proc/self/maps').read())"
    maps = run(prefix / "bin/python", "-I", "-c", script)
    loaded = {Path(path) for path in re.findall(r"(/\S+\.so[.\d]*)$", maps, re.M)}
    outside = {path.name for path in loaded if not path.is_relative_to(prefix)}
    assert {path.name.split(".")[0] for path in loaded} >= {"libssl", "libcrypto", "libffi"}
    assert all(re.match(r"(ld-linux|lib(c|m|dl|pthread|util|rt)[.-])", name) for name in outside), outside


@one_worker
def test_bytecode_is_good_with_the_archives_times_only(prefix: Path) -> None:
    source = prefix / f"lib/python{TARGET.minor}/textwrap.py"
    cached = source.parent / "__pycache__" / f"textwrap.{sys.implementation.cache_tag}.pyc"
    header = cached.read_bytes()[:16]
    assert int.from_bytes(header[4:8], "little") == 0
    assert int.from_bytes(header[8:12], "little") == int(source.stat().st_mtime) == 1_700_000_000
    assert int.from_bytes(header[12:16], "little") == source.stat().st_size


@one_worker
def test_entry_points_run(prefix: Path) -> None:
    assert run(prefix / "bin/pip", "--version").startswith("pip ")
    assert run(prefix / "bin/python", "-c", "import yaml; print(yaml.__with_libyaml__)") == "True"


@one_worker
@pytest.mark.skipif(compiler() is None, reason="no C compiler here: there is no package `greet`")
def test_a_program_with_a_binary_prefix_runs(prefix: Path) -> None:
    assert run(prefix / "bin/greet") == "hello from the prefix"
    assert run(prefix / "bin/greet", "--prefix") == str(prefix)
    assert run(prefix / "bin/greet", "--search") == f"{prefix}/share/greet:{prefix}/etc/greet:/etc"


@one_worker
def test_scripts_with_prefixes_run(prefix: Path) -> None:
    path = f"{prefix}/bin:{os.environ['PATH']}"
    assert run(prefix / "bin/long-shebang", PATH=path) == str(prefix)
    assert run(prefix / "bin/text-prefix") == f"{prefix}/share"
    assert run(prefix / "bin/old-style") == f"{prefix}/share"
    assert run(prefix / "bin/old-style-conda") == f"{prefix}/share"
    assert run(prefix / "bin/links") == "links"


def test_packages_for_the_other_kind_of_machine_are_laid_out(server: ChannelServer, tmp_path: Path) -> None:
    records = conda_oracle.solve([server.channel(CHANNEL)], ["python", "rich", "links", "pyyaml"], FOREIGN_SUBDIR)
    assert {record.subdir for record in records} == {FOREIGN_SUBDIR, "noarch"}
    prefix = conda_oracle.install(records, tmp_path / "prefix", final="/srv/conda", subdir=FOREIGN_SUBDIR)
    program = (prefix / f"bin/python{TARGET.minor}").read_bytes()
    assert program[:4] == b"\x7fELF"
    assert int.from_bytes(program[18:20], "little") == {"linux-aarch64": 183, "linux-64": 62}[FOREIGN_SUBDIR]
    assert (prefix / TARGET.site_packages / "rich/__init__.py").is_file()


def test_a_copied_channel_changes_alone(channels: Path, tmp_path: Path) -> None:
    kept = {path: path.read_bytes() for path in channels.rglob("repodata*")}
    copy = copied(channels, tmp_path / "channels")
    write_channel(copy / CHANNEL, [CondaPackage("newcomer", files={"new": File(b"new\n")}, noarch="generic")])
    assert "newcomer" in (copy / CHANNEL / "noarch/repodata.json").read_text()
    assert {path: path.read_bytes() for path in channels.rglob("repodata*")} == kept


def test_a_channel_has_repodata_of_every_kind(channels: Path) -> None:
    for subdir in ("noarch", "linux-64", "linux-aarch64"):
        names = {path.name for path in (channels / CHANNEL / subdir).iterdir()}
        assert names >= {"repodata.json", "repodata.json.zst", "repodata_shards.msgpack.zst"}
    document = json.loads((channels / CHANNEL / HOST_SUBDIR / "repodata.json").read_text())
    assert "old-style" in {record["name"] for record in document["packages"].values()}
    assert "python" in {record["name"] for record in document["packages.conda"].values()}


# -- the server ----------------------------------------------------------------------------------------------------

DATA = "noarch/repodata.json"


def test_a_channel_is_served_as_it_is(server: ChannelServer, channels: Path) -> None:
    answer = httpx.get(f"{server.channel(CHANNEL)}/{DATA}")
    assert answer.content == (channels / CHANNEL / DATA).read_bytes()
    again = httpx.get(f"{server.channel(CHANNEL)}/{DATA}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    unchanged = {"If-Modified-Since": answer.headers["Last-Modified"]}
    assert httpx.get(f"{server.channel(CHANNEL)}/{DATA}", headers=unchanged).status_code == 304
    assert httpx.get(f"{server.channel(CHANNEL)}/nothing").status_code == 404
    assert httpx.get(f"{server.address}/%2e%2e/secret").status_code == 404
    assert [request.status for request in server.requests(DATA)] == [200, 304, 304]


@pytest.mark.parametrize("asked", ["bytes=0-9", "bytes=100-", "bytes=-50", "bytes=5-99999999999"])
def test_a_range_is_served(server: ChannelServer, channels: Path, asked: str) -> None:
    data = (channels / CHANNEL / DATA).read_bytes()
    first, _, last = asked.removeprefix("bytes=").partition("-")
    expected = data[int(first) : int(last) + 1 if last else None] if first else data[-int(last) :]
    answer = httpx.get(f"{server.channel(CHANNEL)}/{DATA}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, expected)
    assert answer.headers["Content-Range"].endswith(f"/{len(data)}")


def test_a_range_beyond_the_end_is_refused(server: ChannelServer) -> None:
    assert httpx.get(f"{server.channel(CHANNEL)}/{DATA}", headers={"Range": "bytes=99999999999-"}).status_code == 416


def test_faults(server: ChannelServer, channels: Path) -> None:
    address, data = f"{server.channel(CHANNEL)}/{DATA}", (channels / CHANNEL / DATA).read_bytes()
    server.faults[DATA] = Fault(status=503, headers={"Retry-After": "1"}, times=2)
    statuses = [httpx.get(address).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    server.faults[DATA] = Fault(status=404)
    assert httpx.get(address).status_code == 404
    server.faults[DATA] = Fault(truncate=10)
    assert httpx.get(address).content == data[:10]
    server.faults[DATA] = Fault(flip=3)
    changed = httpx.get(address).content
    assert [place for place, byte in enumerate(data) if changed[place] != byte] == [3]
    server.faults[DATA] = Fault(body=b"<html>")
    assert httpx.get(address).content == b"<html>"
    server.faults[DATA] = Fault(die=100)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(address)
    server.faults.clear()
    assert httpx.get(address).content == data


def test_logins(server: ChannelServer) -> None:
    open_, closed = f"{server.channel(OTHER_CHANNEL)}/{DATA}", f"{server.channel(CHANNEL)}/{DATA}"
    server.logins[CHANNEL] = Login(basic=("me", "s3cret"), bearer="bear", token="tk-1")
    assert httpx.get(open_).status_code == 200
    answer = httpx.get(closed)
    assert answer.status_code == 401
    assert "WWW-Authenticate" in answer.headers
    assert httpx.get(closed, auth=("me", "wrong")).status_code == 401
    assert httpx.get(closed, auth=("me", "s3cret")).status_code == 200
    assert httpx.get(closed, headers={"Authorization": "Bearer bear"}).status_code == 200
    assert httpx.get(f"{server.channel(CHANNEL, token='tk-1')}/{DATA}").status_code == 200
    assert httpx.get(f"{server.channel(CHANNEL, token='tk-2')}/{DATA}").status_code == 401
    assert httpx.get(f"{server.channel(CHANNEL, user=('me', 's3cret'))}/{DATA}").status_code == 200
    assert server.requests(DATA)[-2].token == "tk-2"


# -- conda and what is large ---------------------------------------------------------------------------------------


@pytest.mark.network
def test_conda_itself_works_in_a_prefix(tmp_path: Path) -> None:
    channels = conda_channel.with_conda()
    channel = f"file://{channels / CHANNEL}"
    records = conda_oracle.solve([channel], ["conda", "python", "upgrade=1.0"])
    prefix = conda_oracle.install(records, tmp_path / "prefix")
    home = {"HOME": str(tmp_path), "CONDA_PKGS_DIRS": str(tmp_path / "pkgs")}

    def conda(*arguments: str | Path) -> str:
        return run(prefix / "bin/conda", *arguments, "-p", prefix, **home)

    listed = conda("list", "--explicit").splitlines()
    assert sorted(line for line in listed if line.startswith("file:")) == sorted(record.url for record in records)
    own = ("--solver", "classic", "-c", channel, "--override-channels", "--offline", "-y", "-q")
    conda("install", *own, "upgrade", "post-link", "proj-like")
    assert (prefix / "share/upgrade/1.1").exists()
    assert (prefix / "share/post-link/made").read_text() == "post-link 1.0 0\n"
    # It removes what nobody asked for by its history, too.
    conda("remove", *own, "upgrade")
    assert not (prefix / "share/upgrade").exists()
    script = f'. "{prefix}/bin/activate" && echo "$TEST_PROJ_DATA" && conda deactivate && echo "[$TEST_PROJ_DATA]"'
    assert run("bash", "-c", script, **home).splitlines() == [f"{prefix}/share/proj-like", "[]"]


@pytest.mark.slow
@pytest.mark.network
def test_pangeo_notebook_is_what_its_pins_say(tmp_path: Path) -> None:
    channels = conda_channel.base_notebook()
    with serving(channels) as served:
        records = conda_oracle.solve([served.channel(CHANNEL)], ["python", "pip", "pangeo-notebook"])
        prefix = conda_oracle.install(records, tmp_path / "prefix")
    versions = {record.name.normalized: str(record.version) for record in records}
    assert run(prefix / "bin/jupyter", "lab", "--version") == versions["jupyterlab"]
    assert (
        run(prefix / "bin/python", "-c", "import dask.dataframe, distributed as d; print(d.__version__)")
        == versions["dask"]
    )
    assert "No broken requirements" in run(prefix / "bin/pip", "check")
