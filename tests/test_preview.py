"""Previews: a linear decoder finds a linear code, and says little of nothing."""

import torch
import torch.nn.functional as F

from sb.preview import linear_decode


def test_a_linear_code_is_decoded():
    draw = torch.Generator().manual_seed(0)
    pictures = F.interpolate(torch.rand(2, 3, 4, 4, generator=draw) * 2 - 1, scale_factor=8, mode="bilinear")
    colours = F.avg_pool2d(pictures, 4)
    code = torch.einsum("dc,bchw->bdhw", torch.randn(5, 3, generator=draw), colours) + 0.3
    seen = linear_decode(code, pictures)(code)
    assert seen.shape == pictures.shape and (F.avg_pool2d(seen, 4) - colours).abs().mean() < 0.06


def test_each_picture_has_a_decoder_of_its_own_in_float32():
    draw = torch.Generator().manual_seed(1)
    pictures, code = torch.rand(2, 3, 16, 16, generator=draw), torch.randn(2, 4, 4, 4, generator=draw) + 3
    both = linear_decode(code, pictures)(code)
    torch.testing.assert_close(linear_decode(code[:1], pictures[:1])(code[:1]), both[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear_decode(code, pictures)(code), both)


def test_a_flat_picture_gives_a_flat_preview():
    seen = linear_decode(torch.zeros(1, 4, 4, 4), torch.full((1, 3, 16, 16), 0.5))(torch.randn(1, 4, 4, 4))
    assert torch.allclose(seen, torch.full_like(seen, 0.5), atol=0.01)
