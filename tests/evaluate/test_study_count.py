"""Counting: known intervals and probabilities, whose side was whose, and files that do not belong together."""

import json
import random
import sys
from pathlib import Path

import pytest

from sb.evaluate.quantity import Quantity, wilson
from sb.evaluate.study_count import count_votes, lines_of, sign_test

from .test_compare import tool


def study(folder: Path, pairs: int) -> Path:
    """A key alone: A is on the left in every other pair."""
    folder.mkdir(parents=True)
    a_left = [number % 2 == 0 for number in range(pairs)]
    (folder / "key.json").write_text(json.dumps({"schema": 1, "study": "1f", "a": "x", "b": "y", "a_left": a_left}))
    return folder


def results(path: Path, preferred: str, rater: str = "ann", **other: object) -> Path:
    """A file of one letter a pair: a, b, t(ie), l(eft) or r(ight)."""
    sides = {"t": "tie", "l": "left", "r": "right"}
    votes = [sides.get(letter) or ("left" if (letter == "a") == (number % 2 == 0) else "right")
             for number, letter in enumerate(preferred)]
    path.write_text(json.dumps({"schema": 1, "study": "1f", "rater": rater, "votes": votes, **other}))
    return path


def test_intervals_and_probabilities_are_the_textbooks() -> None:
    for wins, votes, low, high in ((8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (50, 100, 0.4038, 0.5962)):
        assert wilson(wins / votes, votes) == pytest.approx((low, high), abs=1e-4)
    assert sign_test(2, 10) == sign_test(8, 10) == pytest.approx(112 / 1024)
    assert sign_test(5, 10) == sign_test(0, 0) == 1 and sign_test(0, 20) == pytest.approx(2 / 2**20)


def test_one_rater(tmp_path: Path) -> None:
    count = count_votes(study(tmp_path / "s", 12), [results(tmp_path / "ann.json", "aaaaabbttt")])  # two to go
    assert (count.raters, count.pairs, count.wins, count.losses, count.ties) == (1, 12, 5, 2, 3)
    assert count.decided == Quantity(5 / 7, *wilson(5 / 7, 7), 7)
    assert count.halved == Quantity(0.65, *wilson(0.65, 10), 10)
    assert (count.lefts, count.side_p) == (4, 1)  # pairs 0, 2, 4 for a and 5 for b
    lines = lines_of(count)
    assert "1 rater, 12 pairs, 10 votes: A better 5, B better 2, no difference 3" in lines and "A = x, B = y" in lines
    assert "71.4%, 95 % interval 35.9% to 91.8%, n = 7" in lines and "4 of 7 times, p = 1.000" in lines
    ties = count_votes(tmp_path / "s", [results(tmp_path / "ann.json", "tttt")])
    assert ties.decided.n == 0 and ties.halved.value == 0.5 and "no such votes" in lines_of(ties)


def test_a_rater_of_one_side_says_nothing_of_the_systems(tmp_path: Path) -> None:
    count = count_votes(study(tmp_path / "s", 40), [results(tmp_path / "ann.json", "l" * 40)])
    assert count.decided.value == 0.5 and count.lefts == 40 and count.side_p < 1e-9
    assert count_votes(tmp_path / "s", [results(tmp_path / "ann.json", "a" * 40)]).side_p == 1


def test_raters_who_differ_widen_the_interval(tmp_path: Path) -> None:
    draw = random.Random(0)

    def raters(*shares: float) -> list[Path]:
        votes = ["".join("ab"[draw.random() > share] for _ in range(200)) for share in shares]
        return [results(tmp_path / f"{number}.json", vote, f"{number}") for number, vote in enumerate(votes)]

    place = study(tmp_path / "s", 200)
    alike = count_votes(place, raters(0.7, 0.7, 0.7, 0.7)).decided
    apart = count_votes(place, raters(0.4, 1.0, 0.5, 0.9)).decided
    for found in (alike, apart):
        assert found.value == pytest.approx(0.7, abs=0.04) and found.n == 800 and found.low < 0.7 < found.high
    assert 0.03 < alike.high - alike.low < 0.12 and apart.high - apart.low > 2.5 * (alike.high - alike.low)
    united = count_votes(place, raters(1, 1)).decided  # 200 pairs, however often they are voted on
    assert (united.low, united.high) == wilson(1, 200) and 0.98 < united.low < 0.985


def test_files_that_do_not_belong_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, ann = study(tmp_path / "s", 4), results(tmp_path / "ann.json", "ab")

    def run(*files: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["study.py", "count", "--study", str(place), *map(str, files)])
        code = tool("study").main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert run(ann, results(tmp_path / "bob.json", "bb", "bob"))[0] == 0
    wrong = tmp_path / "wrong.json"
    for content, says in (
        ({"study": "2e"}, "another study"), ({"rater": "ann"}, "counted already"), ({"votes": ["up"]}, "other votes"),
        ({"votes": ["tie"] * 5}, "more than 4"), ({"schema": 2}, "schema 2"), ({"votes": 3}, "other votes"),
        ({"votes": [[]]}, "other votes"),
    ):
        code, printed = run(ann, results(wrong, "aa", **{"rater": "eve", **content}))
        assert code == 2 and says in printed and printed.count("\n") == 1
    wrong.write_text("[]")
    assert run(wrong)[0] == run(tmp_path / "none.json")[0] == 2
