"""The oracle of the shapes world: a small network that names the shape, colour and texture of a painted object.

It learns on real objects, on empty places, on what is no object (noise, muted fills) and, where a VAE is at hand, on
that VAE's reconstructions, and it is refused when it cannot read real objects that it has not seen.

Legend: B crops, H W pixels, P side of a crop in the network, D feature width.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from sb.config import write_whole
from sb.data.shapes import SHAPE_NAMES, draw_scene, scene_seed
from sb.data.shapes_draw import COLOURS, TEXTURES

Reconstruct = Callable[[Tensor], Tensor]
WORDS = {"shape": SHAPE_NAMES, "colour": COLOURS, "texture": TEXTURES}  # the class after the last word is "none"
NONE = "none"
MIN_ACCURACY = 0.98
CROP_PX = 40  # P
CONTEXT = 1.15  # side of a crop over the longer side of the object's box


class Reading(NamedTuple):
    """What the oracle says of B crops: one word per head, and features (B, D)."""

    shape: list[str]
    colour: list[str]
    texture: list[str]
    features: Tensor


class Oracle(nn.Module):
    """Three linear heads on the features of four convolutions; ``accuracy`` holds what was measured after training."""

    def __init__(self, width: int = 16, features: int = 64):
        super().__init__()
        self.accuracy: dict[str, float] = {}
        blocks: list[nn.Module] = []
        for inputs, outputs, kernel, stride in (
            (3, width, 5, 2), (width, 2 * width, 3, 2), (2 * width, 2 * width, 3, 1), (2 * width, 4 * width, 3, 2),
        ):
            blocks += [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs),
                       nn.ReLU()]
        self.body = nn.Sequential(
            *blocks, nn.Flatten(), nn.Linear(4 * width * (CROP_PX // 8) ** 2, features),
            nn.BatchNorm1d(features, affine=False),  # features of unit variance: their distances have a scale
        )
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(words) + 1) for name, words in WORDS.items()})

    def forward(self, crops: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Crops (B, 3, P, P) float in [-1, 1] -> logits of each head, features (B, D)."""
        features = self.body(crops)
        return {name: head(F.relu(features)) for name, head in self.heads.items()}, features

    @torch.no_grad()
    def read(self, images: Tensor, masks: Tensor) -> Reading:
        """What images (B, 3, H, W) uint8 show in the boxes of masks (B, 1, H, W): words and features."""
        self.eval()
        words: dict[str, list[str]] = {name: [] for name in WORDS}
        features = []
        for some, where in zip(images.split(256), masks.split(256), strict=True):
            logits, found = self(crop(some, boxes_of(where) * torch.tensor([1, 1, CONTEXT])))
            features.append(found)
            for name, values in logits.items():
                words[name] += [(*WORDS[name], NONE)[i] for i in values.argmax(1).tolist()]
        return Reading(**words, features=torch.cat(features))

    def save(self, path: str | Path) -> None:
        """Write weights and measured accuracy as one safetensors file."""
        note = {"accuracy": json.dumps(self.accuracy)}
        write_whole(path, save({k: v.contiguous() for k, v in self.state_dict().items()}, metadata=note))

    @classmethod
    def load(cls, path: str | Path) -> "Oracle":
        """Read what ``save`` wrote; ValueError where the file is something else, or its oracle below 98 %."""
        oracle = cls()
        try:
            with safe_open(str(path), framework="pt") as file:
                oracle.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
                oracle.accuracy = json.loads((file.metadata() or {}).get("accuracy", "{}"))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not an oracle file: {str(error).splitlines()[0]}") from None
        oracle.check(str(path))
        return oracle.eval()

    def check(self, name: str) -> None:
        """Raise ValueError where too few real objects were read rightly, or nobody measured it."""
        real = self.accuracy.get("real", 0.0)
        if not real >= MIN_ACCURACY:
            raise ValueError(
                f"{name} reads shape and colour of {real:.1%} of real objects, below {MIN_ACCURACY:.0%}: its answers "
                "would not count; train another"
            )


