"""Solving conda environments: what is chosen, what is kept, and what is said where nothing fits."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from channel_server import ChannelServer, Fault, Login, serving
from conda_channel import write_channel
from lithify.errors import FetchError, HostError, InputError, LithifyError, UnsatisfiableError
from lithify.fetch import completed
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.progress import Event
from lithify.read.environment import CondaSpec
from lithify.read.settings import Settings
from lithify.sources.conda import child
from lithify.sources.conda.channel import parse_channel
from lithify.sources.conda.resolve import Preferred, Wanted, records_of, resolve
from lithify.sources.conda.source import CondaSource
from lithify.store.store import open_store
from making_conda import CondaPackage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "conda-forge-channel.tar.xz"
BOTH = (LINUX_AMD64, LINUX_ARM64)


def day(number: int) -> int:
    """Milliseconds since 1970 of a day of January 2026."""
    return int(datetime(2026, 1, number, tzinfo=UTC).timestamp() * 1000)


def package(name: str, version: str = "1.0", *depends: str, **more: object) -> CondaPackage:
    return CondaPackage(name, version, depends=depends, noarch="generic", **more)  # type: ignore[arg-type]


def native(name: str, version: str, platform: Platform, *depends: str) -> CondaPackage:
    return CondaPackage(name, version, depends=depends, subdir=platform.subdir)


def virtual(platform: Platform, **more: str) -> dict[str, str]:
    return {"__unix": "0", "__linux": "5.10", "__glibc": "2.41", "__archspec": f"1 {platform.machine}", **more}


def spec(text: str, line: int = 1) -> CondaSpec:
    channel, _, rest = text.rpartition("::")
    name = rest.split()[0].partition("=")[0].partition(">")[0].partition("<")[0]
    return CondaSpec(name, rest, f"environment.yml:{line}", channel or None)


class Workshop:
    """A folder of channels, and a store."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.events: list[Event] = []
        self.address = folder.as_uri()

    def channel(self, name: str, *packages: CondaPackage) -> None:
        write_channel(self.folder / name, packages)

    def wanted(
        self, texts: Sequence[str], platform: Platform, channels: Sequence[str] = ("ours",), **more: str
    ) -> Wanted:
        addresses = [channel if "://" in channel else f"{self.address}/{channel}" for channel in channels]
        return Wanted(
            "notebook",
            platform,
            tuple(parse_channel(address, "environment.yml") for address in addresses),
            tuple(spec(text.replace("AT/", f"{self.address}/"), line) for line, text in enumerate(texts, 1)),
            virtual(platform, **more),
        )

    def solve(
        self,
        *texts: str,
        platforms: Iterable[Platform] = BOTH,
        channels: Sequence[str] = ("ours",),
        preferred: Preferred | None = None,
        exclude_newer: datetime | None = None,
        settings: Settings | None = None,
        **more: str,
    ) -> tuple[Package, ...]:
        """The packages for the first platform; the others' are looked at in ``self.answers``."""
        wanted = [self.wanted(texts, platform, channels, **more) for platform in platforms]
        self.answers = resolve(
            wanted,
            "image",
            preferred={("notebook", one.platform): preferred for one in wanted} if preferred else None,
            exclude_newer=exclude_newer,
            settings=settings or self.settings,
            report=self.events.append,
        )
        return self.answers["notebook", wanted[0].platform]


@pytest.fixture
def workshop(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONDARC", "RATTLER_AUTH_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "channels").mkdir()
    return Workshop(tmp_path / "channels", settings)


@pytest.fixture
def server(workshop: Workshop) -> Iterator[ChannelServer]:
    with serving(workshop.folder) as server:
        workshop.address = server.address
        yield server


