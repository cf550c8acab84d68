"""`lithify lock` of families with conda packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import lithify
from conda_channel import write_channel
from lithify.errors import InputError, LithifyError, UnsatisfiableError
from lithify.lockfile import read_lock
from lithify.platforms import LINUX_AMD64, PLATFORMS, Platform
from lithify.progress import Event
from lithify.read.settings import Settings
from lithify.resolve import LockResult
from local_index import LocalIndex, serving
from making_conda import CondaPackage, text
from making_wheels import make_wheel

FAMILY = """\
[family]
platforms = ["linux/amd64", "linux/arm64"]

[base]
image = "somebody/base"

[conda]
channels = ["{channel}"]
require = ["meta"]

[images.parent]
[images.child]
extends = "parent"
"""


def distribution(name: str, version: str, *depends: str, extras: str = "", conda_name: str = "") -> CondaPackage:
    """A noarch conda package with a Python distribution in it."""
    info = f"site-packages/{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}"
    files = {f"{info}/METADATA": text(metadata), f"site-packages/{name.replace('-', '_')}.py": text("value = 1\n")}
    return CondaPackage(conda_name or name, version, files, depends=("python", *depends), noarch="python")


class Workshop:
    """A family in a folder, a channel, and a package index."""

    def __init__(self, root: Path, index: LocalIndex) -> None:
        self.root, self.index, self.channel = root, index, root.parent / "ours"
        self.events: list[Event] = []
        self.settings = Settings(root.parent / "store", 2, sources={"pypi": index.address})
        root.mkdir()
        self.family = FAMILY.format(channel=self.channel.as_uri())
        self.write("lithify.toml", self.family)
        for name in ("parent", "child"):
            (root / name).mkdir()
        self.packages(
            CondaPackage("python", "3.12.4", noarch="generic"),
            CondaPackage("meta", "1.0", depends=("python",), noarch="generic"),
        )

    def write(self, name: str, content: str) -> None:
        (self.root / name).write_text(content)

    def packages(self, *packages: CondaPackage) -> None:
        write_channel(self.channel, packages)

    def environment(self, image: str, *lines: str) -> None:
        self.write(f"{image}/environment.yml", "dependencies:\n" + "".join(f"  {line}\n" for line in lines))

    def wheel(self, name: str, version: str, *requires: str) -> Path:
        return make_wheel(self.index.folder, name=name, version=version, requires=requires)

    def lock(self, *images: str, **more: object) -> dict[str, LockResult]:
        results = lithify.lock(self.root, images, settings=self.settings, report=self.events.append, **more)  # type: ignore[arg-type]
        return {result.image: result for result in results}

    def versions(self, image: str, platform: Platform = LINUX_AMD64) -> dict[str, str]:
        packages = read_lock(self.root / image / "lithify.lock").of(platform)
        return {f"{p.kind}:{p.name}": p.version for p in packages}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    (tmp_path / "index").mkdir()
    with serving(LocalIndex(tmp_path / "index")) as index:
        yield Workshop(tmp_path / "family", index)


def failure(workshop: Workshop, *images: str, **more: object) -> LithifyError:
    with pytest.raises(LithifyError) as caught:
        workshop.lock(*images, **more)
    return caught.value


def simple(name: str, version: str = "1.0", *depends: str) -> CondaPackage:
    return CondaPackage(name, version, depends=depends, noarch="generic")


# -- environments ------------------------------------------------------------------------------------------------------


def test_an_image_without_a_file_gets_what_the_family_requires(workshop: Workshop) -> None:
    workshop.lock()
    assert workshop.versions("parent") == workshop.versions("child") == {"conda:meta": "1.0", "conda:python": "3.12.4"}
    content = (workshop.root / "child" / "lithify.lock").read_text()
    assert "://" not in content and str(workshop.root.parent) not in content


def test_a_childs_file_adds_to_its_parents(workshop: Workshop) -> None:
    workshop.packages(simple("a", "1.0"), simple("a", "2.0"), simple("b", "1.0", "a"))
    workshop.environment("parent", "- a <2")
    workshop.environment("child", "- b")
    workshop.lock()
    assert workshop.versions("parent")["conda:a"] == workshop.versions("child")["conda:a"] == "1.0"
    assert workshop.versions("child")["conda:b"] == "1.0" and "conda:b" not in workshop.versions("parent")
    workshop.environment("child", "- b", "- a >=2")
    error = failure(workshop, "child")
    assert isinstance(error, UnsatisfiableError)
    assert f"{workshop.root}/parent/environment.yml:2: a <2" in error.message
    assert f"{workshop.root}/child/environment.yml:3: a >=2" in error.message


def test_a_child_takes_its_parents_choices(workshop: Workshop) -> None:
    workshop.packages(simple("a", "1.0"), simple("b", "1.0"))
    workshop.environment("parent", "- a")
    workshop.lock("parent")
    workshop.packages(simple("a", "2.0"))
    workshop.environment("child", "- b", "- a")
    workshop.lock("child")
    assert workshop.versions("child")["conda:a"] == "1.0"
    workshop.lock("child", upgrade=True)
    assert workshop.versions("child")["conda:a"] == "1.0"
    workshop.lock(upgrade=True)
    assert workshop.versions("parent")["conda:a"] == workshop.versions("child")["conda:a"] == "2.0"


def test_an_environment_that_a_child_adds_nothing_to_is_copied_without_a_solve(workshop: Workshop) -> None:
    workshop.lock()
    solved = {event.task for event in workshop.events if event.task.endswith("conda")}
    assert solved == {"lock parent linux/amd64 conda", "lock parent linux/arm64 conda"}
    packages = {image: read_lock(workshop.root / image / "lithify.lock").packages for image in ("parent", "child")}
    assert packages["parent"] == packages["child"]


def test_every_environment_of_an_image_is_locked(workshop: Workshop) -> None:
    workshop.packages(simple("tool"))
    workshop.write("lithify.toml", workshop.family + "\n[images.other.environments.base]\n[images.other]\n")
    (workshop.root / "other").mkdir()
    error = failure(workshop, "other")
    assert isinstance(error, InputError) and "`base` of image `other` has no requirement file" in error.message
    assert "environment-base.yml" in (error.hint or "")
    workshop.write("other/environment-base.yml", "dependencies: [tool]\n")
    result = workshop.lock("other")["other"]
    assert {(p.environment, p.name) for p in result.lock.packages} == {
        ("base", "tool"),
        ("notebook", "meta"),
        ("notebook", "python"),
    }


def test_what_the_family_requires_is_named_where_it_breaks_a_solve(workshop: Workshop) -> None:
    workshop.packages(simple("meta", "1.0", "python", "a <2"), simple("a", "1.0"), simple("a", "2.0"))
    workshop.environment("parent", "- a >=2")
    error = failure(workshop, "parent")
    assert "lithify.toml: [conda] require: meta" in error.message and "environment.yml:2: a >=2" in error.message


def test_channels_may_only_be_put_in_front_of_a_parents(workshop: Workshop) -> None:
    other = workshop.root.parent / "other"
    write_channel(other, [simple("a")])
    ours, theirs = workshop.channel.as_uri(), other.as_uri()
    workshop.write("parent/environment.yml", f"channels: [{ours}]\ndependencies: [python]\n")
    workshop.write("child/environment.yml", f"channels: [{theirs}, {ours}]\ndependencies: [a]\n")
    workshop.lock()
    (a,) = (p for p in read_lock(workshop.root / "child" / "lithify.lock").of(LINUX_AMD64) if p.name == "a")
    assert a.source == "conda/other"
    workshop.write("child/environment.yml", f"channels: [{ours}, {theirs}]\ndependencies: [a]\n")
    error = failure(workshop, "child")
    assert isinstance(error, InputError)
    assert "child/environment.yml" in error.message and "parent/environment.yml" in error.message


def test_a_file_that_leaves_a_platform_of_the_family_out_is_a_clear_error(workshop: Workshop) -> None:
    workshop.write("parent/environment.yml", "platforms: [linux-64]\ndependencies: [python]\n")
    error = failure(workshop, "parent")
    assert isinstance(error, InputError) and "parent/environment.yml is for linux-64" in error.message


def test_virtual_packages_are_the_bases_then_the_files_then_the_familys(workshop: Workshop) -> None:
    workshop.packages(
        simple("old", "1.0", "__glibc <2.30"),
        simple("new", "1.0", "__glibc >=2.30"),
        simple("gpu", "1.0", "__cuda 12.*"),
    )
    workshop.environment("parent", "- old")
    workshop.lock("parent")  # an image's C library is taken for an old one
    workshop.environment("parent", "- new")
    assert isinstance(failure(workshop, "parent"), UnsatisfiableError)
    packages = "".join(f"  {subdir}: {{packages: {{__glibc: '2.39'}}}}\n" for subdir in ("linux-64", "linux-aarch64"))
    workshop.write("parent/virtual-packages.yml", f"subdirs:\n{packages}")
    workshop.lock("parent")
    workshop.environment("child", "- gpu")
    assert isinstance(failure(workshop, "child"), UnsatisfiableError)
    workshop.write("lithify.toml", f'{workshop.family}\nvirtual-packages = {{ __cuda = "12.9" }}\n')
    workshop.lock()


# -- relocking ---------------------------------------------------------------------------------------------------------


def test_nothing_is_solved_where_nothing_changed_and_nothing_is_asked_for(workshop: Workshop) -> None:
    workshop.lock()
    workshop.packages(simple("meta", "2.0", "python"))
    workshop.events.clear()
    again = workshop.lock()
    assert not any(result.written for result in again.values()) and not workshop.events
    assert workshop.lock("parent", upgrade=True)["parent"].up


def test_a_lock_tells_what_changed_on_which_platform_and_what_is_to_be_downloaded(workshop: Workshop) -> None:
    workshop.packages(simple("a"), simple("b", "2.0"), simple("c"), simple("d"))
    workshop.environment("parent", "- a", "- b", "- c", "- d")
    workshop.lock("parent")
    (workshop.channel / "noarch" / "b-2.0-0.conda").unlink()
    workshop.packages(
        simple("a", "2.0"),
        simple("b", "1.0"),
        CondaPackage("c", "1.0", build="1", build_number=1, noarch="generic"),
        simple("e"),
    )
    workshop.environment("parent", "- a", "- b", "- c", "- e # [linux64]")
    result = workshop.lock("parent", upgrade=True)["parent"]
    assert [(old.version, new.version) for old, new in result.up] == [("1.0", "2.0")] * 2
    assert [(old.version, new.version) for old, new in result.down] == [("2.0", "1.0")] * 2
    assert [(old.file, new.file) for old, new in result.rebuilt] == [
        ("noarch/c-1.0-0.conda", "noarch/c-1.0-1.conda")
    ] * 2
    assert [(p.name, str(p.platform)) for p in result.added] == [("e", "linux/amd64")]
    assert {p.name for p in result.removed} == {"d"} and len(result.changed) == 6
    sizes = {p.sha256: p.size for p in result.lock.packages if p.name in "abce"}
    assert sum(result.new_bytes.values()) == sum(sizes.values())
    from lithify.cli.results import lock_lines

    lines = "\n".join(lock_lines([result]))
    for expected in ("^ a 1.0 -> 2.0", "v b 2.0 -> 1.0", "~ c 1.0", "+ e 1.0 (linux/amd64 only)", "- d 1.0"):
        assert expected in lines
    assert "linux/arm64: 1 removed, 1 up, 1 down, 1 rebuilt" in lines


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-01-01T00:00:00", ""])
def test_a_moment_that_is_none_or_has_no_zone_is_a_clear_error(workshop: Workshop, text: str) -> None:
    error = failure(workshop, "parent", exclude_newer=text)
    assert isinstance(error, InputError) and f"`{text}`" in error.message


# -- wheels beside conda packages --------------------------------------------------------------------------------------


def test_what_conda_provides_is_not_installed_again(workshop: Workshop) -> None:
    workshop.packages(distribution("num", "1.5", conda_name="numlib"))
    workshop.wheel("sci", "1.0", "num>=1", "other")
    workshop.wheel("num", "2.0", "never")
    workshop.wheel("other", "1.0")
    workshop.environment("parent", "- numlib", "- pip:", "  - sci")
    workshop.lock("parent")
    versions = workshop.versions("parent")
    assert {name for name in versions if name.startswith("pypi")} == {"pypi:sci", "pypi:other"}
    assert not [line for line in workshop.index.asked if "/num/" in line]


def test_requirements_txt_goes_into_the_notebooks_environment(workshop: Workshop) -> None:
    workshop.wheel("one", "1.0")
    workshop.write("parent/requirements.txt", "one\n")
    workshop.lock("parent")
    assert workshop.versions("parent")["pypi:one"] == "1.0"


def test_a_wheel_and_a_conda_package_that_conflict_are_both_named(workshop: Workshop) -> None:
    workshop.packages(distribution("num", "1.5", conda_name="numlib"))
    workshop.wheel("sci", "1.0", "num>=2")
    workshop.wheel("num", "2.0")
    workshop.environment("parent", "- numlib", "- pip:", "  - sci")
    error = failure(workshop, "parent")
    assert isinstance(error, UnsatisfiableError)
    assert f"{workshop.root}/parent/environment.yml:4: sci" in error.message
    assert "the conda package numlib 1.5 provides num 1.5" in error.message


def test_what_an_extra_of_a_provided_distribution_requires_is_taken(workshop: Workshop) -> None:
    extras = "Provides-Extra: full\nRequires-Dist: more; extra == 'full'\nRequires-Dist: never\n"
    workshop.packages(distribution("num", "1.5", extras=extras))
    workshop.wheel("more", "1.0")
    workshop.wheel("sci", "1.0", "num[full]")
    workshop.environment("parent", "- num", "- pip:", "  - sci")
    workshop.lock("parent")
    assert {n for n in workshop.versions("parent") if n.startswith("pypi")} == {"pypi:sci", "pypi:more"}


def test_a_wheel_stays_when_it_is_locked_and_is_copied_to_a_child_that_adds_nothing(workshop: Workshop) -> None:
    workshop.wheel("one", "1.0")
    workshop.environment("parent", "- pip:", "  - one")
    workshop.lock()
    assert workshop.versions("child") == workshop.versions("parent")
    workshop.wheel("one", "2.0")
    workshop.environment("parent", "- python", "- pip:", "  - one")
    workshop.lock("parent")
    assert workshop.versions("parent")["pypi:one"] == "1.0"
    workshop.lock("parent", upgrade_packages=["one"])
    assert workshop.versions("parent")["pypi:one"] == "2.0"


def test_a_pip_section_without_python_is_a_clear_error(workshop: Workshop) -> None:
    workshop.packages(simple("tool"))
    workshop.write("lithify.toml", workshop.family.replace('require = ["meta"]\n', ""))
    workshop.environment("parent", "- tool", "- pip:", "  - one")
    error = failure(workshop, "parent")
    assert isinstance(error, InputError)
    assert "environment.yml:4" in error.message and "has no Python" in error.message


# -- other tools' locks ------------------------------------------------------------------------------------------------


def explicit(workshop: Workshop, platform: Platform = LINUX_AMD64, digest: str = "md5") -> str:
    """An ``@EXPLICIT`` list of what the parent's lock has."""
    lines = [f"# platform: {platform.subdir}", "@EXPLICIT"]
    for package in read_lock(workshop.root / "parent" / "lithify.lock").of(platform, "conda"):
        mark = package.md5 if digest == "md5" else f"sha256:{package.sha256}"
        lines.append(f"{workshop.channel.as_uri()}/{package.file}#{mark}")
    return "\n".join(lines) + "\n"


