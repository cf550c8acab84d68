"""Building: what is made, what is reused, what is said."""

from __future__ import annotations

from pathlib import Path

import families
import images
import pytest

import lithify
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


def test_a_base_that_changed_in_its_layout_is_noticed(
    tmp_path: Path, wheels: tuple[families.Wheel, ...], ready: Settings
) -> None:
    layout = tmp_path / "base"
    families.plain_base(layout)
    family = families.write_family(tmp_path / "family", [families.Spec("one")], base=layout)
    (first,) = lithify.build(family, settings=ready)
    base = open_store(layout)
    images.image(base, [images.layer(base, [images.file("etc/motd", "new")])], "test/base")
    (second,) = lithify.build(family, settings=ready)
    assert not second.unchanged
    assert second.digest != first.digest


def test_a_base_is_known_by_its_digest_not_by_its_place(tmp_path: Path, ready: Settings) -> None:
    built = []
    for place in ("here", "there"):
        families.plain_base(tmp_path / place / "base")
        family = families.write_family(tmp_path / place / "family", [families.Spec("one")], base=tmp_path / place / "base")
        built += lithify.build(family, settings=ready)
    assert built[1].unchanged
    assert built[0].digest == built[1].digest
