from __future__ import annotations

from pathlib import Path

import pytest

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
