import numpy as np
import pytest
import torch

from sb.data.collate import Sample, collate
from sb.data.ledger import SkipLedger
from sb.types import Skip


def sample(number, skipped=None, side=8):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
    outline = (image[:, :, 0] > 99).astype(np.uint8)
    return Sample(image, outline, number % 6, number % 2, f"t{number}", f"k{number}", skipped)


def test_fields_keep_their_sample():
    samples = [sample(n, Skip("bad_image", "x") if n == 2 else None) for n in range(4)]
    batch = collate(samples).batch()
    assert batch.image.shape == (4, 3, 8, 8) and batch.image.is_contiguous() and batch.image.dtype == torch.uint8
    for row, made in enumerate(samples):
        assert np.array_equal(batch.image[row].permute(1, 2, 0).numpy(), made.image)
        assert np.array_equal(batch.outline[row, 0].numpy(), made.outline)
    assert batch.level.tolist() == [0, 1, 2, 3] and batch.task.tolist() == [0, 1, 0, 1]
    assert batch.text == ["t0", "t1", "t2", "t3"] and batch.key == ["k0", "k1", "k2", "k3"]
    assert batch.skipped == [("bad_image", "x")]


def test_the_ledger_stops_a_run_with_names_but_not_for_samples_that_a_task_cannot_use():
    ledger = SkipLedger(max_broken_share=0.1, min_samples=40)
    for round_ in range(10):
        ledger.add(collate([sample(n, Skip("no_object", f"o{n}")) for n in range(8)]).batch())
        ledger.check()
    assert ledger.counts == {"no_object": 80} and ledger.broken == 0
    with pytest.raises(ValueError, match=r"10 of 88 samples are broken \(bad_mask 10\).*max_broken_share 0.1.*m0"):
        ledger.add(collate([sample(n) for n in range(8)]).batch())
        ledger.counts["bad_mask"] += 9
        ledger.seen -= 8
        ledger.add(collate([sample(n, Skip("bad_mask", "m0") if n == 0 else None) for n in range(8)]).batch())
        ledger.check()


def test_a_few_samples_prove_nothing():
    ledger = SkipLedger(0.05, min_samples=100)
    ledger.add(collate([sample(n, Skip("truncated", "x")) for n in range(8)]).batch())
    ledger.check()
    with pytest.raises(ValueError, match="outside"):
        SkipLedger(5.0)
