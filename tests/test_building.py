"""Building: what is made, what is reused, what is said."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import families
import images
import lithify
from lithify.errors import InputError
from lithify.lockfile import read_lock, write_lock
from lithify.platforms import PLATFORMS
from lithify.read.settings import Settings
from lithify.store.store import open_store


def test_a_build_gives_every_image_for_every_platform(family: Path, ready: Settings) -> None:
    parent, child = lithify.build(family, settings=ready)
    assert (parent.name, child.name) == ("small/parent", "small/child")
    assert [str(one.platform) for one in child.platforms] == ["linux/amd64", "linux/arm64"]
    assert not child.unchanged


def test_an_unchanged_image_is_not_made_again(family: Path, ready: Settings) -> None:
    (_, first) = lithify.build(family, settings=ready)
    (_, second) = lithify.build(family, settings=ready)
    assert second.unchanged
    assert second.digest == first.digest


def test_a_script_that_calls_without_a_guard_is_told_about_it(
    settings: Settings, python_layout: Path, every_wheel: tuple[families.Wheel, ...], tmp_path: Path
) -> None:
    family = families.write_small(tmp_path / "family", python_layout, every_wheel)
    families.provide(open_store(settings.store), every_wheel)
    script = tmp_path / "script.py"
    call = f"lithify.build({str(family)!r}, settings=Settings(Path({str(settings.store)!r}), jobs=2))"
    lines = ["import lithify", "from pathlib import Path", "from lithify.read.settings import Settings"]
    script.write_text("\n".join([*lines, call]) + "\n")
    unguarded = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert unguarded.returncode != 0
    assert '`if __name__ == "__main__":`' in unguarded.stderr
    script.write_text("\n".join([*lines, "if __name__ == '__main__':", f"    {call}"]) + "\n")
    guarded = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert guarded.returncode == 0, guarded.stderr


def test_a_base_that_changed_in_its_layout_is_noticed(
    tmp_path: Path, wheels: tuple[families.Wheel, ...], ready: Settings
) -> None:
    layout = tmp_path / "base"
    families.plain_base(layout)
    family = families.write_family(tmp_path / "family", [families.Spec("one")], base=layout, python="3.13")
    (first,) = lithify.build(family, settings=ready)
    base = open_store(layout)
    files = [images.file("etc/motd", "new"), images.file("usr/bin/python3.13", "not run\n", 0o755)]
    images.image(base, [images.layer(base, files)], "test/base")
    (second,) = lithify.build(family, settings=ready)
    assert not second.unchanged
    assert second.digest != first.digest


def test_a_base_is_known_by_its_digest_not_by_its_place(tmp_path: Path, ready: Settings) -> None:
    built: list[lithify.BuildResult] = []
    for place in ("here", "there"):
        families.plain_base(tmp_path / place / "base")
        family = families.write_family(
            tmp_path / place / "family", [families.Spec("one")], base=tmp_path / place / "base", python="3.13"
        )
        built += lithify.build(family, settings=ready)
    assert built[1].unchanged
    assert built[0].digest == built[1].digest


def warnings_of(family: Path, settings: Settings, **options: Any) -> list[str]:
    said: list[str] = []
    lithify.build(
        family, settings=settings, report=lambda e: said.append(e.message) if e.kind == "warning" else None, **options
    )
    return said


def test_a_lock_that_answers_its_requirement_files_is_taken_without_a_word(family: Path, ready: Settings) -> None:
    assert warnings_of(family, ready, locked=True) == []
    assert warnings_of(family, ready, locked=True) == []


@pytest.mark.parametrize("known", [False, True], ids=["new", "unchanged"])
def test_requirement_files_that_changed_since_the_lock_are_told(family: Path, ready: Settings, known: bool) -> None:
    if known:
        lithify.build(family, settings=ready)
    with (family / "child/requirements.txt").open("a") as file:
        file.write("another\n")
    (warning,) = warnings_of(family, ready)
    assert "requirement files of `child`, or its parent's lock, changed" in warning
    assert warnings_of(family, ready) == [warning]
    with pytest.raises(InputError, match="changed since its lock"):
        lithify.build(family, ["child"], locked=True, settings=ready)


def test_a_comment_in_a_requirement_file_changes_nothing(family: Path, ready: Settings) -> None:
    (_, first) = lithify.build(family, settings=ready)
    with (family / "child/requirements.txt").open("a") as file:
        file.write("# why\n")
    (_, second) = lithify.build(family, locked=True, settings=ready)
    assert second.unchanged and second.digest == first.digest


def test_a_parent_that_was_locked_again_makes_its_child_stale(
    family: Path, ready: Settings, wheels: tuple[families.Wheel, ...]
) -> None:
    lock = family / "parent/lithify.lock"
    more = families.wheel("more")
    families.provide(open_store(ready.store), [more])
    parsed = read_lock(lock)
    packages = [more.package(platform) for platform in PLATFORMS.values()]
    lock.write_text(write_lock(replace(parsed, packages=(*parsed.packages, *packages))))
    (warning,) = warnings_of(family, ready)
    assert "`child`" in warning


def test_wheels_come_from_where_the_requirement_files_say(
    tmp_path: Path, python_layout: Path, settings: Settings, wheels: tuple[families.Wheel, ...]
) -> None:
    plain, tool, *_ = wheels
    folder = tmp_path / "family/parent/wheels"
    folder.mkdir(parents=True)
    (folder / plain.file).write_bytes(plain.data)
    with families.index(tmp_path / "index", [tool]) as address:
        specs = [
            families.Spec("parent", [plain]),
            families.Spec("child", [tool], extends="parent"),
        ]
        family = families.write_family(tmp_path / "family", specs, base=python_layout, lock=False)
        for name, line in (("parent", "--find-links wheels"), ("child", f"--index-url {address}")):
            path = family / name / "requirements.txt"
            path.write_text(f"{line}\n{path.read_text()}")
        families.lock_family(family, {spec.name: spec.wheels for spec in specs})
        nowhere = replace(settings, sources={"pypi": "http://127.0.0.1:9/simple/"})
        (child,) = lithify.build(family, ["child"], settings=nowhere)
    assert child.platforms[0].fragments_built == 2


def test_a_layout_of_one_image_needs_no_name(tmp_path: Path, ready: Settings) -> None:
    layout = tmp_path / "base"
    families.plain_base(layout)
    lines = [f'oci-layout = "{layout}"', 'python = "3.13"']
    family = families.write_family(tmp_path / "family", [families.Spec("one")], base_lines=lines)
    (built,) = lithify.build(family, settings=ready)
    assert built.digest in json.dumps(Path(ready.store / "index.json").read_text())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['oci-layout = "nowhere"', 'python = "3.13"'], "nowhere is not an OCI image layout"),
        (['oci-layout = "../base"', 'image = "other"', 'python = "3.13"'], "no image `other` in the layout"),
        (['oci-layout = "../base"', 'python = "3.12"'], "has no /usr/bin/python3.12"),
        (['image = "other"', 'python = "3.13"'], "no image `other` in the store"),
    ],
)
def test_a_base_that_cannot_be_is_told(tmp_path: Path, ready: Settings, lines: list[str], message: str) -> None:
    families.plain_base(tmp_path / "base")
    family = families.write_family(tmp_path / "family", [families.Spec("one")], base_lines=lines)
    with pytest.raises(InputError) as caught:
        lithify.build(family, settings=ready)
    assert message in caught.value.message
    assert caught.value.hint
