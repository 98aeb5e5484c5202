"""Tables of a finished list: groups, intervals of pooled metrics, and which requests are the best."""

import math
from types import SimpleNamespace

import pytest
import torch

from sb.data.coco import encode_mask
from sb.evaluate.lists import Case
from sb.evaluate.summary import (
    SIZES, Pooled, better, folded, groups_of, objects_of, ranked, share_of, size_of, summarise,
)
from sb.registry import lookup, names


def a_case(number=0, level=0, side=4, label="cat", known=True):
    """An object of side x side of 64 x 48 px, under a mask of everything."""
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[:side, :side] = 1
    outline = encode_mask(mask.numpy()) if known else None
    whole = encode_mask(torch.ones_like(mask).numpy())
    return Case(f"p{number}", "0", label, f"a {label}", float(level), 5, number, (0, 0, 64, 48), (48, 64), whole,
                outline, (64, 48))


def test_sizes_are_cocos_shares_of_a_picture():
    """32^2 and 96^2 px of 640x480 are 10.24 and 92.16 px of 64x48."""
    assert [size_of(a_case(side=side)) for side in (3, 4, 9, 10)] == ["small", "medium", "medium", "large"]
    assert size_of(a_case(side=3, known=False)) == "large"
    assert SIZES["medium"] == pytest.approx(9 * SIZES["small"])


def test_groups_hold_every_case_once_in_their_order():
    cases = [a_case(n, level, side, label) for n, (level, side, label) in enumerate(
        [(5, 10, "dog"), (0, 3, "cat"), (5, 4, "cat"), (2, 3, "ant")])]
    found = {way: {name: numbers.tolist() for name, numbers in groups.items()}
             for way, groups in groups_of(cases).items()}
    assert list(found["level"].items()) == [("0 of 5", [1]), ("2 of 5", [3]), ("5 of 5", [0, 2])]
    assert list(found["size"].items()) == [("small", [1, 3]), ("medium", [2]), ("large", [0])]
    assert list(found["class"].items()) == [("ant", [3]), ("cat", [1, 2]), ("dog", [0])]
    assert [share_of(level) for level in found["level"]] == [0, 0.4, 1]


def test_each_table_has_each_metric_with_its_interval():
    cases = [a_case(n, level=5 * (n % 2)) for n in range(20)]
    values = torch.arange(20.0)
    values[3] = math.nan
    pooled = Pooled(lambda numbers: {"gap": float(numbers.double().mean())}, 4)
    wide = Pooled(lambda numbers: {"wide": 1.0}, 2048)
    found = summarise(cases, {"x": values}, [pooled, wide])
    assert found["overall"]["x"]["n"] == 19 and found["overall"]["x"]["value"] == pytest.approx(187 / 19, rel=1e-5)
    assert found["level"]["5 of 5"]["x"]["n"] == 9 and found["level"]["0 of 5"]["gap"]["value"] == 9
    for table in (found["overall"], found["level"]["0 of 5"], found["size"]["medium"]):
        assert table["x"]["low"] < table["x"]["value"] < table["x"]["high"]
        assert table["gap"]["low"] < table["gap"]["value"] < table["gap"]["high"]
    assert found["overall"]["wide"]["low"] == 1 and found["size"]["medium"]["wide"]["low"] is None
    assert list(found["class"]["cat"]) == ["x"]
    many = [a_case(n, label="cat" if n < 100 else "dog") for n in range(199)]
    classes = summarise(many, {}, [pooled])["class"]
    assert classes["dog"] == {} and classes["cat"]["gap"] == {"value": 49.5, "low": None, "high": None, "n": 100}
    alone = summarise(cases[3:4], {"x": values[3:4]})["overall"]["x"]
    assert alone == {"value": None, "low": None, "high": None, "n": 0}


