"""A tiny world for tests of composites: cut-outs of two classes and photos of both splits, written to a folder."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sb.data.schema import Record
from sb.data.write import build_shards

COLOURS = {"plum": (130, 20, 160), "lime": (120, 220, 40)}


class Photos:
    """Pictures of noise around a grey, one of them for each number."""

    def __init__(self, numbers, split):
        self.numbers, self.split = list(numbers), split

    def __len__(self):
        return len(self.numbers)

    def record(self, index):
        number = self.numbers[index]
        pixels = np.random.default_rng(number).integers(90, 140, (48, 60, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="PNG")
        origin = {"dataset": "made", "image_id": str(number), "split": self.split, "licence": "ours", "url": "x"}
        return Record(f"made-{self.split}-{number}", file.getvalue(), "png", 60, 48, [], f"noise {number}.",
                      [f"noise {number}."], origin)

    def describe(self):
        return {"name": "photos", "split": self.split, "numbers": self.numbers}


def write_photos(out: Path, numbers, split: str = "train") -> str:
    """Photos of these numbers as shards."""
    build_shards(Photos(numbers, split), out)
    return str(out)


def write_cutouts(out: Path, per_class: int = 3, source: str = "a studio") -> Path:
    """Discs and their list: ``per_class`` of each class and split; limes are called ``citrus lime`` by their coarse
    name, plums ``plum dark``."""
    entries = []
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            for number in range(per_class):
                file, size = f"{split}/{name}_{number}.png", (24 + 4 * number, 24)
                picture = Image.new("RGBA", size)
                shade = tuple(min(255, value + 12 * number + 6 * (split == "val")) for value in colour)
                ImageDraw.Draw(picture).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=(*shade, 255))
                (out / split).mkdir(parents=True, exist_ok=True)
                picture.save(out / file)
                coarse = "plum dark" if name == "plum" else "citrus"
                entries.append({"file": file, "category": name, "coarse": coarse, "split": split, "licence": "CC0",
                                "source": source, "width": size[0]})
    (out / "cutouts.json").write_text(json.dumps(entries))
    return out
