"""How long a request takes: ways of painting side by side, and diffusers' inpainting pipeline with the same weights.

Every pass runs each contender once, in an order that moves on, because what else a machine does hits all alike; ratios
are medians over the passes.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from sb import networks
from sb.evaluate.ways import Way
from sb.formats.write import write_diffusers
from sb.inpaint import Inpainter
from sb.launch import find_device
from sb.masks import Ladder
from sb.models.model_pairs import library
from sb.models.weights import no_init
from sb.pictures import image_tensor, mask_tensor
from sb.registry import lookup
from sb.types import Request

TEXT = "striped blue star"
# nine-channel models of random weights; sd1 is Stable Diffusion 1.5's inpainting model
SIZES: dict[str, dict[str, Any]] = {
    "sd1": {
        "vae": {"name": "kl", "scale": 0.18215},
        "text": {"name": "clip", "width": 768, "layers": 12, "heads": 12, "quick_gelu": True, "pad": "eos"},
        "denoiser": {"widths": [320, 640, 1280, 1280], "blocks": 2, "heads": 8,
                     "attention": [True, True, True, False]},
    },
    "small": {
        "vae": {"name": "kl", "channels": 32, "blocks": 1, "scale": 0.18215},
        "text": {"name": "clip", "width": 128, "layers": 2, "heads": 4, "quick_gelu": True, "pad": "eos"},
        "denoiser": {"widths": [64, 128, 192], "blocks": 1, "heads": 4, "attention": [True, True, True]},
    },
}


def benchmark_inpainting(
    model: str | None, ways: Sequence[str], *, size: str = "small", size_px: int | None = None, batch: int = 1,
    steps: int = 20, guidance: float = 4.0, passes: int = 5, device: str = "auto",
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Milliseconds of a batch of requests (``ms``), and how many times as long the first row takes (``faster``).

    With a model, a row for each way (``sb.evaluate.ways``); without, a random nine-channel model of that size:
    diffusers first, then ours with the same sampler, steps and guidance, then the ways. size_px: of the square
    pictures, by default the model's own. Raises ValueError for unknown names.
    """
    if size not in SIZES:
        raise ValueError(f"benchmark: size '{size}' is none of {', '.join(SIZES)}")
    if min(batch, steps, passes) < 1:
        raise ValueError("benchmark: batch, steps and passes must be at least 1")
    where = str(find_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device))
    chosen = [Way.parse(way) for way in ways]
    if len({way.name for way in chosen} | {"ours", "diffusers"}) < len(chosen) + 2:
        raise ValueError("benchmark: every way needs a name of its own, and not 'ours' or 'diffusers'")
    load = partial(Inpainter.load, device=where)
    with tempfile.TemporaryDirectory() as folder:
        contenders: dict[str, Callable[[], Any]] = {}
        if model is None:
            place = Path(folder) / size
            _write(place, SIZES[size], report)
            painter = load(str(place))
            asked = _Asked(size_px or 256, batch)
            contenders["diffusers"] = _theirs(place, asked, steps, guidance, where)
            chosen = [Way("ours", {}), *chosen]
            painter.options = type(painter.options)(steps=steps, guidance=guidance)
            painter.sampler, painter.native_px = lookup("sampler", "ddim"), None  # all of the picture, as diffusers
        else:
            painter = load(model)
            asked = _Asked(size_px or painter.native_px or 256, batch)
        for way in chosen:
            contenders[way.name] = partial(_ours, way.painter(painter, load), asked)
        return _race(contenders, passes, where, report)


class _Asked:
    """What is asked for: a picture, a mask on its middle, and how often."""

    def __init__(self, size_px: int, batch: int):
        draw = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (size_px, size_px, 3), dtype=torch.uint8, generator=draw)
        self.image, self.mask = Image.fromarray(noise.numpy()), Image.new("L", (size_px, size_px))
        edge = size_px // 4
        self.mask.paste(255, (edge, edge, size_px - edge, size_px - edge))
        self.size_px, self.batch = size_px, batch


def _ours(painter: Inpainter, asked: _Asked) -> list[Image.Image]:
    image, mask = image_tensor(asked.image), mask_tensor(asked.mask)
    level = float(painter.ladder.num_levels)
    requests = [Request(image, mask, TEXT, level, seed) for seed in range(asked.batch)]
    return [result.image for result in painter.paint(requests)]


def _theirs(place: Path, asked: _Asked, steps: int, guidance: float, device: str) -> Callable[[], Any]:
    pipeline = library("diffusers").StableDiffusionInpaintPipeline.from_pretrained(place).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def paint() -> Any:
        count = asked.batch
        return pipeline(
            prompt=[TEXT] * count, image=[asked.image] * count, mask_image=[asked.mask] * count,
            height=asked.size_px, width=asked.size_px, num_inference_steps=steps, guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in range(count)],
        ).images

    return paint


def _race(
    contenders: dict[str, Callable[[], Any]], passes: int, device: str, report: Callable[[str], None]
) -> dict[str, Any]:
    names = list(contenders)
    took: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(passes + 1):  # the first is not counted
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            began = time.perf_counter()
            contenders[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn:
                took[name].append(time.perf_counter() - began)
        report(f"pass {turn} of {passes}")
    return {
        name: {
            "ms": 1000 * median(took[name]),
            "faster": median(a / b for a, b in zip(took[names[0]], took[name], strict=True)),
        }
        for name in names
    }


def _write(place: Path, sections: dict[str, Any], report: Callable[[str], None]) -> None:
    report(f"making a nine-channel model of random weights, {sections['denoiser']['widths']}")
    cfg = {
        **sections, "image_size": 512, "data": {"tasks": []}, "conditioning": {"name": "nine_channel"},
        "schedule": {"name": "scaled_linear", "prediction": "eps"},
        "denoiser": {"name": "unet", "with_level": False, "with_mask_head": False, **sections["denoiser"]},
    }
    with no_init():
        parts = networks.build_parts(cfg, Ladder([{"name": "outline"}, {"name": "box"}], [1, 1]))
    for module in parts.values():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter.data, std=0.02)
    write_diffusers(place, {name: module.state_dict() for name, module in parts.items()}, cfg, {})
