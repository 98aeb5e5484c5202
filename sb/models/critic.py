"""A patch critic for sharper autoencoders: hinge loss and an adaptive weight (VQGAN, arXiv 2012.09841).

Legend: B batch, H W pixels, h w patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sb.models.layers import GroupNorm


class PatchCritic(nn.Module):
    """Scores overlapping patches of a picture: high for real ones. ``layers`` halvings, 70 px patches with 3."""

    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        narrow = width
        for i in range(1, layers + 1):
            wide = width * min(2**i, 8)
            stride = 2 if i < layers else 1
            self.layers.append(nn.Conv2d(narrow, wide, 4, stride=stride, padding=1, bias=False))
            self.layers.extend([GroupNorm(8, wide), nn.LeakyReLU(0.2)])
            narrow = wide
        self.layers.append(nn.Conv2d(narrow, 1, 4, padding=1))

    def forward(self, picture: Tensor) -> Tensor:
        """picture (B, 3, H, W) in [-1, 1] to scores (B, 1, h, w)."""
        return self.layers(picture)

    def score_frozen(self, picture: Tensor) -> Tensor:
        """The same scores, with a gradient for the picture and none for the critic."""
        weights = {name: p.detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(self, weights, (picture,))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: 0 where every real score is above 1 and every fake one below -1."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, picture: Tensor) -> Tensor:
    """The factor that makes the adversarial loss pull at the picture as hard as the reconstruction does.

    Both losses must depend on ``picture``. Measured at the picture, and not at the decoder's last layer as in
    VQGAN, so that it needs to know no decoder and costs no pass through one.
    """
    (wanted,) = torch.autograd.grad(reconstruction, picture, retain_graph=True)
    (given,) = torch.autograd.grad(adversarial, picture, retain_graph=True)
    return (wanted.float().norm() / given.float().norm().clamp(min=1e-8)).clamp(max=1e4).detach()
