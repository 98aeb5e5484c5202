"""SmartBrush's conditioning: the clean background around the hole, bit for bit."""

import torch

from sb.conditioning import SmartBrushConditioning
from sb.schedule import scaled_linear

SCHEDULE = scaled_linear(prediction="v", zero_terminal_snr=True)


def a_canvas(channels: int = 1):
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    mask[0, :, 5:9, 5:9] = 1
    mask[1] = 1
    clean = torch.randn(2, 4, 4, 4)
    return SmartBrushConditioning(channels).canvas(clean, mask, 4)


def test_noise_is_in_the_hole_only():
    canvas, eps, t = a_canvas(), torch.randn(2, 4, 4, 4), torch.tensor([400, 999])
    x_t = SmartBrushConditioning().noised(canvas, eps, t, SCHEDULE)
    hole = canvas.hole.bool().expand_as(x_t)
    assert torch.equal(x_t[~hole], canvas.clean[~hole])
    assert torch.equal(x_t[hole], SCHEDULE.mix(canvas.clean, eps, t)[hole])
    assert torch.equal(x_t[1], eps[1])  # zero terminal SNR over a whole picture is noise alone


def test_start_and_put_back():
    conditioning, canvas, eps = SmartBrushConditioning(), a_canvas(), torch.randn(2, 4, 4, 4)
    start = conditioning.start(canvas, eps)
    hole = canvas.hole.bool().expand_as(start)
    assert torch.equal(start[~hole], canvas.clean[~hole]) and torch.allclose(start[hole], eps[hole])
    half = conditioning.put_back(eps, canvas, canvas.hole * 0.5)
    assert torch.allclose(half[hole], (eps + canvas.clean)[hole] / 2, atol=1e-6)


def test_the_mask_is_shown_whole_or_by_cell():
    assert a_canvas().extra.shape == (2, 1, 4, 4)
    full = a_canvas(16).extra
    assert full.shape == (2, 16, 4, 4) and int(full[0].sum()) == 16
    x = torch.randn(2, 4, 4, 4)
    conditioning = SmartBrushConditioning(16)
    assert conditioning.network_input(x, a_canvas(16)).shape[1] == conditioning.in_channels(4) == 20
