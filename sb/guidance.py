"""Classifier-free guidance: how a conditional and an unconditional answer become one (arXiv 2207.12598)."""

from sb.types import Denoised


def combine(cond: Denoised, null: Denoised, scale: float) -> Denoised:
    """``x0 = null + scale * (cond - null)``: scale 1 is the conditional answer itself, more follows the text more.

    Answers in x0 so that it holds for every prediction type (at a given x_t the four are affine in each other).
    The mask head's logits are the conditional branch's: they are a reading of the picture, not to be amplified.
    """
    if scale == 1.0:
        return cond
    return Denoised(null.x0 + scale * (cond.x0 - null.x0), cond.mask_logits)
