"""Ways of painting: what each changes, and that the measures of a known painter are known."""

import copy
from types import SimpleNamespace

import pytest
import torch

from sb.conditioning import SmartBrushConditioning
from sb.denoising import PaintOptions
from sb.evaluate import ways
from sb.evaluate.oracle import Oracle
from sb.evaluate.requests import make_cases
from sb.evaluate.ways import Way, compare_on_photos, compare_ways, measure_removal
from sb.masks import Ladder
from sb.samplers import ddim, unipc
from sb.types import Request, Result

LADDER = Ladder([{"name": "outline"}, {"name": "blur", "sigma": 0.1}, {"name": "box"}], [1, 1, 1])


class Known:
    """Paints what ``answer(request, options)`` says, into the mask."""

    def __init__(self, answer):
        self.answer, self.ladder, self.options, self.sampler = answer, LADDER, PaintOptions(), unipc

    def paint(self, requests):
        results = []
        for request in requests:
            picture = self.answer(request, self.options)
            if picture.shape != request.image.shape:  # a scene's, somewhere in a large picture
                side, whole = request.image.shape[1], request.image.clone()
                place = torch.rand(2, generator=torch.Generator().manual_seed(request.seed)).tolist()
                y, x = (int(share * (side - 64)) for share in place)
                whole[:, y: y + 64, x: x + 64] = picture
                picture = whole
            pixels = torch.where(request.mask > 0, picture, request.image)
            results.append(Result(pixels, picture, request.mask.float(), request.seed))
        return results


@pytest.fixture(scope="module")
def cases():
    return make_cases(8)


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    return Oracle()


def truth_of(cases):
    by_seed = {case.seed: case for case in cases}

    def answer(request, options):
        case = by_seed[request.seed]
        return case.image if options.steps > 5 else case.background

    return answer


def test_a_way_changes_what_it_says_and_nothing_else():
    own, other = Known(None), Known(None)
    painter = Way.parse("less: steps=3 use_predicted=false sampler=ddim").painter(own, None)
    assert painter.options == PaintOptions(steps=3, use_predicted=False) and painter.sampler is ddim
    assert own.options == PaintOptions() and own.sampler is unipc
    own.conditioning = SmartBrushConditioning(16)
    full = Way.parse("full: encode=full").painter(own, None).conditioning
    assert (full.encode, full.mask_channels, own.conditioning.encode) == ("full", 16, "masked")
    assert Way.parse("default") == Way("default", {})
    assert Way.parse("student: model=b steps=4").painter(own, {"b": other}.get).options.steps == 4
    assert other.options == PaintOptions()


@pytest.mark.parametrize("text, says", [
    ("a: setps=3", "way 'a' has no key 'setps'; did you mean 'steps'"),
    ("a: steps", "option 'steps' must read key=value"),
    ("a: steps=2 steps=3", "option 'steps' is given twice"),
    ("steps=3", "needs a name in front"),
    (": steps=3", "needs a name in front"),
])
def test_an_unknown_way_is_one_line(text, says):
    with pytest.raises(ValueError, match=says):
        Way.parse(text)


@pytest.mark.parametrize("text, says", [
    ("a: steps=many", "way 'a': steps"), ("a: encode=full", "no 'encode'"),
])
def test_a_way_that_cannot_be_is_one_line(text, says):
    painter = Known(None)
    painter.conditioning = None
    with pytest.raises(ValueError, match=says):
        Way.parse(text).painter(painter, None)


@pytest.mark.parametrize("side", [32, "big"])
def test_a_picture_that_is_not_large_is_refused(cases, oracle, side):
    with pytest.raises(ValueError, match=f"large={side}"):
        compare_ways(Known(None), None, [Way("a", {"large": side})], cases, oracle)