def test_the_jackknife_gives_a_means_own_interval():
    """For a mean it is exact: leaving out tenths of one gives the standard error s / sqrt(n)."""
    draws = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = Pooled(lambda numbers: {"mean": float(draws[numbers].mean())}, 1)
    found = folded(mean, torch.arange(10), torch.arange(10))["mean"]
    error = float(draws[:10].std()) / math.sqrt(10)
    assert found.value == pytest.approx(float(draws[:10].mean()))
    margin = 2.2622 * error  # Student's t of 9 degrees of freedom
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), rel=1e-4)
    hits = 0
    for start in range(0, 1000, 20):
        one = folded(mean, torch.arange(start, start + 20), torch.arange(20))["mean"]
        hits += one.low < 0 < one.high
    assert hits / 50 > 0.85
    for none in (folded(mean, torch.arange(1), torch.arange(1)), folded(mean, torch.arange(9), torch.arange(9), 0)):
        assert math.isnan(none["mean"].low)
    twice = torch.arange(10).repeat(2)  # each value given twice says nothing more
    again = folded(mean, twice, twice)["mean"]
    assert (again.low, again.high) == pytest.approx((found.low, found.high))


def test_cases_of_one_object_are_one_draw():
    cases = [a_case(n // 6, level=n % 6) for n in range(240)]
    assert objects_of(cases).tolist() == [n // 6 for n in range(240)]
    of_object = torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    wide = summarise(cases, {"x": of_object.repeat_interleave(6)})["overall"]["x"]
    assert wide["high"] - wide["low"] == pytest.approx(2 * 2.02 * float(of_object.std()) / math.sqrt(40), rel=0.12)


def test_the_best_are_best_by_every_metric():
    quality = torch.tensor([0.3, 0.9, 0.1, 0.5])
    sides = {"mask_iou": "higher", "colour_shift": "lower", "diversity": None, "seam": "zero"}
    assert ranked({"mask_iou": quality, "colour_shift": 1 - quality, "diversity": -9 * quality}, sides) == [1, 3, 0, 2]
    iou, seam = torch.tensor([0.3, math.nan, 0.9]), torch.tensor([-9.0, 1.5, -1.0])
    assert ranked({"mask_iou": iou, "seam": seam}, sides) == [2, 1, 0]
    assert ranked({"mask_iou": torch.full((3,), math.nan)}, sides) == [0, 1, 2]
    assert ranked({"seam": seam[[2, 1, 0]]}, sides) == [0, 1, 2]
    assert ranked({"diversity": quality}, sides) == []


def test_the_share_of_requests_beaten_counts_ties_half():
    draw = torch.Generator().manual_seed(0)
    columns = {name: torch.randint(0, 9, (50,), generator=draw).double() for name in "abc"}
    columns["a"][::7] = math.nan
    score = torch.stack([
        torch.where(x.isnan(), math.nan, ((x[:, None] > x) + 0.5 * (x[:, None] == x)).sum(1) / (~x.isnan()).sum())
        for x in columns.values()
    ]).nanmean(0)
    assert ranked(columns, dict.fromkeys("abc", "higher")) == score.argsort(descending=True, stable=True).tolist()


def test_many_requests_are_ranked_in_little_memory():
    assert ranked({"x": torch.arange(300_000.0)}, {"x": "lower"})[:2] == [0, 1]  # pairs would take 90 GB


def test_a_metric_says_which_way_is_better():
    entries = {name: lookup("metric", name) for name in names("metric") if not name.startswith("acme")}
    assert {name for name, entry in entries.items() if better(entry, name) == "lower"} == {
        "fid", "local_fid", "background_lpips", "colour_shift",
    }
    assert better(entries["seam"], "seam_predicted") == "zero" and better(entries["diversity"], "diversity") is None
    assert better(entries["clip_score"], "clip_score_whole") == "higher" and better(object(), "acme") is None
    told = SimpleNamespace(better={"error": "lower", "hits": "higher"})
    assert [better(told, name) for name in ("error", "hits", "more")] == ["lower", "higher", None]
    with pytest.raises(ValueError, match="metric 'x': better must be 'higher', .* not 'less'"):
        better(SimpleNamespace(better="less"), "x")
