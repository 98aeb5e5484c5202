"""The tools as a user types them: from a model to a picture, and one clear line for whatever is wrong."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sb import config
from sb.assemble import assemble

ROOT = Path(__file__).parents[1]
SMALL = [
    "image_size=32", "trainer.precision=32-true", "trainer.progress_bar=false", "data.batch_size=4", "data.workers=0",
    "data.val_images=8", "trainer.images=8", "trainer.val_every_images=8", "vae.widths=8", "vae.blocks=1",
    "vae.weights=null", "denoiser.widths=[16,32]", "denoiser.attention=[false,true]", "denoiser.blocks=1",
    "denoiser.heads=2", "denoiser.groups=8", "text={name: tiny, width: 16, layers: 1, heads: 2}",
    "callbacks.ema.every_images=0",
]


def tool(name: str, *arguments) -> int:
    """Run a tool's main in this process; its exit code."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, [f"{name}.py", *map(str, arguments)]
    try:
        return module.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def model(shapes_shards, tmp_path_factory):
    """A model folder of a run of two steps."""
    run_dir = tmp_path_factory.mktemp("model") / "run"
    overrides = [*SMALL, f"run_dir={run_dir}", f"data.train=[{{shards: {shapes_shards['train']}}}]",
                 f"data.val=[{{shards: {shapes_shards['val']}}}]"]
    assemble(config.load(ROOT / "configs" / "quickstart.yaml", overrides)).fit()
    return run_dir