def boxes_of(masks: Tensor) -> Tensor:
    """The boxes of masks (B, 1, H, W) as (B, 3) float: centre x, centre y, longer side, in px."""
    ends = []
    for dim in (2, 3):  # columns first, then rows
        marked = masks.amax(dim=dim)[:, 0] > 0
        first = marked.int().argmax(1)
        last = marked.shape[1] - marked.flip(1).int().argmax(1)
        ends.append((first, last))
    (left, right), (top, bottom) = ends
    side = torch.maximum(right - left, bottom - top)
    return torch.stack([(left + right) / 2, (top + bottom) / 2, side.float()], 1)


def crop(images: Tensor, squares: Tensor) -> Tensor:
    """Squares (B, 3) (centre x y, side, px) of images (B, 3, H, W) uint8 -> (B, 3, P, P) float in [-1, 1]."""
    height, width = images.shape[-2:]
    steps = ((torch.arange(CROP_PX) + 0.5) / CROP_PX - 0.5)[None, :] * squares[:, 2:]  # (B, P) px
    x = (steps + squares[:, :1]) * (2 / width) - 1
    y = (steps + squares[:, 1:2]) * (2 / height) - 1
    grid = torch.stack([x[:, None, :].expand(-1, CROP_PX, -1), y[:, :, None].expand(-1, -1, CROP_PX)], -1)
    pixels = images.float() / 127.5 - 1
    cut = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.contiguous(memory_format=torch.channels_last)


