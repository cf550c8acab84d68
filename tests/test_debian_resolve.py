"""Resolving with apt: real lists of trixie, for both architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import debs
from lithify.errors import FetchError, HostError, InputError, UnsatisfiableError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.read.family import DebianBase
from lithify.read.settings import Settings
from lithify.sources import debian
from lithify.sources.debian import DebianSource, base_packages, interpreter_build, resolve, suite_sources

LOCAL = "http://127.0.0.1:9/debian"


def package(name: str = "zip", version: str = "3.0-15", source: str = "debian/trixie") -> Package:
    return Package(source, name, LINUX_AMD64, version, f"pool/main/z/{name}_{version}_amd64.deb", "0" * 64, 1)


@pytest.fixture(scope="module")
def base() -> tuple[Package, ...]:
    return resolve("trixie", debs.BASE, LINUX_AMD64, essential=True, settings=debs.cache())


@pytest.mark.network
@pytest.mark.parametrize("platform", debs.PLATFORMS, ids=str)
def test_a_base_has_what_is_essential_and_what_was_asked_for(platform: Platform) -> None:
    found = resolve("trixie", debs.BASE, platform, essential=True, settings=debs.cache())
    names = {p.name for p in found}
    assert {"bash", "dpkg", "libc6", "base-passwd", "coreutils", *debs.BASE} <= names
    assert not names & {"apt", "systemd", "ca-certificates-java"}
    assert found == tuple(sorted(found))
    for one in found:
        assert (one.platform, one.base, len(one.sha256)) == (platform, True, 64)
        assert one.file.startswith("pool/")
        assert one.file.endswith((f"_{platform.debian}.deb", "_all.deb"))
        assert one.source in suite_sources("trixie")
        assert one.size > 500


@pytest.mark.network
def test_what_is_there_already_stays_and_is_not_named_again(base: tuple[Package, ...]) -> None:
    found = resolve("trixie", ["openssh-client", "bash"], LINUX_AMD64, kept=base, settings=debs.cache())
    names = {p.name for p in found}
    assert "openssh-client" in names
    assert not names & {p.name for p in base}
    assert not any(p.base for p in found)
    assert "xauth" not in names  # recommended only
    nothing = resolve("trixie", ["bash"], LINUX_AMD64, kept=base, settings=debs.cache())
    assert nothing == ()


@pytest.mark.network
def test_the_same_question_has_the_same_answer(base: tuple[Package, ...]) -> None:
    again = resolve("trixie", tuple(reversed(debs.BASE)), LINUX_AMD64, essential=True, settings=debs.cache())
    assert again == base


@pytest.mark.network
def test_an_older_version_stays_while_it_is_served() -> None:
    """A package with a security fix has two versions in the lists: the lock's one is kept until it is upgraded."""
    settings = debs.cache()
    resolve("trixie", ["zip"], LINUX_AMD64, settings=settings)
    apt = debian._Apt("trixie", LINUX_AMD64, debian.archive_addresses("trixie", settings), settings, debian._keyrings())
    index = debian._read_index(apt.folder, apt.list_files(), apt.stamp())
    twice = [
        (name, sorted({debian._field(stanza, "Version") for _, stanza in found}))
        for name, found in index.stanzas.items()
        if len({debian._field(stanza, "Version") for _, stanza in found}) == 2
        and all(b"\nDepends: " not in stanza for _, stanza in found)
    ]
    if not twice:
        pytest.skip("no package without dependencies has two versions today")
    name, versions = twice[0]
    (newest,) = resolve("trixie", [name], LINUX_AMD64, settings=settings)
    older = next(index.package(name, v, LINUX_AMD64, base=False) for v in versions if v != newest.version)
    assert resolve("trixie", [name], LINUX_AMD64, previous=[older], settings=settings) == (older,)
    assert resolve("trixie", [name], LINUX_AMD64, previous=[older], upgrade=True, settings=settings) == (newest,)


