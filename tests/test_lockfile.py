"""The lock as text: stable, complete, and never trusted further than it can be."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lithify.errors import InputError
from lithify.lockfile import Lock, Package, fingerprint, parse_lock, read_lock, write_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORDS = st.text(min_size=1, max_size=20).filter(lambda text: not any(0xD800 <= ord(c) < 0xE000 for c in text))
PACKAGES = st.builds(
    Package,
    source=st.sampled_from(["pypi", "debian/trixie"]),
    name=WORDS,
    platform=st.sampled_from([LINUX_AMD64, LINUX_ARM64]),
    version=WORDS,
    file=WORDS.filter(lambda t: not t.startswith("/") and ".." not in t and "\0" not in t),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size=st.integers(0, 2**50),
    base=st.booleans(),
)


def example() -> Lock:
    packages = (
        Package(
            "debian/trixie", "bash", LINUX_AMD64, "5.2-1", "pool/main/b/bash/bash_5.2-1_amd64.deb", "a" * 64, 7, True
        ),
        Package("pypi", "one", LINUX_AMD64, "1.0", "one-1.0-py3-none-any.whl", "b" * 64, 5),
        Package("pypi", "one", LINUX_ARM64, "1.0", "one-1.0-py3-none-any.whl", "b" * 64, 5),
    )
    return Lock("sha256:" + "c" * 64, MOMENT, packages)


@settings(deadline=None)
@given(packages=st.lists(PACKAGES, max_size=5, unique_by=lambda p: (p.source, p.name, p.platform)), data=st.data())
def test_what_is_written_is_read_whatever_the_order(packages: list[Package], data: st.DataObject) -> None:
    lock = Lock("sha256:x", MOMENT, tuple(sorted(packages)))
    text = write_lock(lock)
    assert parse_lock(text) == lock
    shuffled = Lock(lock.fingerprint, lock.created, tuple(data.draw(st.permutations(packages))))
    assert write_lock(shuffled) == text


def test_one_changed_version_is_a_small_diff() -> None:
    lock = example()
    old = write_lock(lock).splitlines()
    changed = Package("pypi", "one", LINUX_ARM64, "2.0", "one-2.0-py3-none-any.whl", "d" * 64, 6)
    new = write_lock(Lock(lock.fingerprint, MOMENT, (*lock.packages[:2], changed))).splitlines()
    assert len(old) == len(new)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 4


@settings(deadline=None, max_examples=300)
@given(text=st.one_of(st.text(max_size=80), st.binary(max_size=80).map(lambda b: b.decode("latin-1"))))
def test_any_text_is_a_lock_or_a_clear_error(text: str) -> None:
    with pytest.raises(InputError):
        parse_lock(text)


VALUES = st.recursive(
    st.one_of(
        st.booleans().map(lambda b: str(b).lower()),
        st.integers(-5, 5).map(str),
        st.sampled_from(
            ['"x"', '""', '"../x"', '"/x"', "1.5", "nan", "2026-01-01", "2026-01-01T00:00:00", "1970-01-01T00:00:00Z"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda item: f"{{ a = {item} }}"),
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_value_in_any_place_is_read_or_is_a_clear_error(data: st.DataObject) -> None:
    lines = write_lock(example()).splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(lines) - 1))
        key = lines[number].partition(" = ")[0]
        action = data.draw(st.sampled_from(["value", "drop", "twice"]))
        if action == "value" and " = " in lines[number]:
            lines[number] = f"{key} = {data.draw(VALUES)}"
        elif action == "drop":
            lines[number] = ""
        else:
            lines.insert(number, lines[number])
    try:
        lock = parse_lock("\n".join(lines), "some/lithify.lock")
    except InputError as error:
        assert error.message.startswith("some/lithify.lock: ")
        return
    for package in lock.packages:
        assert not package.file.startswith("/") and ".." not in package.file.split("/")
        assert len(package.sha256) == 64 and package.size >= 0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1\n", "version = 2\n", "lock format 2"),
        ("version = 1\n", "", "lock format None"),
        ("created = 2026-01-02T03:04:05Z", "created = 2026-01-02T03:04:05", "time zone"),
        ("created = 2026-01-02T03:04:05Z", "created = 1970-01-01T00:00:00Z", "created"),
        ('"one-1.0-py3-none-any.whl"', '"../../etc/passwd"', "leaves its source"),
        ('"one-1.0-py3-none-any.whl"', '"/etc/passwd"', "leaves its source"),
        ('"one-1.0-py3-none-any.whl"', '"a\\u0000b"', "leaves its source"),
        ("b" * 64, "B" * 64, "hexadecimal"),
        ("b" * 64, "b" * 63, "hexadecimal"),
        ("size = 5", "size = -5", "number of bytes"),
        ("size = 5", "size = true", "number of bytes"),
        ('"linux/arm64"', '"linux/amd64"', "locked twice"),
        ('"linux/arm64"', '"plan9/mips"', "unknown platform"),
    ],
)
def test_what_is_wrong_in_a_lock_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "lithify.lock"
    text = write_lock(example())
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=said) as caught:
        read_lock(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_a_missing_or_unreadable_lock_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        read_lock(tmp_path / "image" / "lithify.lock")
    assert "lithify lock image" in (caught.value.hint or "")
    (tmp_path / "lithify.lock").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read"):
        read_lock(tmp_path / "lithify.lock")


def test_the_fingerprint_depends_on_names_and_bytes_and_not_on_order() -> None:
    one = fingerprint({"a": b"1", "b": b"2"})
    assert one == fingerprint({"b": b"2", "a": b"1"})
    others = [
        {"a": b"2", "b": b"1"},
        {"a": b"12", "b": b""},
        {"ab": b"12"},
        {"a": b"1"},
        {"a": b"1", "b": b"2", "c": b""},
    ]
    assert len({one, *(fingerprint(documents) for documents in others)}) == len(others) + 1


def test_packages_are_found_by_platform_and_source() -> None:
    lock = example()
    assert [p.name for p in lock.of(LINUX_AMD64)] == ["bash", "one"]
    assert [p.name for p in lock.of(LINUX_AMD64, "debian")] == ["bash"]
    assert [p.name for p in lock.of(LINUX_ARM64, "debian")] == []