def write_explicit(workshop: Workshop) -> None:
    for platform in PLATFORMS.values():
        workshop.write(f"parent/conda-{platform.subdir}.lock", explicit(workshop, platform))


def test_a_lock_of_md5_only_is_taken_over_and_completed_from_the_index(workshop: Workshop) -> None:
    workshop.packages(simple("a"))
    workshop.environment("parent", "- a")
    before = workshop.lock("parent")["parent"].lock
    write_explicit(workshop)
    (workshop.root / "parent" / "lithify.lock").unlink()
    workshop.packages(simple("a", "2.0"))
    assert workshop.lock("parent")["parent"].lock.packages == before.packages
    assert any("takes over" in event.message for event in workshop.events)
    # Ours counts from now on, and where it is made anew, it starts from what was taken over.
    workshop.packages(simple("b"))
    workshop.environment("parent", "- a", "- b")
    assert workshop.lock("parent")["parent"].lock.of(LINUX_AMD64)[0].version == "1.0"


def test_what_the_index_does_not_know_is_learned_from_the_file(workshop: Workshop) -> None:
    workshop.packages(simple("a", "1.0", "python"))
    workshop.environment("parent", "- a")
    before = workshop.lock("parent")["parent"].lock
    write_explicit(workshop)
    (workshop.root / "parent" / "lithify.lock").unlink()
    for repodata in workshop.channel.glob("*/repodata*"):
        repodata.unlink()
        if repodata.name == "repodata.json":
            repodata.write_text('{"info": {"subdir": "noarch"}, "packages": {}, "packages.conda": {}}')
    found = workshop.lock("parent")["parent"].lock
    assert found.packages == before.packages
    assert [p.depends for p in found.packages] == [p.depends for p in before.packages]


