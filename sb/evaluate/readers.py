"""Readers: what names the object in a box of a picture, each from a file that the user names.

Legend: B pictures, H W pixels, P side a network looks at. Boxes (B, 4): left, top, width, height in px.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from sb.config import nearest
from sb.data.write import fingerprint_of
from sb.evaluate.crops import crop_box
from sb.evaluate.features import BATCH, Standardised, torchvision_classifier
from sb.evaluate.oracle import CONTEXT, NONE, WORDS, Oracle, crop
from sb.models.weights import load_state, no_init, read_state
from sb.registry import register

MIN_IOU = 0.3  # of a detection with the box it is to be in


@dataclass
class Reader:
    """``read``: pictures (B, 3, H, W) uint8 and boxes -> one label each, or "none"."""

    name: str
    read: Callable[[Tensor, Tensor], list[str]]
    weights: str
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Name, settings and the digest of the weights' file, as JSON holds them."""
        with open(self.weights, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"name": self.name, **self.settings, "sha256": sha256}


@register("reader", "oracle")
def oracle(weights: str) -> Reader:
    """The shape that the shapes world's oracle sees."""
    network = Oracle.load(weights)

    @torch.no_grad()
    def read(images: Tensor, boxes: Tensor) -> list[str]:
        left, top, width, height = boxes.float().unbind(1)
        squares = torch.stack([left + width / 2, top + height / 2, CONTEXT * torch.maximum(width, height)], 1)
        logits, _ = network(crop(images, squares))
        return [(*WORDS["shape"], NONE)[i] for i in logits["shape"].argmax(1).tolist()]

    return Reader("oracle", read, weights)


@register("reader", "classifier")
def classifier(weights: str) -> Reader:
    """A classifier of ours, trained on cut-outs."""
    from sb.evaluate.classifier import Classifier

    return Reader("classifier", Classifier.load(weights).read, weights)


@register("reader", "torchvision")
def torchvision_reader(
    model: str, weights: str, classes: str, size_px: int = 224, context: float = CONTEXT, device: str = "cpu"
) -> Reader:
    """The most probable class of the box's crop, by a torchvision classifier.

    classes: a text file, the name of class i in line i, as many as the weights have.
    """
    labels = _labels(classes)
    network, head = torchvision_classifier(model, weights)
    count = network.get_submodule(head).out_features
    if count != len(labels):
        raise ValueError(f"{classes} names {len(labels)} classes and {weights} has {count}")
    look = Standardised(network, size_px).requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def read(images: Tensor, boxes: Tensor) -> list[str]:
        pairs = zip(images, boxes.tolist(), strict=True)
        crops = torch.stack([crop_box(image, box, size_px, context) for image, box in pairs])
        best = torch.cat([look(some.to(device)).argmax(1) for some in crops.split(BATCH)])
        return [labels[i] for i in best.tolist()]

    return Reader("torchvision", read, weights, {
        "model": model, "size_px": size_px, "context": context, "classes": fingerprint_of(labels),
    })


@register("reader", "detector")
def detector(model: str, weights: str, classes: str, min_score: float = 0.3, device: str = "cpu") -> Reader:
    """The label of the detection with the highest score times IoU with the box, by a torchvision detection model.

    "none" where nothing scores ``min_score`` and overlaps the box by an IoU of 0.3. classes: as for the classifier;
    torchvision's models count the background as class 0.
    """
    labels = _labels(classes)
    network = _detection_model(model, weights, len(labels)).requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def read(images: Tensor, boxes: Tensor) -> list[str]:
        found = []
        for image, (left, top, width, height) in zip(images, boxes.tolist(), strict=True):
            seen = network([image.to(device).float() / 255])[0]
            asked = torch.tensor([[left, top, left + width, top + height]], device=device, dtype=torch.float32)
            overlap = box_iou(seen["boxes"], asked)[:, 0]
            merit = seen["scores"] * overlap * ((seen["scores"] >= min_score) & (overlap >= MIN_IOU))
            best = int(merit.argmax()) if len(merit) else 0
            found.append(labels[int(seen["labels"][best])] if len(merit) and float(merit[best]) > 0 else NONE)
        return found

    return Reader("detector", read, weights, {
        "model": model, "min_score": min_score, "min_iou": MIN_IOU, "classes": fingerprint_of(labels),
    })


def _detection_model(model: str, weights: str, num_classes: int) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models.detection)
    if model not in known:
        raise ValueError(f"torchvision has no detection model '{model}'; {nearest(model, known)}")
    with no_init():
        network = torchvision.models.get_model(model, weights=None, weights_backbone=None, num_classes=num_classes)
    load_state(network, read_state(weights), weights)
    return network


def _labels(path: str) -> list[str]:
    if not Path(path).is_file():
        raise ValueError(f"no file of class names at {path}")
    return Path(path).read_text().splitlines()
