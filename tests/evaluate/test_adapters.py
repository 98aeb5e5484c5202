"""Systems behind one interface: each gives the results of what it wraps, on the pixels that were asked for."""

import copy

import pytest
import torch

from sb.evaluate.adapters import Own, Pictures, Pipeline, picture_name
from sb.pictures import save_png
from sb.registry import build, names
from sb.types import Request, Result

from ..formats.conftest import save


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """kind -> a pipeline's folder of random weights."""
    made = {}

    def of(kind):
        if kind not in made:
            pytest.importorskip("diffusers")
            place = tmp_path_factory.mktemp(kind)
            save(kind, place)
            made[kind] = str(place / "pipe")
        return made[kind]

    return of


def a_request(height=32, width=32, text="a red cat", seed=0):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, 6:20, 9:23] = 1
    return Request(image, mask, text, 1.0, seed)


def test_every_adapter_has_its_name():
    assert {"blended", "diffusers", "own", "pictures"} <= set(names("adapter"))


def test_our_own_model_paints_as_it_does_alone(trained_model):
    adapter = Own(str(trained_model), {"steps": 2, "guidance": 1.0}, device="cpu")
    requests = [a_request(seed=n) for n in range(2)]
    (one, two) = adapter.paint(requests, [0, 1])
    alone = adapter.painter.paint(requests[1:], steps=2, guidance=1.0)[0]
    assert (two.pixels.int() - alone.pixels.int()).abs().max() <= 1 and two.predicted is not None
    assert torch.equal(one.pixels * (1 - requests[0].mask), requests[0].image * (1 - requests[0].mask))
    assert adapter.num_levels == 5
    said = adapter.describe()
    assert said["options"]["steps"] == 2 and said["system"] == "run" and said["images_seen"] == 8
    assert Own(str(trained_model), device="cpu").describe() != said
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        Own(str(trained_model), {"stpes": 2}, device="cpu")


def test_a_nine_channel_pipeline_paints_what_diffusers_does(folder_of):
    adapter = Pipeline(folder_of("sd1_inpainting"), {"steps": 2, "guidance": 3.0}, device="cpu")
    requests = [a_request(seed=1), a_request(30, 45, "a dog", 2), a_request(seed=3)]
    results = adapter.paint(requests, [0, 1, 2])
    assert [result.pixels.shape for result in results] == [request.image.shape for request in requests]
    for request, result in zip(requests, results, strict=True):
        inside = request.mask.bool().expand(3, -1, -1)
        assert torch.equal(result.pixels[~inside], request.image[~inside])
        assert torch.equal(result.pixels[inside], result.decoded[inside])
        assert not torch.equal(result.decoded[~inside], request.image[~inside]) and result.predicted is None
    first = requests[0]
    theirs = adapter.pipe(
        prompt=first.text, image=first.image[None] / 255, mask_image=first.mask[None].float(), height=32, width=32,
        num_inference_steps=2, guidance_scale=3.0, output_type="pt", generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert (theirs * 255 - results[0].decoded).abs().max() <= 1.5
    bare = copy.copy(adapter)
    bare.options = Pipeline(folder_of("sd1_inpainting"), {"paste": False}, device="cpu").options
    raw = bare.paint(requests[:1], [0])[0]
    assert torch.equal(raw.pixels, raw.decoded) and not torch.equal(raw.pixels, results[0].pixels)


def test_a_pipeline_is_told_from_another(folder_of):
    one = Pipeline(folder_of("sd1_inpainting"), device="cpu")
    before = one.describe()
    assert before["class"] == "StableDiffusionInpaintPipeline" and set(before["weights"]) == {
        "text_encoder", "unet", "vae",
    }
    assert before["sampler"]["class"] == one.pipe.scheduler.__class__.__name__
    assert before["sampler"]["beta_end"] == one.pipe.scheduler.config.beta_end
    next(one.pipe.unet.parameters()).data.add_(1.0)
    assert one.describe()["weights"]["unet"] != before["weights"]["unet"]


def test_a_text_to_image_model_keeps_the_background(folder_of):
    spec = {"name": "blended", "system": folder_of("sd1"), "options": {"steps": 2}}
    adapter = build("adapter", spec, device="cpu")
    request = a_request()
    result = adapter.paint([request], [0])[0]
    inside = request.mask.bool().expand(3, -1, -1)
    assert torch.equal(result.pixels[~inside], request.image[~inside])
    assert not torch.equal(result.pixels[inside], request.image[inside])
    assert adapter.describe()["name"] == "blended"
    with pytest.raises(ValueError, match="trained to inpaint: adapter 'blended' takes a text-to-image model"):
        build("adapter", {"name": "blended", "system": folder_of("sd1_inpainting"), "device": "cpu"})


def test_finished_pictures_are_taken_as_they_are(tmp_path):
    requests = [a_request(seed=n) for n in range(2)]
    for number in (4, 7):
        result = Result(requests[0].image.flip(-1), requests[0].image, None, 0)
        save_png(result.image, tmp_path / f"{picture_name(number)}.png")
    adapter = Pictures(str(tmp_path))
    results = adapter.paint(requests, [4, 7])
    assert torch.equal(results[1].pixels, requests[0].image.flip(-1)) and results[1].seed == 1
    said = adapter.describe()
    with pytest.raises(ValueError, match="holds no 000005.png"):
        adapter.paint(requests, [4, 5])
    with pytest.raises(ValueError, match="000004.png is 32x32 px and its request 32x40 px"):
        adapter.paint([a_request(height=40)], [4])
    (tmp_path / "000008.png").write_bytes(b"other")
    assert adapter.describe() != said


@pytest.mark.parametrize("build_it, says", [
    (lambda path: Pictures(str(path / "absent")), "no folder of pictures"),
    (lambda path: Pictures(str(path), {"steps": 3}), "has no key 'steps'"),
    (lambda path: Pipeline(str(path)), "has no model_index.json"),
    (lambda path: Pipeline(str(path), {"step": 3}), "did you mean 'steps'"),
])
def test_what_is_no_system_is_refused(tmp_path, build_it, says):
    with pytest.raises(ValueError, match=says):
        build_it(tmp_path)
