from __future__ import annotations

from pathlib import Path

import pytest

from lithify.errors import InputError
from lithify.read.settings import read_settings


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STORE", "OFFLINE", "JOBS", "CONFIG"):
        monkeypatch.delenv(f"LITHIFY_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def configure(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "lithify" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_any_settings_the_store_is_the_users(tmp_path: Path) -> None:
    settings = read_settings()
    assert settings.store == tmp_path / "data" / "lithify"
    assert settings.jobs >= 1
    assert not settings.offline
    assert settings.sources == {}


def test_the_later_word_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, 'store = "/a"\njobs = 3\noffline = true\n[sources]\n"debian/trixie" = "file:///mirror"\n')
    settings = read_settings()
    assert (settings.store, settings.jobs, settings.offline) == (Path("/a"), 3, True)
    assert settings.sources == {"debian/trixie": "file:///mirror"}
    monkeypatch.setenv("LITHIFY_STORE", "/b")
    monkeypatch.setenv("LITHIFY_JOBS", "4")
    monkeypatch.setenv("LITHIFY_OFFLINE", "0")
    settings = read_settings()
    assert (settings.store, settings.jobs, settings.offline) == (Path("/b"), 4, False)
    settings = read_settings(store=Path("/c"), jobs=5, offline=True)
    assert (settings.store, settings.jobs, settings.offline) == (Path("/c"), 5, True)


def test_a_named_file_takes_the_place_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, "jobs = 3")
    other = tmp_path / "other.toml"
    other.write_text("jobs = 7")
    monkeypatch.setenv("LITHIFY_CONFIG", str(other))
    assert read_settings().jobs == 7
    monkeypatch.setenv("LITHIFY_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match=r"none\.toml"):
        read_settings()


def test_a_store_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    configure(tmp_path, 'store = "~/images"')
    assert read_settings().store == tmp_path / "images"


@pytest.mark.parametrize(
    "text",
    [
        "jobs = 0",
        "jobs = 'many'",
        "jobs = true",
        "jobs = 1.5",
        "store = 3",
        "offline = 'no'",
        "colour = 'blue'",
        "sources = 3",
        "[sources]\npypi = 3",
        "not toml",
        "\xff",
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_path(text: str, tmp_path: Path) -> None:
    path = configure(tmp_path, "")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as raised:
        read_settings()
    assert str(path) in raised.value.message


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5"])
def test_a_wrong_number_of_jobs_names_its_variable(jobs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITHIFY_JOBS", jobs)
    with pytest.raises(InputError, match="LITHIFY_JOBS"):
        read_settings()
