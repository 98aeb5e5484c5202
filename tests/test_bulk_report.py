"""The report of many requests: whole without a network, its words as they were written, its links right."""

import re

from sb.bulk_report import THUMBNAIL, tally, write_report

PAINTED = {
    "line": 2, "id": "a b", "status": "painted", "text": "<b>red</b> & star", "mask": "m.png", "box": None, "seed": 3,
    "precision": "outline", "task": "", "negative": "blue", "variations": 2, "diversity": 17.25, "loss": None,
    "seconds": {"encode": 0.25, "sample": 1.0}, "files": ["result_1.png"],
}
FAILED = {"line": 7, "id": None, "status": "failed", "error": "no image at <x>"}


def test_the_report_stands_alone(tmp_path):
    for name in ("a b", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / THUMBNAIL).write_bytes(b"picture")
        (tmp_path / name / "result_1.png").touch()
    write_report(tmp_path, "<file>.jsonl", [PAINTED, {**PAINTED, "id": "kept", "status": "kept", "text": ""}, FAILED])
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/jpeg;base64,cGljdHVyZQ=="') == 2 == page.count("src=")
    assert "http" not in page and "<x>" not in page and "<b>" not in page and "<file>" not in page
    assert "&lt;b&gt;red&lt;/b&gt; &amp; star" in page and "(no text)" in page
    assert "<p>1 painted, 1 kept, 1 failed</p>" in page
    assert page.index("no image at &lt;x&gt;") < page.index("&lt;b&gt;red")  # what needs a person comes first
    assert "2 variations, 17.25 of 255 apart" in page and "not blue" in page and "1.2 s in its batch" in page
    assert re.findall(r'href="([^"]+)"', page) == ["a%20b/result_1.png", "kept/result_1.png"]


def test_the_tally_is_in_one_order():
    rows = [{"status": status} for status in ("failed", "kept", "painted", "failed")]
    assert list(tally(rows).items()) == [("painted", 1), ("kept", 1), ("failed", 2)]
