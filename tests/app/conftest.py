"""A painter of next to nothing behind the app, and a client."""

import io
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")

from sb.app.jobs import Abandoned  # noqa: E402
from sb.app.serving import Server, listen  # noqa: E402
from sb.conditioning import SmartBrushConditioning  # noqa: E402
from sb.denoising import PaintOptions  # noqa: E402
from sb.inpaint import Inpainter  # noqa: E402
from sb.masks import Ladder  # noqa: E402
from sb.models.text import tiny  # noqa: E402
from sb.models.tiny_vae import TinyVAE  # noqa: E402
from sb.models.unet import UNet  # noqa: E402
from sb.samplers import ddim  # noqa: E402
from sb.schedule import scaled_linear  # noqa: E402


@pytest.fixture(scope="session")
def small_painter() -> Inpainter:
    torch.manual_seed(0)
    unet = UNet(8 + 16, 8, 16, 16, 3, widths=(16, 32), attention=(False, True), blocks=1, heads=2, groups=8,
                pooled_width=16, task_rows=2, zero_init=False)
    return Inpainter(
        unet.eval(), TinyVAE(latent_channels=8, stages=2, widths=16, blocks=1).eval(),
        tiny(width=16, layers=1, heads=2).eval(), scaled_linear(prediction="v", zero_terminal_snr=True),
        Ladder([{"name": "outline"}, {"name": "blur", "sigma": 0.1}, {"name": "box"}]), SmartBrushConditioning(16),
        ddim, PaintOptions(steps=3, guidance=2.0), tasks={"object": True, "remove": False}, native_px=32,
    )


def png(array) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG")
    return content.getvalue()


@pytest.fixture
def photo():
    """(40, 48, 3) noise, and its file."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return pixels, png(pixels)


@pytest.fixture
def drawn():
    """(40, 48) with a rectangle, and its file."""
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 12:34] = 255
    return mask, png(mask)


@contextmanager
def serving(app):
    """The address of an app that a thread serves."""
    bound, address = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(20)


class SlowPainter:
    """A painter whose every painting waits for ``go``, says when one ``began`` and counts those ``given_up``."""

    def __init__(self, painter):
        self.painter, self.go, self.began, self.given_up = painter, threading.Event(), threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self.painter, name)

    def paint(self, requests, watch, **options):
        def slow(progress):
            self.began.set()
            while not self.go.wait(0.02):
                watch(progress)
            watch(progress)

        try:
            return self.painter.paint(requests, watch=slow, **options)
        except Abandoned:
            self.given_up += 1
            raise


@pytest.fixture
def slow_painter(small_painter):
    painter = SlowPainter(small_painter)
    yield painter
    painter.go.set()
