"""The page in a real browser: open, draw, ask, look, accept, go on, take home; and nothing leaves this machine."""

import base64
import io
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from sb.app.api import create_app
from sb.app.benchmark import FLAGS

from .conftest import png, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium"),
]
webdriver = pytest.importorskip("selenium.webdriver")
BLOBS = {"blob", "data", "chrome", "chrome-untrusted"}  # made in the browser


class Leisurely:
    """A painter that takes its time between steps, so that there is something to see."""

    def __init__(self, painter):
        self.painter = painter

    def __getattr__(self, name):
        return getattr(self.painter, name)

    def paint(self, requests, watch, **options):
        def slowly(progress):
            watch(progress)
            time.sleep(0.25)

        return self.painter.paint(requests, watch=slowly, **options)


@pytest.fixture(scope="module")
def address(small_painter):
    slow = Leisurely(small_painter)
    with serving(create_app({"small": slow, "second": slow})) as found:
        yield f"{found}/"


class Page:
    """What a hand can do on the page."""

    def __init__(self, browser):
        self.browser = browser

    def __getitem__(self, name):
        return self.browser.find_element("id", name)

    def click(self, selector):
        found = self.browser.find_element("css selector", selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def set(self, name, value):
        """Of a slider or a list, as a hand would."""
        self.browser.execute_script(
            "const [at, value] = arguments; at.value = value;"
            "for (const kind of ['input', 'change']) at.dispatchEvent(new Event(kind, {bubbles: true}))",
            self[name], str(value),
        )

    def drag(self, x, y, dx, dy):
        """On the stage, from a place relative to its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self["stage"])
        ActionChains(self.browser).move_to_element_with_offset(self["stage"], x, y).click_and_hold().move_by_offset(
            dx, dy).release().perform()

    def pinch(self, before, after):
        """Two fingers in the middle of the stage, from one distance to another."""
        middle = self.browser.execute_script(
            "const box = arguments[0].getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]", self["stage"],
        )

        def touch(kind, *aparts):
            points = [{"x": middle[0] + apart / 2, "y": middle[1], "id": n} for n, apart in enumerate(aparts)]
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", -before)
        touch("touchStart", -before, before)
        touch("touchMove", -after, before)
        touch("touchMove", -after, after)
        touch("touchEnd")

    def drawn(self):
        """(H, W), True where the mask is."""
        content = self.browser.execute_script("return document.getElementById('mask').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))))[..., 3] > 127

    def shown(self, name):
        return self[name].is_displayed()

    def paint(self, text=None):
        """Ask, see a preview, wait for the result; the mask that was asked with."""
        mask = self.drawn()
        if text is not None:
            self["text"].clear()
            self["text"].send_keys(text)
        assert not self.shown("compare") and self["run"].is_enabled()
        self.click("#run")
        until("a preview", lambda: self.shown("after") and self.shown("stop") and "step" in self["line"].text)
        assert self["after"].get_attribute("src").startswith("data:image/jpeg") and not self.shown("compare")
        until("painted", lambda: self["line"].text.startswith("painted in"))
        assert self.shown("compare") and not self.shown("stop") and not self.shown("mask")
        return mask

    def saved(self, folder):
        """The pixels of what the download button saves, and the file."""
        before = set(folder.iterdir())
        self.click("#download")
        until("downloaded", lambda: any(p.suffix in (".png", ".jpg") for p in set(folder.iterdir()) - before))
        until("whole", lambda: not list(folder.glob("*.crdownload")))
        path = next(p for p in set(folder.iterdir()) - before if p.suffix in (".png", ".jpg"))
        return np.asarray(Image.open(path)), path


@pytest.fixture(params=[(1280, 860), (390, 844)], ids=["desktop", "phone"])
def page(request, tmp_path, address):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,860"):
        options.add_argument(flag)
    (tmp_path / "saved").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "saved")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    width, height = request.param
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500,
    })
    driver.get(address)
    found = Page(driver)
    until("models listed", lambda: len(found["model"].find_elements("tag name", "option")) == 2)
    yield found
    driver.quit()


def until(says, true, seconds=30):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, says
        time.sleep(0.02)


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    (tmp_path / "photo.png").write_bytes(png(pixels))
    return pixels


def opened(page, tmp_path):
    page["open"].send_keys(str(tmp_path / "photo.png"))
    until("opened", lambda: page["picture"].get_attribute("naturalWidth") == "48" and page.shown("sheet"))


def test_two_edits_from_photo_to_file(page, address, tmp_path, photo):
    assert not page["run"].is_enabled() and not page.shown("compare") and page.shown("drop")
    opened(page, tmp_path)
    page.drag(-30, -20, 60, 40)
    assert page["run"].is_enabled() and page["undo"].is_enabled() and page.drawn().any()
    page.click("#undo")
    assert not page["run"].is_enabled() and not page.drawn().any()
    page.click("[data-tool=box]")
    page.drag(-40, -40, 80, 80)
    page.set("precision", 0)
    assert page["exact"].text == "box"
    first = page.paint("red star")
    page.click("#overlay")
    assert page.shown("seen")
    page.set("slider", 50)
    assert "50%" in page["after"].get_attribute("style")
    page.click("#accept")
    until("accepted", lambda: len(page["history"].find_elements("tag name", "button")) == 2)
    assert not page.shown("compare") and not page.drawn().any()
    page.click("[data-tool=brush]")
    page.drag(-70, -70, 20, 20)
    page.set("precision", 100)
    page.set("model", "second")
    second = page.paint("blue ring")
    result, path = page.saved(tmp_path / "saved")
    outside = ~(first | second)
    assert result.shape == photo.shape and outside.any() and (result[outside] == photo[outside]).all()
    for mask in (first & ~second, second):
        assert (result != photo).any(2)[mask].any()
    assert path.name == "photo-painted.png" and "model second" in Image.open(path).text["Description"]
    stays_here(page, address)


def stays_here(page, address):
    """Nothing was asked of anyone but this server, and the browser found no fault with the page."""
    assert not [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    sent = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    places = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    assert address.startswith("http://127.0.0.1:") and {address, f"{address}v1/inpaint"} <= places
    assert {place.split(":")[0] for place in places if not place.startswith(address)} <= BLOBS


def test_the_picture_is_zoomed_moved_and_found_again(page, tmp_path, photo):
    from selenium.webdriver.common.action_chains import ActionChains

    def place():
        return [page["sheet"].value_of_css_property(name) for name in ("width", "transform")]

    opened(page, tmp_path)
    whole = place()
    page.click("#in")
    assert float(place()[0][:-2]) == pytest.approx(1.4 * float(whole[0][:-2]), rel=1e-3)
    page.click("#fit")
    assert place() == whole
    ActionChains(page.browser).move_to_element(page["stage"]).key_down(" ").perform()
    page.drag(0, 0, 30, 20)
    ActionChains(page.browser).key_up(" ").perform()
    assert place()[0] == whole[0] and place()[1] != whole[1] and not page.drawn().any()
    page.click("[data-tool=move]")
    page.drag(0, 0, -30, -20)
    assert place() == whole and not page.drawn().any()
    page.click("[data-tool=brush]")
    page.pinch(40, 80)
    assert float(place()[0][:-2]) == pytest.approx(2 * float(whole[0][:-2]), rel=1e-2) and not page.drawn().any()
    page.click("#fit")
    page.drag(0, 0, 5, 5)
    assert page.drawn().any()
    page.click("[data-tool=erase]")
    page.set("brush", 60)
    page.drag(0, 0, 5, 5)
    assert not page.drawn().any() and not page["run"].is_enabled()
    page.click("#history button")
    until("the photo again", lambda: not page["undo"].is_enabled())


def test_removal_variations_masks_from_files_and_lossy_results(page, address, tmp_path, photo):
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 5:40] = 255
    (tmp_path / "mask.png").write_bytes(png(mask))
    (tmp_path / "small.png").write_bytes(png(mask[1:]))
    opened(page, tmp_path)
    page["maskfile"].send_keys(str(tmp_path / "small.png"))
    until("refused", lambda: page["line"].text == "this mask is 48 x 39 px, the photo 48 x 40 px")
    page["maskfile"].send_keys(str(tmp_path / "mask.png"))
    until("read", lambda: page["run"].is_enabled())
    assert (page.drawn() == (mask > 0)).all()
    tasks = [option.text for option in page["task"].find_elements("tag name", "option")]
    assert tasks == ["Paint an object", "Remove what is there"] and page.shown("text")
    page.set("task", "remove")
    assert not page.shown("text")
    page.click("summary")
    page.set("variations", 2)
    page.set("seed", 5)
    page.paint()
    thumbnails = page["results"].find_elements("tag name", "button")
    assert [one.get_attribute("title") for one in thumbnails] == ["seed 5", "seed 6"]
    page.click("#overlay")
    assert not page.shown("seen")  # nothing is painted that could have a mask
    page.click("#discard")
    page.set("task", "object")
    page.set("format", "jpeg")
    page.set("variations", 1)
    page.paint("")
    assert "JPEG is lossy" in page["line"].text
    assert page.saved(tmp_path / "saved")[1].name == "photo-painted.jpg"
    page.click("#discard")
    page.set("steps", 100)
    page.click("#run")
    until("under way", lambda: "step 2" in page["line"].text)
    page.click("#stop")
    until("stopped", lambda: page["line"].text == "stopped" and page["run"].is_enabled())
    stays_here(page, address)


def test_a_token_is_asked_for_once(small_painter, page, tmp_path, photo):
    with serving(create_app({"small": small_painter, "second": small_painter}, token="secret")) as closed:
        page.browser.get(closed)
        for answer in ("wrong", "secret"):
            until("asked", lambda: _asked(page.browser))
            page.browser.switch_to.alert.send_keys(answer)
            page.browser.switch_to.alert.accept()
        until("models listed", lambda: len(page["model"].find_elements("tag name", "option")) == 2)
        opened(page, tmp_path)
        page.drag(-30, -20, 60, 40)
        page.click("#run")
        until("painted", lambda: page["line"].text.startswith("painted in"))


def _asked(browser):
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return bool(browser.switch_to.alert.text)
    except NoAlertPresentException:
        return False
