"""The report's page: all there in one small file, the same in a browser without a network."""

import random
import re
import shutil
import xml.dom.minidom

import numpy as np
import pytest
from PIL import Image

from sb.app.benchmark import FLAGS
from sb.evaluate.page import CASES, CLASSES, KINDS, Shown, curve, number, write_page


def a_cell(value, n=40):
    return {"value": value, "low": None if value is None else value - 0.04, "high": None if value is None else
            value + 0.03, "n": n}


def a_report(classes=5):
    rng = random.Random(0)
    metrics = ["class_accuracy", "mask_iou", "background_psnr_predicted", "background_lpips", "seam", "local_fid"]

    def row(share, less=()):
        return {name: a_cell(rng.uniform(0.4, 0.9) - 0.3 * share, rng.randint(20, 400)) for name in metrics
                if name not in less}

    sides = {"background_lpips": "lower", "seam": "zero", "local_fid": "lower", "class_accuracy": None}
    about = {name: {"better": sides.get(name, "higher"),
                    "about": f"What {name} says, in a sentence of about this length, with <brackets> & others."}
             for name in metrics}
    return {
        "schema": 1, "num_requests": 1200,
        "list": {"schema": 1, "protocol": "ladder", "size_px": 512, "seed": 0, "source": {"shards": ["val"]},
                 "count": 9, "rules": "Objects: every instance, crowds left out. " * 8, "digest": "3f" * 32},
        "system": {"name": "own", "system": "runs/<coco>", "weights": "ab12", "options": {"steps": 20}},
        "networks": {"reader": {"name": "torchvision", "sha256": "12" * 32}}, "metrics": about,
        "settings": {"metrics": [{"name": "fid", "reference": "x"}], "variations": 1},
        "overall": {**row(0.5), "mask_dice": a_cell(None, 0)},
        "level": {f"{n} of 5": row(n / 5) for n in range(6)},
        "size": {name: row(0.2) for name in ("small", "medium", "large")},
        "class": {f"class {n}": row(rng.random(), ("local_fid",)) for n in range(classes)},
        "shown": {kind: list(range(CASES)) for kind in KINDS},
    }


def some_shown(side=512):
    """The hardest pictures to pack: noise."""
    rng = np.random.default_rng(0)

    def picture():
        return Image.fromarray(rng.integers(0, 256, (side, side * 3 // 4, 3), dtype=np.uint8))

    return {
        kind: [Shown(n, f"{kind} <text> {n}", f"{n:06d}, level 0 of 5", {
            name: picture() for name in ("input", "mask", "result", "real")}) for n in range(CASES)]
        for kind in KINDS
    }


def test_the_page_holds_all_and_asks_for_nothing(tmp_path):
    write_page(tmp_path / "report.html", a_report(), some_shown())
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 3e6 and page.count("data:image/jpeg;base64,") == 4 * 3 * CASES
    assert not re.search(r"https?://|<script|<link|@import|src=\"(?!data:)|url\(", page)
    for says in ("Evaluation of runs/&lt;coco&gt;", "protocol ladder", "mask_dice", "&lt;brackets&gt; &amp;",
                 "worst &lt;text&gt; 7", "class 4", "By object&#x27;s size", "0.5",
                 "nearer to 0 is better", "lower is better"):
        assert says in page or says.replace("&#x27;", "'") in page, says
    assert page.count("<svg") == 6  # a metric without a value has no curve


def test_a_long_list_of_classes_is_cut(tmp_path):
    report = a_report(classes=80)
    write_page(tmp_path / "report.html", report, some_shown(32))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<td>class ") == CLASSES and f"the {CLASSES} most frequent of 80" in page
    kept = {name for name in report["class"] if f"<td>{name}<" in page}
    fewest = min(max(cell["n"] for cell in report["class"][name].values()) for name in kept)
    assert all(max(cell["n"] for cell in row.values()) <= fewest for name, row in report["class"].items()
               if name not in kept)


def test_a_curve_goes_through_its_points():
    cells = {0.0: a_cell(1.0), 0.4: a_cell(None), 1.0: a_cell(0.0)}
    drawn = curve("iou", list(cells.items()))
    svg = xml.dom.minidom.parseString(drawn.replace("&hellip;", "..."))
    line, = svg.getElementsByTagName("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.getAttribute("points").split()]
    assert len(places) == 2 and places[0][0] < places[1][0] and places[0][1] < places[1][1]
    dots = [(float(dot.getAttribute("cx")), float(dot.getAttribute("cy"))) for dot in
            svg.getElementsByTagName("circle")]
    assert dots == places
    assert curve("iou", [(0.0, a_cell(1.0)), (1.0, a_cell(None))]) == ""
    flat = {"value": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    assert "nan" not in curve("equal", [(0.0, flat), (1.0, flat)])


def test_numbers_have_three_or_four_figures():
    assert [number(value) for value in (0.12345, 12.345, 123.45, None)] == ["0.123", "12.35", "123.5", "&ndash;"]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_without_a_network_shows_everything(tmp_path, width):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    write_page(tmp_path / "report.html", a_report(), some_shown(128))
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", {
            "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0})
        driver.get((tmp_path / "report.html").as_uri())
        assert driver.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert driver.execute_script("return document.images.length") == 4 * 3 * CASES
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        shown = driver.find_element("tag name", "body").text
        for says in ("Overall", "Over the levels", "By class", "Best", "Worst", "Random", "worst <text> 7", "mask_iou"):
            assert says in shown
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)")
        assert len(sizes) == 6 and min(sizes) > 60
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [e for e in driver.get_log("performance") if '"url":"http' in e["message"]]
    finally:
        driver.quit()
