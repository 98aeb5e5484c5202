"""The shapes metrics: an ideal painter gets about 1, and whatever paints no object fails."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sb.denoising import PaintOptions
from sb.evaluate.compare import compare
from sb.evaluate.oracle import CONTEXT, Oracle, boxes_of, crop, train_oracle, vae_round_trip
from sb.evaluate.requests import ShapesCase, make_cases, masks_at
from sb.evaluate.shapes import evaluate_model, evaluate_shapes
from sb.evaluate.shapes_metrics import decibel, iou, object_of
from sb.masks import Ladder
from sb.models.tiny_vae import TinyVAE
from sb.types import Request, Result

LADDER = Ladder(
    [{"name": "outline"}] + [{"name": "blur", "sigma": s} for s in (0.04, 0.08, 0.14, 0.22)] + [{"name": "box"}]
)
NUM = 48
Picture = Callable[[ShapesCase, Request], Tensor]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return train_oracle(num_scenes=1000, steps=450, batch=48, num_held_out=150)


def painter(picture: Picture, predicted: bool = True) -> Callable[..., list[Result]]:
    """A painter that knows the true scenes: pastes ``picture`` inside the mask."""
    by_seed = {case.seed: case for case in make_cases(NUM)}

    def paint(requests: list[Request], use_predicted: bool = True) -> list[Result]:
        results = []
        for request in requests:
            case = by_seed[request.seed]
            assert torch.equal(request.image, case.background) and request.text == case.text
            full = picture(case, request)
            pixels = torch.where(request.mask > 0, full, request.image)
            head = (case.outline & request.mask).float() if predicted else None
            results.append(Result(pixels, full, head, request.seed))
        return results

    return paint


def measured(picture: Picture, oracle: Oracle, **options: Any) -> dict[str, Any]:
    return evaluate_shapes(painter(picture), LADDER, oracle, num_requests=NUM, batch=20, **options)


def test_an_ideal_painter_is_ideal(oracle: Oracle, tmp_path: Path) -> None:
    found = measured(lambda case, request: case.image, oracle, out_dir=tmp_path, images_seen=5, seconds={"train": 1.5})
    for key in ("text_outline", "text_box", "colour_box"):
        assert found[key] >= 0.93, key
    assert found["texture_outline"] >= oracle.accuracy["texture"] - 0.05  # what it reads on real objects
    assert found["iou_outline"] > 0.98 and found["mask_iou"] > 0.97 and found["no_object_outline"] <= 0.02
    assert found["background_db_box"] == 60 and found["outside_equal"] == f"{NUM} of {NUM}"
    assert found["local_fd"] == pytest.approx(0, abs=0.02)
    assert json.loads((tmp_path / "metrics.json").read_text())["occupancy"] == found["occupancy"]
    each = json.loads((tmp_path / "per_request.json").read_text())
    assert each["texts"][3] == make_cases(NUM)[3].text and len(each["seeds"]) == NUM
    for key in ("text_outline", "iou_outline", "no_object_box", "mask_iou"):
        assert sum(each["metrics"][key]) / NUM == pytest.approx(found[key], abs=1e-4)
    both = zip(each["metrics"]["text_box"], each["metrics"]["texture_box"], strict=True)
    assert each["metrics"]["all_three_box"] == [text * texture for text, texture in both]
    errors = each["metrics"]["background_mse_box"]
    assert set(errors) == {0, None} and errors.count(None) < NUM / 5  # None: the object fills its box
    assert [(row.difference, row.low, row.high) for row in compare(tmp_path, tmp_path)] == [(0, 0, 0)] * 24
    assert found["seconds"]["train"] == 1.5 and found["images_seen"] == 5
    report = (tmp_path / "report.md").read_text()
    assert "text_outline" in report and "| 0 | 1 | 2 | 3 |" in report
    assert (tmp_path / "contact_sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["nothing", "grey", "white", "noise", "red"])
def test_what_paints_no_object_fails(oracle: Oracle, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    fills = {"grey": (120, 120, 120), "white": (255, 255, 255), "red": (242, 50, 43)}

    def picture(case: ShapesCase, request: Request) -> Tensor:
        if name == "nothing":
            return case.background
        if name == "noise":
            return torch.randint(0, 256, case.image.shape, generator=generator, dtype=torch.uint8)
        return torch.tensor(fills[name], dtype=torch.uint8).view(3, 1, 1).expand_as(case.image)

    found = measured(picture, oracle)
    assert found["text_outline"] < 0.35 and found["text_box"] < 0.15
    if name == "red":  # a flat colour fills its mask: the right hue by chance, and no background left
        assert found["colour_box"] < 0.35 and found["occupancy_box"] > 0.95
        assert found["occupancy"]["0"] == found["occupancy"]["3"]
    else:
        assert found["no_object_outline"] > 0.9 and found["iou_outline"] < 0.5


def test_a_painter_that_spoils_the_box_is_seen(oracle: Oracle) -> None:
    def picture(case: ShapesCase, request: Request) -> Tensor:
        off = torch.where(case.image == case.background, (case.image.int() + 12).clamp(max=255), case.image.int())
        return off.to(torch.uint8)

    found = measured(picture, oracle)
    assert found["background_db_box"] < 30 and found["text_box"] > 0.9


def test_a_touched_pixel_outside_is_counted(oracle: Oracle) -> None:
    inner = painter(lambda case, request: case.image)

    def paint(requests: list[Request], use_predicted: bool = True) -> list[Result]:
        results = inner(requests)
        if not use_predicted:
            place = (requests[0].mask[0] == 0).nonzero()[0]
            results[0].pixels[0, place[0], place[1]] += 1
        return results

    found = evaluate_shapes(paint, LADDER, oracle, num_requests=8, batch=4)
    assert found["outside_equal"] == "6 of 8" and found["outside_equal_count"] == 6


def test_occupancy_follows_the_declared_level(oracle: Oracle) -> None:
    def picture(case: ShapesCase, request: Request) -> Tensor:
        colour = torch.tensor([242, 50, 43], dtype=torch.uint8).view(3, 1, 1)
        free = request.level  # rows of every four
        rows = torch.arange(case.image.shape[1]).view(-1, 1) % 4 >= free
        return torch.where(rows, colour, case.background)

    occupancy = measured(picture, oracle)["occupancy"]
    assert list(occupancy) == ["0", "1", "2", "3"]
    assert occupancy["0"] > 0.95 and occupancy["0"] - occupancy["3"] > 0.6


def test_a_model_without_a_head_has_no_mask_iou(oracle: Oracle) -> None:
    paint = painter(lambda case, request: case.image, predicted=False)
    assert evaluate_shapes(paint, LADDER, oracle, num_requests=8, batch=8)["mask_iou"] is None


def test_the_segmentation_finds_real_objects() -> None:
    cases = make_cases(128, seed=5)
    images, backgrounds = (torch.stack([getattr(c, name) for c in cases]) for name in ("image", "background"))
    outlines = torch.stack([case.outline for case in cases])
    found = iou(object_of(images, backgrounds, masks_at(cases, LADDER, 5)), outlines)
    assert found.mean() > 0.98 and found.min() > 0.9
    assert not object_of(backgrounds, backgrounds, torch.ones_like(outlines)).any()


def test_an_untrained_oracle_is_refused() -> None:
    with pytest.raises(ValueError, match="below 98%"):
        train_oracle(num_scenes=20, steps=2, batch=8, num_held_out=20)


def test_an_oracle_keeps_its_answers_in_a_file(oracle: Oracle, tmp_path: Path) -> None:
    oracle.save(tmp_path / "oracle.safetensors")
    again = Oracle.load(tmp_path / "oracle.safetensors")
    cases = make_cases(4)
    images, masks = torch.stack([c.image for c in cases]), torch.stack([c.outline for c in cases])
    assert torch.equal(again.read(images, masks).features, oracle.read(images, masks).features)
    assert again.accuracy == oracle.accuracy
    again.accuracy = {"real": 0.97}
    again.save(tmp_path / "poor.safetensors")
    with pytest.raises(ValueError, match="poor.safetensors reads shape and colour of 97.0% .*, below 98%"):
        Oracle.load(tmp_path / "poor.safetensors")
    again.accuracy = {}
    again.save(tmp_path / "unknown.safetensors")
    with pytest.raises(ValueError, match="below 98%"):
        Oracle.load(tmp_path / "unknown.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match="not an oracle file"):
        Oracle.load(tmp_path / "bad.safetensors")


def test_crops_keep_their_place() -> None:
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    mask[:, :, 10:30, 20:50] = 1
    assert boxes_of(mask).tolist() == [[35.0, 20.0, 30.0]]
    image = mask.expand(-1, 3, -1, -1) * 255
    filled = (crop(image, boxes_of(mask) * torch.tensor([1, 1, CONTEXT])) > 0).float().mean()
    assert float(filled) == pytest.approx(20 * 30 / (30 * CONTEXT) ** 2, abs=0.03)


def test_numbers_that_are_known() -> None:
    assert decibel(0, 10) == 60 and decibel(0, 0) == 60
    assert decibel(255.0**2 * 3, 3) == pytest.approx(0) and decibel(65.025 * 5, 5) == pytest.approx(30)


def test_a_kill_in_the_report_leaves_nothing_that_counts(
    oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, metrics: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sb.evaluate.shapes.write_report", killed)
    paint = painter(lambda case, request: case.image)
    with pytest.raises(KeyboardInterrupt):
        evaluate_shapes(paint, LADDER, oracle, num_requests=2, batch=2, out_dir=tmp_path, sheet_rows=1)
    assert not (tmp_path / "metrics.json").exists()


def test_one_request_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 requests"):
        evaluate_model("nowhere", tmp_path, num_requests=1)
    with pytest.raises(ValueError, match="at least 2 requests"):
        make_cases(1)


@pytest.mark.parametrize("about, asked, size", [({"image_size": 48}, None, 48), ({}, None, 64), ({}, 32, 32)])
def test_scenes_have_the_size_of_the_model_and_are_painted_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, int], asked: int | None, size: int
) -> None:
    sizes, told = [], []
    model = SimpleNamespace(about=about, ladder=LADDER, paint=None, options=PaintOptions(guidance=2.5))
    monkeypatch.setattr("sb.evaluate.shapes.Inpainter", SimpleNamespace(load=lambda *_: model))
    monkeypatch.setattr("sb.evaluate.shapes.Oracle", SimpleNamespace(load=lambda *_: None))

    def evaluated(*args: Any, inpaint: dict[str, Any]) -> None:
        sizes.append(args[7])
        told.append(inpaint)

    monkeypatch.setattr("sb.evaluate.shapes.evaluate_shapes", evaluated)
    evaluate_model("any", tmp_path, size_px=asked, oracle_file="any", options={"steps": 3})
    assert sizes == [size] and told == [vars(PaintOptions(guidance=2.5, steps=3))] == [vars(model.options)]
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        evaluate_model("any", tmp_path, oracle_file="any", options={"step": 3})


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds"):
        evaluate_model("nowhere", tmp_path)


def test_scenes_that_do_not_fit_the_vae_are_one_line():
    vae = TinyVAE(stages=2, widths=8, blocks=1)
    with pytest.raises(ValueError, match="scenes of 50 px do not fit this VAE: use a multiple of 4"):
        vae_round_trip(vae)(torch.zeros(1, 3, 50, 50, dtype=torch.uint8))
