"""What people wait for: the page's first load in a browser, and requests one at a time beside many at once."""

import http.client
import io
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

BROWSER = ("chromium", "chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync",
)
READY = "const at = performance.getEntriesByName('ready')[0]; return at ? at.startTime / 1000 : null"


def benchmark_app(
    model: str, requests: int, passes: int, device: str, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Median seconds of the page's first load in a browser that has never seen it, and requests/s one at a time and
    all at once, alternated, with the ratio of the medians. ValueError without Chromium."""
    missing = [name for name in BROWSER if not shutil.which(name)]
    try:
        import selenium  # noqa: F401
    except ImportError:
        missing.append("selenium")
    if missing:
        raise ValueError(f"benchmark app: {', '.join(missing)} not found; it needs Chromium, its driver and selenium")
    with serving(model, device) as (address, _):
        content, kind = picture_request(address)
        for seed in (0, 1):
            post(address, content(seed), kind)
        loads = [first_load(address) for _ in range(passes + 1)][1:]  # before the first, the server was cold
        report(f"first page load: {', '.join(f'{seconds:.2f}' for seconds in loads)} s")
        alone, together = [], []
        for turn in range(passes):
            bodies = [content(turn * requests + n) for n in range(requests)]
            alone.append(requests / _seconds(address, bodies, kind, 1))
            together.append(requests / _seconds(address, bodies, kind, requests))
            report(f"turn {turn + 1}: {alone[-1]:.2f} requests/s one at a time, {together[-1]:.2f} all at once")
    return {
        "first_load_s": median(loads), "alone_per_s": median(alone), "together_per_s": median(together),
        "ratio": median(together) / median(alone),
    }


@contextmanager
def serving(model: str, device: str = "cpu", limits: dict[str, Any] | None = None) -> Iterator[tuple[str, int]]:
    """A server of a model in a process of its own: its address and process id."""
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(model, device, limits or {}, tell), daemon=True)
    process.start()
    tell.close()
    try:
        try:
            found = told.recv()
        except EOFError:
            raise ValueError(f"{model} cannot be served: the lines above say why") from None
        yield found, process.pid or 0
    finally:
        process.terminate()
        process.join(30)


def _serve(model: str, device: str, limits: dict[str, Any], tell: Any) -> None:
    from sb.app.api import create_app
    from sb.app.guard import LOCAL
    from sb.app.limits import Limits
    from sb.app.serving import Server, listen
    from sb.inpaint import Inpainter

    bound, address = listen("127.0.0.1", 0)
    app = create_app({"model": Inpainter.load(model, device, "fp32")}, Limits(**limits), hosts=LOCAL)
    tell.send(address)
    Server(app).run([bound])


def first_load(address: str) -> float:
    """Seconds from going to the page until it can be used, in a browser with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get(address)
            end = time.monotonic() + 60
            while (seconds := driver.execute_script(READY)) is None:
                if time.monotonic() > end:
                    raise ValueError("benchmark app: the page was not ready within 60 s")
                time.sleep(0.02)
        finally:
            driver.quit()
    return float(seconds)


def picture_request(address: str) -> tuple[Callable[[int], bytes], str]:
    """Multipart bodies of alike requests by seed, and their content type: a box in a picture of the model's size."""
    known = json.loads(post(address, None, "", "/v1/models"))[0]
    side = known["native_px"] or 512
    across = np.linspace(0, 255, side).astype(np.uint8)
    pixels = np.stack([np.tile(across, (side, 1)), np.tile(across[:, None], (1, side)), np.full((side, side), 90)], 2)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="PNG")

    def content(seed: int) -> bytes:
        fields = {"box": f"{side // 4},{side // 4},{side // 2},{side // 2}", "text": "striped blue star", "seed": seed}
        return multipart({"image": buffer.getvalue()}, fields)

    return content, "multipart/form-data; boundary=part"


def multipart(files: dict[str, bytes], fields: dict[str, Any]) -> bytes:
    """A multipart body whose boundary is ``part``."""
    lines = [
        f'--part\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
        for name, value in fields.items()
    ]
    lines += [
        f'--part\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + value
        for name, value in files.items()
    ]
    return b"\r\n".join([*lines, b"--part--\r\n"])


def post(address: str, content: bytes | None, kind: str, path: str = "/v1/inpaint") -> bytes:
    """The body of an answer, GET without content; asks again where the queue is full."""
    while True:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
        try:
            connection.request("GET" if content is None else "POST", path, content, {"Content-Type": kind})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status == 429:
            time.sleep(float(answer.headers["Retry-After"]))
        elif answer.status != 200:
            raise ValueError(f"{path} answered {answer.status}: {body[:200].decode(errors='replace')}")
        else:
            return body


def _seconds(address: str, bodies: list[bytes], kind: str, at_once: int) -> float:
    """How long it takes ``at_once`` clients to get all of these answered."""
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as clients:
        list(clients.map(lambda body: post(address, body, kind), bodies))
    return time.monotonic() - began