def change_repodata(channel: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the records of a channel, which then has its repodata in one form only."""
    for repodata in channel.glob("*/repodata*"):
        if repodata.name != "repodata.json":
            repodata.unlink()
            continue
        document = json.loads(repodata.read_text())
        for record in document["packages.conda"].values():
            change(record)
        repodata.write_text(json.dumps(document))


def versions(packages: Iterable[Package]) -> dict[str, str]:
    return {package.name: package.version for package in packages}


# -- what is chosen ----------------------------------------------------------------------------------------------------


def test_both_platforms_are_solved_and_a_package_has_all_that_a_lock_wants(workshop: Workshop) -> None:
    workshop.channel(
        "ours",
        package("app", "2026.01.21", "lib >=1", index={"constrains": ["other <2"]}),
        *(native("lib", "1.0", platform) for platform in BOTH),
    )
    found = workshop.solve("app")
    assert [(p.name, p.file, p.source, p.environment) for p in found] == [
        ("app", "noarch/app-2026.01.21-0.conda", "conda/ours", "notebook"),
        ("lib", "linux-64/lib-1.0-0.conda", "conda/ours", "notebook"),
    ]
    assert [p.file for p in workshop.answers["notebook", LINUX_ARM64]][1] == "linux-aarch64/lib-1.0-0.conda"
    app = found[0]
    assert (app.version, app.depends, app.constrains) == ("2026.01.21", ("lib >=1",), ("other <2",))
    path = workshop.folder / "ours" / app.file
    assert app.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert app.md5 == hashlib.md5(path.read_bytes()).hexdigest()
    assert app.size == path.stat().st_size


def test_the_answer_does_not_depend_on_the_order_of_what_is_asked(workshop: Workshop) -> None:
    workshop.channel("ours", *(package(name) for name in "abcdef"))
    assert workshop.solve(*"abcdef") == workshop.solve(*"fedcba")


def test_a_start_and_an_end_are_reported_for_each_platform(workshop: Workshop) -> None:
    workshop.channel("ours", package("a"))
    workshop.solve("a")
    told = {(event.kind, event.task) for event in workshop.events}
    assert told == {(kind, f"lock image {p} conda") for kind in ("start", "finish") for p in BOTH}


def test_the_first_channel_that_has_a_package_gives_it(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0"))
    workshop.channel("theirs", package("a", "2.0"), package("b", "1.0", "a"))
    found = workshop.solve("a", "b", channels=("ours", "theirs"))
    assert [(p.name, p.version, p.source) for p in found] == [
        ("a", "1.0", "conda/ours"),
        ("b", "1.0", "conda/theirs"),
    ]
    with pytest.raises(UnsatisfiableError) as caught:
        workshop.solve("a >=2", channels=("ours", "theirs"))
    assert "channel" in (caught.value.details or "")


def test_a_spec_may_name_its_channel_even_one_that_nothing_else_is_taken_from(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0"))
    workshop.channel("theirs", package("a", "2.0"))
    assert versions(workshop.solve("AT/theirs::a")) == {"a": "2.0"}
    assert versions(workshop.solve("AT/theirs::a", channels=("ours", "theirs"))) == {"a": "2.0"}


@pytest.mark.parametrize(
    "text", ["a>=0.4.31=cuda12*", "a=1.0=cuda12_0", "a ==1.0 cuda*", "a 1.*", "a[build='cuda*']", "a=1"]
)
def test_specs_are_read_as_conda_reads_them(workshop: Workshop, text: str) -> None:
    workshop.channel("ours", package("a", "1.0", build="cuda12_0"))
    assert versions(workshop.solve(text)) == {"a": "1.0"}


def test_there_is_no_cuda_unless_it_is_said(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0", "__cuda >=12", "__glibc >=2.28", "__archspec 1 x86_64"))
    error = failure(workshop, "a", platforms=[LINUX_AMD64])
    assert isinstance(error, UnsatisfiableError) and "__cuda" in (error.details or "")
    assert versions(workshop.solve("a", platforms=[LINUX_AMD64], __cuda="12.9")) == {"a": "1.0"}


def test_site_packages_are_noted_only_where_they_are_not_the_usual_ones(workshop: Workshop) -> None:
    usual = package("python", "3.13.1", build="a", index={"python_site_packages_path": "lib/python3.13/site-packages"})
    other = package("python", "3.13.2", build="t", index={"python_site_packages_path": "lib/python3.13t/site-packages"})
    workshop.channel("ours", usual, other)
    assert workshop.solve("python 3.13.1")[0].site_packages == ""
    assert workshop.solve("python 3.13.2")[0].site_packages == "lib/python3.13t/site-packages"


def test_a_folder_of_a_platform_that_a_channel_lacks_counts_as_empty(workshop: Workshop) -> None:
    workshop.channel("ours", package("a"))
    assert not (workshop.folder / "ours" / "linux-64").exists()
    assert versions(workshop.solve("a")) == {"a": "1.0"}


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_locked_stays_until_it_is_to_be_upgraded(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0", "b"), package("b", "1.0"))
    old = workshop.solve("a")
    workshop.channel("ours", package("a", "2.0", "b"), package("b", "2.0"), package("c", "1.0"))
    assert versions(workshop.solve("a", "c", preferred=Preferred(old))) == {"a": "1.0", "b": "1.0", "c": "1.0"}
    named = Preferred(old, upgrade=frozenset({"a"}))
    assert versions(workshop.solve("a", preferred=named)) == {"a": "2.0", "b": "1.0"}
    assert versions(workshop.solve("a")) == {"a": "2.0", "b": "2.0"}


def test_an_upgraded_package_moves_what_it_needs_moved_and_no_more(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0", "b"), package("b", "1.0"), package("c", "1.0"))
    old = workshop.solve("a", "c")
    workshop.channel("ours", package("a", "2.0", "b >=2"), package("b", "2.0"), package("c", "2.0"))
    found = workshop.solve("a", "c", preferred=Preferred(old, upgrade=frozenset({"a"})))
    assert versions(found) == {"a": "2.0", "b": "2.0", "c": "1.0"}


def test_a_parents_choice_holds_against_an_own_one_and_an_upgrade(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0"), package("a", "2.0"), package("a", "3.0"))
    one, two = workshop.solve("a 1.0"), workshop.solve("a 2.0")
    assert versions(workshop.solve("a", preferred=Preferred(two, one))) == {"a": "1.0"}
    assert versions(workshop.solve("a", preferred=Preferred(two, one, frozenset({"a"})))) == {"a": "1.0"}
    assert versions(workshop.solve("a >1", preferred=Preferred((), one))) == {"a": "3.0"}


def test_what_a_channel_no_longer_has_may_stay(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0", "b"), package("b", "1.0"))
    old = workshop.solve("a")
    (workshop.folder / "ours" / "noarch" / "a-1.0-0.conda").unlink()
    workshop.channel("ours", package("a", "2.0", "b"))
    assert workshop.solve("a", preferred=Preferred(old)) == old


def test_what_a_channel_corrects_of_a_locked_package_counts(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0"), package("b", "1.0"))
    old = workshop.solve("a", platforms=[LINUX_AMD64])
    change_repodata(workshop.folder / "ours", lambda record: record["depends"].extend(["b"] * (record["name"] == "a")))
    found = workshop.solve("a", platforms=[LINUX_AMD64], preferred=Preferred(old))
    assert versions(found) == {"a": "1.0", "b": "1.0"}


def test_nothing_newer_than_a_moment_is_taken_and_what_has_no_time_is(workshop: Workshop) -> None:
    workshop.channel(
        "ours",
        package("a", "1.0", index={"timestamp": day(1)}),
        package("a", "2.0", index={"timestamp": day(2)}),
        package("b", "1.0"),
    )
    # rattler's index notes when it saw a package first, which counts before the time of the build.
    change_repodata(workshop.folder / "ours", lambda record: record.pop("indexed_timestamp", None))
    two = datetime(2026, 1, 2, tzinfo=UTC)
    assert versions(workshop.solve("a", "b", exclude_newer=two)) == {"a": "2.0", "b": "1.0"}
    before = two - timedelta(milliseconds=1)
    assert versions(workshop.solve("a", "b", exclude_newer=before)) == {"a": "1.0", "b": "1.0"}
    # The moment counts, not what its clock shows.
    west = two.astimezone(timezone(timedelta(hours=-8)))
    assert versions(workshop.solve("a", exclude_newer=west)) == {"a": "2.0"}
    locked = workshop.solve("a")
    assert versions(workshop.solve("a", exclude_newer=before, preferred=Preferred(locked))) == {"a": "1.0"}
    with pytest.raises(UnsatisfiableError) as caught:
        workshop.solve("a >=2", exclude_newer=before)
    assert "2026-01-01T23:59:59" in (caught.value.hint or "")


# -- what does not fit -------------------------------------------------------------------------------------------------


def failure(workshop: Workshop, *texts: str, **more: object) -> LithifyError:
    with pytest.raises(LithifyError) as caught:
        workshop.solve(*texts, **more)  # type: ignore[arg-type]
    return caught.value


def test_a_conflict_names_the_lines_of_all_culprits_and_shows_the_solvers_explanation(workshop: Workshop) -> None:
    workshop.channel(
        "ours", package("a", "1.0", "c <2"), package("b", "1.0", "c >=2"), package("c", "1.0"), package("c", "2.0")
    )
    error = failure(workshop, "a", "b")
    assert isinstance(error, UnsatisfiableError)
    assert "environment.yml:1: a" in error.message and "environment.yml:2: b" in error.message
    assert "`image`" in error.message and "linux/amd64" in error.message
    assert "c <2" in (error.details or "") and "└" in (error.details or "")


def test_a_package_that_no_channel_has_is_named_with_its_line(workshop: Workshop) -> None:
    workshop.channel("ours", package("a"))
    error = failure(workshop, "a", "numpyy")
    assert isinstance(error, UnsatisfiableError)
    assert error.message.startswith("environment.yml:2: ours has no package `numpyy`")


def test_a_version_that_no_channel_has_is_named_with_those_that_it_has(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0"), package("a", "1.10"), package("a", "1.9"))
    error = failure(workshop, "a 7.*")
    assert "environment.yml:1" in error.message and "`a 7.*`" in error.message
    assert "1.0, 1.9, 1.10" in (error.hint or "")


def test_what_only_another_platform_has_is_said_so(workshop: Workshop) -> None:
    workshop.channel("ours", native("a", "1.0", LINUX_AMD64), package("b"))
    error = failure(workshop, "b", "a")
    assert "has `a` for linux-64, not for linux-aarch64" in error.message
    assert "# [linux64]" in (error.hint or "")
    workshop.channel("ours", CondaPackage("mac", subdir="osx-64"))
    error = failure(workshop, "mac")
    assert "has `mac` for osx-64" in error.message


def test_a_spec_that_cannot_be_read_is_named_with_its_line(workshop: Workshop) -> None:
    workshop.channel("ours", package("a"))
    error = failure(workshop, "a", "a >>1")
    assert isinstance(error, InputError)
    assert error.message.startswith("environment.yml:2: `a >>1`")


def test_a_failed_solve_does_not_take_us_down(workshop: Workshop) -> None:
    workshop.channel("ours", package("a", "1.0", "nothing"))
    for _ in range(15):
        assert isinstance(failure(workshop, "a"), UnsatisfiableError)


# -- channels that fail ------------------------------------------------------------------------------------------------


def test_channels_are_read_over_http_in_every_form_that_they_have(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("ours", package("a"))
    forms = {"sharded": "repodata_shards.msgpack.zst", "zstd": "repodata.json.zst", "plain": "repodata.json"}
    for form, file in forms.items():
        server.forget()
        store = Settings(workshop.settings.store.parent / form, 2)
        assert versions(workshop.solve("a", settings=store)) == {"a": "1.0"}
        assert any(request.status == 200 for request in server.requests(file)), form
        server.faults[file] = Fault(status=404)


def test_offline_knows_what_was_asked_before_and_asks_nothing(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("ours", package("a"))
    offline = Settings(workshop.settings.store, 2, offline=True)
    error = failure(workshop, "a", settings=offline)
    assert isinstance(error, FetchError) and "offline" in error.message and "--offline" in (error.hint or "")
    before = workshop.solve("a")
    server.forget()
    assert workshop.solve("a", settings=offline) == before
    assert server.asked() == []


def test_an_unknown_channel_is_named(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("ours", package("a"))
    error = failure(workshop, "a", channels=("ours", "oours"))
    assert isinstance(error, FetchError)
    assert "there is no channel `oours` at http://127.0.0.1" in error.message
    assert "conda/oours" in (error.hint or "")
    folder = failure(workshop, "a", channels=(f"{workshop.folder.as_uri()}/nowhere",))
    assert "there is no channel `nowhere`" in folder.message


@pytest.mark.parametrize(
    "fault", [Fault(die=60), Fault(status=500), Fault(body=b'{"info": {'), Fault(body=b"<html>sorry</html>")]
)
def test_a_channel_that_breaks_off_or_answers_nonsense_is_named(
    workshop: Workshop, server: ChannelServer, fault: Fault
) -> None:
    workshop.channel("ours", package("a"))
    workshop.channel("theirs", package("b"))
    for file in ("repodata_shards.msgpack.zst", "repodata.json.zst", "repodata.json.bz2"):
        server.faults[f"theirs/*/{file}"] = Fault(status=404)
    server.faults["theirs/*/repodata.json"] = fault
    error = failure(workshop, "a", "b", channels=("ours", "theirs"))
    assert isinstance(error, FetchError)
    assert "the channel `theirs` at http://127.0.0.1" in error.message
    server.faults.clear()
    assert versions(workshop.solve("a", "b", channels=("ours", "theirs"))) == {"a": "1.0", "b": "1.0"}


def test_a_channel_that_dies_while_it_is_solved_is_named(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("ours", package("a"))
    workshop.channel("theirs", package("b", "1.0", "c"), package("c"))
    server.faults["theirs/*shards/*"] = Fault(die=10)
    error = failure(workshop, "a", "b", channels=("ours", "theirs"))
    assert isinstance(error, FetchError) and "`theirs`" in error.message


SECRETS = ("pass-of-the-user", "tk-12-secret")


@pytest.mark.parametrize("login", [Login(basic=("user", SECRETS[0])), Login(token=SECRETS[1])])
def test_credentials_in_an_address_are_used_and_reach_no_lock_message_or_event(
    workshop: Workshop, server: ChannelServer, login: Login
) -> None:
    workshop.channel("ours", package("a"))
    server.logins["ours"] = login
    address = server.channel("ours", user=login.basic, token=login.token)
    found = workshop.solve("a", channels=(address,))
    wrong = failure(workshop, "a", channels=(address.replace("secret", "secre").replace("of-the", "of-a"),))
    conflict = failure(workshop, "a 2.*", channels=(address,))
    server.faults["*"] = Fault(status=500)
    fresh = Settings(workshop.settings.store.parent / "fresh", 2)
    dead = failure(workshop, "a", channels=(address,), settings=fresh)
    assert isinstance(wrong, FetchError) and isinstance(dead, FetchError)
    said = [repr(found), str(wrong), repr(wrong), str(conflict), str(dead), repr(workshop.events)]
    for secret in (*SECRETS, "pass-of-a-user", "tk-12-secre"):
        assert not any(secret in text for text in said)
    assert (workshop.settings.store / "repodata").stat().st_mode & 0o077 == 0


def test_rattlers_file_of_credentials_is_used(
    workshop: Workshop, server: ChannelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.channel("ours", package("a"))
    server.logins["ours"] = Login(bearer="the-bearer")
    error = failure(workshop, "a")
    assert isinstance(error, FetchError) and "RATTLER_AUTH_FILE" in (error.hint or "")
    (tmp_path / "auth.json").write_text(json.dumps({"127.0.0.1": {"BearerToken": "the-bearer"}}))
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(tmp_path / "auth.json"))
    assert versions(workshop.solve("a")) == {"a": "1.0"}


def test_a_mirror_of_the_configuration_serves_a_channel_by_its_name(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("conda-forge", package("a"))
    mirror = Settings(workshop.settings.store, 2, sources={"conda/conda-forge": f"{server.address}/conda-forge"})
    wanted = Wanted("notebook", LINUX_AMD64, (parse_channel("conda-forge", "f"),), (spec("conda-forge::a"),), {})
    answer = resolve([wanted], "image", settings=mirror)
    assert [p.source for p in answer["notebook", LINUX_AMD64]] == ["conda/conda-forge"]


# -- records without sha256 --------------------------------------------------------------------------------------------


def test_a_sha256_that_the_index_lacks_is_learned_from_the_file(workshop: Workshop, server: ChannelServer) -> None:
    workshop.channel("ours", package("a"))
    with_digest = workshop.solve("a", channels=(f"{workshop.folder.as_uri()}/ours",))
    change_repodata(workshop.folder / "ours", lambda record: record.pop("sha256"))

    def learned(settings: Settings) -> tuple[Package, ...]:
        source = CondaSource(settings, {"conda/ours": parse_channel(f"{workshop.address}/ours", "f")})
        packages = workshop.solve("a", settings=settings)
        assert not any(package.sha256 for package in packages)
        return completed(open_store(settings.store), packages, {"conda/ours": source})

    assert learned(workshop.settings) == with_digest
    assert len(server.asked("a-1.0-0.conda")) == 1
    assert learned(workshop.settings) == with_digest
    assert len(server.asked("a-1.0-0.conda")) == 1
    server.faults["a-1.0-0.conda"] = Fault(flip=30)
    with pytest.raises(FetchError, match="is not what was locked") as caught:
        learned(Settings(workshop.settings.store.parent / "fresh", 2))
    assert "md5" in (caught.value.details or "")


def test_a_records_facts_are_found_by_its_file_and_md5(workshop: Workshop) -> None:
    workshop.channel("ours", package("a"), native("b", "1.0", LINUX_AMD64))
    found = workshop.solve("a", "b", platforms=[LINUX_AMD64])
    channels = {"conda/ours": parse_channel(f"{workshop.address}/ours", "f")}
    asked: list[Mapping[str, str]] = [{"source": p.source, "file": p.file, "md5": p.md5} for p in found]
    asked += [{**asked[0], "md5": "0" * 32}, {**asked[0], "file": "noarch/a-9-0.conda"}]
    answers = records_of(asked, channels, workshop.settings)
    assert [answer and answer["sha256"] for answer in answers] == [found[0].sha256, found[1].sha256, None, None]


# -- the solver's process ----------------------------------------------------------------------------------------------


def test_a_solver_that_dies_without_an_answer_is_asked_twice_and_then_told_of(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    code = (
        "import os, sys; sys.stdin.read(); open(sys.argv[1], 'a').write('x');"
        "print('going down', file=sys.stderr, flush=True); os.kill(os.getpid(), 11)"
    )
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", code, str(count)))
    workshop.channel("ours", package("a"))
    error = failure(workshop, "a")
    assert isinstance(error, HostError)
    assert "ended 2 times without an answer" in error.message and "going down" in (error.details or "")
    assert count.read_text() == "xx"


def test_an_answer_counts_though_the_solver_crashes_after_it(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop.channel("ours", package("a"))
    code = (
        "import subprocess, sys, os;"
        "answer = subprocess.run(sys.argv[1:], stdin=sys.stdin, capture_output=True).stdout;"
        "sys.stdout.buffer.write(answer); sys.stdout.flush(); os.kill(os.getpid(), 6)"
    )
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", code, *child.COMMAND))
    assert versions(workshop.solve("a")) == {"a": "1.0"}


# -- the shared channel ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_channel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of 21,781 real records of conda-forge, without files behind them."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    folder = tmp_path_factory.mktemp("shared")
    with tarfile.open(SHARED) as archive:
        archive.extractall(folder, filter="data")
    return (folder / "channel").as_uri()


def test_base_notebook_is_solved_on_real_metadata(workshop: Workshop, shared_channel: str) -> None:
    found = workshop.solve("pangeo-notebook", "python=3.12", "pip", channels=(shared_channel,))
    names = versions(found)
    assert len(found) == 286 and {"jupyterlab", "dask", "distributed", "jupyterhub-singleuser"} <= names.keys()
    assert all(package.size == 0 and package.md5 and package.depends is not None for package in found)
    assert workshop.solve("pangeo-notebook", "python=3.12", "pip", channels=(shared_channel,)) == found


def test_gpu_packages_are_solved_on_real_metadata_only_with_cuda(workshop: Workshop, shared_channel: str) -> None:
    texts = ("pangeo-notebook", "jaxlib>=0.4.31=cuda12*", "tensorflow=*=cuda*")
    found = workshop.solve(*texts, platforms=[LINUX_AMD64], channels=(shared_channel,), __cuda="12.9")
    assert all("cuda" in p.file for p in found if p.name in ("jaxlib", "tensorflow")) and len(found) >= 350
    error = failure(workshop, *texts, platforms=[LINUX_AMD64], channels=(shared_channel,))
    assert "__cuda" in (error.details or "")
