"""SmartBrush's conditioning: the clean background around the hole, bit for bit, with no trace of what was in it."""

import pytest
import torch
import torch.nn.functional as F

from sb.conditioning import NineChannelConditioning, PlainConditioning, SmartBrushConditioning
from sb.samplers import ddim
from sb.schedule import scaled_linear
from sb.types import Denoised

SCHEDULE = scaled_linear(prediction="v", zero_terminal_snr=True)


def latents(image):
    """An encoder whose every cell sees its neighbours, as a VAE's does."""
    return F.avg_pool2d(F.pad(image, (4,) * 4), 12, stride=4)[:, [0, 1, 2, 0]]


def a_canvas(channels: int = 1, encode: str = "masked", inside: float | None = None):
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    mask[0, :, 5:9, 5:9] = 1
    mask[1] = 1
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if inside is not None:
        image = image.masked_fill(mask > 0, inside)
    return SmartBrushConditioning(channels, encode).canvas(latents, image, mask, 4)


@pytest.mark.parametrize("encode", ["masked", "full"])
def test_what_stands_around_the_hole_tells_of_its_content_only_if_asked_to(encode):
    one, other = a_canvas(encode=encode, inside=-1.0), a_canvas(encode=encode, inside=1.0)
    outside = (1 - one.hole).bool().expand_as(one.around)
    assert torch.equal(one.around[outside], other.around[outside]) == (encode == "masked")
    assert not torch.equal(one.clean[outside], other.clean[outside])  # the picture itself is encoded whole
    assert (one.around is one.clean) == (encode == "full")


def test_an_unknown_way_to_encode_is_refused():
    with pytest.raises(ValueError, match="encode 'half' is neither 'masked' nor 'full'"):
        SmartBrushConditioning(encode="half")


def test_noise_is_in_the_hole_only():
    canvas, eps, t = a_canvas(), torch.randn(2, 4, 4, 4), torch.tensor([400, 999])
    x_t = SmartBrushConditioning().noised(canvas, eps, t, SCHEDULE)
    hole = canvas.hole.bool().expand_as(x_t)
    assert torch.equal(x_t[~hole], canvas.around[~hole])
    assert torch.equal(x_t[hole], SCHEDULE.mix(canvas.clean, eps, t)[hole])
    assert torch.equal(x_t[1], eps[1])  # zero terminal SNR over a whole picture is noise alone


def test_start_put_back_and_finished():
    conditioning, canvas, eps = SmartBrushConditioning(), a_canvas(), torch.randn(2, 4, 4, 4)
    start = conditioning.start(canvas, eps)
    hole = canvas.hole.bool().expand_as(start)
    assert torch.equal(start[~hole], canvas.around[~hole]) and torch.allclose(start[hole], eps[hole])
    half = conditioning.put_back(eps, canvas, canvas.hole * 0.5)
    assert torch.allclose(half[hole], (eps + canvas.clean)[hole] / 2, atol=1e-6)
    assert torch.equal(half[~hole], canvas.around[~hole])
    done = conditioning.finished(half, canvas)
    assert torch.equal(done[hole], half[hole]) and torch.equal(done[~hole], canvas.clean[~hole])


def test_the_mask_is_shown_whole_or_by_cell():
    assert a_canvas().extra.shape == (2, 1, 4, 4)
    full = a_canvas(16).extra
    assert full.shape == (2, 16, 4, 4) and int(full[0].sum()) == 16
    x = torch.randn(2, 4, 4, 4)
    conditioning = SmartBrushConditioning(16)
    assert conditioning.network_input(x, a_canvas(16)).shape[1] == conditioning.in_channels(4) == 20


def test_nine_channels_show_the_mask_and_the_greyed_picture_and_put_nothing_back():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    mask[..., 5:9, 5:9] = 1  # of the four cells it touches, only one has it at its first pixel
    image = torch.randn(1, 3, 16, 16)
    conditioning = NineChannelConditioning()
    canvas = conditioning.canvas(latents, image, mask, 4)
    x, eps, t = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.tensor([400])
    shown = conditioning.network_input(x, canvas)
    assert shown.shape[1] == conditioning.in_channels(4) == 9
    assert torch.equal(shown[:, :4], x) and torch.equal(shown[:, 4:5], mask[..., ::4, ::4].float())
    assert torch.equal(shown[:, 5:], latents(image * (mask == 0))) and int(canvas.hole.sum()) == 4
    assert torch.equal(conditioning.noised(canvas, eps, t, SCHEDULE), SCHEDULE.mix(latents(image), eps, t))
    for same in (conditioning.start(canvas, x), conditioning.entering(x, canvas), conditioning.finished(x, canvas),
                 conditioning.put_back(x, canvas, canvas.hole)):
        assert same is x


def test_only_what_painting_needs_is_encoded_for_it():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    mask[..., 5:9, 5:9] = 1
    image = torch.randn(1, 3, 16, 16)
    encoded = []

    def counting(pictures):
        encoded.append(len(pictures))
        return latents(pictures)

    kinds = ((NineChannelConditioning(), 1), (SmartBrushConditioning(), 2), (PlainConditioning(), 1))
    for conditioning, pictures in kinds:
        encoded.clear()
        painted = conditioning.canvas_to_paint(counting, image, mask, 4)
        trained = conditioning.canvas(latents, image, mask, 4)
        assert sum(encoded) == pictures
        assert torch.equal(painted.extra, trained.extra) and torch.equal(painted.hole, trained.hole)


def test_plain_carries_the_noised_picture_along():
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    mask[..., 4:8, 4:8] = 1
    conditioning = PlainConditioning()
    canvas = conditioning.canvas(latents, torch.randn(1, 3, 16, 16), mask, 4)
    outside = (canvas.hole == 0).expand(1, 4, 4, 4)
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return Denoised(conditioning.put_back(torch.zeros_like(x), canvas, canvas.hole), None)

    eps = torch.randn(1, 4, 4, 4)
    done = ddim(denoise, conditioning.start(canvas, eps), SCHEDULE, steps=4)
    assert torch.equal(done[outside], canvas.clean[outside])
    for x, t in seen[1:]:  # what the network sees outside is the picture with the noise it started from
        assert torch.allclose(x[outside], SCHEDULE.mix(canvas.clean, eps, t)[outside], atol=1e-4)
    assert conditioning.in_channels(4) == conditioning.network_input(eps, canvas).shape[1] == 4
