"""Colour matchers: a constant shift is undone by all of them, a slope by those that follow it, and nothing outside."""

import pytest
import torch

from sb.registry import build

MATCHERS = ["mean", "smooth", "membrane"]


def matcher(name):
    return build("colour_match", {"name": name})


@pytest.fixture
def painted():
    mask = torch.zeros(1, 40, 48)
    mask[:, 10:30, 12:30] = 1
    return mask


@pytest.fixture
def picture():
    return 255 * torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))


def test_none_changes_nothing(picture, painted):
    assert matcher("none")(picture, 0 * picture, painted) is picture


@pytest.mark.parametrize("name", MATCHERS)
def test_a_constant_shift_is_undone_and_no_other_pixel_moves(name, picture, painted):
    shifted = picture + torch.tensor([5.0, -3.0, 8.0]).view(3, 1, 1)
    matched = matcher(name)(shifted, picture, painted)
    inside = painted.expand(3, -1, -1) > 0
    assert torch.allclose(matched[inside], picture[inside], atol=0.01)
    assert torch.equal(matched[~inside], shifted[~inside])


@pytest.mark.parametrize("name, left", [("mean", 8.0), ("smooth", 5.0), ("membrane", 0.01)])
def test_a_slope_is_followed(name, left, picture, painted):
    slope = torch.linspace(-20, 20, 48).expand(3, 40, 48)
    matched = matcher(name)(picture + slope, picture, painted)
    assert ((matched - picture) * painted).abs().max() < left + 0.1


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_painted_or_everything_is_finite(name, value, picture):
    everywhere = torch.full((1, 40, 48), value)
    matched = matcher(name)(picture + 4, picture, everywhere)
    assert torch.allclose(matched, picture + 4)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_object_itself_stays_what_it_is(name, picture, painted):
    """Only the border decides: another colour deep inside is an object, not a shift."""
    decoded = picture.clone()
    decoded[:, 15:25, 17:25] = 200.0
    matched = matcher(name)(decoded, picture, painted)
    assert torch.allclose(matched, decoded, atol=0.01)
