"""What the shapes world asks of a model: scenes it has never seen, without their target, and words for the target.

Legend: B requests, H W pixels, S level of the box.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sb.data.shapes import draw_scene, scene_seed
from sb.masks import Ladder
from sb.types import Request, Result

Paint = Callable[..., list[Result]]


@dataclass
class ShapesCase:
    """One unseen scene: image with its target and background without (3, H, W) uint8, the target's outline and words.

    ground: (3, H, W) uint8, without any object. outline: (1, H, W) uint8. seed: of the noise.
    """

    image: Tensor
    background: Tensor
    ground: Tensor
    outline: Tensor
    shape: str
    colour: str
    texture: str
    seed: int

    @property
    def text(self) -> str:
        """What is asked for."""
        return f"{self.texture} {self.colour} {self.shape}"


def make_cases(num_requests: int, seed: int = 0, size_px: int = 64) -> list[ShapesCase]:
    """The first scenes of the test split; the same for the same numbers."""
    if num_requests < 2:
        raise ValueError(f"evaluation needs at least 2 requests, for a spread, not {num_requests}")
    cases = []
    for index in range(num_requests):
        scene = draw_scene(scene_seed("test", seed, index), size_px)
        target = scene.target
        cases.append(ShapesCase(
            _channels_first(scene.image), _channels_first(scene.background), _channels_first(scene.ground),
            torch.from_numpy(target.outline)[None], target.shape, target.colour, target.texture,
            seed=seed * 1_000_003 + index,
        ))
    return cases


def masks_at(cases: Sequence[ShapesCase], ladder: Ladder, level: int) -> Tensor:
    """The user's masks (B, 1, H, W) uint8 at one rung of the ladder."""
    outlines = torch.stack([case.outline for case in cases])
    return ladder(outlines, torch.full((len(cases),), level))


def paint_cases(
    paint: Paint, cases: Sequence[ShapesCase], masks: Tensor, level: float, batch: int, stage: str, **options: Any
) -> list[Result]:
    """Paint every case into its background, inside the given masks declared as ``level``; a bar names the stage."""
    results: list[Result] = []
    with tqdm(total=len(cases), desc=stage, unit="request", mininterval=1) as bar:
        for start in range(0, len(cases), batch):
            some = range(start, min(start + batch, len(cases)))
            results += paint(
                [Request(cases[i].background, masks[i], cases[i].text, level, cases[i].seed) for i in some], **options
            )
            bar.update(len(some))
    return results


def _channels_first(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()
