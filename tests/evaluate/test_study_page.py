"""The study page in a real browser, from a file and without a network: seen whole, voted on by keys, saved."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sb.app.benchmark import FLAGS
from sb.evaluate.lists import read_list
from sb.evaluate.study import make_study
from sb.evaluate.study_count import count_votes

from .studies import evaluations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium"),
]
webdriver = pytest.importorskip("selenium.webdriver")
Keys, ActionChains = webdriver.Keys, webdriver.ActionChains
PAIRS = 6
IN_BROWSER = {"blob", "data", "chrome", "chrome-untrusted"}


@pytest.fixture(params=[(1280, 860), (390, 844)], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    (tmp_path / "saved").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "saved")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    width, height = request.param
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500,
    })
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", {
        "offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0,
    })
    yield driver
    driver.quit()


def until(says: str, true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, says
        time.sleep(0.02)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return evaluations(tmp_path_factory.mktemp("evaluations"), PAIRS)


class Page:
    """What a rater sees and does."""

    def __init__(self, driver: Any, study: Path):
        self.driver = driver
        driver.get(f"{study.as_uri()}/index.html")

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def shown(self, name: str) -> bool:
        return bool(self[name].is_displayed())

    def begin(self, rater: str) -> None:
        self["rater"].send_keys(rater, Keys.ENTER)

    def press(self, key: str) -> None:
        """When the pair is there; and then wait for what comes."""
        until("a pair to vote on", self.open)
        before = self["at"].text
        ActionChains(self.driver).send_keys(key).perform()
        until("the next pair", lambda: self.shown("end") or (self["at"].text != before and self.open()))

    def open(self) -> bool:
        return bool(self.driver.find_element("css selector", "[data-vote=left]").is_enabled())

    def pictures(self) -> list[str]:
        """Files of the pictures that are displayed, whole and inside the window."""
        return [
            Path(found).name for found in self.driver.execute_script(
                "return [...document.querySelectorAll('#pictures img')].filter((at) => {"
                "const box = at.getBoundingClientRect();"
                "return at.complete && at.naturalWidth > 0 && box.width > 90 && box.height > 90 && box.top >= 0"
                " && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth}).map((at) => at.src)"
            )
        ]


def saved(folder: Path, count: int) -> dict[str, Any]:
    """The newest of so many files, whole."""
    until("saved", lambda: len(list(folder.glob("*.json"))) == count)
    return dict(json.loads(max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text()))


def test_a_rater_votes_by_keys_from_file_to_file(browser: Any, sides: tuple[Path, Path], tmp_path: Path) -> None:
    make_study(*sides, tmp_path / "study", pairs=PAIRS, question="Which one shows it?")
    key = json.loads((tmp_path / "study" / "key.json").read_text())
    texts = [case.text for case in read_list(sides[0] / "list.jsonl").cases]
    page = Page(browser, tmp_path / "study")
    assert "Which one shows it?" in page["start"].text and "6 pairs" in page["start"].text
    assert page["outlined"].is_displayed() and not page.shown("vote")
    page.begin("Ann B.")
    for number, (name, a_left) in enumerate(zip(key["names"], key["a_left"], strict=True)):
        until("all there", lambda: page.pictures() == [f"{number:03d}-{n}.png" for n in ("input", "left", "right")])
        assert page["text"].text == f"\u201c{texts[int(name)]}\u201d" and page["at"].text == f"{number + 1} of 6"
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        if number == 2:  # changes the mind twice, reloads, and goes on
            page.press(Keys.ARROW_DOWN)
            page.press(Keys.BACKSPACE)
            browser.refresh()
            page.begin(" Ann B.")
            until("where it was", lambda: page["at"].text == "3 of 6")
        page.press(Keys.ARROW_DOWN if number == 5 else Keys.ARROW_LEFT if a_left else Keys.ARROW_RIGHT)
        if number == 0:
            browser.find_element("css selector", "#vote .save").click()
            assert saved(tmp_path / "saved", 1)["votes"] == ["left" if a_left else "right"]
    assert page.shown("end") and not page.shown("vote")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    found = saved(tmp_path / "saved", 2)
    assert found["rater"] == "Ann B." and found["votes"][5] == "tie" and found["study"] == key["study"]
    files = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert files == ["results-Ann-B- (1).json", "results-Ann-B-.json"]
    count = count_votes(tmp_path / "study", [tmp_path / "saved" / files[0]])
    assert (count.wins, count.losses, count.ties) == (5, 0, 1)
    stayed_here(browser, tmp_path / "study")


def test_buttons_vote_too_and_each_rater_starts_anew(browser: Any, sides: tuple[Path, Path], tmp_path: Path) -> None:
    make_study(sides[0] / "pictures", sides[1] / "pictures", tmp_path / "study", pairs=3)
    page = Page(browser, tmp_path / "study")
    assert not page["outlined"].is_displayed()
    page.begin("one")
    for number, vote in enumerate(("left", "tie", "right")):
        until("all there", lambda: page.pictures() == [f"{number:03d}-{n}.png" for n in ("left", "right")])
        assert not page.shown("inputs") and not page.shown("text")
        until("a pair to vote on", page.open)
        browser.find_element("css selector", f"[data-vote={vote}]").click()
    until("the end", lambda: page.shown("end"))
    page["again"].click()
    until("the last pair", lambda: page["at"].text == "3 of 3" and page.open())
    page["undo"].click()
    until("the one before", lambda: page["at"].text == "2 of 3")
    browser.refresh()
    page.begin("two")
    until("from the start", lambda: page["at"].text == "1 of 3" and not page["undo"].is_enabled())
    stayed_here(browser, tmp_path / "study")


def stayed_here(browser: Any, study: Path) -> None:
    """Nothing was asked of anyone, and the browser found no fault with the page."""
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    places = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    outside = {place for place in places if not place.startswith(study.as_uri())}
    assert f"{study.as_uri()}/pairs.js" in places and {place.split(":")[0] for place in outside} <= IN_BROWSER
