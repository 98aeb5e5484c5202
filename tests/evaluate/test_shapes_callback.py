"""The curve of scores: written at validations that are due, by the oracle it keeps."""

from types import SimpleNamespace

import torch

from sb.evaluate import shapes_callback
from sb.evaluate.requests import make_cases
from sb.evaluate.shapes_callback import ShapesScore
from sb.masks import Ladder
from sb.types import Result

LADDER = Ladder([{"name": "outline"}, {"name": "box"}])


class Board:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, global_step):
        self.scalars.append((name, value, global_step))


class Yes:
    """An oracle that reads whatever was asked for."""

    def __init__(self, cases):
        self.cases = cases

    def read(self, images, masks):
        return SimpleNamespace(
            **{word: [getattr(c, word) for c in self.cases] for word in ("shape", "colour", "texture")},
            features=torch.randn(len(self.cases), 4),
        )


def test_scores_become_curves(tmp_path, monkeypatch):
    cases = make_cases(4, shapes_callback.CURVE_SEED, 32)
    truth = {c.seed: c.image for c in cases}
    painted = []

    def paint(requests):
        painted.append(len(requests))
        return [
            Result(torch.where(r.mask > 0, truth[r.seed], r.image), truth[r.seed], r.mask.float(), r.seed)
            for r in requests
        ]

    callback = ShapesScore(paint, LADDER, tmp_path, num_requests=4, every_images=100, size_px=32)
    monkeypatch.setattr(callback, "_oracle", lambda module: Yes(cases))
    board = Board()
    trainer = SimpleNamespace(is_global_zero=True, logger=SimpleNamespace(experiment=board))
    for images in (100, 150, 200):  # the second is not due
        callback.on_validation_epoch_end(trainer, SimpleNamespace(images_seen=images, device=torch.device("cpu")))
    assert painted == [4, 4] * 2
    assert {step for _, _, step in board.scalars} == {100, 200}
    assert dict((n, v) for n, v, _ in board.scalars)["shapes/outline/text"] == 1.0
    assert dict((n, v) for n, v, _ in board.scalars)["shapes/outline/iou"] > 0.9
