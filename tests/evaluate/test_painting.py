"""Where the background of a painting is: the outline's view, the system's own, and what is not known."""

from types import SimpleNamespace

import pytest
import torch

from sb.evaluate.painting import Painting, by_shape, values_of


@pytest.fixture
def painting():
    picture = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    mask, outline, predicted = torch.zeros(3, 1, 40, 40)
    mask[:, 5:35, 5:35] = 1
    outline[:, 8:18, 8:18] = 1
    predicted[:, 20:30, 20:30] = 0.6
    return Painting(
        SimpleNamespace(), picture, picture, predicted, picture + 1, picture + 2, mask.to(torch.uint8),
        outline.to(torch.uint8),
    )


def count(painting, by):
    found = painting.background(by)
    return None if found is None else int(found.sum())


def test_the_background_is_the_mask_outside_the_object(painting):
    assert count(painting, "outline") == 30 * 30 - 16 * 16  # the outline and 3 px around it
    assert count(painting, "predicted") == 30 * 30 - 16 * 16
    assert not painting.background("outline")[0, 8:18, 8:18].any()
    assert painting.background("predicted")[0, 8:14, 8:14].all()


def test_without_a_true_background_the_old_object_does_not_count(painting):
    assert torch.equal(painting.untouched, painting.truth)
    painting.truth = None
    assert torch.equal(painting.untouched, painting.picture)
    assert not painting.background("predicted")[0, 8:14, 8:14].any()
    assert count(painting, "outline") == 30 * 30 - 16 * 16
    painting.outline = None
    assert count(painting, "predicted") is None and count(painting, "outline") is None


def test_what_a_system_does_not_say_is_not_known(painting):
    painting.predicted = None
    assert count(painting, "predicted") is None and count(painting, "outline") == 644


def test_an_object_that_fills_the_mask_leaves_no_background(painting):
    painting.predicted = painting.mask.float()
    assert painting.background("predicted") is None


def test_what_fits_one_stack_is_grouped_in_order():
    assert by_shape([1, 2, 3, 5, 4], lambda number: number % 2) == [[0, 2, 3], [1, 4]]
    found = values_of([1, 2, 3], lambda number: None if number == 2 else number / 2)
    assert found[[0, 2]].tolist() == [0.5, 1.5] and bool(found[1].isnan())
