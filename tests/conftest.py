"""Fixtures for every test: one thread, fixed seeds, and a registry that forgets what a test adds."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests compare digits, and run beside each other

import pytest  # noqa: E402
import torch  # noqa: E402

from sb import registry  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Whatever a test draws without a generator is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def own_registry():
    """Entries that the test registers are gone after it; built-in ones that it was the first to import stay."""
    yield
    for entries in registry._TABLE.values():
        for name in [n for n, entry in entries.items() if not entry.__module__.startswith("sb.")]:
            del entries[name]
