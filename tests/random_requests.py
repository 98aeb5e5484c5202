"""Random requests to a painter of next to nothing: outside its mask, no picture may change by a single level.

python tests/random_requests.py --requests 1000     sizes, modes, masks, options, batches and chains of 10 edits
"""

import argparse
import io
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from sb import pictures  # noqa: E402
from sb.conditioning import SmartBrushConditioning  # noqa: E402
from sb.denoising import PaintOptions  # noqa: E402
from sb.inpaint import Inpainter  # noqa: E402
from sb.masks import Ladder  # noqa: E402
from sb.models.text import tiny  # noqa: E402
from sb.models.tiny_vae import TinyVAE  # noqa: E402
from sb.models.unet import UNet  # noqa: E402
from sb.registry import names  # noqa: E402
from sb.samplers import ddim  # noqa: E402
from sb.schedule import scaled_linear  # noqa: E402
from sb.types import Request, Result  # noqa: E402

SMALLEST, LARGEST, EDITS = 33, 1500, 10
MODES = ("RGB", "RGBA", "L", "LA", "P", "P clear", "1", "CMYK", "YCbCr", "I;16", "F")
MASKS = ("pixel", "all", "box", "outline", "brush", "specks")
BATCH_PX = 1_500_000  # of the pictures that are painted together
SOLVED_PX = 20_000  # more than these, a membrane takes long to solve


def tiny_painter(native_px: int | None = None) -> Inpainter:
    """Untrained networks of 8 to 16 channels; one latent cell is 8 px."""
    torch.manual_seed(0)
    unet = UNet(4 + 1, 4, 1, 16, 3, widths=(8, 16), attention=(False, False), blocks=1, heads=2, groups=4,
                pooled_width=16, task_rows=2, zero_init=False)
    return Inpainter(
        unet.eval(), TinyVAE(latent_channels=4, stages=3, widths=8, blocks=1).eval(),
        tiny(width=16, layers=1, heads=2).eval(), scaled_linear(prediction="v", zero_terminal_snr=True),
        Ladder([{"name": "outline"}, {"name": "blur", "sigma": 0.1}, {"name": "box"}]), SmartBrushConditioning(1),
        ddim, PaintOptions(steps=2, guidance=2.0), tasks={"object": True, "remove": False}, native_px=native_px,
    )


@dataclass
class Outcome:
    """What became of one request: how it was drawn, whether all outside its mask is equal, whether anything inside
    changed."""

    said: str
    equal: bool
    painted: bool


def a_size(rng: random.Random) -> tuple[int, int]:
    """Width and height, each log-uniform."""
    low, high = math.log(SMALLEST), math.log(LARGEST)
    return round(math.exp(rng.uniform(low, high))), round(math.exp(rng.uniform(low, high)))