@pytest.mark.network
def test_a_version_that_is_no_longer_served_moves_on() -> None:
    (found,) = [
        p
        for p in resolve("trixie", ["zip"], LINUX_AMD64, previous=[package(version="0.1-1")], settings=debs.cache())
        if p.name == "zip"
    ]
    assert found.version != "0.1-1"


@pytest.mark.network
def test_an_unknown_package_is_named_with_a_near_one() -> None:
    with pytest.raises(InputError, match="no package `graphwiz` for linux/arm64") as caught:
        resolve("trixie", ["graphwiz"], LINUX_ARM64, settings=debs.cache())
    assert caught.value.hint == "did you mean `graphviz`?"


@pytest.mark.network
def test_no_solution_comes_with_apts_explanation(base: tuple[Package, ...]) -> None:
    with pytest.raises(UnsatisfiableError, match="zip=9") as caught:
        resolve("trixie", ["zip=9"], LINUX_AMD64, kept=base, settings=debs.cache())
    assert "Version '9' for 'zip' was not found" in (caught.value.details or "")


@pytest.mark.network
def test_what_would_change_a_parent_has_no_solution(base: tuple[Package, ...]) -> None:
    """dash cannot be replaced by a package that conflicts with what the parent holds."""
    with pytest.raises(UnsatisfiableError):
        resolve("trixie", ["mawk=0"], LINUX_AMD64, kept=base, settings=debs.cache())


@pytest.mark.network
def test_a_parents_package_that_nobody_knows_any_more_asks_to_lock_the_parent_again(base: tuple[Package, ...]) -> None:
    gone = replace(base[0], version="0.0-1", sha256="1" * 64)
    with pytest.raises(FetchError, match=rf"{base[0].name} 0\.0-1.*no longer") as caught:
        resolve("trixie", ["zip"], LINUX_AMD64, kept=[gone, *base[1:]], settings=debs.cache())
    assert "--upgrade" in (caught.value.hint or "")


@pytest.mark.network
def test_offline_the_lists_that_are_there_serve_and_without_them_the_message_says_so(tmp_path: Path) -> None:
    offline = replace(debs.cache(), offline=True)
    assert resolve("trixie", ["zip"], LINUX_AMD64, settings=offline)
    with pytest.raises(FetchError, match="nothing may be fetched"):
        resolve("trixie", ["zip"], LINUX_AMD64, settings=replace(offline, store=tmp_path))


@pytest.mark.parametrize("text", ["Zip", "zip; rm -rf /", "-o", "zip/sid", "", "zip=1 2", "--reinstall"])
def test_what_is_no_name_is_refused_before_apt_sees_it(settings: Settings, text: str) -> None:
    with pytest.raises(InputError, match="is not the name of a Debian package"):
        resolve("trixie", [text], LINUX_AMD64, settings=settings)


def test_asking_for_nothing_asks_nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert resolve("trixie", [], LINUX_AMD64, settings=settings) == ()


# -- the archive and the tools -------------------------------------------------------------------------------------


def configured(settings: Settings, **more: str) -> Settings:
    sources = {"debian/trixie": LOCAL, "debian-security/trixie-security": ""}
    return replace(settings, sources={**sources, **more})


def test_a_dead_mirror_is_named_and_leaves_nothing_behind(settings: Settings) -> None:
    with pytest.raises(FetchError, match="cannot be fetched") as caught:
        resolve("trixie", ["zip"], LINUX_AMD64, settings=configured(settings))
    assert "127.0.0.1" in (caught.value.details or "")
    assert "[sources]" in (caught.value.hint or "")
    assert not list(settings.store.glob("apt/*/lists"))
    assert not list(settings.store.glob("apt/*/updated"))


def test_without_apt_the_message_says_where_to_lock(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="no apt-get on this machine") as caught:
        resolve("trixie", ["zip"], LINUX_AMD64, settings=configured(settings))
    assert "building from a lock needs no apt" in (caught.value.hint or "")


