"""The plan: a pure function that leaves as many layers as it can unchanged."""

from hypothesis import given
from hypothesis import strategies as st

from lithify.lockfile import Package
from lithify.plan import ALONE, PlannedLayer, lineage_levels, plan_layers
from lithify.platforms import LINUX_AMD64


def package(name: str, size: int = 1000, version: str = "1") -> Package:
    return Package("pypi", name, LINUX_AMD64, version, f"{name}-{version}.whl", version[0] * 64, size)


names = st.text("abcdefgh", min_size=1, max_size=6)
packages = st.dictionaries(names, st.integers(0, 60_000_000), max_size=80).map(
    lambda sizes: [package(name, size) for name, size in sizes.items()]
)


def split(everything: list[Package], count: int) -> list[list[Package]]:
    return [everything[number::count] for number in range(count)]


@given(packages, st.integers(1, 4), st.integers(8, 100))
def test_every_package_is_in_exactly_one_layer_of_its_level(everything: list[Package], levels: int, room: int) -> None:
    parts = split(everything, levels)
    layers = plan_layers(parts, room)
    for number, part in enumerate(parts):
        planned = [p for layer in layers if layer.level == number for p in layer.packages]
        assert sorted(planned) == sorted(part)


@given(packages, st.integers(1, 4), st.integers(8, 100))
def test_the_limit_holds_and_no_layer_is_empty(everything: list[Package], levels: int, room: int) -> None:
    layers = plan_layers(split(everything, levels), room)
    assert len(layers) <= room
    assert all(layer.packages for layer in layers)


@given(packages, st.randoms(use_true_random=False))
def test_the_order_of_packages_does_not_matter(everything: list[Package], random: object) -> None:
    shuffled = list(everything)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_layers([everything], 50) == plan_layers([shuffled], 50)


@given(packages, packages)
def test_a_childs_layers_begin_with_its_parents(parent: list[Package], child: list[Package]) -> None:
    alone = plan_layers([parent], 90)
    extended = plan_layers([parent, child], 90)
    assert extended[: len(alone)] == alone


def test_a_changed_package_changes_one_layer() -> None:
    before = [package(f"p{number}", 500_000) for number in range(100)]
    after = [package("p7", 500_001, version="2"), *(p for p in before if p.name != "p7")]
    old, new = set(plan_layers([before], 90)), set(plan_layers([after], 90))
    assert len(old - new) == len(new - old) == 1


def test_a_package_more_changes_at_most_one_layer() -> None:
    before = [package(f"p{number}", 500_000) for number in range(100)]
    after = [*before, package("another", 400_000)]
    old, new = set(plan_layers([before], 90)), set(plan_layers([after], 90))
    assert len(old - new) <= 1


def test_large_packages_have_layers_of_their_own_and_come_first() -> None:
    layers = plan_layers([[package("small"), package("large", ALONE), package("larger", ALONE + 1)]], 90)
    assert [[p.name for p in layer.packages] for layer in layers] == [["larger"], ["large"], ["small"]]


def test_no_package_no_layer() -> None:
    assert plan_layers([[], []], 90) == ()


def test_a_package_belongs_to_the_image_that_first_locked_this_very_artefact() -> None:
    base = [package("a"), package("b")]
    middle = [package("a"), package("b", version="2"), package("c")]
    last = [package("a"), package("b", version="2"), package("c"), package("d")]
    levels = lineage_levels([base, middle, last])
    assert [[p.name for p in level] for level in levels] == [["a"], ["b", "c"], ["d"]]


def test_an_artefact_that_a_parent_dropped_belongs_to_the_child() -> None:
    levels = lineage_levels([[package("a")], [package("b")], [package("a"), package("b")]])
    assert [[p.name for p in level] for level in levels] == [[], ["b"], ["a"]]


def test_planned_layers_are_values() -> None:
    assert PlannedLayer(0, "x", ()) == PlannedLayer(0, "x", ())


def test_packages_of_unknown_size_are_spread() -> None:
    layers = plan_layers([[package(f"p{number}", 0) for number in range(200)]], 90)
    assert len(layers) == 8
