"""Everything already loaded is set aside from garbage collection, so that the leak tests can afford to collect."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def cheap_collections():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
