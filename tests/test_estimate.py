"""Known answers and conservation laws of what a run will need; counts against sums done by hand."""

import pytest
import torch
from torch import nn

from sb.estimate import (
    BUCKET, STRATEGIES, checkpoint_bytes, forward_flops, images_per_second, latent_bytes, memory, saved_bytes, traffic,
)
from sb.models.unet import UNet
from sb.types import Condition

SHARDED = [name for name in STRATEGIES if name != "single"]
STATE = ("weights", "gradients", "optimizer", "averages")


def test_one_device_by_hand():
    found = memory(1000, 100, strategy="single", ranks=1, averages=2, activations=50)
    parts = {"weights": 4000, "gradients": 4000, "optimizer": 8000, "master": 0, "averages": 8000, "frozen": 400,
             "half": 2000, "communication": 0, "activations": 50, "validation": 4000}
    assert found == {**parts, "total": 26_400 + 4000, "host": 0}  # the raw weights aside outweigh the activations
    assert memory(1000, 100, strategy="single", ranks=1, averages=2, activations=5000)["total"] == 26_400 + 5000


def test_eight_ranks_by_hand():
    zero2 = memory(8000, 0, strategy="zero2", ranks=8)
    assert [zero2[part] for part in ("weights", "gradients", "optimizer", "master")] == [32_000, 4000, 8000, 4000]
    offload = memory(8000, 0, strategy="zero2_offload", ranks=8)
    assert offload["host"] == 4000 + 8000 + 4000 + 4000  # gradients, moments, master, average
    assert [offload[part] for part in STATE] == [32_000, 0, 0, 0]
    everything = memory(8000, 0, strategy="zero3_offload", ranks=8)
    assert everything["host"] == offload["host"] + 4000 and not any(everything[part] for part in STATE)


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_pieces_add_up_to_one_device(strategy, ranks):
    piece, whole = (memory(6400, 0, strategy=s, ranks=n) for s, n in ((strategy, ranks), ("single", 1)))
    assert sum(piece[part] for part in STATE) * ranks == sum(whole[part] for part in STATE)


@pytest.mark.parametrize("strategy", SHARDED)
def test_more_ranks_never_need_more_and_parts_add_up(strategy):
    kept = [memory(6400, 10, strategy=strategy, ranks=n, activations=7) for n in (2, 8, 64, 512)]
    totals = [found["total"] for found in kept]
    assert totals == sorted(totals, reverse=True)
    for found in kept:
        parts = sum(size for part, size in found.items() if part not in ("total", "host", "activations", "validation"))
        assert found["total"] == parts + max(found["activations"], found["validation"])


def test_each_stage_needs_less_than_the_one_before():
    totals = [memory(BUCKET * 4, 0, strategy=s, ranks=8)["total"] for s in ("ddp", "zero1", "zero2", "zero3")]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == 4
    assert memory(6400, 0, strategy="ddp", ranks=8, optimizer_bytes=2)["optimizer"] == 2 * 6400


def test_traffic_by_hand():
    sent = {name: traffic(1000, strategy=name, ranks=4) for name in SHARDED}
    assert sent == {"ddp": 6000, "fsdp": 9000, "zero1": 4500, "zero2": 4500, "zero3": 4500, "zero2_offload": 4500,
                    "zero3_offload": 4500}
    again = {name: traffic(1000, strategy=name, ranks=4, accumulate=3) for name in ("ddp", "zero1", "zero2", "zero3")}
    assert again == {"ddp": 6000, "zero1": 4500, "zero2": 7500, "zero3": 13_500}
    assert not any(traffic(1000, strategy=name, ranks=1) for name in STRATEGIES)


def test_bytes_of_checkpoints_and_latents():
    assert checkpoint_bytes(1000, averages=2) == 20_000
    assert latent_bytes(512) == 2 * 4 * 64 * 64 * 2


