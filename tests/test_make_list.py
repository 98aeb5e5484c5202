"""The command that makes a request list: the same bytes each time, nothing overwritten, one line for what is wrong."""

import importlib.util
import json
import sys
from pathlib import Path

from sb.evaluate.lists import read_list

TOOL = Path(__file__).parents[1] / "tools/make_list.py"


def make_list(*arguments) -> int:
    """The tool's exit code, in this process."""
    spec = importlib.util.spec_from_file_location("tool_make_list", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, ["make_list.py", *map(str, arguments)]
    try:
        return module.main()
    finally:
        sys.argv = before


def test_a_list_of_shards(shapes_shards, tmp_path, capsys):
    asked = ["--protocol", "box", "--data", shapes_shards["val"], "--count", 5, "--size", 64, "--seed", 1]
    assert make_list(*asked, "--out", tmp_path / "a.jsonl") == 0
    made = read_list(tmp_path / "a.jsonl")
    assert capsys.readouterr().out == f"{tmp_path}/a.jsonl: 5 cases, digest {made.digest[:12]}\n"
    assert (made.header["protocol"], made.header["size_px"], made.header["seed"]) == ("box", 64, 1)
    assert make_list(*asked, "--out", tmp_path / "b.jsonl") == 0
    before, _ = (tmp_path / "a.jsonl").read_bytes(), capsys.readouterr()
    assert (tmp_path / "b.jsonl").read_bytes() == before
    assert make_list(*asked, "--out", tmp_path / "a.jsonl", "--count", 3) == 2
    assert "error: " in (said := capsys.readouterr().err) and "is there already" in said and said.count("\n") == 1
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert make_list(*asked, "--out", tmp_path / "c.jsonl", "text=caption", "min_area=0.01") == 0
    captioned = read_list(tmp_path / "c.jsonl")
    assert captioned.header["source"]["options"] == {"text": "caption", "min_area": 0.01}
    assert all(case.text.endswith(" " + case.label) for case in captioned.cases)


def test_a_list_of_an_annotation_file(tmp_path):
    polygon = [2, 2, 30, 2, 30, 20, 2, 20]
    (tmp_path / "instances.json").write_text(json.dumps({
        "images": [{"id": 9, "file_name": "9.jpg", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "kite"}],
        "annotations": [{"id": 4, "image_id": 9, "category_id": 3, "segmentation": [polygon], "iscrowd": 0}],
    }))
    asked = ["--protocol", "hull", "--annotations", tmp_path / "instances.json", "--count", 1]
    assert make_list(*asked, "--split", "train", "--out", tmp_path / "a.jsonl") == 0
    [case] = read_list(tmp_path / "a.jsonl").cases
    assert (case.image, case.instance, case.text) == ("coco-train-000000000009", "4", "kite")
    assert case.size == (384, 512)
    assert make_list("--protocol", "acme", "--count", 1, "--plugins", "acme_lists", "--out", tmp_path / "x") == 2
