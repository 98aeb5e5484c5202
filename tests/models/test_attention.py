"""Attention: the explicit path of CPU bf16 training equals the fused kernel."""

import torch
import torch.nn.functional as F

from sb.models.attention import SpatialTransformer, attend


def test_explicit_attention_equals_the_kernel():
    q, k, v = (torch.randn(2, 3, 10, 8).bfloat16() for _ in range(3))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    explicit = attend(q.requires_grad_(), k, v)
    with torch.no_grad():
        fused = attend(q, k, v)
    assert torch.allclose(explicit.float(), expected, atol=0.03) and torch.allclose(fused.float(), expected, atol=0.03)


def test_linear_and_convolutional_projections_are_the_same_map():
    conv = SpatialTransformer(16, 2, 12, groups=4)
    linear = SpatialTransformer(16, 2, 12, groups=4, linear=True)
    state = {name: v.flatten(1) if name in ("proj_in.weight", "proj_out.weight") else v
             for name, v in conv.state_dict().items()}
    linear.load_state_dict(state)
    x, context = torch.randn(2, 16, 4, 6), torch.randn(2, 5, 12)
    assert torch.allclose(conv(x, context), linear(x, context), atol=1e-5)
