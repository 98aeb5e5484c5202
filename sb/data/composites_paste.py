"""Pasting one cut-out onto a photo: where it stands, its edge without the light rim of its old background, its shadow.

Legend: S the side of the square scene in pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
MAX_ENLARGED = 1.5  # of a cut-out: beyond this its blur would give it away
FLOOR = 0.55, 0.98  # where objects may stand, as shares of the scene's height from the top
EDGE_SIGMA_PX, BLEED_SIGMA_PX = 0.6, 1.5
SHADOW_HEIGHT, SHADOW_SINK, SHADOW_SIGMA = 0.18, 0.4, 0.05  # of the height; of the shadow's height; of the width


class Place(NamedTuple):
    """Where a cut-out goes, whole pixels, inside the scene."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Pasted:
    """picture (S, S, 3) uint8; alpha and shadow (S, S) float32 in [0, 1], both exactly 0 where nothing was changed."""

    picture: Pixels
    alpha: NDArray[np.float32]
    shadow: NDArray[np.float32]

    @property
    def outline(self) -> Pixels:
        """The object's exact mask (S, S) uint8: what is more object than background."""
        return (self.alpha > 0.5).astype(np.uint8)


def draw_place(
    rng: np.random.Generator, size: tuple[int, int], size_px: int, min_share: float, max_share: float
) -> Place:
    """A place for a cut-out of ``size`` (width, height): its longer side a log-uniform share of the scene's.

    Objects stand in the lower part of the picture, and what is drawn larger, as if nearer, stands lower.
    """
    share, across, down = rng.random(3).tolist()
    side = min(min_share * (max_share / min_share) ** share * size_px, MAX_ENLARGED * max(size))
    width, height = (max(1, round(length * side / max(size))) for length in size)
    least = FLOOR[0] + (FLOOR[1] - FLOOR[0]) * 0.7 * share
    bottom = max(height, round(size_px * (least + (FLOOR[1] - least) * down)))
    return Place(int(across * (size_px - width + 1)), bottom - height, width, height)


def paste(background: Pixels, cutout: Image.Image, place: Place, shadow: float) -> Pasted:
    """A cut-out (RGBA) on a background (S, S, 3) uint8, with a contact shadow of that strength (0 none, 1 black).

    The outermost pixel of its edge is taken off, for it often keeps a rim of the old background; the new edge is
    slightly blurred, as a lens would, and filled with the colours that lie inside it.
    """
    left, top, width, height = place
    size = background.shape[1], background.shape[0]
    layer = Image.new("RGBA", size)
    layer.paste(cutout.resize((width, height), Image.Resampling.LANCZOS), (left, top))
    inner = layer.getchannel("A").filter(ImageFilter.MinFilter(3))
    alpha = inner.filter(ImageFilter.GaussianBlur(EDGE_SIGMA_PX))
    layer.putalpha(inner)
    bled = layer.convert("RGBa").filter(ImageFilter.GaussianBlur(BLEED_SIGMA_PX)).convert("RGBA")
    solid = Image.fromarray(np.asarray(inner) == 255)
    colours = Image.composite(layer, bled, solid).convert("RGB")
    covered, shade = _share(alpha), _share(_cast(alpha, place)) * np.float32(shadow)
    ground = background * (1 - shade)[..., None]
    mixed = ground + (np.asarray(colours, dtype=np.float32) - ground) * covered[..., None]
    return Pasted((mixed + np.float32(0.5)).astype(np.uint8), covered, shade)


def _cast(alpha: Image.Image, place: Place) -> Image.Image:
    """The contact shadow, 0 to 255: the object pressed flat on the ground it stands on, blurred."""
    left, top, width, height = place
    tall = max(2, round(SHADOW_HEIGHT * height))
    flat = alpha.crop((left, top, left + width, top + height)).resize((width, tall), Image.Resampling.BOX)
    ground = Image.new("L", alpha.size)
    ground.paste(flat, (left, top + height - round((1 - SHADOW_SINK) * tall)))
    return ground.filter(ImageFilter.GaussianBlur(SHADOW_SIGMA * width))


def _share(grey: Image.Image) -> NDArray[np.float32]:
    return np.asarray(grey, dtype=np.float32) / np.float32(255)
