"""What can be seen while a sampler is still at work: how far it is, and the picture as it stands.

Legend: B batch, C latent channels, h w latent cells, H W pixels, f pixels per cell side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Decode = Callable[[Tensor], Tensor]  # latents (B, C, h, w) -> pictures (B, 3, f h, f w) in [-1, 1]


@dataclass(frozen=True)
class Progress:
    """A moment before a step: the places of these requests in the call, the steps done, and all of them."""

    places: Sequence[int]
    step: int
    steps: int
    draw: Callable[[], list[Tensor]]

    def pictures(self) -> list[Tensor]:
        """Each request's picture (3, H, W) uint8 as the last x0 would leave it; drawn only when asked for."""
        return self.draw()


Watch = Callable[[Progress], None]


def linear_decode(latents: Tensor, pictures: Tensor) -> Decode:
    """A decoder that is a matrix for each picture: a cell's mean colour as a linear function of its latents, fitted on
    latents (B, C, h, w) of the pictures (B, 3, H, W) in [-1, 1] themselves. Blurry, and nearly free; in float32.
    """
    def inputs(z: Tensor) -> Tensor:
        rows = z.float().movedim(1, -1).flatten(1, 2)
        return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)  # (B, cells, C + 1)

    size, cells = pictures.shape[-2:], (latents.shape[-2], latents.shape[-1])
    with torch.autocast(latents.device.type, enabled=False):
        colours = F.adaptive_avg_pool2d(pictures.float(), cells).movedim(1, -1).flatten(1, 2)
        known = inputs(latents)
        ridge = 1e-3 * known.shape[1] * torch.eye(known.shape[2], device=known.device)
        matrix = torch.linalg.solve(known.mT @ known + ridge, known.mT @ colours)  # (B, C + 1, 3)

    def decode(z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            painted = (inputs(z) @ matrix).unflatten(1, cells).movedim(-1, 1)
            return F.interpolate(painted, size, mode="bilinear", align_corners=False)

    return decode