def train_oracle(
    reconstruct: Reconstruct | None = None, *, size_px: int = 64, seed: int = 0, num_scenes: int = 3200,
    steps: int = 1200, batch: int = 64, num_held_out: int = 500,
) -> Oracle:
    """Draw scenes, train on their objects and on what is no object; ValueError below 98 % on held-out real objects.

    reconstruct: images (B, 3, H, W) uint8 through a VAE and back. seed fixes scenes, weights and order.
    """
    images, squares, labels = _examples(range(num_scenes), size_px, seed, reconstruct, tqdm_text="oracle: scenes")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        oracle = Oracle().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=3e-3, weight_decay=0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    oracle.train()
    bar = tqdm(range(steps), desc="oracle: training", mininterval=1)
    for _ in bar:
        chosen = torch.randint(len(squares), (batch,), generator=generator)
        crops = _augmented(images, squares[chosen], generator)
        logits, _features = oracle(crops)
        losses = [F.cross_entropy(logits[name], labels[chosen, i]) for i, name in enumerate(WORDS)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    held_out = range(num_scenes, num_scenes + num_held_out)
    oracle.accuracy = _measure(oracle, held_out, size_px, seed, reconstruct)
    oracle.check(f"the oracle of {steps} steps")
    return oracle


def vae_round_trip(vae: nn.Module, batch: int = 64) -> Reconstruct:
    """Images (B, 3, H, W) uint8 encoded and decoded by a VAE, in uint8 again; ValueError for a size it cannot take."""
    device = next(vae.parameters()).device

    @torch.no_grad()
    def reconstruct(images: Tensor) -> Tensor:
        if images.shape[-1] % int(vae.factor):  # type: ignore[arg-type]
            raise ValueError(f"scenes of {images.shape[-1]} px do not fit this VAE: use a multiple of {vae.factor}")
        back = []
        for some in images.split(batch):
            picture = vae.picture(vae.latents(some.to(device).float() / 127.5 - 1))  # type: ignore[operator]
            back.append(((picture.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu())
        return torch.cat(back)

    return reconstruct


def _examples(
    indexes: range, size_px: int, seed: int, reconstruct: Reconstruct | None, tqdm_text: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 3, H, W) uint8, and examples: (image index, centre x y, side) (M, 4) and classes (M, 3)."""
    rng = np.random.default_rng([seed, len(indexes)])
    nothing = [len(words) for words in WORDS.values()]
    pictures: list[np.ndarray] = []
    squares, labels = [], []
    for index in tqdm(indexes, desc=tqdm_text, mininterval=1):
        scene = draw_scene(scene_seed("oracle", seed, index), size_px)
        outlines = torch.from_numpy(np.stack([thing.outline for thing in scene.objects]))[:, None]
        boxes = boxes_of(outlines).tolist()
        for thing, box in zip(scene.objects, boxes, strict=True):
            squares.append([len(pictures), *box])
            labels.append([SHAPE_NAMES.index(thing.shape), COLOURS.index(thing.colour), TEXTURES.index(thing.texture)])
        pictures.append(scene.image)
        squares.append([len(pictures), *boxes[-1]])
        labels.append(nothing)
        outline = scene.target.outline
        pictures.append(scene.background if index % 2 else _spoiled(scene.background, outline, boxes[-1], rng))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    if reconstruct is not None:  # every fourth scene, with and without its target
        chosen = torch.arange(len(images)) // 2 % 4 == 0
        images[chosen] = reconstruct(images[chosen])
    return images, torch.tensor(squares), torch.tensor(labels)


def _spoiled(background: np.ndarray, outline: np.ndarray, box: list[float], rng: np.random.Generator) -> np.ndarray:
    """The scene with something in the object's place that is no object: a muted fill, fine or coarse noise."""
    where = outline[..., None].astype(bool)
    if rng.random() < 0.5:
        y, x = np.mgrid[: outline.shape[0], : outline.shape[1]] + 0.5
        where = (np.maximum(abs(x - box[0]), abs(y - box[1])) < box[2] / 2)[..., None]
    size = outline.shape[0]
    if rng.random() < 0.33:
        fill = np.clip(rng.integers(256) + rng.integers(-9, 10, 3), 0, 255).astype(np.uint8)
    else:
        grain = 2 ** int(rng.integers(3))  # px
        cells = -(-size // grain)
        noise = rng.normal(128, rng.uniform(30, 90), (cells, cells, 3))
        fill = np.clip(noise, 0, 255).astype(np.uint8).repeat(grain, 0).repeat(grain, 1)[:size, :size]
    return np.where(where, fill, background)


def _augmented(images: Tensor, squares: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of varied scale and place, with some noise."""
    jitter = torch.rand(len(squares), 4, generator=generator)
    side = squares[:, 3:]
    middle = squares[:, 1:3] + (jitter[:, :2] - 0.5) * 0.16 * side
    crops = crop(images[squares[:, 0].long()], torch.cat([middle, side * (1 + 0.4 * jitter[:, 2:3])], 1))
    noise = torch.randn(crops.shape, generator=generator)
    return crops + noise * (0.08 * jitter[:, 3]).view(-1, 1, 1, 1)


@torch.no_grad()
def _measure(
    oracle: Oracle, indexes: range, size_px: int, seed: int, reconstruct: Reconstruct | None
) -> dict[str, float]:
    """Shares read rightly on unseen scenes: real (shape and colour), texture, empty, and on reconstructions."""
    scenes = [draw_scene(scene_seed("oracle", seed, index), size_px) for index in indexes]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    empty = torch.from_numpy(np.stack([s.background for s in scenes])).permute(0, 3, 1, 2)
    outlines = torch.from_numpy(np.stack([s.target.outline for s in scenes]))[:, None]
    targets = [scene.target for scene in scenes]

    def share(read: Reading) -> float:
        right = [t.shape == s and t.colour == c for t, s, c in zip(targets, read.shape, read.colour, strict=True)]
        return sum(right) / len(right)

    real = oracle.read(images, outlines)
    texture = sum(t.texture == word for t, word in zip(targets, real.texture, strict=True)) / len(targets)
    nothing = oracle.read(empty, outlines).shape.count(NONE) / len(targets)
    found = {"real": share(real), "texture": texture, "empty": nothing}
    if reconstruct is not None:
        found["reconstructed"] = share(oracle.read(reconstruct(images), outlines))
    return found
