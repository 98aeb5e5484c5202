"""Paired comparison: known differences, and folders that cannot be compared. And what quickstart counts as done."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sb.evaluate.compare import PER_REQUEST, compare, grid, parse_systems, table

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(path: Path, metrics: dict[str, Any], **other: Any) -> Path:
    count = len(next(iter(metrics.values())))
    found = {"size_px": 64, "oracle": 7, "seeds": list(range(count)), "texts": ["red disc"] * count, "metrics": metrics}
    path.mkdir()
    (path / PER_REQUEST).write_text(json.dumps({**found, **other}))
    return path


def test_the_interval_is_of_the_paired_difference(tmp_path: Path) -> None:
    base, gaps = torch.randn(2, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = folder(tmp_path / "a", {"iou": base.tolist(), "only_a": [1.0] * 400, "text": [0.0, 1.0] * 200})
    b = folder(tmp_path / "b", {"iou": (base + 0.15 + 0.1 * gaps).tolist(), "text": [1.0, 0.0] * 200})
    better, same = compare(a, b)
    assert (better.metric, better.a, better.requests, better.runs) == ("iou", pytest.approx(base.mean()), 400, (1, 1))
    assert better.difference == pytest.approx(better.b - better.a) == pytest.approx(0.15 + 0.1 * gaps.mean())
    margin = 1.96 * 0.1 * float(gaps.std()) / 20  # the requests' own spread, ten times as wide, is gone
    assert better.low == pytest.approx(better.difference - margin, abs=0.1 * margin)
    assert better.high == pytest.approx(better.difference + margin, abs=0.1 * margin)
    assert same.difference == 0 and same.low < 0 < same.high
    lines = table([better, same]).splitlines()
    assert lines[1].startswith("iou") and lines[1].endswith("1, 1 x 400 *") and not lines[2].endswith("*")
    assert table([better, same], markdown=True).splitlines()[:2] == [
        "| metric | A | B | B - A | 95 % interval | runs x requests |  |", "|---|---|---|---|---|---|---|"
    ]


def test_the_interval_covers_the_truth_95_times_in_100(tmp_path: Path) -> None:
    draws = torch.randn(60, 2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = folder(tmp_path / "a", {"x": [0.0] * 100}), folder(tmp_path / "b", {"x": [0.0] * 100})
    for place, side in ((a, 0), (b, 1)):
        held = json.loads((place / PER_REQUEST).read_text())
        held["metrics"] = {f"trial_{number}": values for number, values in enumerate(draws[:, side].tolist())}
        (place / PER_REQUEST).write_text(json.dumps(held))
    assert 53 <= sum(row.low < 0 < row.high for row in compare(a, b)) < 60


def test_runs_of_a_side_count_as_one_another(tmp_path: Path) -> None:
    """Requests answer alike, runs do not: many requests of three runs say no more than three numbers."""
    noise = 0.01 * torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    effects = torch.tensor([0.0, 0.3, 0.6, 0.4, 0.7, 1.0])
    runs = [
        folder(tmp_path / str(run), {"iou": (effects[run] + noise[run]).tolist()}) for run in range(6)
    ]
    (three,) = compare(runs[:3], runs[3:])
    (one,) = compare(runs[0], runs[3:4])
    assert three.runs == (3, 3) and three.requests == 200 and one.runs == (1, 1)
    assert three.difference == pytest.approx(0.4, abs=0.01) == one.difference
    assert three.high - three.low > 0.6 and one.high - one.low < 0.02
    assert compare(runs[:2], runs[3:])[0].runs == (2, 3)


def test_background_is_given_in_decibel_of_the_pooled_error(tmp_path: Path) -> None:
    white = 255.0**2
    a = folder(tmp_path / "a", {"background_mse_box": [white / 1000] * 50})
    b = folder(tmp_path / "b", {"background_mse_box": [0.0, white / 50] * 25})  # a hundredth on the average
    (row,) = compare(a, b)
    assert (row.metric, row.a, row.b) == ("background_db_box", pytest.approx(30), pytest.approx(20))
    assert row.difference == pytest.approx(-10) and -11.5 < row.low < -10.5 and -9.5 < row.high < -8
    clean = folder(tmp_path / "clean", {"background_mse_box": [0.0] * 50})
    assert compare(a, clean)[0].b == 60


def test_requests_without_a_value_are_left_out_of_both(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", {"dice": [0.5, None, 0.7, 0.6]})
    b = folder(tmp_path / "b", {"dice": [0.6, 0.1, 0.8, float("nan")]})
    (row,) = compare(a, b)
    assert (row.a, row.b, row.requests) == (pytest.approx(0.6), pytest.approx(0.7), 2)
    assert (row.difference, row.low, row.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_grid_tells_each_system_and_what_the_first_has_over_it(tmp_path: Path) -> None:
    folder(tmp_path / "a0", {"iou": [0.5] * 9, "mask_iou": [0.75] * 9})
    folder(tmp_path / "a1", {"iou": [0.5] * 9, "mask_iou": [0.75] * 8 + [None]})
    folder(tmp_path / "b", {"iou": [0.25] * 9, "background_mse": [65.025] * 9})
    systems = parse_systems([f"full={tmp_path}/a0,{tmp_path}/a1", f"bare={tmp_path}/b"])
    assert grid(systems).splitlines() == [
        "|  | runs x requests | iou | mask_iou | background_db |",
        "|---|---|---|---|---|",
        "| full | 2 x 9 | 0.500 (0.500 to 0.500) | 0.750 (0.750 to 0.750, n = 8) | - |",
        r"| bare | 1 x 9 | 0.250 (0.250 to 0.250)<br>-0.250 (-0.250 to -0.250)\* | - | 30.000 (30.000 to 30.000) |",
    ]
    assert grid(systems, ["mask_iou"]).splitlines()[0] == "|  | runs x requests | mask_iou |"
    headless = folder(tmp_path / "c", {"iou": [0.5] * 9, "mask_iou": [None] * 9})
    beside = {"full": [systems["full"][0]], "none": [str(headless)]}
    assert grid(beside, ["mask_iou"]).splitlines()[-1] == "| none | 1 x 9 | - |"
    apart = {"full": [systems["full"][1]], "late": [str(folder(tmp_path / "d", {"mask_iou": [None] * 8 + [0.75]}))]}
    assert grid(apart, ["mask_iou"]).splitlines()[-1] == "| late | 1 x 9 | 0.750 (nan to nan, n = 1) |"
    for wrong in (["full"], ["=a"], ["a=b,"], ["a=b", "a=c"]):
        with pytest.raises(ValueError, match="must read NAME=DIR"):
            parse_systems(wrong)


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    a = folder(tmp_path / "a", {"iou": [0.1, 0.5]})
    more = folder(tmp_path / "more", {"iou": [0.1, 0.5, 0.2]})
    read = folder(tmp_path / "read", {"iou": [0.1, 0.5]}, oracle=8)
    large = folder(tmp_path / "large", {"iou": [0.1, 0.5]}, size_px=128)
    listed = folder(tmp_path / "listed", {"iou": [0.1, 0.5]}, list="1f")
    short = folder(tmp_path / "short", {"iou": [0.1, 0.5], "text": [1.0]})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / PER_REQUEST).write_text("{")

    def run(*arguments: Path | str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments)])
        code = tool("compare").main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert run(a, a)[0] == 0 and run("--a", a, "--b", a, "--markdown")[1].startswith("| metric")
    assert run("--grid", f"x={a}", f"y={a}", "--metrics", "iou")[1].startswith("|  | runs")
    for other, says in ((more, "2 and 3 requests"), (large, "size_px differ"), (read, "measured with another oracle"),
                        (listed, "list differ"), (short, "lists of [1, 2] requests"),
                        (tmp_path, "holds no per_request"), (tmp_path / "bad", "is not readable")):
        code, printed = run(a, other)
        assert code == 2 and says in printed and printed.count("\n") == 1
    for arguments, says in (((a,), "give two folders"), (("--a", a), "give two folders"), ((a, a, "--grid", f"x={a}"),
                            "give two folders"), (("--a", a, a, "--b", a), "each of its runs once"),
                            ((a, a, "--metrics", "uio"), "did you mean 'iou'")):
        code, printed = run(*arguments)
        assert code == 2 and says in printed and printed.count("\n") == 1


def test_a_metric_is_compared_where_it_was_measured_alike(tmp_path: Path) -> None:
    """Readers that no compared metric needs may differ, or be missing; options and networks of a compared one not."""
    def listed(name: str, seam: str = "s", **reader: str) -> Path:
        accuracy = {"class_accuracy": {"options": "o", **reader}} if reader else {}
        metrics = {metric: [0.5, 0.25] for metric in ("seam", *accuracy)}
        place = folder(tmp_path / name, metrics, list="1f", fingerprints={"seam": {"options": seam}, **accuracy})
        held = json.loads((place / PER_REQUEST).read_text())
        del held["oracle"]
        (place / PER_REQUEST).write_text(json.dumps(held))
        return place

    a, other, same, bare = listed("a", reader="r"), listed("b", reader="q"), listed("c", reader="r"), listed("d")
    assert [row.metric for row in compare(a, same)] == ["seam", "class_accuracy"]
    assert [row.metric for row in compare(a, bare)] == ["seam"] == [row.metric for row in compare(a, other, ["seam"])]
    assert "class_accuracy" in grid({"a": a, "bare": bare}) and "seam" in grid({"a": a, "b": other}, ["seam"])
    with pytest.raises(ValueError, match="class_accuracy of .*a and of .*b was measured with another reader: evaluate"):
        compare(a, other)
    with pytest.raises(ValueError, match="class_accuracy of .*c and of .*b was measured with another reader"):
        grid({"c": same, "bare": bare, "b": other})
    with pytest.raises(ValueError, match="seam of .* was measured with another set of options"):
        compare(a, listed("e", seam="t", reader="r"))


def test_quickstart_counts_an_evaluation_whose_results_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart = tool("quickstart")
    monkeypatch.setattr(quickstart, "RUN", tmp_path)
    assert quickstart.with_evaluation({"vae": 3.0}) == {"vae": 3.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"seconds": {"vae": 3.0, "oracle": 4.0, "measure": 1.5}}))
    assert quickstart.with_evaluation({"vae": 3.0}) == {"vae": 3.0, "evaluation": 5.5}
    assert quickstart.with_evaluation({"evaluation": 9.0}) == {"evaluation": 9.0}
