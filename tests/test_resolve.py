"""`lithify lock`: what a lock holds, how little it changes, and when it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import lithify
from lithify.errors import InputError, LithifyError
from lithify.lockfile import Package, read_lock
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.progress import Event
from lithify.read.family import lock_path, read_family
from lithify.read.requirements import documents
from lithify.read.settings import Settings
from lithify.resolve import LockResult, differences, stale
from local_index import LocalIndex, serving
from making_wheels import make_wheel

FAMILY = """\
[family]
platforms = ["linux/amd64", "linux/arm64"]

[base]
image = "somebody/base"
python = "3.13"

[images.parent]
[images.child]
extends = "parent"
[images.other]
"""


class Workshop:
    """A family in a folder, and the index that it is locked against."""

    def __init__(self, root: Path, index: LocalIndex) -> None:
        self.root, self.index = root, index
        self.events: list[Event] = []
        root.mkdir()
        self.write("lithify.toml", FAMILY)
        for name in ("parent", "child", "other"):
            (root / name).mkdir()
        self.write("parent/requirements.txt", "one\n")
        self.write("child/requirements.txt", "two\n")

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def wheel(self, name: str, version: str, *requires: str) -> Path:
        return make_wheel(self.index.folder, name=name, version=version, requires=requires)

    def lock(self, *images: str, **more: object) -> dict[str, LockResult]:
        settings = Settings(store=self.root.parent / "store", jobs=2, sources={"pypi": self.index.address})
        results = lithify.lock(self.root, images, settings=settings, report=self.events.append, **more)  # type: ignore[arg-type]
        return {result.image: result for result in results}

    def versions(self, image: str) -> dict[str, str]:
        return {p.name: p.version for p in read_lock(self.root / image / "lithify.lock").of(LINUX_AMD64)}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    (tmp_path / "index").mkdir()
    with serving(LocalIndex(tmp_path / "index")) as index:
        shop = Workshop(tmp_path / "family", index)
        for name in ("one", "two"):
            shop.wheel(name, "1.0")
        yield shop


def test_a_lock_holds_all_packages_of_the_lineage_for_every_platform(workshop: Workshop) -> None:
    results = workshop.lock()
    assert list(results) == ["parent", "child", "other"]
    lock = read_lock(workshop.root / "child" / "lithify.lock")
    assert lock == results["child"].lock
    assert [(p.name, p.platform) for p in lock.packages] == [
        ("one", LINUX_AMD64),
        ("one", LINUX_ARM64),
        ("two", LINUX_AMD64),
        ("two", LINUX_ARM64),
    ]
    assert results["other"].lock.packages == ()
    assert all(result.written for result in results.values())
    text = (workshop.root / "child" / "lithify.lock").read_text()
    assert "127.0.0.1" not in text and "://" not in text and str(workshop.root) not in text


def test_locking_again_changes_nothing_though_the_index_has_news(workshop: Workshop) -> None:
    first = workshop.lock()
    workshop.wheel("one", "2.0")
    again = workshop.lock()
    for name, result in again.items():
        assert not result.written and result.lock == first[name].lock
        assert (result.added, result.removed, result.changed) == ((), (), ())


def test_one_requirement_more_changes_one_package(workshop: Workshop) -> None:
    workshop.lock()
    for name in ("one", "two", "three"):
        workshop.wheel(name, "2.0")
    workshop.write("child/requirements.txt", "two\nthree\n")
    result = workshop.lock("child")["child"]
    assert [(p.name, p.version, p.platform) for p in result.added] == [
        ("three", "2.0", LINUX_AMD64),
        ("three", "2.0", LINUX_ARM64),
    ]
    assert not result.removed and not result.changed
    workshop.write("child/requirements.txt", "three\n")
    assert {p.name for p in workshop.lock("child")["child"].removed} == {"two"}


def test_upgrade_takes_the_newest_and_upgrade_packages_only_the_named(workshop: Workshop) -> None:
    workshop.write("other/requirements.txt", "one\ntwo\n")
    workshop.lock()
    for name in ("one", "two"):
        workshop.wheel(name, "2.0")
    result = workshop.lock("other", upgrade_packages=["Two"])["other"]
    assert workshop.versions("other") == {"one": "1.0", "two": "2.0"}
    assert [(old.version, new.version) for old, new in result.changed] == [("1.0", "2.0")] * 2
    workshop.lock("other", upgrade=True)
    assert workshop.versions("other") == {"one": "2.0", "two": "2.0"}


def test_a_child_is_locked_with_its_parents_choices(workshop: Workshop) -> None:
    workshop.lock("parent")
    workshop.wheel("one", "2.0")
    workshop.write("child/requirements.txt", "two\none>0\n")
    workshop.lock("child")
    assert workshop.versions("child")["one"] == "1.0"
    workshop.lock("child", upgrade=True)
    assert workshop.versions("child")["one"] == "1.0"
    workshop.lock("child", upgrade_packages=["one"])
    assert workshop.versions("child")["one"] == "1.0"
    assert any("locked by `parent`" in event.message for event in workshop.events if event.kind == "warning")
    workshop.lock(upgrade=True)
    assert workshop.versions("parent")["one"] == workshop.versions("child")["one"] == "2.0"


def test_a_child_that_needs_another_version_than_its_parent_gets_it(workshop: Workshop) -> None:
    workshop.lock("parent")
    workshop.wheel("one", "2.0")
    workshop.write("child/requirements.txt", "one>=2\n")
    workshop.lock("child")
    assert workshop.versions("parent")["one"] == "1.0"
    assert workshop.versions("child")["one"] == "2.0"
    (warning,) = (event.message for event in workshop.events if event.kind == "warning")
    assert "`child` has 1 package otherwise than its parent `parent`: one 2.0 (1.0)" in warning


def test_parents_without_a_lock_are_locked_first(workshop: Workshop) -> None:
    assert list(workshop.lock("child")) == ["parent", "child"]
    assert list(workshop.lock("child")) == ["child"]


def test_a_parent_that_is_out_of_date_is_an_error_unless_it_is_locked_too(workshop: Workshop) -> None:
    workshop.lock()
    workshop.write("parent/requirements.txt", "one\ntwo\n")
    with pytest.raises(InputError, match="`parent`, which `child` extends") as caught:
        workshop.lock("child")
    assert "lithify lock parent child" in (caught.value.hint or "")
    assert list(workshop.lock("parent", "child")) == ["parent", "child"]


def test_a_lock_is_stale_when_requirements_or_the_parents_lock_changed_but_not_for_a_comment(
    workshop: Workshop,
) -> None:
    workshop.lock()
    family = read_family(workshop.root)
    child = family.images["child"]
    lock = read_lock(lock_path(child))
    assert not stale(family, child, lock)
    workshop.write("parent/requirements.txt", "# why\n\none   # because\n")
    assert not stale(family, child, lock)
    workshop.write("parent/requirements.txt", "one>0\n")
    assert stale(family, child, lock)
    workshop.write("parent/requirements.txt", "one\n")
    workshop.wheel("one", "2.0")
    workshop.lock("parent", upgrade=True)
    assert stale(family, child, lock)


def test_the_fingerprint_knows_the_base_but_not_where_the_family_lies(workshop: Workshop, tmp_path: Path) -> None:
    workshop.lock()
    before = documents(read_family(workshop.root), read_family(workshop.root).lineage("child"))
    shutil.copytree(workshop.root, tmp_path / "elsewhere")
    moved = read_family(tmp_path / "elsewhere")
    assert documents(moved, moved.lineage("child")) == before
    workshop.write("lithify.toml", FAMILY.replace('"linux/amd64", ', ""))
    fewer = read_family(workshop.root)
    assert documents(fewer, fewer.lineage("child")) != before


def test_check_writes_nothing_and_fails_where_a_lock_is_out_of_date(workshop: Workshop) -> None:
    with pytest.raises(InputError, match="does not exist"):
        workshop.lock(check=True)
    workshop.lock()
    asked = len(workshop.index.asked)
    assert not any(result.written for result in workshop.lock(check=True).values())
    workshop.write("child/requirements.txt", "two\none\n")
    before = (workshop.root / "child" / "lithify.lock").read_bytes()
    with pytest.raises(InputError, match="does not answer") as caught:
        workshop.lock(check=True)
    assert "lithify lock child" in (caught.value.hint or "")
    assert (workshop.root / "child" / "lithify.lock").read_bytes() == before
    assert len(workshop.index.asked) == asked


def test_created_moves_only_with_the_packages(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = workshop.lock("other", "parent")["parent"].lock.created
    assert first == datetime.fromtimestamp(1700000000, UTC)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    workshop.write("parent/requirements.txt", "one>0\n")
    result = workshop.lock("parent")["parent"]
    assert result.written and result.lock.created == first
    workshop.write("parent/requirements.txt", "two\n")
    assert workshop.lock("parent")["parent"].lock.created == datetime.fromtimestamp(1800000000, UTC)


@pytest.mark.parametrize("value", ["yesterday", "-1", "0", "99999999999999999999"])
def test_a_wrong_source_date_epoch_is_a_clear_error(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH"):
        workshop.lock("parent")


def test_a_failed_lock_leaves_the_old_one_and_no_litter(workshop: Workshop) -> None:
    workshop.lock()
    before = (workshop.root / "child" / "lithify.lock").read_bytes()
    workshop.write("child/requirements.txt", "no-such-package\n")
    with pytest.raises(LithifyError, match="no-such-package"):
        workshop.lock("child")
    assert (workshop.root / "child" / "lithify.lock").read_bytes() == before
    assert sorted(path.name for path in (workshop.root / "child").iterdir()) == ["lithify.lock", "requirements.txt"]


def test_a_broken_old_lock_is_replaced_with_a_warning(workshop: Workshop) -> None:
    workshop.write("other/lithify.lock", "not = [toml")
    workshop.lock("other")
    assert read_lock(workshop.root / "other" / "lithify.lock").packages == ()
    assert any("counts for nothing" in event.message for event in workshop.events if event.kind == "warning")


def test_apt_txt_on_an_image_base_is_a_clear_error(workshop: Workshop) -> None:
    workshop.write("parent/apt.txt", "# tools\ngit\n")
    with pytest.raises(InputError, match=r"apt\.txt:2: apt\.txt needs a Debian base"):
        workshop.lock("parent")


def test_the_lock_lies_beside_the_requirement_files(workshop: Workshop) -> None:
    (workshop.root / "other" / "binder").mkdir()
    workshop.write("other/binder/requirements.txt", "one\n")
    assert workshop.lock("other")["other"].path == workshop.root / "other" / "binder" / "lithify.lock"


def test_an_unknown_image_is_a_clear_error(workshop: Workshop) -> None:
    with pytest.raises(InputError, match="no image `chld`") as caught:
        workshop.lock("chld")
    assert "child" in (caught.value.hint or "")


def test_a_debian_package_that_moves_to_the_updates_has_changed() -> None:
    def package(source: str, version: str) -> Package:
        return Package(source, "bash", LINUX_AMD64, version, "a.deb", "0" * 64, 1)

    old, new = package("debian/trixie", "1"), package("debian-security/trixie-security", "2")
    assert differences([old], [new]) == ((), (), ((old, new),))


def test_the_committed_family_answers_its_requirement_files() -> None:
    root = Path(__file__).parent.parent / "families" / "pypi"
    assert [result.image for result in lithify.lock(root, check=True)] == [
        "base-image",
        "base-notebook",
        "pangeo-notebook",
        "ml-notebook",
    ]


@pytest.mark.network
def test_debian_packages_of_a_child_are_its_parents_and_its_own(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = '[base]\ndebian = "trixie"\npackages = ["ca-certificates"]'
    workshop.write("lithify.toml", FAMILY.replace('[base]\nimage = "somebody/base"\npython = "3.13"', base))
    workshop.write("parent/apt.txt", "tree\n")
    workshop.write("child/apt.txt", "less\ntree\nca-certificates\n")
    results = workshop.lock("child")
    for platform in (LINUX_AMD64, LINUX_ARM64):
        parent, child = (results[name].lock.of(platform) for name in ("parent", "child"))
        debian = {p for p in child if p.source.startswith("debian")}
        inherited = {p for p in parent if p.source.startswith("debian")}
        assert {p.name for p in debian - inherited} == {"less"}
        assert inherited < debian
        base_names = {p.name for p in debian if p.base}
        assert {"bash", "dpkg", "python3.13", "ca-certificates"} <= base_names
        assert not {"tree", "less"} & base_names
    again = workshop.lock("parent", "child")
    assert not any(result.written for result in again.values())


def test_the_committed_locks_name_no_host_and_hold_their_parents_packages() -> None:
    family = read_family(Path(__file__).parent.parent / "families" / "pypi")
    held: set[Package] = set()
    for image in family.images.values():
        assert "://" not in lock_path(image).read_text(encoding="utf-8")
        packages = set(read_lock(lock_path(image)).packages)
        assert held <= packages
        assert {package.platform for package in packages} == set(family.platforms)
        held = packages
