"""A sheet shows each system's own pictures, in its row, under what was asked for."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sb.evaluate.sheet import CELL_PX, GAP_PX, NAME_PX, TEXT_PX, sheet
from sb.pictures import image_tensor

from .studies import evaluations
from .test_compare import tool

STEP = CELL_PX + GAP_PX


def test_results_stand_in_their_rows_and_columns(tmp_path: Path) -> None:
    good, bad = evaluations(tmp_path, 3, 72)  # twice 72 px is a cell
    paper = torch.from_numpy(np.array(sheet({"good": good, "other": bad}, 3)))
    assert paper.shape == (TEXT_PX + 3 * STEP, NAME_PX + 3 * STEP, 3)
    for row, folder in enumerate((good, bad), 1):
        for column in range(3):
            top, left = TEXT_PX + row * STEP, NAME_PX + column * STEP
            cell = paper[top: top + CELL_PX: 2, left: left + CELL_PX: 2].permute(2, 0, 1)
            assert torch.equal(cell, image_tensor(folder / "pictures" / f"{column:06d}.png"))
    heads = [paper[:TEXT_PX, NAME_PX + column * STEP:][:, :CELL_PX] for column in range(3)]
    assert all((head < 200).any() for head in heads)  # a text above each


def test_the_tool_writes_it_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = evaluations(tmp_path / "three", 3)
    other, _ = evaluations(tmp_path / "four", 4)

    def run(*arguments: Path | str | int) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare.py", "--sheet", str(tmp_path / "s.png"), *map(str, arguments)])
        code = tool("compare").main()
        return code, capsys.readouterr().err

    plain = tmp_path / "plain"
    (plain / "pictures").mkdir(parents=True)
    for arguments, says in (
        (("--grid", f"a={good}", f"b={other}"), "not painted for the same list"), ((good, bad), "--sheet needs --grid"),
        (("--grid", f"a={good}", "--count", 4), "has no result 000003"), (("--grid", f"a={plain}"), "no list.jsonl"),
        (("--grid", f"a={good}", "--count", 0), "at least 1"),
    ):
        code, errors = run(*arguments)
        assert code == 2 and says in errors and errors.count("\n") == 1 and not (tmp_path / "s.png").exists()
    assert run("--grid", f"a={good}", f"b={bad}", "--count", 2) == (0, "") and (tmp_path / "s.png").is_file()