def a_source(rng: random.Random, width: int, height: int) -> Image.Image:
    """A picture of noise in some mode, perhaps stored turned: upright it has the size asked for."""
    mode, turn = rng.choice(MODES), rng.choice((1, 1, 3, 6, 7))
    stored = (width, height) if turn < 5 else (height, width)
    noise = np.random.default_rng(rng.getrandbits(32))
    if mode == "I;16":
        picture = Image.fromarray(noise.integers(0, 65536, stored[::-1], dtype=np.uint16))
    elif mode == "F":
        picture = Image.fromarray(noise.random(stored[::-1], dtype=np.float32))
    else:
        kind, _, clear = mode.partition(" ")
        channels = {"L": 1, "1": 1, "P": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(kind, 3)
        levels = noise.integers(0, 256, (stored[1], stored[0], channels), dtype=np.uint8)
        picture = Image.fromarray(levels[..., 0] if channels == 1 else levels, "YCbCr" if kind == "YCbCr" else None)
        picture = picture.convert(kind) if kind in ("1", "P") else picture
        if channels == 4 and kind == "CMYK":
            picture = Image.merge("CMYK", picture.split())
        if clear:
            picture.info["transparency"] = 7
    picture.getexif()[0x0112] = turn
    return picture


def a_mask(rng: random.Random, width: int, height: int) -> tuple[str, Image.Image]:
    """The kind of a mask and the mask, as one or another kind of picture: from one pixel to all of them."""
    kind = rng.choice(MASKS)
    drawn = Image.new("L", (width, height))
    pen = ImageDraw.Draw(drawn)
    x, y = rng.randrange(width), rng.randrange(height)
    if kind == "pixel":
        pen.point((x, y), 255)
    elif kind == "all":
        drawn.paste(255, (0, 0, width, height))
    elif kind == "specks":
        for _ in range(rng.randint(1, 40)):
            pen.point((rng.randrange(width), rng.randrange(height)), 255)
    elif kind == "brush":
        path = [(rng.randrange(width), rng.randrange(height)) for _ in range(rng.randint(2, 6))]
        pen.line(path, 255, rng.randint(1, max(1, min(width, height) // 6)), joint="curve")
    else:
        w, h = (max(1, round(math.exp(rng.uniform(0, math.log(side))))) for side in (width, height))
        corners = (x - w // 2, y - h // 2, x - w // 2 + w, y - h // 2 + h)  # at the border, cut off
        (pen.rectangle if kind == "box" else pen.ellipse)(corners, 255)
    if not drawn.getbbox():
        pen.point((x, y), 255)
    if rng.random() < 0.3:
        layer = Image.new("RGBA", (width, height), (255, 64, 64, 0))
        layer.putalpha(drawn)
        return kind, layer if kind != "all" else drawn
    return kind, drawn.convert(rng.choice(("L", "1", "RGB")))


def some_options(rng: random.Random, mask_px: int) -> dict[str, object]:
    """Painting options, every one drawn."""
    small = mask_px <= SOLVED_PX
    matches = [name for name in names("colour_match") if name != "membrane" or small]
    return {
        "steps": rng.randint(1, 2), "guidance": rng.choice((1.0, 3.0)), "guidance_from": rng.choice((0.0, 0.5)),
        "use_predicted": rng.random() < 0.5, "preserve_from": rng.choice((0.0, 0.5)), "threshold": rng.random(),
        "dilate_cells": rng.randint(0, 2), "dilate_px": rng.randint(0, 4), "feather_px": rng.randint(0, 6),
        "colour_match": rng.choice(matches), "fill": rng.choice(names("fill")) if small else "none",
        "fill_until": rng.choice((0.0, 0.5, 1.0)), "context": rng.uniform(1, 4), "max_zoom": rng.uniform(1, 8),
    }


def a_request(rng: random.Random, source: Image.Image, painter: Inpainter) -> tuple[str, Request]:
    """What is asked of a picture, in words, and the request."""
    image = pictures.image_tensor(source)
    height, width = image.shape[1:]
    kind, mask = a_mask(rng, width, height)
    level = rng.choice((0.0, float(painter.ladder.num_levels), rng.uniform(0, painter.ladder.num_levels)))
    text = rng.choice(("red star", "", "blue ring"))
    task = rng.choice(("", "remove"))
    request = Request(image, pictures.mask_tensor(mask), text, level, rng.getrandbits(32), task=task)
    return f"{width}x{height} {source.mode} {kind}", request


def written(result: Result, source: Image.Image) -> Image.Image:
    """The result as it comes back from the file that it is written to."""
    return Image.open(io.BytesIO(pictures.encoded(pictures.like_source(result.image, source))))


def compared(said: str, request: Request, file: Image.Image, source: Image.Image, kept: torch.Tensor) -> Outcome:
    """A written result beside its source: equal in all kept places, in size, and in alpha."""
    after, outside = pictures.image_tensor(file), kept.expand(3, -1, -1) > 0
    shape = after.shape == request.image.shape
    equal = shape and torch.equal(after[outside], request.image[outside])
    alphas = [pictures.like_source(Image.new("RGB", file.size), one) for one in (source, file)] if shape else []
    if equal and "A" in alphas[0].getbands():
        equal = alphas[0].tobytes() == alphas[1].tobytes()
    return Outcome(said, equal, shape and not torch.equal(after, request.image))


def a_batch(rng: random.Random, painter: Inpainter, most: int) -> Iterator[Outcome]:
    """Pictures of mixed sizes in one call."""
    sources = []
    while len(sources) < most and (not sources or rng.random() < 0.75):
        same = sources and rng.random() < 0.4
        size = pictures.image_tensor(sources[-1]).shape[:0:-1] if same else a_size(rng)
        if sources and size[0] * size[1] + sum(s.width * s.height for s in sources) > BATCH_PX:
            break
        sources.append(a_source(rng, *size))
    asked = [a_request(rng, source, painter) for source in sources]
    options = some_options(rng, max(int(request.mask.sum()) for _, request in asked))
    results = painter.paint([request for _, request in asked], **options)
    for (said, request), source, result in zip(asked, sources, results, strict=True):
        said = f"{said}, native {painter.native_px}, {options}"
        yield compared(said, request, written(result, source), source, 1 - request.mask)


def a_chain(rng: random.Random, painter: Inpainter, most: int) -> Iterator[Outcome]:
    """Edits, each on the file of the last one: what no mask has touched is still the first picture's."""
    first = source = a_source(rng, *a_size(rng))
    before = pictures.image_tensor(first)
    union = torch.zeros(1, *before.shape[1:], dtype=torch.uint8)
    for number in range(min(EDITS, most)):
        said, request = a_request(rng, source, painter)
        while said.endswith("all"):  # it would leave nothing for the others
            said, request = a_request(rng, source, painter)
        union = union | request.mask
        options = some_options(rng, int(request.mask.sum()))
        file = written(painter.paint([request], **options)[0], source)
        said = f"edit {number + 1}: {said}, native {painter.native_px}, {options}"
        outcome = compared(said, request, file, source, 1 - request.mask)
        untouched = (1 - union).expand(3, -1, -1) > 0
        outcome.equal &= torch.equal(pictures.image_tensor(file)[untouched], before[untouched])
        yield outcome
        source = file


def outcomes(count: int, first: int = 0) -> Iterator[Outcome]:
    """``count`` random requests; what is drawn in a round depends on its number alone."""
    painter, done = tiny_painter(), 0
    while done < count:
        rng = random.Random(first)
        painter.native_px = rng.choice((None, 32, 64, 200))
        for outcome in (a_chain if first % 5 == 4 else a_batch)(rng, painter, count - done):
            done += 1
            yield outcome
        first += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first round, which seeds what is drawn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, equal, painted = time.monotonic(), 0, 0
    for number, outcome in enumerate(outcomes(args.requests, args.first), 1):
        equal, painted = equal + outcome.equal, painted + outcome.painted
        if not outcome.equal:
            print(f"{number}: CHANGED: {outcome.said}", flush=True)
        if number % 100 == 0:
            print(f"{number}: {equal} equal, {painted} painted, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{equal} of {args.requests} equal outside the mask, {painted} changed inside it")
    return 0 if equal == args.requests and painted > args.requests / 2 else 1


if __name__ == "__main__":
    sys.exit(main())