@pytest.fixture
def drawing(tmp_path):
    """A picture with alpha, a mask of its size, one of another size and an empty one."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    mask = np.zeros((24, 40), np.uint8)
    mask[5:15, 10:30] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:12]).save(tmp_path / "small.png")
    Image.fromarray(mask * 0).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    return tmp_path


def paint(model, drawing, *more, image="image.png", mask="mask.png", out="out"):
    return tool("inpaint", "--model", model, "--image", drawing / image, "--mask", drawing / mask, "--text", "red star",
                "--steps", 2, "--out", drawing / out, *more)


def test_inpaint_writes_its_four_files_and_touches_nothing_outside(model, drawing, capsys):
    assert paint(model, drawing, "--precision", "0.4", "--seed", "3") == 0
    out = drawing / "out"
    assert {p.name for p in out.iterdir()} == {"result.png", "predicted_mask.png", "side_by_side.png", "request.json"}
    before, after = (np.asarray(Image.open(p)) for p in (drawing / "image.png", out / "result.png"))
    outside = np.asarray(Image.open(drawing / "mask.png")) == 0
    assert np.array_equal(before[outside], after[outside]) and np.array_equal(before[..., 3], after[..., 3])
    request = json.loads((out / "request.json").read_text())
    assert (request["level"], request["seed"], request["steps"]) == (3.0, 3, 2)
    assert "painted" in capsys.readouterr().out


def test_inpaint_never_overwrites_unless_told(model, drawing):
    assert paint(model, drawing) == 0 and paint(model, drawing, "--seed", "1") == 0
    assert (drawing / "out" / "result-1.png").is_file() and (drawing / "out" / "request-1.json").is_file()
    assert paint(model, drawing, "--overwrite") == 0
    assert not (drawing / "out" / "result-2.png").exists()


@pytest.mark.parametrize("change, says", [
    ({"mask": "small.png"}, "the mask is 40x12 px and the image 40x24 px"),
    ({"mask": "empty.png"}, "the mask is empty"),
    ({"image": "broken.png"}, "broken.png cannot be read as an image"),
    ({"image": "absent.png"}, "no image at"),
])
def test_inpaint_says_what_is_wrong_with_the_pictures(model, drawing, capsys, change, says):
    assert paint(model, drawing, **change) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert not (drawing / "out").exists()


@pytest.mark.parametrize("more, says", [
    (["--precision", "exact"], "precision 'exact' is not a number"),
    (["--precision", "1.5"], "precision 1.5 is outside"),
    (["--steps", "0"], "needs steps >= 1"),
])
def test_inpaint_says_what_is_wrong_with_the_options(model, drawing, capsys, more, says):
    assert paint(model, drawing, *more) == 2
    assert says in capsys.readouterr().err


def test_inpaint_says_what_is_wrong_with_the_model(model, drawing, tmp_path, capsys):
    assert paint(tmp_path, drawing) == 2
    assert "no checkpoint that is known here" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(model / "model", other)
    cut = (other / "unet.safetensors").read_bytes()
    (other / "unet.safetensors").write_bytes(cut[: len(cut) // 2])
    assert paint(other, drawing) == 2
    assert "unet.safetensors is not a readable weights file" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing(model, drawing, capsys, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert paint(model, drawing) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not [p for p in (drawing / "out").iterdir()]


def test_a_box_in_place_of_a_mask(model, drawing, capsys):
    box = ["--model", model, "--image", drawing / "image.png", "--text", "red star", "--steps", 1]
    assert tool("inpaint", *box, "--box", "4,4,10,10", "--out", drawing / "out") == 0
    assert tool("inpaint", *box, "--box", "30,4,20,10", "--out", drawing / "out") == 2
    assert "does not lie inside the 40x24 px image" in capsys.readouterr().err


def test_variations_are_numbered_and_how_far_apart_they_are_is_said(model, drawing, capsys):
    assert paint(model, drawing, "--variations", 2, "--batch", 1) == 0
    names = {"result_1.png", "result_2.png", "predicted_mask_1.png", "predicted_mask_2.png", "side_by_side.png"}
    assert {p.name for p in (drawing / "out").iterdir()} == {*names, "request.json"}
    request = json.loads((drawing / "out" / "request.json").read_text())
    assert f"{request['diversity']:g} of 255 levels apart" in capsys.readouterr().out
    assert paint(model, drawing, "--variations", 2) == 0 and (drawing / "out" / "result_2-1.png").is_file()


def test_what_a_result_cannot_hold_of_its_source_is_said(model, drawing, capsys):
    Image.fromarray(np.full((24, 40), 1000, np.uint16)).save(drawing / "deep.png")
    assert paint(model, drawing, image="deep.png") == 0
    assert "deep.png: 16 bits a channel become 8, the high ones" in capsys.readouterr().out
    assert paint(model, drawing) == 0 and "note" not in capsys.readouterr().out


def test_a_file_of_requests(model, drawing, capsys):
    line = {"image": "image.png", "mask": "mask.png", "text": "red star"}
    file = drawing / "requests.jsonl"
    lines = [{**line, "id": "a", "variations": 2}, {**line, "mask": "small.png"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["--model", model, "--requests", file, "--out", drawing / "out", "--steps", 1]
    assert tool("inpaint", *options) == 1
    said = capsys.readouterr()
    assert f"1 painted, 1 failed: {drawing}/out/report.html" in said.out
    assert "error: requests.jsonl:2: the mask is 40x12 px and the image 40x24 px" in said.err
    assert json.loads((drawing / "out" / "a" / "request.json").read_text())["steps"] == 1
    file.write_text(file.read_text().splitlines()[0])
    assert tool("inpaint", *options) == 0 and "1 kept: " in capsys.readouterr().out
    assert tool("inpaint", *options[:2], "--requests", drawing / "none.jsonl") == 2
    assert "no file of requests at" in capsys.readouterr().err


@pytest.mark.parametrize("more, says", [
    (["--text", "x"], "--text does not go with --requests"),
    (["--overwrite"], "--overwrite does not go with --requests"),
    (["--batch", "0"], "--batch must be 1 or more, not 0"),
])
def test_flags_that_do_not_go_together(model, drawing, capsys, more, says):
    with pytest.raises(SystemExit):
        tool("inpaint", "--model", model, "--requests", drawing / "requests.jsonl", *more)
    assert says in capsys.readouterr().err


def test_cache_latents_says_what_it_wrote_or_why_not(shapes_shards, tmp_path, capsys):
    source = f"data.train.0.shards={shapes_shards['train']}"
    options = [ROOT / "configs/quickstart_cached.yaml", *SMALL, source, "--out", tmp_path / "out", "--num-workers", 0]
    assert tool("cache_latents", *options) == 0
    assert f"{tmp_path}/out: 96 images x 2 frames, " in capsys.readouterr().out
    assert tool("cache_latents", *options, "data.crop.variants=1") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "differs in latents.frames.crop.variants (2 there, 1 now)" in error


def test_quickstart_names_tools_and_run_files_that_exist():
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "tools" / "quickstart.py")
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    for command in quickstart.STAGES.values():
        script, *arguments = command.split()
        assert (ROOT / "tools" / script).is_file()
        assert all((ROOT / a).is_file() for a in arguments if a.endswith(".yaml"))
