"""Paired comparison: known differences, and folders that cannot be compared. And what quickstart counts as done."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sb.evaluate.compare import PER_REQUEST, compare, table

TOOLS = Path(__file__).parents[2] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder(path: Path, metrics: dict[str, list[float]], **other: Any) -> Path:
    count = len(next(iter(metrics.values())))
    found = {"size_px": 64, "oracle": 7, "seeds": list(range(count)), "texts": ["red disc"] * count, "metrics": metrics}
    path.mkdir()
    (path / PER_REQUEST).write_text(json.dumps({**found, **other}))
    return path


def test_the_interval_is_of_the_paired_difference(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", {"iou": [0.1, 0.5, 0.9, 0.3], "only_a": [1, 1, 1, 1], "text": [0, 1, 0, 1]})
    b = folder(tmp_path / "b", {"iou": [0.2, 0.7, 1.0, 0.5], "text": [1, 0, 0, 1]})
    better, same = compare(a, b)
    assert (better.metric, better.a, better.b) == ("iou", pytest.approx(0.45), pytest.approx(0.6))
    margin = 1.96 * (1 / 300) ** 0.5 / 2  # the differences are .1 .2 .1 .2: variance 1/300
    assert better[3:] == pytest.approx((0.15, 0.15 - margin, 0.15 + margin))
    assert same.difference == 0 and same.low == -same.high < 0
    lines = table([better, same]).splitlines()
    assert lines[1].startswith("iou") and lines[1].endswith("*") and not lines[2].endswith("*")


def test_the_interval_covers_the_truth_95_times_in_100(tmp_path: Path) -> None:
    draws = torch.randn(300, 2, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hits = 0
    a, b = folder(tmp_path / "a", {"x": [0.0] * 100}), folder(tmp_path / "b", {"x": [0.0] * 100})
    empty = json.loads((a / PER_REQUEST).read_text())
    for first, second in draws.tolist():
        (a / PER_REQUEST).write_text(json.dumps({**empty, "metrics": {"x": first}}))
        (b / PER_REQUEST).write_text(json.dumps({**empty, "metrics": {"x": second}}))
        (row,) = compare(a, b)
        hits += row.low < 0 < row.high
    assert 0.91 < hits / 300 < 0.98


def test_what_cannot_be_compared_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    a = folder(tmp_path / "a", {"iou": [0.1, 0.5]})
    more = folder(tmp_path / "more", {"iou": [0.1, 0.5, 0.2]})
    read = folder(tmp_path / "read", {"iou": [0.1, 0.5]}, oracle=8)
    large = folder(tmp_path / "large", {"iou": [0.1, 0.5]}, size_px=128)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / PER_REQUEST).write_text("{")

    def run(other: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", str(a), str(other)])
        code = tool("compare").main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert run(a)[0] == 0
    for other, says in ((more, "2 and 3 requests"), (large, "size_px differ"), (read, "two oracles"),
                        (tmp_path, "holds no per_request"), (tmp_path / "bad", "is not readable")):
        code, printed = run(other)
        assert code == 2 and says in printed and printed.count("\n") == 1


def test_quickstart_counts_an_evaluation_whose_results_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickstart = tool("quickstart")
    monkeypatch.setattr(quickstart, "RUN", tmp_path)
    assert quickstart.with_evaluation({"vae": 3.0}) == {"vae": 3.0}
    (tmp_path / "metrics.json").write_text(json.dumps({"seconds": {"vae": 3.0, "oracle": 4.0, "measure": 1.5}}))
    assert quickstart.with_evaluation({"vae": 3.0}) == {"vae": 3.0, "evaluation": 5.5}
    assert quickstart.with_evaluation({"evaluation": 9.0}) == {"evaluation": 9.0}
