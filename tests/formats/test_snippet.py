"""The request of docs/formats.md with diffusers' parts alone paints what our Inpainter paints."""

import re
from pathlib import Path

import pytest
import torch

from sb.assemble import load_inpainter
from sb.convert import convert
from sb.types import Request

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_the_pages_snippet_gives_our_picture(trained_model, tmp_path, monkeypatch, level):
    pytest.importorskip("diffusers")
    convert(trained_model, tmp_path / "exported", "diffusers")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code, = [block for block in blocks if "StableDiffusionPipeline" in block]
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)  # the page's own text, as a reader would paste it
    maker = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (3, 32, 32), generator=maker).to(torch.uint8)
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 6:21, 9:24] = 1
    ours = load_inpainter(trained_model).paint(
        [Request(image, mask, "striped blue star", level=level, seed=3)], steps=4, guidance=3.0,
        guidance_until=0.5, preserve_from=0.3,
    )[0]
    theirs = names["paint"](image[None] / 127.5 - 1, mask[None].float(), "striped blue star", level, seed=3)
    apart = (((theirs[0].clamp(-1, 1) + 1) * 127.5).round() - ours.decoded.float()).abs()
    assert float((apart <= 1).float().mean()) >= 0.999
    assert len(ours.decoded.unique()) > 20  # not two blank pictures
