"""A small classifier of cut-outs: it names what is painted in a box, or says that nothing of its classes is there.

It learns from composites (sb.data.composites): the picture with the object, the same place of the true background,
and the outline filled with what is no object. How much of unseen cut-outs on unseen photos it names rightly is measured
and written into its file, for that is what its answers are worth.

Legend: B pictures, H W pixels, P side of a crop in the network, D feature width, K classes, N examples.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.ops import roi_align
from tqdm import tqdm

from sb.config import write_whole
from sb.data.decode import decode_mask
from sb.data.schema import IMAGE_EXTENSIONS, TRUTH
from sb.data.verify import read_samples
from sb.evaluate.oracle import NONE

CROP_PX = 40  # P
CONTEXT = 1.2  # side of a crop over the longer side of its box
KIND = "sb classifier"


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation beside a 1x1 one; halves the sides with ``stride`` 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )
        self.side = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h / stride, w / stride)."""
        return F.relu(self.main(x) + self.side(x))


class Classifier(nn.Module):
    """A residual network on crops; ``accuracy`` holds what was measured on unseen cut-outs on unseen photos."""

    def __init__(self, classes: Sequence[str], width: int = 24):
        super().__init__()
        self.classes, self.width, self.accuracy = list(classes), width, dict[str, float]()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, len(self.classes) + 1)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops (B, 3, P, P) float in [-1, 1] -> logits (B, K + 1), the last that of ``none``."""
        return self.head(self.body(crops))  # type: ignore[no-any-return]

    @torch.no_grad()
    def read(self, images: Tensor, boxes: Tensor) -> list[str]:
        """The class of what images (B, 3, H, W) uint8 show in their boxes (B, 4) x y w h px, or ``none``."""
        self.eval()
        words: list[str] = []
        for some, where in zip(images.split(256), boxes.split(256), strict=True):
            crops = crop(some, where)
            logits = self(crops).softmax(1) + self(crops.flip(3)).softmax(1)
            words += [[*self.classes, NONE][index] for index in logits.argmax(1).tolist()]
        return words

    def save(self, path: str | Path) -> None:
        """Write weights, classes and measured accuracy as one safetensors file."""
        note = {"kind": KIND, "classes": json.dumps(self.classes), "width": str(self.width),
                "accuracy": json.dumps(self.accuracy)}
        write_whole(path, save({k: v.contiguous() for k, v in self.state_dict().items()}, metadata=note))

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Read what ``save`` wrote; ValueError where the file is something else, FileNotFoundError where it is not."""
        try:
            with safe_open(str(path), framework="pt") as file:
                note = file.metadata() or {}
                if note.get("kind") != KIND:
                    raise ValueError("its metadata does not say so")
                classifier = cls(json.loads(note["classes"]), int(note["width"]))
                classifier.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
                classifier.accuracy = json.loads(note["accuracy"])
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not a classifier file: {str(error).splitlines()[0]}") from None
        return classifier.eval()


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Squares around boxes (B, 4) x y w h px of images (B, 3, H, W) uint8: (B, 3, P, P) float in [-1, 1], 0 outside."""
    corner, sides = boxes[:, :2].float(), boxes[:, 2:].float()
    middle, half = corner + sides / 2, sides.amax(1, keepdim=True) * (CONTEXT / 2)
    numbers = torch.arange(len(images), device=images.device)[:, None]
    squares = torch.cat([numbers, middle - half, middle + half], 1)
    cut = roi_align(images.float() / 127.5 - 1, squares, CROP_PX, aligned=True)
    return cut.contiguous(memory_format=torch.channels_last)


class Examples:
    """The composites of a shard set: pictures and their backgrounds (N, 3, H, W) uint8, outlines (N, 1, H, W), boxes
    (N, 4) x y w h and labels. ValueError where a sample has no true background or is of another size."""

    def __init__(self, shards: str | Sequence[str]):
        pictures, backgrounds, outlines, boxes = [], [], [], []
        self.labels: list[str] = []
        for key, members in read_samples(shards):
            body = json.loads(members["json"])
            if TRUTH not in members or len(body["instances"]) != 1:
                raise ValueError(f"{shards} {key} has no true background or not one object: composites are needed "
                                 "(tools/build_shards.py --source composites)")
            thing, size = body["instances"][0], (body["width"], body["height"])
            pictures.append(_pixels(next(members[name] for name in IMAGE_EXTENSIONS if name in members)))
            backgrounds.append(_pixels(members[TRUTH]))
            outlines.append(decode_mask(thing["mask"], *size)[None])
            boxes.append(thing["box"])
            self.labels.append(thing["label"])
            if pictures[-1].shape != pictures[0].shape:
                raise ValueError(f"{shards} {key} is of another size than the first: {size}")
        self.pictures, self.backgrounds = (torch.from_numpy(np.stack(some)) for some in (pictures, backgrounds))
        self.outlines, self.boxes = torch.from_numpy(np.stack(outlines)), torch.tensor(boxes)


def train_classifier(
    train: str | Sequence[str], val: str | Sequence[str], *, seed: int = 0, steps: int = 1500, batch: int = 64,
) -> Classifier:
    """Learn the labels of composite shards, measure on those of ``val``; seed fixes weights, order and augmentation.

    Raises ValueError where val holds a label that train lacks.
    """
    examples, unseen = Examples(train), Examples(val)
    classes = sorted(set(examples.labels))
    strange = sorted(set(unseen.labels) - set(classes))
    if strange:
        raise ValueError(f"{val} shows {', '.join(strange)}, which {train} does not")
    targets = torch.tensor([classes.index(label) for label in examples.labels])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    classifier.train()
    for _ in tqdm(range(steps), desc="classifier", unit=" steps", mininterval=1):
        chosen = torch.randint(len(targets), (batch,), generator=generator)
        empty = torch.arange(batch) % 4 == 0
        images = torch.where(empty[:, None, None, None], examples.backgrounds[chosen], examples.pictures[chosen])
        spoil = empty & (torch.rand(batch, generator=generator) < 0.2)
        images[spoil] = _spoiled(images[spoil], examples.outlines[chosen[spoil]], generator)
        logits = classifier(_augmented(images, examples.boxes[chosen], generator))
        wanted = torch.where(empty, len(classes), targets[chosen])
        loss = F.cross_entropy(logits, wanted, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    classifier.accuracy = measure(classifier, unseen)
    return classifier


def measure(classifier: Classifier, examples: Examples) -> dict[str, float]:
    """Shares named rightly: ``object`` (over all), ``none`` on the true backgrounds, each class by its name, and n."""
    right = [a == b for a, b in zip(classifier.read(examples.pictures, examples.boxes), examples.labels, strict=True)]
    empty = classifier.read(examples.backgrounds, examples.boxes)
    found = {"object": sum(right) / len(right), NONE: empty.count(NONE) / len(empty), "n": float(len(right))}
    for label in sorted(set(examples.labels)):
        own = [is_right for is_right, name in zip(right, examples.labels, strict=True) if name == label]
        found[f"object/{label}"] = sum(own) / len(own)
    return found


def _pixels(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as picture:
        return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)


def _spoiled(images: Tensor, outlines: Tensor, generator: torch.Generator) -> Tensor:
    """Images whose outline is filled with one colour and noise of any strength: a shape, but no object."""
    draws = torch.rand(2, len(images), 4, 1, 1, generator=generator) * 255
    noise = torch.randn(images.shape, generator=generator) * draws[1, :, :1] / 2 * (draws[1, :, 1:2] > 127)
    fill = (draws[0, :, :3] + noise).clamp(0, 255).to(torch.uint8)
    return torch.where(outlines.bool(), fill, images)


def _augmented(images: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Crops of varied place, scale, side, light, colour, sharpness and noise."""
    draws = torch.rand(len(images), 11, generator=generator)
    sides = boxes[:, 2:] * (0.9 + 0.35 * draws[:, :1])
    middle = boxes[:, :2] + boxes[:, 2:] / 2 + (draws[:, 1:3] - 0.5) * 0.2 * boxes[:, 2:]
    crops = crop(images, torch.cat([middle - sides / 2, sides], 1))
    crops = torch.where(draws[:, 3].view(-1, 1, 1, 1) < 0.5, crops.flip(3), crops)
    soft = F.interpolate(F.avg_pool2d(crops, 3), CROP_PX, mode="bilinear")
    crops = torch.lerp(crops, soft, (draws[:, 4] * 1.5 - 0.5).clamp(0, 1).view(-1, 1, 1, 1))
    crops = torch.lerp(crops.mean(1, keepdim=True), crops, (draws[:, 10] * 2).clamp(max=1).view(-1, 1, 1, 1))
    gain = 0.7 + 0.7 * draws[:, 5].view(-1, 1, 1, 1) + 0.5 * (draws[:, 6:9].view(-1, 3, 1, 1) - 0.5)
    noise = torch.randn(crops.shape, generator=generator) * (0.1 * draws[:, 9]).view(-1, 1, 1, 1)
    return ((crops + 1) * gain - 1 + noise).contiguous(memory_format=torch.channels_last)