def test_without_debians_keys_the_message_names_the_package(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(debian, "_KEYRINGS", (str(tmp_path / "none"),))
    monkeypatch.setattr(debian, "_TRUSTED", str(tmp_path))
    with pytest.raises(HostError, match="signing keys") as caught:
        resolve("trixie", ["zip"], LINUX_AMD64, settings=configured(settings))
    assert "debian-archive-keyring" in (caught.value.hint or "")


def test_without_an_address_the_message_says_how_to_configure_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "_host_archives", lambda: (None, None))
    with pytest.raises(HostError, match="`debian/trixie` is served from") as caught:
        resolve("trixie", ["zip"], LINUX_AMD64, settings=settings)
    assert '"debian/trixie" = ' in (caught.value.hint or "")


def test_updates_come_from_where_the_suite_comes_from(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_host_archives", lambda: ("http://host/debian", "http://host/security"))
    mine = replace(settings, sources={"debian/trixie": f"{LOCAL}/"})
    assert debian.archive_addresses("trixie", mine) == {
        "debian/trixie": LOCAL,
        "debian/trixie-updates": LOCAL,
        "debian-security/trixie-security": "http://host/security",
    }
    none = replace(settings, sources={"debian/trixie-updates": ""})
    assert list(debian.archive_addresses("trixie", none)) == ["debian/trixie", "debian-security/trixie-security"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [
                "http://host/ubuntu/|noble|Ubuntu|Ubuntu",
                "http://host/debian/|bookworm|Debian|Debian",
                "http://host/debian-security/|bookworm-security|Debian|Debian-Security",
            ],
            ("http://host/debian", "http://host/debian-security"),
        ),
        (
            ["https://host/a/|trixie|||", "https://host/s/|trixie-security|||"],
            ("https://host/a", "https://host/s"),
        ),
        (["http://host/ubuntu/|noble|Ubuntu|Ubuntu", "http://host/node/|nodistro||"], (None, None)),
        (["cdrom:/disk/|trixie|Debian|Debian"], (None, None)),
        (["mirror+file:/MIRRORS/|trixie|Debian|Debian"], ("http://first/debian", None)),
        ([], (None, None)),
    ],
    ids=["other vendors too", "lists not fetched yet", "no Debian", "a disk", "a list of mirrors", "nothing"],
)
def test_the_hosts_apt_is_asked_where_debian_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str], expected: tuple[str | None, str | None]
) -> None:
    (tmp_path / "mirrors").write_text("http://first/debian\nhttp://second/debian\n")
    text = "\n".join(lines).replace("/MIRRORS", str(tmp_path / "mirrors"))
    (tmp_path / "answer").write_text(text)
    (tmp_path / "apt-get").write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/answer\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert debian._host_archives.__wrapped__() == expected


def test_addresses_are_the_archives_root_and_the_path_of_the_lock(settings: Settings) -> None:
    one, two = package(version="1.0+b1~x"), package("tz data", source="debian/trixie-updates")
    found = DebianSource(configured(settings)).addresses([one, two])
    assert found[one] == f"{LOCAL}/pool/main/z/zip_1.0+b1~x_amd64.deb"
    assert found[two] == f"{LOCAL}/pool/main/z/tz%20data_3.0-15_amd64.deb"


def test_the_interpreter_is_named_exactly() -> None:
    python = package("python3.13-minimal", "3.13.5-2+deb13u1", "debian-security/trixie-security")
    assert interpreter_build([package(), python]) == "debian/trixie python3.13-minimal=3.13.5-2+deb13u1"
    with pytest.raises(InputError, match="no Python"):
        interpreter_build([package()])


def test_a_base_asks_for_its_python_and_what_the_family_says() -> None:
    assert base_packages(DebianBase("trixie", ("tzdata", "git"), "3.13")) == ("git", "python3.13", "tzdata")
