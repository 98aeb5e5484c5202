"""SmartBrush's conditioning: the clean background around the hole, bit for bit, with no trace of what was in it."""

import pytest
import torch
import torch.nn.functional as F

from sb.conditioning import SmartBrushConditioning
from sb.schedule import scaled_linear

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
