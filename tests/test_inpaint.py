"""The Inpainter: nothing outside the mask changes, whatever the size, batch or options."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from sb.conditioning import NineChannelConditioning, SmartBrushConditioning
from sb.denoising import PaintOptions
from sb.inpaint import Inpainter
from sb.masks import Ladder
from sb.models.text import tiny
from sb.models.tiny_vae import TinyVAE
from sb.models.unet import UNet
from sb.samplers import ddim
from sb.schedule import scaled_linear
from sb.types import Request

LADDER = Ladder([{"name": "outline"}, {"name": "blur", "sigma": 0.1}, {"name": "box"}])


@pytest.fixture(scope="module")
def painter() -> Inpainter:
    torch.manual_seed(0)
    text = tiny(width=16, layers=1, heads=2)
    unet = UNet(8 + 16, 8, 16, 16, 3, widths=(16, 32), attention=(False, True), blocks=1, heads=2, groups=8,
                pooled_width=16, task_rows=2, zero_init=False)
    vae = TinyVAE(latent_channels=8, stages=2, widths=16, blocks=1)
    schedule = scaled_linear(prediction="v", zero_terminal_snr=True)
    return Inpainter(
        unet.eval(), vae.eval(), text.eval(), schedule, LADDER, SmartBrushConditioning(16), ddim,
        PaintOptions(steps=3, guidance=2.0), tasks={"object": True, "remove": False},
    )


def a_request(height: int = 32, width: int = 32, seed: int = 0, **other) -> Request:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, height // 4: height // 2, width // 4: -width // 4] = 1
    return Request(image, mask, **{"text": "red star", "seed": seed, **other})


@pytest.mark.parametrize("height, width", [(32, 32), (33, 47), (64, 20), (9, 70)])
@pytest.mark.parametrize("use_predicted", [True, False])
def test_outside_is_bit_equal_and_inside_is_painted(painter, height, width, use_predicted):
    request = a_request(height, width)
    result = painter.paint([request], use_predicted=use_predicted, threshold=0.0)[0]
    outside = (request.mask == 0).expand(3, -1, -1)
    assert result.pixels.shape == request.image.shape
    assert torch.equal(result.pixels[outside], request.image[outside])
    assert not torch.equal(result.pixels, request.image)
    assert result.predicted.shape == request.mask.shape and not (result.predicted * (request.mask == 0)).any()


def test_a_request_does_not_depend_on_its_batch(painter):
    requests = [a_request(seed=i, level=float(i)) for i in range(3)] + [a_request(48, 32, seed=9)]
    together = painter.paint(requests)
    for request, batched in zip(requests, together, strict=True):
        alone = painter.paint([request])[0]
        assert (alone.pixels.int() - batched.pixels.int()).abs().max() <= 1


def test_seed_text_level_guidance_steps_negative_and_task_each_matter(painter):
    base = painter.paint([a_request()], use_predicted=False)[0].decoded
    others = [
        painter.paint([a_request(level=2.0)], use_predicted=False),
        painter.paint([a_request(negative="blue ring")], use_predicted=False),
        painter.paint([a_request(task="remove")], use_predicted=False),
        painter.paint([a_request()], use_predicted=False, guidance=1.0),
        painter.paint([a_request()], use_predicted=False, steps=5),
    ]
    changed = a_request()
    changed.seed = 5
    others.append(painter.paint([changed], use_predicted=False))
    for (other,) in others:
        assert not torch.equal(base, other.decoded)


def test_predicted_nothing_keeps_the_picture(painter):
    """A mask head that sees no object gives the untouched picture back: the preserved background."""
    request = a_request(level=2.0)
    result = painter.paint([request], threshold=1.0)[0]
    assert torch.equal(result.pixels, request.image)


def test_at_the_outline_the_mask_is_the_object(painter):
    """Level 0 needs no prediction: the whole mask is painted, however high the threshold."""
    request = a_request(level=0.0)
    results = [painter.paint([request], threshold=threshold)[0] for threshold in (0.0, 1.0)]
    assert torch.equal(results[0].pixels, results[1].pixels)
    assert not torch.equal(results[0].pixels, request.image)


def test_a_task_without_an_object_paints_the_whole_mask(painter):
    """What the mask head says of a request that paints no object is nothing, whatever it is batched with."""
    both = [a_request(level=2.0, task=task) for task in ("remove", "object")]
    removed, painted = painter.paint(both, threshold=1.0, feather_px=2)
    inside = both[0].mask.bool().expand(3, -1, -1)
    assert removed.predicted is None and torch.equal(removed.pixels[inside], removed.decoded[inside])
    assert painted.predicted is not None and torch.equal(painted.pixels, both[1].image)


def test_a_removal_begins_from_its_fill(painter):
    """Until ``fill_until`` x0 is the fill, whatever the object was; to the end, it is what is painted."""
    request = a_request(64, 64, task="remove", text="")
    request.image = torch.linspace(0, 255, 64).expand(3, 64, 64).to(torch.uint8)
    inside = request.mask.bool().expand(3, -1, -1)
    removed = painter.paint([request], fill="frequency", fill_until=1.0)[0]
    with torch.no_grad():
        kept = painter.vae.picture(painter.vae.latents(request.image[None] / 127.5 - 1))[0]
        kept = ((kept.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert (removed.pixels.int() - kept.int())[inside].abs().max() <= 8  # a slope carried on is the slope
    spoiled = copy.copy(request)
    spoiled.image = torch.where(request.mask > 0, 255 - request.image, request.image)
    for options in ({"fill_until": 1.0}, {"fill_until": 0.5}, {"fill_until": 0.0}):
        both = painter.paint([request, spoiled], fill="frequency", **options)
        assert torch.equal(both[0].pixels[inside], both[1].pixels[inside])
    pictures = [painter.paint([request], fill="frequency", fill_until=until)[0].pixels for until in (0.0, 0.5, 1.0)]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


def test_only_removals_without_words_are_filled(painter):
    asked = [a_request(seed=1), a_request(seed=2, text=""), a_request(seed=3, task="remove")]
    without = painter.paint(asked)
    filled = painter.paint([*asked, a_request(seed=4, text="", task="remove")], fill="frequency", fill_until=1.0)
    for one, other in zip(without, filled):
        assert (one.pixels.int() - other.pixels.int()).abs().max() <= 1


def test_a_nine_channel_model_is_shown_the_fill_too(painter):
    nine = copy.copy(painter)
    nine.conditioning = NineChannelConditioning()
    nine.denoiser = UNet(17, 8, 16, 16, 3, widths=(16, 32), attention=(False, True), blocks=1, heads=2, groups=8,
                         pooled_width=16, task_rows=2, zero_init=False).eval()
    request = a_request(64, 64, task="remove", text="")
    filled = nine.paint([request], fill="frequency", fill_until=1.0)[0]
    own = painter.paint([request], fill="frequency", fill_until=1.0)[0]
    inside = request.mask.bool().expand(3, -1, -1)
    assert (filled.pixels.int() - own.pixels.int())[inside].abs().max() <= 2


def test_in_python_with_pictures(painter):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 1
    result = painter(picture, mask, "red star", precision="box", seed=3)
    assert result.image.size == (32, 32) and result.predicted_mask.size == (32, 32) and result.seed == 3
    assert set(result.seconds) == {"encode", "sample", "decode"}
    same = painter(picture, Image.fromarray(mask * 255), "red star", precision=0.0, seed=3)
    assert torch.equal(result.pixels, same.pixels)


@pytest.mark.parametrize("change, says", [
    (lambda r: setattr(r, "mask", r.mask * 0), "the mask is empty"),
    (lambda r: setattr(r, "mask", r.mask[:, :16]), "the mask is 32x16 px and the image 32x32 px"),
    (lambda r: setattr(r, "mask", r.mask * 255), "holds 0 .keep. and 1 .generate., this one holds 255"),
    (lambda r: setattr(r, "level", 2.5), "level 2.5 is outside 0 .outline. to 2 .box."),
    (lambda r: setattr(r, "task", "remov"), "task: this model has no key 'remov'; did you mean 'remove'"),
])
def test_bad_requests_get_one_clear_line(painter, change, says):
    request = a_request()
    change(request)
    with pytest.raises(ValueError, match=says):
        painter.paint([request])


@pytest.mark.parametrize("options, says", [
    ({"guidence": 3.0}, "did you mean 'guidance'"),
    ({"steps": 0}, "steps >= 1"),
    ({"feather_px": -1}, "must be 0 or more"),
])
def test_bad_options_get_one_clear_line(painter, options, says):
    with pytest.raises(ValueError, match=says):
        painter.paint([a_request()], **options)


def test_an_unknown_precision_is_named(painter):
    with pytest.raises(ValueError, match="precision 'exact' is not a number"):
        painter(np.zeros((32, 32, 3), np.uint8), np.ones((32, 32), np.uint8), "star", precision="exact")


def test_a_small_mask_in_a_large_picture_is_painted_at_the_models_size(painter):
    """The same as painting the cut-out part, put back where it was."""
    large = a_request(200, 300)
    large.mask = torch.zeros_like(large.mask)
    large.mask[:, 100:112, 150:162] = 1
    painter.native_px = 32
    try:
        result = painter.paint([large], context=2.0, max_zoom=1.0)[0]
    finally:
        painter.native_px = None
    part = (slice(None), slice(90, 122), slice(140, 172))
    cut = Request(large.image[part], large.mask[part], large.text, seed=large.seed)
    assert torch.equal(result.pixels[part], painter.paint([cut])[0].pixels)
    outside = (large.mask == 0).expand(3, -1, -1)
    assert torch.equal(result.pixels[outside], large.image[outside]) and not torch.equal(result.pixels, large.image)
    assert result.predicted.shape == large.mask.shape


def test_guidance_in_a_part_of_the_steps(painter):
    def decoded(**options):
        return painter.paint([a_request()], use_predicted=False, **options)[0].decoded

    assert torch.equal(decoded(guidance_from=0.0, guidance_until=1.0), decoded())
    assert torch.equal(decoded(guidance_until=0.0), decoded(guidance=1.0))
    part = decoded(guidance_from=0.5)
    assert not torch.equal(part, decoded()) and not torch.equal(part, decoded(guidance=1.0))


def test_a_watch_sees_every_step_and_pictures_that_keep_the_background(painter):
    requests = [a_request(), a_request(48, 32, seed=1), a_request(seed=2)]
    seen = []

    def watch(progress):
        seen.append((tuple(progress.places), progress.step, progress.steps))
        for place, picture in zip(progress.places, progress.pictures(), strict=True):
            outside = (requests[place].mask == 0).expand(3, -1, -1)
            assert torch.equal(picture[outside], requests[place].image[outside])

    watched = painter.paint(requests, watch=watch)
    assert seen == [((0, 2), step, 3) for step in range(3)] + [((1,), step, 3) for step in range(3)]
    for one, two in zip(watched, painter.paint(requests), strict=True):
        assert torch.equal(one.pixels, two.pixels)


def test_a_bf16_painter_can_be_watched(painter):
    quick = copy.copy(painter)
    quick.dtype, seen = torch.bfloat16, []
    quick.paint([a_request()], watch=lambda progress: seen.append(progress.pictures()[0].dtype))
    assert seen == [torch.uint8] * 3


def test_a_preview_does_not_depend_on_the_batch(painter):
    def previews(requests):
        seen = []
        painter.paint(requests, watch=lambda progress: seen.append(progress.pictures()[0].int()))
        return torch.stack(seen)

    assert (previews([a_request()]) - previews([a_request(), a_request(seed=5)])).abs().max() <= 1


def test_without_a_task_a_request_is_for_the_first(painter):
    first = copy.copy(painter)
    first.tasks = {"remove": False, "object": True}
    unsaid, said = first.paint([a_request(), a_request(task="remove")])
    assert torch.equal(unsaid.pixels, said.pixels) and unsaid.predicted is None


def test_a_fingerprint_changes_with_any_weight(painter):
    before = painter.fingerprint()
    assert before == painter.fingerprint()
    other = copy.copy(painter)
    other.vae = copy.deepcopy(painter.vae)
    next(other.vae.parameters()).data[0] += 1e-3
    assert other.fingerprint() != before


def test_a_fraction_of_the_steps_is_counted_as_it_is_written():
    assert PaintOptions(steps=25).calls(0.28) == 7.0 and PaintOptions(steps=100).calls(0.55) == 55.0


@pytest.mark.parametrize("options, says", [
    ({"steps": 2.5}, "steps"), ({"steps": "3"}, "steps"), ({"guidance": float("nan")}, "finite"),
    ({"guidance_from": 0.6, "guidance_until": 0.5}, "guidance_from"), ({"colour_match": "men"}, "mean"),
])
def test_impossible_options_are_refused_before_anything_is_painted(painter, options, says):
    idle = copy.copy(painter)
    idle.denoiser = None
    with pytest.raises(ValueError, match=says):
        idle.paint([a_request()], **options)


def test_what_a_watch_raises_ends_the_painting(painter):
    def watch(progress):
        if progress.step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        painter.paint([a_request()], watch=watch)


def test_a_nine_channel_model_paints_the_same_whether_somebody_watches_or_not():
    """Watched, it encodes the picture as well, which previews are fitted on."""
    torch.manual_seed(0)
    text, vae = tiny(width=16, layers=1, heads=2).eval(), TinyVAE(latent_channels=4, stages=2, widths=16, blocks=1)
    unet = UNet(9, 4, 0, 16, 0, widths=(16, 32), attention=(False, True), blocks=1, heads=2, groups=8, zero_init=False)
    schedule, encoded, seen = scaled_linear(prediction="eps"), [], []
    parts = (unet.eval(), vae.eval(), text, schedule, LADDER, NineChannelConditioning())
    painter = Inpainter(*parts, ddim, PaintOptions(steps=2))
    latents = vae.latents
    vae.latents = lambda pictures: encoded.append(len(pictures)) or latents(pictures)
    image, mask = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[:, 8:20, 8:20] = 1
    alone = painter.paint([Request(image, mask, "a star")])[0]
    watched = painter.paint([Request(image, mask, "a star")], lambda progress: seen.append(progress.pictures()))[0]
    assert encoded == [1, 2] and len(seen) == 2 and seen[1][0].shape == image.shape
    assert (alone.pixels.int() - watched.pixels.int()).abs().max() <= 1
    assert torch.equal(alone.pixels * (1 - mask), image * (1 - mask))
