"""A study's folder: what is shown is what was painted, sides are balanced and told by the key alone."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sb.data.shapes import draw_scene
from sb.evaluate.lists import read_list
from sb.evaluate.study import make_study, outlined
from sb.pictures import image_tensor

from .studies import evaluations, list_of_scenes
from .test_compare import tool


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return evaluations(tmp_path_factory.mktemp("evaluations"), 8)


def shown(study: Path) -> dict[str, Any]:
    return json.loads((study / "pairs.js").read_text().removeprefix("const STUDY = ").rstrip().removesuffix(";"))


def key(study: Path) -> dict[str, Any]:
    return json.loads((study / "key.json").read_text())


def test_what_is_shown_is_what_was_painted_and_the_key_tells_whose(sides: tuple[Path, Path], tmp_path: Path) -> None:
    make_study(*sides, tmp_path / "study", pairs=6)
    page, answers = shown(tmp_path / "study"), key(tmp_path / "study")
    cases = read_list(sides[0] / "list.jsonl")
    assert page["study"] == answers["study"] and len(page["pairs"]) == 6 and answers["list"] == cases.digest
    assert sorted(answers["a_left"]) == [False] * 3 + [True] * 3 and len(set(answers["names"])) == 6
    for pair, name, a_left in zip(page["pairs"], answers["names"], answers["a_left"], strict=True):
        for side, system in zip(("left", "right"), sides if a_left else sides[::-1], strict=True):
            found = image_tensor(tmp_path / "study" / pair[side])
            assert torch.equal(found, image_tensor(system / "pictures" / f"{name}.png"))
        case = cases.cases[int(name)]
        assert pair["text"] == case.text
        background = torch.from_numpy(draw_scene(int(case.image), 64).background).permute(2, 0, 1)
        inside = case.mask_pixels().expand(3, -1, -1) > 0
        before = image_tensor(tmp_path / "study" / pair["input"])[:, ::8, ::8]
        assert torch.equal(before[inside], background[inside]) and not torch.equal(before, background)


def test_nothing_that_the_page_holds_tells_a_side(sides: tuple[Path, Path], tmp_path: Path) -> None:
    make_study(*sides, tmp_path / "one", pairs=4)
    make_study(*sides, tmp_path / "same", pairs=4)
    make_study(*sides, tmp_path / "other", pairs=4, seed=1)
    make_study(*sides, tmp_path / "asked", pairs=4, question="Which is rounder?")
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert len(files) == 3 * 4 + 5 and {str(path) for path in files} >= {"index.html", "study.js", "study.css"}
    for path in (tmp_path / "one").rglob("*.*"):
        held = path.name == "key.json"
        assert (b"/good" in path.read_bytes()) == held and (b"/bad" in path.read_bytes()) == held
    assert key(tmp_path / "one") == key(tmp_path / "same") and shown(tmp_path / "one") == shown(tmp_path / "same")
    assert key(tmp_path / "one")["a_left"] != key(tmp_path / "other")["a_left"]
    assert key(tmp_path / "one")["names"] != key(tmp_path / "other")["names"]
    assert len({key(tmp_path / name)["study"] for name in ("one", "same", "other", "asked")}) == 3
    assert shown(tmp_path / "asked")["question"] == "Which is rounder?"


def test_plain_folders_are_shown_alone_or_with_a_list(sides: tuple[Path, Path], tmp_path: Path) -> None:
    plain = [Path(shutil.copytree(side / "pictures", tmp_path / side.name)) for side in sides]
    make_study(*plain, tmp_path / "alone", pairs=2)
    assert [(pair["input"], pair["text"]) for pair in shown(tmp_path / "alone")["pairs"]] == [(None, None)] * 2
    assert key(tmp_path / "alone")["list"] is None
    make_study(*plain, tmp_path / "listed", pairs=8, list_file=sides[0] / "list.jsonl")
    make_study(*sides, tmp_path / "evaluated", pairs=8)
    assert shown(tmp_path / "listed") == shown(tmp_path / "evaluated")


def test_what_cannot_be_shown_is_said_and_leaves_nothing(sides: tuple[Path, Path], tmp_path: Path) -> None:
    plain = [Path(shutil.copytree(side / "pictures", tmp_path / side.name)) for side in sides]
    (tmp_path / "empty").mkdir()
    list_of_scenes(tmp_path / "short.jsonl", 2)
    (tmp_path / "broken").mkdir()
    for number in range(8):
        (tmp_path / "broken" / f"{number:06d}.png").write_bytes(b"no picture")
    before = sorted(tmp_path.iterdir())
    wrong: list[tuple[Path, Path, dict[str, Any], str]] = [
        (*sides, {"pairs": 9}, "8 equally named pictures, too few for 9 pairs"),
        (*sides, {"pairs": 0}, "for 0 pairs"),
        (sides[0], tmp_path / "empty", {}, "holds no PNG"),
        (*sides, {"pairs": 2, "list_file": tmp_path / "short.jsonl"}, "not painted for the same list"),
        (*plain, {"pairs": 8, "list_file": tmp_path / "short.jsonl"}, "no case '00000"),
        (plain[0], tmp_path / "broken", {"pairs": 2}, "cannot be read as an image"),
    ]
    for a, b, options, says in wrong:
        with pytest.raises(ValueError, match=says):
            make_study(a, b, tmp_path / "study", **options)
        assert sorted(tmp_path.iterdir()) == before


def test_the_tool_makes_a_study_once(
    sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--a", sides[0], "--b", sides[1], "--out", tmp_path / "study", "--pairs", 3, "--question", "Which?"]
    monkeypatch.setattr(sys, "argv", ["study.py", "make", *map(str, asked)])
    assert tool("study").main() == 0 and "index.html" in capsys.readouterr().out
    assert shown(tmp_path / "study")["question"] == "Which?" and len(shown(tmp_path / "study")["pairs"]) == 3
    assert tool("study").main() == 2 and "is there already" in capsys.readouterr().err


def test_the_outline_runs_just_outside_the_mask() -> None:
    image = torch.full((3, 600, 500), 128, dtype=torch.uint8)
    mask = torch.zeros(1, 600, 500, dtype=torch.uint8)
    mask[:, 100:200, 50:150] = 1
    row = image_tensor(outlined(image, mask))[:, 150]
    assert row[:, 50:150].unique().tolist() == [128] and row[0, 43:51].tolist() == [128] + [255] * 3 + [0] * 3 + [128]
    small = image_tensor(outlined(image[:, :64, :64], torch.ones(1, 64, 64, dtype=torch.uint8)))
    assert small.shape == (3, 512, 512) and small.unique().tolist() == [128]  # a mask of everything has no outside
