"""Gathering and widening: what a network gets from a narrower one, and that it starts as that one."""

import pytest
import torch

from sb.formats.names import Piece, plain
from sb.formats.part import Part, pad, raise_for, widen
from sb.losses import dice
from sb.models.unet import UNet
from sb.types import Condition

SIZES = {"widths": (32, 64), "blocks": 1, "attention": (True, False), "heads": 4, "zero_init": False}


def pair(inside: int, wide_inside: int, head: int) -> tuple[UNet, UNet]:
    """A text-to-image or inpainting network and the wider one that starts from it."""
    narrow, wide = UNet(inside, 4, 0, 24, 0, **SIZES), UNet(wide_inside, 4, head, 24, 6, **SIZES)
    wide.load_state_dict(widen(narrow.state_dict(), wide.state_dict()))
    return narrow, wide


@pytest.mark.parametrize("inside, wide_inside, head", [(4, 5, 1), (4, 20, 16), (9, 9, 1)])
@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0])
def test_a_widened_network_starts_as_the_original_bit_for_bit(inside, wide_inside, head, level):
    narrow, wide = pair(inside, wide_inside, head)
    x = torch.randn(2, inside, 8, 12)
    mask = (torch.rand(2, wide_inside - inside, 8, 12) > 0.5).float()
    cond, t = Condition(torch.randn(2, 5, 24), None, torch.full((2,), level)), torch.tensor([20, 900])
    assert torch.equal(wide(torch.cat([x, mask], 1), t, cond)[0], narrow(x, t, cond)[0])


def test_the_first_gradients_reach_mask_input_head_and_levels():
    _, wide = pair(4, 5, 1)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:6, 3:7] = 1
    cond = Condition(torch.randn(2, 5, 24), None, torch.tensor([1.0, 4.0]))
    prediction, logits = wide(torch.cat([torch.randn(2, 4, 8, 8), mask], 1), torch.tensor([20, 900]), cond)
    (prediction.square().mean() + 0.01 * dice(logits.sigmoid(), mask).mean()).backward()
    assert bool(wide.conv_in.weight.grad[:, 4:].any()) and bool(wide.conv_out.weight.grad[4:].any())
    rows = wide.class_embedding.weight.grad.abs().sum(1)
    assert bool((rows[[1, 4]] > 0).all()) and not bool(rows[[0, 2, 3, 5]].any())


@pytest.mark.parametrize("pooled", [0, 3])
def test_task_rows_can_be_added_to_a_model_with_levels(pooled):
    before = UNet(5, 4, 1, 24, 6, pooled_width=pooled, **SIZES)
    after = UNet(5, 4, 1, 24, 6, pooled_width=pooled, task_rows=2, **SIZES)
    torch.nn.init.normal_(before.class_embedding.weight)
    after.load_state_dict(widen(before.state_dict(), after.state_dict()))
    x, t = torch.randn(1, 5, 8, 8), torch.tensor([20])
    features = torch.randn(1, 5, 24), torch.randn(1, 3) if pooled else None, torch.tensor([2.5])
    told = after(x, t, Condition(*features, torch.tensor([1])))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(told, before(x, t, Condition(*features)), strict=True))


def test_only_channels_and_levels_are_widened():
    narrow, wide = UNet(4, 4, 0, 24, 0, **SIZES), UNet(5, 4, 1, 24, 6, **{**SIZES, "widths": (32, 96)})
    state = widen(narrow.state_dict(), wide.state_dict())
    assert state["conv_in.weight"].shape == (32, 5, 3, 3)
    assert state["mid_block.resnets.0.conv1.weight"].shape == (64, 64, 3, 3)


def test_pieces_are_cut_and_joined_again():
    tensor = torch.randn(6, 4)
    for piece in (Piece(("a",)), Piece(("q", "k", "v")), Piece(("a",), square=True)):
        parts = piece.cut(tensor)
        assert tuple(parts) == piece.names and torch.equal(piece.join(list(parts.values())), tensor)
    assert Piece(("a",), square=True).cut(tensor)["a"].shape == (6, 4, 1, 1) and Piece(()).cut(tensor) == {}


def test_every_fault_of_every_part_is_in_one_error():
    one = Part({"a.x": torch.ones(2), "a.z": torch.ones(1)}, plain("a."), "first")
    other = Part({"b.x": torch.ones(3)}, plain("b."), "second")
    with pytest.raises(ValueError) as error:
        raise_for([one, other], [{"x": torch.ones(2), "y": torch.ones(1)}, {"x": torch.ones(2)}])
    assert str(error.value) == (
        "first, second does not fit this model; 1 missing: a.y; 1 unexpected: a.z; 1 of another shape: "
        "b.x is (3,), not (2,)"
    )


def test_padding_comes_off_only_where_it_is_zero():
    small = torch.randn(2, 3)
    larger = pad(small, (4, 5))
    part = Part({"x": larger}, plain(), "file", padded=True)
    assert torch.equal(part.state({"x": small})["x"], small)
    larger[3, 4] = 1
    with pytest.raises(ValueError, match="x is not zero outside"):
        part.state({"x": small})
    with pytest.raises(ValueError, match="1 of another shape"):
        Part({"x": larger}, plain(), "file").state({"x": small})