def test_a_conda_lock_file_is_exported_and_taken_over_again(workshop: Workshop) -> None:
    workshop.packages(simple("a"))
    workshop.wheel("one", "1.0")
    workshop.environment("parent", "- a", "- pip:", "  - one")
    before = workshop.lock("parent")["parent"].lock
    text = lithify.export_lock(workshop.root, "parent", "conda-lock", settings=workshop.settings)
    path = workshop.root.parent / "conda-lock.yml"
    path.write_text(text)
    (workshop.root / "parent" / "lithify.lock").unlink()
    # Wheels have no size in a conda-lock.yml.
    expected = [replace(package, size=package.size if package.kind == "conda" else 0) for package in before.packages]
    assert list(workshop.lock("parent", import_file=path)["parent"].lock.packages) == expected
    (workshop.root / "parent" / "lithify.lock").unlink()
    path.rename(workshop.root / "parent" / "conda-lock.yml")
    assert list(workshop.lock("parent")["parent"].lock.packages) == expected


@pytest.mark.parametrize("form", ["conda-lock", "explicit", "pixi", "packages"])
def test_a_lock_can_be_exported_in_every_form(workshop: Workshop, form: str) -> None:
    workshop.lock("parent")
    text = lithify.export_lock(workshop.root, "parent", form, platform="linux/amd64", settings=workshop.settings)
    assert "python" in text and "3.12.4" in text
    with pytest.raises(InputError, match="one image"):
        lithify.export_lock(workshop.root, None, form, settings=workshop.settings)
    with pytest.raises(InputError, match="unknown format"):
        lithify.export_lock(workshop.root, "parent", "zip", settings=workshop.settings)


