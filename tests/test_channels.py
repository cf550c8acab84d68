"""Channels: their names in locks, their addresses, and the secrets that stay out of everything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lithify import credentials
from lithify.errors import InputError
from lithify.read.settings import Settings
from lithify.sources.conda.channel import (
    Channel,
    canonical_address,
    channel_of,
    default_address,
    one_of_each,
    parse_channel,
    parse_channels,
    served_address,
)

NOWHERE = Settings(Path("store"), 1)


@pytest.fixture(autouse=True)
def nobodys_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONDARC", "RATTLER_AUTH_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("conda-forge", "conda-forge"),
        ("pkgs/main", "pkgs/main"),
        ("conda-forge/label/dask_dev", "conda-forge/label/dask_dev"),
        ("https://example.org/conda-forge", "conda-forge"),
        ("https://example.org/conda-forge/", "conda-forge"),
        ("https://user:secret@example.org/t/tk-12-abc/team/channel", "team/channel"),
        ("https://example.org/t/tk-12-abc/channel/label/main", "channel/label/main"),
        ("file:///srv/mirror/conda-forge", "conda-forge"),
    ],
)
def test_a_channel_is_called_by_its_name_or_the_path_of_its_address(text: str, name: str) -> None:
    assert parse_channel(text, "environment.yml").name == name
    assert parse_channel(text, "environment.yml").source == f"conda/{name}"


def test_defaults_are_condas_two_channels() -> None:
    assert [channel.name for channel in parse_channels(["defaults", "x"], "f")] == ["pkgs/main", "pkgs/r", "x"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "a b", "../x", "./channel", "~/channel", "/srv/channel", "a//b", "a/../b", "-x"),
        *(
            "https://example.org",
            "https://example.org/",
            "https://u:secret@example.org/t/secret",
            "ftp://example.org/x",
        ),
        *("https://[x", "http://u:secret@ex\u2100mple/x"),
    ],
)
def test_what_is_no_channel_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_channel(text, "environment.yml:3")
    assert "environment.yml:3" in caught.value.message
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_channel_or_a_clear_error(text: str) -> None:
    try:
        channel = parse_channel(text, "f")
    except InputError:
        return
    assert channel.name and ".." not in channel.name and "://" not in channel.name and "@" not in channel.name


@given(
    st.from_regex(r"[A-Za-z0-9]{4,12}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9-]{4,12}", fullmatch=True),
    st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
)
def test_no_secret_of_an_address_is_in_what_is_said_of_it(password: str, token: str, name: str) -> None:
    secrets = (f"p{password}p", f"t{token}t")
    channel = parse_channel(f"https://u:{secrets[0]}@h.example/t/{secrets[1]}/{name}?q={secrets[0]}", "f")
    for secret in secrets:
        assert secret not in channel.name + canonical_address(channel) + repr(channel)


def test_two_addresses_of_one_name_are_a_clear_error() -> None:
    first, second = parse_channel("https://one.example/x", "a.yml"), parse_channel("https://two.example/x", "b.yml")
    with pytest.raises(InputError, match=r"a\.yml and b\.yml") as caught:
        one_of_each([first, second])
    assert '"conda/NAME" = "ADDRESS"' in (caught.value.hint or "")
    same = parse_channel("https://u:p@one.example/x", "c.yml")
    assert list(one_of_each([first, same])) == ["conda/x"]


def test_a_channels_address_is_the_configured_one_then_the_spelled_one_then_rattlers(nobodys_home: Path) -> None:
    named, spelled = parse_channel("conda-forge", "f"), parse_channel("https://spelled.example/conda-forge/", "f")
    assert served_address(named, NOWHERE) == default_address("conda-forge")
    assert default_address("conda-forge").endswith("/conda-forge")
    assert served_address(spelled, NOWHERE) == "https://spelled.example/conda-forge"
    mirror = Settings(Path("store"), 1, sources={"conda/conda-forge": "https://mirror.example/forge/"})
    for channel in (named, spelled):
        assert served_address(channel, mirror) == "https://mirror.example/forge"
    every = Settings(Path("store"), 1, sources={"conda": "https://mirror.example/conda"})
    assert served_address(named, every) == "https://mirror.example/conda/conda-forge"
    folder = Settings(Path("store"), 1, sources={"conda/conda-forge": "/srv/mirror"})
    assert served_address(named, folder) == "file:///srv/mirror"


def test_condas_own_configuration_says_where_named_channels_are(nobodys_home: Path) -> None:
    (nobodys_home / ".condarc").write_text(
        "channel_alias: https://alias.example/\n"
        "custom_channels: {mine: 'https://custom.example/base'}\n"
        "mirrored_channels: {conda-forge: ['https://mirrored.example/cf']}\n"
    )
    addresses = {name: served_address(Channel(name), NOWHERE) for name in ("mine", "conda-forge", "other")}
    assert addresses == {
        "mine": "https://custom.example/base/mine",
        "conda-forge": "https://mirrored.example/cf",
        "other": "https://alias.example/other",
    }


def test_what_an_image_says_of_a_channel_depends_on_no_machine(nobodys_home: Path) -> None:
    before = canonical_address(Channel("conda-forge"))
    (nobodys_home / ".condarc").write_text("channel_alias: https://alias.example/\n")
    assert canonical_address(Channel("conda-forge")) == before == default_address("conda-forge")
    spelled = parse_channel("https://u:secret@spelled.example/t/secret/x", "f")
    assert canonical_address(spelled) == "https://spelled.example/x"
    assert canonical_address(channel_of("conda/x", {"conda/x": spelled})) == "https://spelled.example/x"
    assert channel_of("conda/y", {}) == Channel("y")


def test_credentials_come_from_the_address_then_rattlers_file_then_netrc(
    nobodys_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {
        "a.example": {"BearerToken": "tok"},
        "*.b.example": {"CondaToken": "ct"},
        "c.example": {"BasicHTTP": {"username": "u", "password": "p"}},
    }
    (nobodys_home / ".rattler").mkdir()
    (nobodys_home / ".rattler" / "credentials.json").write_text(json.dumps(stored))
    (nobodys_home / ".netrc").write_text("machine n.example login u password p\n")
    of = credentials.credential_for
    basic = credentials.Credential(header="Basic dTpw")
    assert of("https://u:p@a.example/x") == basic
    assert of("https://a.example/x") == credentials.Credential(header="Bearer tok")
    for host in ("b.example", "x.b.example", "y.x.b.example"):
        assert of(f"https://{host}:8080/x") == credentials.Credential(token="ct")
    assert of("https://c.example/x") == basic
    assert of("https://n.example/x") == basic
    assert of("https://xb.example/x") is None and of("file:///x") is None
    other = nobodys_home / "other.json"
    other.write_text("{not json: secret")
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(other))
    with pytest.raises(InputError, match=r"other\.json") as caught:
        of("https://a.example/x")
    assert "secret" not in str(caught.value)
    assert "tok" not in repr(credentials.Credential(header="Bearer tok", token="tok"))
