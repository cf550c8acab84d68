"""The source `pypi`: what uv is asked, which wheel is chosen, where it is, and what is said when it fails.

uv is real; the index is on this machine, of wheels made for the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from lithify.errors import FetchError, LithifyError, UnsatisfiableError
from lithify.lockfile import Package
from lithify.platforms import LINUX_AMD64, LINUX_ARM64, Platform
from lithify.read.family import Image
from lithify.read.requirements import Requirements, read_requirements
from lithify.read.settings import Settings
from lithify.sources.pypi import PypiSource, resolve, wheel_tags
from local_index import LocalIndex, serving
from making_wheels import make_wheel, package_of


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalIndex]:
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    (tmp_path / "index").mkdir()
    with serving(LocalIndex(tmp_path / "index")) as served:
        yield served


def settings_of(index: LocalIndex) -> Settings:
    return Settings(store=index.folder / "store", jobs=2, sources={"pypi": index.address})


def asked(tmp_path: Path, text: str, name: str = "image") -> Requirements:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (folder / "requirements.txt").write_text(text)
    return read_requirements(Image(name, folder))


def versions(packages: tuple[Package, ...]) -> dict[str, str]:
    return {package.name: package.version for package in packages}


def lock(
    index: LocalIndex, *lineage: Requirements, platform: Platform = LINUX_AMD64, **more: object
) -> tuple[Package, ...]:
    return resolve(lineage, platform, "3.13", glibc=(2, 41), settings=settings_of(index), **more)  # type: ignore[arg-type]


def test_the_packages_are_exact_files_with_hash_and_size(index: LocalIndex, tmp_path: Path) -> None:
    one = make_wheel(index.folder, name="one", requires=("Two_X>=1",))
    two = make_wheel(index.folder, name="two_x", version="1.5")
    found = lock(index, asked(tmp_path, "one\n"))
    expected = [package_of(one), package_of(two)]
    assert [(p.version, p.file, p.sha256, p.size) for p in found] == [
        (p.version, p.file, p.sha256, p.size) for p in expected
    ]
    assert [p.name for p in found] == ["one", "two-x"]
    assert {p.source for p in found} == {"pypi"}


def test_all_images_of_a_lineage_are_resolved_together(index: LocalIndex, tmp_path: Path) -> None:
    for version in ("1.0", "2.0", "3.0"):
        make_wheel(index.folder, name="one", version=version)
    make_wheel(index.folder, name="other")
    parent, child = asked(tmp_path, "one<3\n", "parent"), asked(tmp_path, "other\none>1\n", "child")
    assert versions(lock(index, parent, child)) == {"one": "2.0", "other": "1.0"}


def test_preferred_versions_stay_while_they_satisfy(index: LocalIndex, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index.folder, name="one", version=version)
        make_wheel(index.folder, name="two", version=version)
    wanted = asked(tmp_path, "one\ntwo>=2\n")
    assert versions(lock(index, wanted)) == {"one": "2.0", "two": "2.0"}
    preferred = {"one": "1.0", "two": "1.0", "gone": "9"}
    assert versions(lock(index, wanted, preferred=preferred)) == {"one": "1.0", "two": "2.0"}


def test_constraints_hold_without_asking_for_anything(index: LocalIndex, tmp_path: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index.folder, name="one", version=version)
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "limits.txt").write_text("one<2\nnever-asked==5\n")
    assert versions(lock(index, asked(tmp_path, "-c limits.txt\none\n"))) == {"one": "1.0"}


def test_markers_and_extras_count_for_the_platform(index: LocalIndex, tmp_path: Path) -> None:
    for name in ("arm", "amd", "plus"):
        make_wheel(index.folder, name=name)
    make_wheel(index.folder, name="one", requires=("plus; extra == 'more'",), extras=("more",))
    text = "one[more]\narm; platform_machine == 'aarch64'\namd; platform_machine == 'x86_64'\n"
    wanted = asked(tmp_path, text + "never; python_version < '3'\n")
    assert set(versions(lock(index, wanted))) == {"one", "plus", "amd"}
    assert set(versions(lock(index, wanted, platform=LINUX_ARM64))) == {"one", "plus", "arm"}


def test_pre_releases_come_only_when_asked_for(index: LocalIndex, tmp_path: Path) -> None:
    for version in ("1.0", "2.0rc1"):
        make_wheel(index.folder, name="one", version=version)
    assert versions(lock(index, asked(tmp_path, "one\n"))) == {"one": "1.0"}
    assert versions(lock(index, asked(tmp_path, "--pre\none\n"))) == {"one": "2.0rc1"}


def test_each_platform_has_the_best_of_its_wheels(index: LocalIndex, tmp_path: Path) -> None:
    for tag in (
        "py3-none-any",
        "cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "cp313-cp313-manylinux_2_28_x86_64",
        "cp39-abi3-manylinux_2_28_aarch64",
        "cp313-cp313-musllinux_1_2_x86_64",
        "cp313-cp313t-manylinux_2_28_x86_64",
        "cp312-cp312-manylinux_2_28_aarch64",
    ):
        make_wheel(index.folder, name="one", tag=tag)
    wanted = asked(tmp_path, "one\n")
    (amd64,) = lock(index, wanted)
    (arm64,) = lock(index, wanted, platform=LINUX_ARM64)
    assert amd64.file == "one-1.0-cp313-cp313-manylinux_2_28_x86_64.whl"
    assert arm64.file == "one-1.0-cp39-abi3-manylinux_2_28_aarch64.whl"


def test_no_wheel_needs_a_newer_c_library_than_the_base_has() -> None:
    newest = wheel_tags(LINUX_AMD64, "3.11", (2, 36))
    assert next(parse_wheel_filename("a-1-cp311-cp311-manylinux_2_36_x86_64.whl")[3].__iter__()) in newest
    assert next(parse_wheel_filename("a-1-cp311-cp311-manylinux_2_37_x86_64.whl")[3].__iter__()) not in newest
    for legacy in ("manylinux1", "manylinux2010", "manylinux2014"):
        assert next(iter(parse_wheel_filename(f"a-1-cp311-cp311-{legacy}_x86_64.whl")[3])) in newest
        assert next(iter(parse_wheel_filename(f"a-1-cp311-cp311-{legacy}_aarch64.whl")[3])) not in newest


def test_a_package_without_a_wheel_for_one_platform_is_named_with_it(index: LocalIndex, tmp_path: Path) -> None:
    make_wheel(index.folder, name="one", tag="cp313-cp313-manylinux_2_28_x86_64")
    wanted = asked(tmp_path, "one==1.0\n")
    assert lock(index, wanted)
    with pytest.raises(UnsatisfiableError) as caught:
        lock(index, wanted, platform=LINUX_ARM64)
    assert "requirements.txt:1: one 1.0 has no wheel for linux/arm64" in caught.value.message
    assert caught.value.details and caught.value.hint


def test_no_solution_comes_with_uvs_explanation(index: LocalIndex, tmp_path: Path) -> None:
    make_wheel(index.folder, name="one", requires=("two<2",))
    make_wheel(index.folder, name="two", version="2.0")
    with pytest.raises(UnsatisfiableError) as caught:
        lock(index, asked(tmp_path, "one\ntwo>=2\n"))
    assert "`image` for linux/amd64" in caught.value.message
    assert "two<2" in (caught.value.details or "")


def test_an_unknown_package_is_named_with_its_line(index: LocalIndex, tmp_path: Path) -> None:
    make_wheel(index.folder, name="one")
    with pytest.raises(UnsatisfiableError, match=r"requirements\.txt:3: the package index has no package `onne`"):
        lock(index, asked(tmp_path, "one\n\nonne\n"))


def test_a_dead_index_is_said_to_be_dead(index: LocalIndex, tmp_path: Path) -> None:
    settings = Settings(store=tmp_path, jobs=1, sources={"pypi": "http://127.0.0.1:9/simple"})
    with pytest.raises(FetchError, match="does not answer") as caught:
        resolve([asked(tmp_path, "one\n")], LINUX_AMD64, "3.13", settings=settings)
    assert caught.value.hint


@pytest.mark.parametrize(("json_api", "hashes"), [(True, True), (False, True), (False, False)])
def test_sizes_and_hashes_that_an_index_does_not_say_are_learned(
    index: LocalIndex, tmp_path: Path, json_api: bool, hashes: bool
) -> None:
    index.json_api, index.sizes, index.hashes = json_api, False, hashes
    one = make_wheel(index.folder, name="one")
    (found,) = lock(index, asked(tmp_path, "one\n"))
    assert (found.size, found.sha256) == (package_of(one).size, package_of(one).sha256)
    address = PypiSource(settings_of(index)).addresses([found])[found]
    assert address.partition("#")[0].endswith(f"/files/{found.file}")


def test_hashes_of_a_requirement_are_checked(index: LocalIndex, tmp_path: Path) -> None:
    one = package_of(make_wheel(index.folder, name="one"))
    assert lock(index, asked(tmp_path, f"one --hash=sha256:{one.sha256} --hash=sha256:{'0' * 64}\n"))
    with pytest.raises(UnsatisfiableError, match=r"requirements\.txt:1: one-1.0.*not among the hashes"):
        lock(index, asked(tmp_path, f"one --hash=sha256:{'0' * 64}\n"))


def test_find_links_folders_serve_wheels(index: LocalIndex, tmp_path: Path) -> None:
    links = tmp_path / "image" / "wheels"
    links.mkdir(parents=True)
    one = make_wheel(links, name="one")
    wanted = asked(tmp_path, "--no-index\n--find-links wheels\none\n")
    (found,) = lock(index, wanted)
    assert (found.sha256, found.size) == (package_of(one).sha256, package_of(one).size)
    address = PypiSource(settings_of(index), indexes=wanted.indexes).addresses([found])[found]
    assert address == one.as_uri()
    assert not index.asked


def test_the_environment_does_not_change_what_is_chosen(
    index: LocalIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(index.folder, name="one", version=version)
    (tmp_path / "limit.txt").write_text("one<2\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "limit.txt"))
    monkeypatch.setenv("UV_RESOLUTION", "lowest")
    assert versions(lock(index, asked(tmp_path, "one\n"))) == {"one": "2.0"}


# -- addresses ---------------------------------------------------------------------------------------------


def test_addresses_are_of_the_exact_files(index: LocalIndex, tmp_path: Path) -> None:
    tags = ("cp313-cp313-manylinux_2_28_x86_64", "cp39-abi3-manylinux_2_28_x86_64", "cp39-abi3-manylinux_2_28_aarch64")
    packages = [package_of(make_wheel(index.folder, name="one", tag=tag)) for tag in tags]
    # The second is not what would be chosen today; a lock from before the first was there names it.
    amd64, old, arm64 = packages
    arm64 = Package("pypi", "one", LINUX_ARM64, "1.0", arm64.file, arm64.sha256, arm64.size)
    found = PypiSource(settings_of(index)).addresses([old, arm64])
    assert {package: url.rpartition("/")[2] for package, url in found.items()} == {old: old.file, arm64: arm64.file}
    assert amd64.file not in "".join(found.values())


def test_platforms_may_have_different_versions(index: LocalIndex) -> None:
    first = package_of(make_wheel(index.folder, name="one", version="1.0"))
    second = package_of(make_wheel(index.folder, name="one", version="2.0"), LINUX_ARM64)
    assert set(PypiSource(settings_of(index)).addresses([first, second])) == {first, second}


def test_vanished_and_exchanged_files_are_named_all_at_once(index: LocalIndex) -> None:
    wheels = {name: make_wheel(index.folder, name=name) for name in ("kept", "vanished", "exchanged", "unpublished")}
    make_wheel(index.folder, name="vanished", version="2.0")
    packages = [package_of(path) for path in wheels.values()]
    wheels["vanished"].unlink()
    wheels["unpublished"].unlink()
    make_wheel(index.folder, {"other.py": b""}, name="exchanged")
    with pytest.raises(FetchError) as caught:
        PypiSource(settings_of(index)).addresses(packages)
    text = str(caught.value)
    assert "3 locked wheels are not served any more" in text and "lithify lock" in text
    for name in ("vanished", "unpublished", "exchanged"):
        assert f"  {name} 1.0: {name}-1.0-py3-none-any.whl" in text
    assert "kept" not in text


def test_no_packages_need_no_index() -> None:
    settings = Settings(store=Path("/nonexistent"), jobs=1, sources={"pypi": "http://127.0.0.1:9/simple"})
    assert PypiSource(settings).addresses([]) == {}
    assert resolve([], LINUX_AMD64, "3.13", settings=settings) == ()


def test_addresses_of_a_dead_index_are_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    package = package_of(make_wheel(tmp_path))
    settings = Settings(store=tmp_path, jobs=1, sources={"pypi": "http://127.0.0.1:9/simple"})
    with pytest.raises(LithifyError, match="does not answer"):
        PypiSource(settings).addresses([package])
