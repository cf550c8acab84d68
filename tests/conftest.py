from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import conda_channel
import conda_whole
import families
from lithify.platforms import LINUX_AMD64, LINUX_ARM64
from lithify.read.settings import Settings
from lithify.store.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of this test's own."""
    return open_store(tmp_path / "store")


@pytest.fixture
def settings(store: Store) -> Settings:
    """Settings that name `store`, with two jobs, offline or not as the machine is."""
    return Settings(store=store.root, jobs=2)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of the session share; see `families.made_once`."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def python_layout(shared: Path) -> Path:
    """A layout with the base ``test/base``: this machine's Python, for both platforms."""
    with families.made_once(shared, "python-base") as (folder, empty):
        if empty:
            families.python_base(folder, (LINUX_AMD64, LINUX_ARM64))
    return folder


@pytest.fixture(scope="session")
def wheels() -> tuple[families.Wheel, ...]:
    """Wheels that together have what makes installing wheels hard; see `families.pure_wheels`."""
    return families.pure_wheels()


@pytest.fixture(scope="session")
def every_wheel(wheels: tuple[families.Wheel, ...]) -> tuple[families.Wheel, ...]:
    """`wheels` and a large one with machine code, enough to be worth several processes."""
    return (*wheels, *families.machine_wheels())


@pytest.fixture
def family(tmp_path: Path, python_layout: Path, wheels: tuple[families.Wheel, ...]) -> Path:
    """A parent and a child on `python_layout`, with all of `wheels`, for both platforms."""
    return families.write_small(tmp_path / "family", python_layout, wheels)


@pytest.fixture
def ready(settings: Settings, wheels: tuple[families.Wheel, ...]) -> Iterator[Settings]:
    """`settings` whose store holds the wheels already."""
    families.provide(open_store(settings.store), wheels)
    yield settings


@pytest.fixture(scope="session")
def notebook_store(shared: Path) -> Path:
    """A store with base-notebook of the committed family `families/pypi`, for this machine's platform.

    Downloads some 250 MB, once a session. ``LITHIFY_TEST_ARTEFACTS`` may name a folder that keeps them.
    """
    with families.made_once(shared, "notebook") as (folder, empty):
        if empty:
            families.build_committed(folder, ["base-notebook"])
    return folder


@pytest.fixture(scope="session")
def conda_notebook(shared: Path) -> conda_whole.Whole:
    """base-notebook of conda packages on Debian, with three environments, built once a session.

    The first time on a machine some 170 wheels are downloaded for its channel.
    """
    with families.made_once(shared, "conda-notebook") as (folder, empty):
        if empty:
            conda_whole.build(folder, conda_channel.base_notebook(), conda_channel.BASE_NOTEBOOK)
    return conda_whole.Whole(folder)
