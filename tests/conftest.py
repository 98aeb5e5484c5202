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


@pytest.fixture(scope="session")
def shapes_shards(tmp_path_factory):
    """A small shapes world in shards: {"train": folder, "val": folder}, 32 px scenes."""
    from sb.data.shapes import ShapesSource
    from sb.data.write import build_shards

    root = tmp_path_factory.mktemp("shapes")
    for split, images in (("train", 96), ("val", 16)):
        build_shards(ShapesSource(images, size_px=32, split=split), root / split, images_per_shard=32)
    return {"train": str(root / "train"), "val": str(root / "val")}


TINY = [  # overrides that make any run file of ours a matter of seconds
    "image_size=32", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=32-true",
    "trainer.progress_bar=false", "data.batch_size=4", "data.workers=0", "data.val_images=8", "data.max_area=1.0",
    "data.min_area=0.0",
]


@pytest.fixture
def tiny_overrides(shapes_shards, tmp_path):
    """Overrides for ``config.load`` that shrink a run file and point it at the small shapes world."""
    return [
        *TINY, f"run_dir={tmp_path}/run", f"data.train=[{{shards: {shapes_shards['train']}}}]",
        f"data.val=[{{shards: {shapes_shards['val']}}}]", "trainer.images=8", "trainer.val_every_images=8",
    ]
