"""Two evaluations of one list of scenes: one that painted the missing object, one that painted noise."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sb.data.coco import encode_mask
from sb.data.shapes import draw_scene
from sb.evaluate.lists import Case, CaseList, write_list
from sb.pictures import save_png


def list_of_scenes(path: Path, count: int, size_px: int = 64) -> CaseList:
    cases = []
    for seed in range(count):
        scene = draw_scene(seed, size_px)
        outline = encode_mask(scene.target.outline)
        cases.append(Case(
            image=str(seed), instance="0", label=scene.target.shape, text=scene.target.caption, level=0.0, num_levels=5,
            seed=seed, crop=(0, 0, size_px, size_px), size=(size_px, size_px), mask=outline, outline=outline,
        ))
    header = {"protocol": "shapes", "size_px": size_px, "seed": 0, "source": {"name": "shapes"}, "rules": "scenes"}
    return write_list(path, header, cases)


def evaluations(folder: Path, count: int, size_px: int = 64) -> tuple[Path, Path]:
    """The folders ``good`` and ``bad``, as an evaluation leaves them."""
    for name in ("good", "bad"):
        listed = list_of_scenes(folder / name / "list.jsonl", count, size_px)
        for number, case in enumerate(listed.cases):
            scene = draw_scene(int(case.image), size_px)
            whole, empty = (torch.from_numpy(pixels).permute(2, 0, 1) for pixels in (scene.image, scene.background))
            noise = torch.randint(0, 256, empty.shape, generator=torch.Generator().manual_seed(number)).byte()
            painted = whole if name == "good" else torch.where(case.mask_pixels() > 0, noise, empty)
            save_png(picture(painted), folder / name / "pictures" / f"{number:06d}.png")
    return folder / "good", folder / "bad"


def picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
