"""A few dozen of the random requests that ``tests/random_requests.py`` makes by the thousand."""

import pytest
import torch
from PIL import Image

from sb.types import Request
from tests.random_requests import compared, outcomes


def test_nothing_outside_the_mask_changes():
    found = list(outcomes(36))
    assert len(found) == 36 and not [outcome.said for outcome in found if not outcome.equal]
    assert sum(outcome.painted for outcome in found) > 18
    assert any(outcome.said.startswith("edit 10: ") for outcome in found)


@pytest.mark.parametrize("change, equal", [
    (lambda file: file.putpixel((2, 1), (9, 9, 9, 77)), True),  # inside
    (lambda file: file.putpixel((0, 0), (1, 2, 4, 77)), False),
    (lambda file: file.putpixel((0, 0), (1, 2, 3, 78)), False),
    (lambda file: file.putalpha(255), False),
])
def test_one_level_of_one_pixel_is_noticed(change, equal):
    source = Image.new("RGBA", (5, 4), (1, 2, 3, 77))
    mask = torch.zeros(1, 4, 5, dtype=torch.uint8)
    mask[:, 1, 2] = 1
    request = Request(torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 5), mask, "")
    file = source.copy()
    change(file)
    assert compared("", request, file, source, 1 - mask).equal == equal
