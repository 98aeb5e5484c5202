"""The UNet: published size, what it is told and what it answers."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from sb.models.layers import ResnetBlock
from sb.models.unet import UNet
from sb.types import Condition

SMALL = {"widths": (16, 32), "blocks": 1, "attention": (False, True), "heads": 2, "groups": 8}


def condition(batch: int, level: torch.Tensor | None = None, pooled: int = 0) -> Condition:
    return Condition(
        torch.randn(batch, 5, 12), torch.randn(batch, pooled) if pooled else None,
        torch.zeros(batch) if level is None else level,
    )


def small(**other) -> UNet:
    return UNet(5, 4, 1, 12, 6, **{**SMALL, "zero_init": False, **other})


def test_stable_diffusion_1_widths_give_its_published_parameter_count():
    with torch.device("meta"):
        plain = UNet(4, 4, 0, 768, 0)
        ours = UNet(5, 4, 1, 768, 6)
    assert sum(p.numel() for p in plain.parameters()) == 859_520_964
    extra = 320 * 9 + (320 * 9 + 1) + 6 * 1280  # mask input, mask head, one row a level
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964 + extra


def test_stable_diffusion_2_widths_give_its_published_parameter_count():
    with torch.device("meta"):
        plain = UNet(4, 4, 0, 1024, 0, heads=[5, 10, 20, 20], linear_projection=True)
    assert sum(p.numel() for p in plain.parameters()) == 865_910_724


def test_shapes_and_the_head():
    x, t = torch.randn(2, 5, 8, 8), torch.tensor([0, 999])
    prediction, logits = small()(x, t, condition(2))
    assert prediction.shape == (2, 4, 8, 8) and logits.shape == (2, 1, 8, 8)
    assert UNet(5, 4, 0, 12, 6, **SMALL)(x, t, condition(2))[1] is None


def test_zero_init_starts_at_zero():
    prediction, logits = small(zero_init=True)(torch.randn(1, 5, 8, 8), torch.tensor([3]), condition(1))
    assert not prediction.any() and not logits.any()


def test_time_adds_to_features_or_scales_and_shifts_them():
    x, time = torch.randn(2, 16, 4, 4), torch.randn(2, 12)
    for scale_shift in (False, True):
        block = ResnetBlock(16, 16, 12, groups=8, scale_shift=scale_shift)
        torch.nn.init.zeros_(block.time_emb_proj.weight)
        one, three = torch.zeros(16), torch.full((16,), 3.0)
        block.time_emb_proj.bias.data = torch.cat([one + 1, three]) if scale_shift else three
        first = block.conv1(F.silu(block.norm1(x)))
        told = 2 * block.norm2(first) + 3 if scale_shift else block.norm2(first + 3)  # scale 1, shift 3
        assert torch.allclose(block(x, time), x + block.conv2(F.silu(told)), atol=1e-5)


@pytest.mark.parametrize("pooled", [0, 7])
def test_a_fractional_level_is_the_blend_of_its_neighbours(pooled):
    unet = small(pooled_width=pooled)
    cond = condition(3, torch.tensor([2.0, 3.0, 2.25]), pooled)
    if pooled:
        cond.pooled[:] = 0
    else:
        torch.nn.init.normal_(unet.class_embedding.weight)
    vector = unet.class_vector(cond)
    embedded = vector @ unet.class_embedding.weight if not pooled else unet.class_embedding(vector)
    assert torch.allclose(embedded[2], 0.75 * embedded[0] + 0.25 * embedded[1], atol=1e-6)
    assert not torch.allclose(embedded[0], embedded[1])


@pytest.mark.parametrize("what", ["text", "time", "level", "pooled"])
def test_it_listens_to(what):
    unet = small(pooled_width=7)
    x, t, cond = torch.randn(1, 5, 8, 8), torch.tensor([10]), condition(1, pooled=7)
    before, _ = unet(x, t, cond)
    if what == "time":
        t = torch.tensor([900])
    elif what == "text":
        cond.tokens = torch.randn(1, 5, 12)
    elif what == "level":
        cond.level = torch.tensor([5.0])
    else:
        cond.pooled = torch.randn(1, 7)
    assert not torch.allclose(before, unet(x, t, cond)[0])


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 widths and 3 attention flags"):
        UNet(5, 4, 1, 12, 6, widths=(16, 32), attention=(True, True, False))


@pytest.mark.parametrize("pooled", [0, 7])
def test_tasks_have_rows_after_the_levels(pooled):
    unet = small(task_rows=3, pooled_width=pooled)
    cond = condition(2, torch.tensor([1.0, 1.0]), pooled)
    cond.task = torch.tensor([0, 2])
    vector = unet.class_vector(cond)[:, pooled:]
    assert vector.tolist() == [[0, 1, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 1]]
    if not pooled:
        assert unet.class_embedding.weight.shape[0] == 9
        torch.nn.init.normal_(unet.class_embedding.weight)
    x, t = torch.randn(1, 5, 8, 8).repeat(2, 1, 1, 1), torch.tensor([10, 10])
    cond.tokens, cond.pooled = cond.tokens[:1].repeat(2, 1, 1), None if not pooled else cond.pooled[:1].repeat(2, 1)
    first, second = unet(x, t, cond)[0]
    assert not torch.allclose(first, second)  # the two differ in nothing else


def test_blocks_are_all_that_lies_between_the_ends():
    unet = small()
    inside = [p for block in unet.blocks for p in block.parameters()]
    assert len({id(p) for p in inside}) == len(inside)  # none lies in another
    others = {name.split(".")[0] for name, p in unet.named_parameters() if not any(p is q for q in inside)}
    ends = {"conv_in", "time_embedding", "class_embedding", "conv_norm_out", "conv_out"}
    assert others == ends | {"down_blocks", "up_blocks"}  # these two: the changes of resolution
    assert len(unet.blocks) == 2 + 1 + 3 + 4 + 2  # down: resnets, attention; middle; up: resnets, attentions


def gradients(unet: UNet, dtype: torch.dtype | None = None) -> tuple[list[torch.Tensor], int]:
    """The gradients of one step, and how many bytes autograd kept for it, less the weights'."""
    torch.manual_seed(1)
    x, t, cond = torch.randn(4, 5, 16, 16), torch.tensor([3, 10, 500, 900]), condition(4)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            prediction, logits = unet(x, t, cond)
    unet.zero_grad()
    (prediction.float().square().sum() + logits.float().square().sum()).backward()
    kept_bytes = sum(t.untyped_storage().nbytes() for t in kept.values())
    return [p.grad for p in unet.parameters()], kept_bytes - sum(p.nbytes for p in unet.parameters())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit_and_keep_less(dtype):
    unet = small()
    again = copy.deepcopy(unet)
    again.recompute()
    again.recompute()  # once is enough
    assert list(again.state_dict()) == list(unet.state_dict())
    (plain, kept), (recomputed, left) = gradients(unet, dtype), gradients(again, dtype)
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert left < kept / 3


@pytest.mark.slow
def test_recomputing_works_in_a_compiled_network():
    unet = small()
    again = copy.deepcopy(unet)
    again.recompute()
    again.compile(backend="aot_eager")
    for a, b in zip(gradients(unet)[0], gradients(again)[0], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert list(again.state_dict()) == list(unet.state_dict())


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("recompute", [False, True])
def test_blocks_can_be_sharded(recompute, tmp_path):
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    unet = small()
    names, plain = list(unet.state_dict()), gradients(copy.deepcopy(unet))[0]
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        if recompute:
            unet.recompute()
        for block in unet.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(unet, mesh=mesh)
        found = [grad.full_tensor() for grad in gradients(unet)[0]]
        assert list(unet.state_dict()) == names
    finally:
        distributed.destroy_process_group()
    for a, b in zip(plain, found, strict=True):  # its kernels round by where the tensors lie
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))
