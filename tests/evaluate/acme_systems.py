"""A team's plugin: a system that paints flat colours, with the time it is told to take, and metrics of next to nothing.

Every chunk that is painted is told in ``diary``, a line of the numbers each.
"""

import time
from pathlib import Path

import torch

from sb.registry import register
from sb.types import Result


class Flat:
    """Paints a colour of the seed and the words into the mask."""

    name, num_levels, varies = "acme_flat", 10, True

    def __init__(self, system, options=None):
        self.options = {"seconds": 0.0, "diary": "", **(options or {})}

    def describe(self):
        return {"name": self.name, "system": "flat", "images_seen": 640}

    def paint(self, requests, numbers):
        time.sleep(self.options["seconds"])
        if self.options["diary"]:
            with Path(self.options["diary"]).open("a") as file:
                file.write(f"{' '.join(map(str, numbers))}\n")
        return [self._result(request.check(self.num_levels)) for request in requests]

    @staticmethod
    def _result(request):
        draw = torch.Generator().manual_seed(request.seed + len(request.text))
        colour = torch.randint(0, 256, (3, 1, 1), dtype=torch.uint8, generator=draw)
        pixels = torch.where(request.mask > 0, colour, request.image)
        return Result(pixels, pixels, None, request.seed)


class Brightness:
    """How bright the painted pixels are, which says nothing. And a second sentence."""

    def __init__(self, blind=""):
        self.blind = blind  # no value for cases of this label

    def __call__(self, paintings):
        shown = [p.pixels[:, p.mask[0] > 0].double().mean() for p in paintings]
        known = [p.case.label != self.blind for p in paintings]
        return {"brightness": torch.where(torch.tensor(known), torch.stack(shown), float("nan")),
                "level_told": torch.tensor([p.case.level for p in paintings])}


class Gap:
    """Distance of the mean colours of all results and all real pictures."""

    def features(self, paintings):
        return {part: torch.stack([getattr(p, name).float().mean((1, 2)) for p in paintings])
                for part, name in (("fake", "pixels"), ("real", "real"))}

    def pooled(self, fake, real):
        return {"gap": float((fake.mean(0) - real.mean(0)).norm())}


def enter():
    """Make the names known, again where a test has cleared them away."""
    register("adapter", "acme_flat")(Flat)
    register("metric", "acme_brightness")(Brightness)
    register("metric", "acme_gap")(Gap)


enter()