def test_rows_of_a_painter_that_paints_the_truth_and_one_that_paints_nothing(cases, oracle):
    painter = Known(truth_of(cases))
    asked = [Way("truth", {}), Way("large", {"large": 200}), Way("nothing", {"steps": 2})]
    truth, large, nothing = compare_ways(painter, None, asked, cases, oracle, batch=3)
    assert truth["iou_outline"] > 0.85 and nothing["iou_outline"] == 0.0
    assert truth["loss_iou_outline"] == 0.0 and nothing["loss_iou_outline"] > truth["iou_outline"]
    assert nothing["background_db_box"] == 60 and nothing["seam_box"] == 1 and nothing["shift_box"] == 0
    assert truth["equal"] and nothing["equal"]
    measured = {key for key in truth if key not in ("way", "ms")}
    assert {key: large[key] for key in measured} == pytest.approx({key: truth[key] for key in measured})


def test_a_leak_in_a_large_picture_is_seen(cases, oracle):
    painter = Known(None)
    painter.paint = lambda requests: [Result(255 - r.image, r.image, r.mask.float(), r.seed) for r in requests]
    with pytest.raises(ValueError, match="pixels outside the mask changed"):
        compare_ways(painter, None, [Way("leak", {"large": 128})], cases, oracle)


def test_square_masks_are_as_large_as_asked(cases, oracle):
    sizes = []

    def paint(requests):
        sizes.extend((float(r.level), int(r.mask.sum())) for r in requests)
        return Known(truth_of(cases)).paint(requests)

    painter = Known(None)
    painter.paint = paint
    compare_ways(painter, None, [Way("default", {})], cases, oracle, box_px=16)
    assert {size for level, size in sizes if level == 2.0} == {256}


def test_removal_of_a_painter_that_knows_the_background(cases, oracle):
    behind = {case.seed: case.background for case in cases}
    seen = []

    def answer(request, options):
        seen.append((request.task, request.text))
        return behind[request.seed]

    found = measure_removal(Known(answer), cases, oracle, lambda pictures: (pictures.int() + 5).clamp(0, 255), 0)
    assert found["background_db"] == 60 and found["object_db"] < 20
    assert found["vae_db"] == pytest.approx(20 * torch.log10(torch.tensor(255 / 5)).item(), abs=0.5)
    assert set(seen) == {("remove", "")}
    ground = {case.seed: case.ground for case in cases}
    known = measure_removal(Known(lambda request, options: ground[request.seed]), cases, oracle, lambda p: p, 0)
    assert known["background_db"] == pytest.approx(found["ground_db"]) and 20 < found["ground_db"] < 60


def test_on_photos_the_object_is_what_the_head_says(cases):
    requests = [Request(c.image, torch.ones_like(c.outline), "x", 2.0, c.seed) for c in cases]
    for request in requests:
        request.mask[:, :4] = 0
    untouched = SimpleNamespace(**vars(Known(lambda request, options: request.image)))
    painter = Known(lambda request, options: (request.image // 2) if options.steps > 5 else request.image)
    full = painter.paint

    def paint(self_painter):
        def paint(requests):
            results = full(requests) if self_painter.options.steps > 5 else untouched_paint(requests)
            for result in results:
                result.predicted = result.predicted * 0
            return results
        return paint

    untouched_paint = Known(untouched.answer).paint
    painted, nothing = Known(painter.answer), Known(untouched.answer)
    painted.paint, nothing.paint = paint(painted), paint(nothing)
    nothing.options = PaintOptions(steps=2)
    rows = compare_on_photos(painted, {"b": nothing}.get, [Way("a", {}), Way("b", {"model": "b"})], requests)
    assert rows[1]["seam_box"] == 1 and rows[1]["shift_box"] == 0 and rows[0]["shift_box"] > 30
    assert rows[0]["equal"] and copy.copy(rows[0])["seam_box"] != 1


def test_the_loss_limit_is_the_mean_loss_and_two_standard_errors():
    first, second = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert ways._loss_limit(first, first) == 0
    assert ways._loss_limit(first, second) == pytest.approx(0.25 + 1.96 * 0.5 / 2)
