"""The page in a real browser: open, draw, ask, look, accept, go on, take home; and nothing leaves this machine."""

import io
import json
import shutil
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from sb.app.api import create_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="needs Chromium"),
]
webdriver = pytest.importorskip("selenium.webdriver")
uvicorn = pytest.importorskip("uvicorn")
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync",
)


@pytest.fixture(scope="module")
def address(small_painter):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    app = create_app({"small": small_painter, "second": small_painter})
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(params=[(1280, 860), (390, 844)], ids=["desktop", "phone"])
def browser(request, tmp_path):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*QUIET, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_window_size(*request.param)
    yield driver
    driver.quit()


def until(says, true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, says
        time.sleep(0.05)


def test_two_edits_from_photo_to_file(address, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains

    def find(name):
        return browser.find_element("id", name)

    def drag(x, y, dx, dy):
        ActionChains(browser).move_to_element_with_offset(find("stage"), x, y).click_and_hold().move_by_offset(
            dx, dy).release().perform()

    def paint(text):
        find("text").clear()
        find("text").send_keys(text)
        browser.execute_script("arguments[0].scrollIntoView()", find("run"))
        find("run").click()
        until("painted", lambda: find("line").text.startswith("painted"))
        until("shown", lambda: find("compare").is_displayed())

    photo = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    browser.get(address)
    until("models listed", lambda: len(find("model").find_elements("tag name", "option")) == 2)
    assert not find("run").is_enabled()
    find("open").send_keys(str(tmp_path / "photo.png"))
    until("opened", lambda: find("size").text == "48 x 40")
    drag(-30, -20, 60, 40)
    assert find("run").is_enabled() and find("undo").is_enabled()
    find("undo").click()
    assert not find("run").is_enabled()
    browser.find_element("css selector", "[data-tool=box]").click()
    drag(-40, -40, 80, 80)
    browser.execute_script(
        "const p = document.getElementById('precision'); p.value = 0; p.dispatchEvent(new Event('input'))"
    )
    assert find("exact").text == "box"
    paint("red star")
    browser.execute_script("arguments[0].scrollIntoView()", find("stage"))
    find("overlay").click()
    assert find("seen").is_displayed()
    browser.execute_script(
        "const s = document.getElementById('slider'); s.value = 50; s.dispatchEvent(new Event('input'))"
    )
    assert "50%" in find("after").get_attribute("style")
    find("accept").click()
    until("accepted", lambda: len(find("history").find_elements("tag name", "button")) == 2)
    drag(-60, -60, 20, 20)
    paint("blue ring")
    find("download").click()
    until("downloaded", lambda: list(tmp_path.glob("*-painted.png")))
    until("whole", lambda: not list(tmp_path.glob("*.crdownload")))
    result = np.asarray(Image.open(io.BytesIO(next(tmp_path.glob("*-painted.png")).read_bytes())))
    changed = (result != photo).any(2)
    assert result.shape == photo.shape and 0 < changed.mean() < 0.6
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    places = {one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"}
    assert f"{address}v1/inpaint" in places
    others = {place.split(":")[0] for place in places if not place.startswith(address)}
    assert others <= {"blob", "data", "chrome", "chrome-untrusted"}