def test_a_lock_made_for_another_python_is_refused(workshop: Workshop) -> None:
    workshop.lock("parent")
    write_explicit(workshop)
    (workshop.root / "parent" / "lithify.lock").unlink()
    workshop.environment("parent", "- python=3.11")
    error = failure(workshop, "parent")
    assert isinstance(error, InputError)
    assert "holds Python 3.12.4" in error.message and "environment.yml:2 asks for `python=3.11`" in error.message


def test_a_lock_that_lacks_what_is_asked_for_is_refused(workshop: Workshop) -> None:
    workshop.lock("parent")
    write_explicit(workshop)
    (workshop.root / "parent" / "lithify.lock").unlink()
    workshop.environment("parent", "- scipy")
    error = failure(workshop, "parent")
    assert isinstance(error, InputError) and "has no `scipy` for linux/amd64" in error.message


def test_a_lock_without_one_of_the_familys_platforms_is_refused(workshop: Workshop) -> None:
    workshop.lock("parent")
    workshop.write("parent/conda-linux-64.lock", explicit(workshop))
    (workshop.root / "parent" / "lithify.lock").unlink()
    error = failure(workshop, "parent")
    assert isinstance(error, InputError) and "has no packages for linux/arm64" in error.message


def test_a_lock_for_platforms_that_are_not_built_is_refused(workshop: Workshop) -> None:
    workshop.lock("parent")
    file = workshop.root.parent / "conda-osx-64.lock"
    file.write_text(explicit(workshop).replace("linux-64", "osx-64"))
    error = failure(workshop, "parent", import_file=file)
    assert isinstance(error, InputError) and "osx-64" in error.message


def test_an_exchanged_file_is_not_taken_for_the_one_with_the_md5(workshop: Workshop) -> None:
    workshop.lock("parent")
    write_explicit(workshop)
    (workshop.root / "parent" / "lithify.lock").unlink()
    for path in workshop.root.glob("parent/conda-*.lock"):
        lines = path.read_text().splitlines()
        path.write_text(
            "\n".join(line.partition("#")[0] + "#" + "0" * 32 if "meta-" in line else line for line in lines)
        )
    error = failure(workshop, "parent")
    assert "meta" in str(error) and "0" * 32 in str(error)