def test_images_per_second_by_hand():
    about = {"flops": 1e12, "trained": 10**9, "batch": 10, "rate": 1e14, "latency": 0.0}
    assert images_per_second(**about, strategy="single", ranks=1, bandwidth=1e9) == pytest.approx(100)
    # 0.1 s of compute hides 0.0667 s; ddp sends 8e9 * 3/4 = 6e9 bytes
    assert images_per_second(**about, strategy="ddp", ranks=4, bandwidth=1e11) == pytest.approx(400)
    slow = images_per_second(**about, strategy="ddp", ranks=4, bandwidth=1e10)
    assert slow == pytest.approx(4 * 10 / (0.1 + 0.6 - 0.2 / 3))
    more = images_per_second(**about, strategy="ddp", ranks=4, bandwidth=1e10, accumulate=8)
    assert more == pytest.approx(4 * 80 / (0.8 + 0.6 - 0.2 / 3))
    # zero2 reduces 1.5e9 bytes behind the backward, then gathers 3e9 behind nothing
    gathered = images_per_second(**about, strategy="zero2", ranks=4, bandwidth=1e11)
    assert gathered == pytest.approx(4 * 10 / (0.1 + 0.03))
    late = images_per_second(**{**about, "latency": 0.05}, strategy="ddp", ranks=4, bandwidth=1e11)
    assert late == pytest.approx(4 * 10 / (0.1 + 0.1))


def unet_inputs(images: int, device: torch.device, cells: int = 64, width: int = 768):
    cond = Condition(torch.empty(images, 77, width, device=device), None, torch.zeros(images, device=device))
    return torch.empty(images, 4, cells, cells, device=device), torch.zeros(images, device=device), cond


def stable_diffusion_1_flops(cells: int = 64) -> int:
    """Multiply-adds of every convolution, linear layer and attention product, twice; layer by layer, by hand."""
    widths, attends, tokens, text, time = (320, 640, 1280, 1280), (1, 1, 1, 0), 77, 768, 1280
    macs, skips, width = 9 * 4 * 320 * cells**2 + (320 + time) * time, [320], 320

    def resnet(inside: int, outside: int, n: int) -> int:
        shortcut = inside * outside if inside != outside else 0
        return (9 * (inside + outside) * outside + shortcut) * n + time * outside

    def transformer(c: int, n: int) -> int:
        projections = 2 * c * c + 4 * c * c + 2 * c * c + c * 8 * c + 4 * c * c  # in and out, q k v o, q o, GEGLU, back
        return projections * n + 2 * text * c * tokens + 2 * c * n * (n + tokens)

    n = cells**2
    for stage, c in enumerate(widths):
        for _ in range(2):
            macs += resnet(width, c, n) + attends[stage] * transformer(c, n)
            skips.append(c)
            width = c
        if stage < 3:
            n //= 4
            macs += 9 * c * c * n
            skips.append(c)
    macs += 2 * resnet(width, width, n) + transformer(width, n)
    for stage, c in reversed(list(enumerate(widths))):
        for _ in range(3):
            macs += resnet(width + skips.pop(), c, n) + attends[stage] * transformer(c, n)
            width = c
        if stage:
            n *= 4
            macs += 9 * c * c * n
    return 2 * (macs + 9 * 320 * 4 * n)


def test_flops_of_stable_diffusion_1_are_those_counted_by_hand():
    with torch.device("meta"):
        unet = UNet(4, 4, 0, 768, 0)
    counted = forward_flops(unet, *unet_inputs(1, torch.device("meta")))
    assert counted == stable_diffusion_1_flops() == 803_273_441_280
    assert forward_flops(unet, *unet_inputs(3, torch.device("meta"), 32)) == 3 * stable_diffusion_1_flops(32)


def test_counting_leaves_a_real_module_as_it_is():
    layer = nn.Linear(3, 5)
    before = layer.weight
    assert forward_flops(layer, torch.empty(2, 3, device="meta")) == 2 * 2 * 3 * 5
    assert layer.weight is before and before.device.type == "cpu"


def test_saved_bytes_by_hand():
    """A linear layer keeps its input in bf16, a norm its input in fp32 and two statistics a row; weights fall out."""
    def one(images: int, device: torch.device):
        return (torch.empty(images, 6, device=device, requires_grad=True),)

    assert saved_bytes(nn.Linear(6, 5), one) == 6 * 2
    assert saved_bytes(nn.LayerNorm(6), one) == 6 * 4 + 2 * 4
    assert not torch.is_autocast_enabled("cuda")
