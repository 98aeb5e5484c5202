"""A list comes back as it was written, and whatever is wrong with one is said with its line."""

import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from sb.data.coco import encode_mask
from sb.evaluate.lists import Case, read_list, write_list

HEADER = {"protocol": "box", "size_px": 8, "seed": 3, "source": {"shards": ["a"]}, "rules": "as they are"}
MASK = np.zeros((6, 8), np.uint8)
MASK[1:4, 2:7] = 1
CASE = Case("coco-val-1", "7", "dog", "ein grüner Hund", 5.0, 5, 9, (1, 0, 12, 9), (6, 8), encode_mask(MASK),
            encode_mask(MASK * np.arange(8) % 2), (20, 9))


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "list.jsonl"
    write_list(path, HEADER, [CASE, replace(CASE, level=0.0, outline=None, stored=None)])
    return path


def test_it_comes_back(listed):
    found = read_list(listed)
    assert found.header == {"schema": 1, **HEADER, "count": 2}
    assert found.cases == [CASE, replace(CASE, level=0.0, outline=None, stored=None)]
    assert found.digest == hashlib.sha256(listed.read_bytes()).hexdigest()
    assert np.array_equal(found.cases[0].mask_pixels()[0].numpy(), MASK)
    assert found.cases[0].outline_pixels().sum() == (MASK * np.arange(8) % 2).sum()
    assert found.cases[1].outline_pixels() is None


def test_text_may_hold_any_character(tmp_path):
    case = replace(CASE, text="a\u2028b\u2029c\u0085d\x0b\x0c\x1c\r\n", label="a\u2028")
    write_list(tmp_path / "list.jsonl", HEADER, [case])
    assert read_list(tmp_path / "list.jsonl").cases == [case]


def test_another_case_is_another_digest(listed, tmp_path):
    other = write_list(tmp_path / "other.jsonl", HEADER, [CASE, replace(CASE, level=0.0, outline=None)])
    assert other.digest != read_list(listed).digest


def test_names_fit_files_and_differ():
    cases = [CASE, replace(CASE, level=0.5), replace(CASE, instance="7/8"), replace(CASE, image="a b"),
             replace(CASE, image="a_b"), replace(CASE, image="coco-val", instance="1-7")]
    names = {case.name() for case in cases}
    assert len(names) == len(cases) and all(re.fullmatch(r"[\w~-]+", name) for name in names)
    assert CASE.name() == "coco-val-1~7~5"


def test_nothing_is_overwritten_or_listed_twice(listed, tmp_path):
    before = listed.read_bytes()
    with pytest.raises(ValueError, match="list.jsonl is there already"):
        write_list(listed, HEADER, [CASE])
    assert listed.read_bytes() == before
    with pytest.raises(ValueError, match="2 cases named coco-val-1~7~5"):
        write_list(tmp_path / "twice.jsonl", HEADER, [CASE, replace(CASE, seed=1)])
    with pytest.raises(ValueError, match="at least one case"):
        write_list(tmp_path / "none.jsonl", HEADER, [])
    assert [path.name for path in tmp_path.iterdir()] == ["list.jsonl"]


@pytest.mark.parametrize("key, value, told", [
    ("level", 6, r"level 6 is outside \[0, 5\]"), ("level", True, "'level' is True"), ("seed", "1", "'seed' is '1'"),
    ("size", [6, 9], r"mask is no compressed RLE of size \[6, 9\]"), ("size", [6], "size must be 2 whole numbers"),
    ("crop", [-1, 0, 2, 2], "crop must be 4 whole numbers"), ("crop", [0, 0, 0, 2], "its sides at least 1"),
    ("mask", {"size": [6, 8], "counts": "1"}, "mask is no compressed RLE"), ("mask", None, "'mask' is None"),
    ("outline", {"size": [6, 8]}, "outline is no compressed RLE"), ("masc", 1, "no key 'masc'; did you mean 'mask'"),
    ("stored", "20x9", "stored must be 2 whole numbers"), ("size", [6.0, 8], "size must be 2 whole numbers"),
])
def test_what_is_wrong_is_said_with_its_line(listed, key, value, told):
    header, first, second = listed.read_text().splitlines()
    listed.write_text("\n".join([header, first, json.dumps({**json.loads(second), key: value})]))
    with pytest.raises(ValueError, match=f"list.jsonl line 3.*{told}"):
        read_list(listed)


def test_a_file_that_is_no_whole_list(listed, tmp_path):
    with pytest.raises(ValueError, match="no request list .*nowhere; tools/make_list.py"):
        read_list(tmp_path / "nowhere")
    lines = listed.read_text().splitlines()
    for content, told in (
        (lines[:2], "holds 1 cases, its header says 2"), ([*lines, lines[1]], "holds 3 cases"),
        ([], "line 1 is not valid JSON"),
        (lines[1:], "line 1: 'schema' is missing"), ([lines[0].replace("1", "2", 1), *lines[1:]], "schema 2, this"),
        ([lines[0], lines[1][:50]], "line 2 is not valid JSON"), (["[]"], "line 1 is no JSON object"),
    ):
        listed.write_text("\n".join(content))
        with pytest.raises(ValueError, match=told):
            read_list(listed)
