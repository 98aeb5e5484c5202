"""What stands behind an object that is to be removed, guessed from around it: where the denoising of a removal begins.

Legend: H W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sb.registry import register

# picture (3, H, W) uint8, mask (1, H, W) with 1 = unknown -> the picture with the unknown part guessed
Fill = Callable[[Tensor, Tensor], Tensor]


@register("fill", "none")
def no_fill() -> Fill:
    """The picture as it is."""
    return lambda picture, mask: picture


@register("fill", "frequency")
def frequency_fill() -> Fill:
    """Waves that explain what surrounds a place, carried on into it: stripes, checks and clouds go on as they were.

    OpenCV's frequency selective reconstruction (Genser et al., "Spectral constrained frequency selective extrapolation
    for rapid image error concealment", 2018). A mask over all of the picture leaves it as it is.
    """
    import cv2

    def fill(picture: Tensor, mask: Tensor) -> Tensor:
        unknown = mask[0] > 0
        if bool(unknown.all()):
            return picture
        known = ((~unknown).to(torch.uint8) * 255).numpy()
        pixels = picture.permute(1, 2, 0).contiguous().numpy()
        filled = pixels.copy()
        cv2.xphoto.inpaint(pixels, known, filled, cv2.xphoto.INPAINT_FSR_FAST)
        return torch.where(mask > 0, torch.from_numpy(filled).permute(2, 0, 1), picture)

    return fill
