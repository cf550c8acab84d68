from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import families
from lithify.assemble.clobbering import linking_order, settle
from lithify.errors import InputError, LithifyError
from lithify.lockfile import NOTEBOOK, Package
from lithify.platforms import LINUX_AMD64

PREFIXES = {NOTEBOOK: "/srv/conda/envs/notebook"}


def wheels(*contents: dict[str, str]) -> dict[Package, dict[str, str]]:
    return {families.wheel(f"p{number}").package(): paths for number, paths in enumerate(contents)}


def conda(name: str, *depends: str) -> Package:
    file = f"noarch/{name}-1.0-0.conda"
    return Package("conda/here", name, LINUX_AMD64, "1.0", file, "0" * 64, 1, depends=depends)


def refusal(*contents: dict[str, str]) -> str:
    with pytest.raises(LithifyError) as caught:
        settle(wheels(*contents), PREFIXES, {})
    assert caught.value.details is not None and caught.value.hint
    return caught.value.details


def test_equal_files_are_no_conflict() -> None:
    assert settle(wheels(*({"a/x": "same", f"a/{n}": str(n)} for n in range(3))), PREFIXES, {}) == ()


def test_two_wheels_with_different_files_for_a_path_are_refused() -> None:
    assert refusal({"a/x": "1"}, {"a/x": "2"}) == "p0 1.0 and p1 1.0: /a/x"
    assert refusal({"a/x": "1", "a/y": "1"}, {"a/x": "2", "a/y": "2"}) == "p0 1.0 and p1 1.0: /a/x and 1 more"


def test_every_pair_is_named() -> None:
    assert refusal({"x": "1", "y": "1"}, {"x": "2"}, {"y": "2"}).splitlines() == [
        "p0 1.0 and p1 1.0: /x",
        "p0 1.0 and p2 1.0: /y",
    ]


def test_a_file_where_another_package_needs_a_folder_is_refused() -> None:
    assert refusal({"a/x/y": "1"}, {"a/x": "1"}) in ("p1 1.0 and p0 1.0: /a/x", "p0 1.0 and p1 1.0: /a/x")
    assert "/a" in refusal({"a/x/y/z": "1"}, {"a": "1"})
    with pytest.raises(LithifyError, match="a file where another has a folder"):
        settle({conda("one"): {"a/x": "1"}, conda("two"): {"a": "1"}}, PREFIXES, {})


paths = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(paths, st.sampled_from("12"), max_size=4), min_size=1, max_size=4))
def test_conflicts_are_found_exactly_where_they_are(contents: list[dict[str, str]]) -> None:
    files: dict[str, set[str]] = {}
    for one in contents:
        for path, value in one.items():
            files.setdefault(path, set()).add(value)
    expected = any(len(values) > 1 for values in files.values())
    expected = expected or any(other.startswith(f"{path}/") for path in files for other in files)
    try:
        settle(wheels(*contents), PREFIXES, {})
    except LithifyError:
        assert expected
    else:
        assert not expected


def test_of_two_conda_packages_the_one_that_depends_on_the_other_keeps_its_file() -> None:
    upper, lower = conda("a-upper", "z-lower >=1"), conda("z-lower")
    (settled,) = settle({upper: {"p/x": "1"}, lower: {"p/x": "2"}}, PREFIXES, {})
    assert (settled.path, settled.winner, settled.losers) == ("p/x", upper, (lower,))


def test_of_two_conda_packages_that_do_not_depend_on_each_other_the_later_name_keeps_its_file() -> None:
    one, two = conda("one"), conda("two")
    (settled,) = settle({two: {"p/x": "2"}, one: {"p/x": "1"}}, PREFIXES, {})
    assert settled.winner == two


def test_a_wheel_keeps_its_file_over_a_conda_package() -> None:
    (wheel,) = wheels({})
    (settled,) = settle({wheel: {"p/x": "1"}, conda("zzz"): {"p/x": "2"}}, PREFIXES, {})
    assert settled.winner == wheel


def test_an_equal_file_of_a_third_package_stays() -> None:
    one, two, three = conda("one"), conda("three"), conda("two")
    (settled,) = settle({one: {"p/x": "same"}, two: {"p/x": "other"}, three: {"p/x": "same"}}, PREFIXES, {})
    assert (settled.winner, settled.losers) == (three, (two,))


def test_the_family_decides_who_owns_a_path() -> None:
    one, two = conda("one"), conda("two")
    contents = {one: {"srv/conda/envs/notebook/bin/x": "1"}, two: {"srv/conda/envs/notebook/bin/x": "2"}}
    (settled,) = settle(contents, PREFIXES, {"bin/x": "one"})
    assert settled.winner == one
    with pytest.raises(InputError, match="one and two"):
        settle(contents, PREFIXES, {"bin/x": "three"})


names = st.sampled_from("abcdefgh")


@given(st.dictionaries(names, st.lists(names, max_size=3), max_size=8))
def test_packages_are_linked_after_what_they_depend_on(depends: dict[str, list[str]]) -> None:
    packages = {name: conda(name, *needed) for name, needed in depends.items()}
    order = [package.name for package in linking_order(packages.values())]
    assert sorted(order) == sorted(packages)
    assert order == [package.name for package in linking_order(reversed(packages.values()))]
    for name in packages:
        reached: set[str] = set()
        waiting = [*depends[name]]
        while waiting:
            needed = waiting.pop()
            if needed in packages and needed not in reached:
                reached.add(needed)
                waiting += depends[needed]
        if not any(name in _reachable(depends, other) for other in reached):
            assert all(order.index(needed) < order.index(name) for needed in reached)


def _reachable(depends: dict[str, list[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [*depends.get(start, [])]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += depends.get(name, [])
    return found
