"""Lines of a file of requests: what they say, what they leave to others, and what they are called."""

import json

import pytest

from sb.asked import read_order, read_orders

LINE = {"image": "photos/my cat.jpg", "mask": "m.png", "text": "a red kite"}


def test_a_line_and_what_it_leaves_to_others(tmp_path):
    order = read_order({**LINE, "steps": 4}, {"steps": 9, "guidance": 2.0}, tmp_path)
    assert (order.asked.seed, order.asked.precision, order.asked.variations) == (0, "outline", 1)
    assert order.options == {"steps": 4, "guidance": 2.0} and order.folder == tmp_path


@pytest.mark.parametrize("box", ["1,2,3,4", [1, 2, 3, 4]])
def test_a_box_is_text_or_numbers(box):
    assert read_order({"image": "a.png", "box": box, "text": ""}, {}).asked.corners() == (1, 2, 3, 4)


def test_a_name_is_of_the_picture_and_of_all_that_is_asked():
    named = read_order(LINE, {}).id
    assert named.startswith("my-cat-") and read_order(dict(reversed(LINE.items())), {}).id == named
    others = [read_order({**LINE, "text": "x"}, {}).id, read_order(LINE, {"steps": 2}).id]
    assert len({named, *others}) == 3 and read_order({**LINE, "id": "kite"}, {}).id == "kite"
    assert read_order({**LINE, "image": "....png"}, {}).id.startswith("picture-")


def test_lines_of_any_editor(tmp_path):
    line = json.dumps(LINE).encode()
    (tmp_path / "lines.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + b'{"text": "\xff"}\n' + line)
    orders, faults = read_orders(tmp_path / "lines.jsonl", {})
    assert list(orders) == [1] and orders[1].folder == tmp_path
    assert faults[3] == "this line is not UTF-8 text" and "is line 1 already: give one of them an id" in faults[4]


def test_a_deep_line_is_a_bad_line(tmp_path):
    (tmp_path / "lines.jsonl").write_text("[" * 100_000)
    _, faults = read_orders(tmp_path / "lines.jsonl", {})
    assert faults[1].startswith("this line is not JSON")
