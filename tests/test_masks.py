"""The mask convention and the precision ladder: the laws of method.md, section 6, and known answers."""

import pytest
import torch

from sb import masks
from sb.masks import Ladder, box_of, gaussian_blur, head_target, hole_of, level_of, mask_channels, paste_mask

LEVELS = [
    {"name": "outline"},
    {"name": "blur", "sigma": 0.04},
    {"name": "blur", "sigma": 0.08},
    {"name": "blur", "sigma": 0.14},
    {"name": "blur", "sigma": 0.22},
    {"name": "box"},
]
S = 5
SIZE = 64


def disc(radius=14.0, y=30, x=34):
    place = torch.arange(SIZE)
    return ((place[:, None] - y) ** 2 + (place[None, :] - x) ** 2 <= radius**2).to(torch.uint8)


def outlines() -> dict[str, torch.Tensor]:
    """Outlines of every awkward kind, (H, W) uint8."""
    drawn = {"disc": disc(), "ring": disc() - disc(8.0), "corner": torch.zeros(SIZE, SIZE, dtype=torch.uint8)}
    drawn["corner"][:5, -7:] = 1
    for name, (rows, columns) in {
        "three_px": (slice(20, 21), slice(20, 23)),
        "one_px": (slice(63, 64), slice(0, 1)),
        "thin_line": (slice(31, 32), slice(4, 60)),
        "column": (slice(0, 64), slice(9, 10)),
        "full": (slice(0, 64), slice(0, 64)),
        "empty": (slice(0, 0), slice(0, 0)),
    }.items():
        drawn[name] = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
        drawn[name][rows, columns] = 1
    drawn["diagonal"] = torch.eye(SIZE, dtype=torch.uint8)
    for seed in range(6):
        noise = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        smooth = gaussian_blur(noise, torch.tensor([float(seed + 1)]))[0, 0]
        drawn[f"blobs_{seed}"] = (smooth > smooth.quantile(0.9)).to(torch.uint8)
    return drawn


OUTLINES = outlines()


@pytest.fixture(scope="module")
def ladder():
    return Ladder(LEVELS)


def climb(ladder, outline):
    """Masks of one outline at levels 0..S, (S + 1, 1, H, W)."""
    many = outline[None, None].repeat(S + 1, 1, 1, 1)
    return ladder(many, torch.arange(S + 1))


@pytest.mark.parametrize("name", OUTLINES)
def test_ladder_laws(ladder, name):
    outline = OUTLINES[name]
    rungs = climb(ladder, outline)
    box = box_of(outline[None, None])[0]
    assert ladder.num_levels == S and rungs.dtype == torch.uint8 and int(rungs.max()) <= 1
    assert torch.equal(rungs[0, 0], outline)
    assert torch.equal(rungs[S], box)
    for s in range(S + 1):
        assert bool((rungs[s] >= outline).all()), f"level {s} loses a part of the outline"
        assert bool((rungs[s] <= box).all()), f"level {s} leaves the box"
    for s in range(S):
        assert bool((rungs[s] <= rungs[s + 1]).all()), f"level {s + 1} is smaller than level {s}"


def test_a_disc_grows_at_every_rung(ladder):
    areas = climb(ladder, OUTLINES["disc"]).sum(dim=(1, 2, 3))
    assert bool((areas.diff() > 0).all()), areas


def test_the_blur_scales_with_the_object(ladder):
    """Twice the object in twice the picture has about four times the mask: no fixed kernel erases small ones."""
    small, large = disc(7.0), disc(14.0)
    growth = [climb(ladder, o).sum(dim=(1, 2, 3))[4] / o.sum() for o in (small, large)]
    assert abs(float(growth[0] - growth[1])) < 0.1


@pytest.mark.parametrize("levels", [LEVELS, [{"name": "outline"}, {"name": "box"}, LEVELS[1]], LEVELS[:3], LEVELS[1:4]])
def test_the_ladder_is_every_rung_joined_inside_the_box(levels):
    """The definition, without the short cuts: whatever is picked or left out gives the same masks."""
    ladder, outline = Ladder(levels), torch.stack(list(OUTLINES.values()))[:, None]
    level = torch.arange(len(outline)) % len(levels)
    exact, box = outline.float(), box_of(outline.float())
    mask = exact
    for index, rung in enumerate(ladder.rungs):
        mask = torch.where((level >= index).view(-1, 1, 1, 1), torch.maximum(mask, rung(exact) * box), mask)
    assert torch.equal(ladder(outline, level), mask.to(torch.uint8))


def test_empty_stays_empty(ladder):
    assert not climb(ladder, OUTLINES["empty"]).any()


def test_a_batch_equals_one_by_one(ladder):
    stack = torch.stack(list(OUTLINES.values()))[:, None]
    level = torch.arange(len(stack)) % (S + 1)
    together = ladder(stack, level)
    for i in range(len(stack)):
        assert torch.equal(together[i : i + 1], ladder(stack[i : i + 1], level[i : i + 1]))


def test_a_ladder_checks_its_weights():
    assert Ladder(LEVELS).level_weights == [1.0] * 6
    for weights in ([1.0], [0.0] * 6, [1, 1, 1, 1, 1, -1]):
        with pytest.raises(ValueError, match="level_weights needs 6 numbers"):
            Ladder(LEVELS, weights)
    with pytest.raises(ValueError, match="at least the outline and the box"):
        Ladder(LEVELS[:1])


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
def test_blur_of_a_point_is_the_kernel(sigma):
    image = torch.zeros(1, 1, 65, 65)
    image[0, 0, 32, 32] = 1
    place = torch.arange(65).float() - 32
    line = torch.exp(-place.square() / (2 * sigma**2))
    line = line / line.sum()
    torch.testing.assert_close(gaussian_blur(image, torch.tensor([sigma]))[0, 0], torch.outer(line, line))


def test_blur_equals_torchvision_away_from_the_border():
    from torchvision.transforms.functional import gaussian_blur as reference

    image = torch.rand(2, 1, 60, 48)
    sigma = torch.tensor([1.0, 2.0])
    ours = gaussian_blur(image, sigma)
    for i in range(2):
        theirs = reference(image[i], [19, 19], [float(sigma[i])])
        torch.testing.assert_close(ours[i, :, 12:-12, 12:-12], theirs[:, 12:-12, 12:-12], rtol=1e-4, atol=1e-5)


def test_blur_of_width_zero_is_the_identity():
    image = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(gaussian_blur(image, torch.zeros(1)), image)


@pytest.mark.parametrize(
    "precision, level", [(1, 0.0), (0, 5.0), ("outline", 0.0), ("box", 5.0), ("0.5", 2.5), (0.9, 0.5)]
)
def test_level_of_precision(precision, level):
    assert level_of(precision, S) == pytest.approx(level)


@pytest.mark.parametrize("precision", ["tight", 1.1, -0.1, "nan"])
def test_an_unknown_precision_is_an_error(precision):
    with pytest.raises(ValueError, match="precision"):
        level_of(precision, S)


def test_box_of_known_answer():
    mask = torch.zeros(1, 1, 6, 7)
    mask[0, 0, 1, 2] = mask[0, 0, 4, 5] = 1
    box = box_of(mask)
    assert float(box.sum()) == 4 * 4 and bool(box[0, 0, 1:5, 2:6].all())
    assert torch.equal(box_of(box), box)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("name", OUTLINES)
def test_a_cell_is_in_the_hole_with_one_of_its_pixels(name, factor):
    mask = OUTLINES[name][None, None]
    hole = hole_of(mask, factor)
    blocks = mask.view(1, 1, SIZE // factor, factor, SIZE // factor, factor)
    assert torch.equal(hole, blocks.amax(dim=(3, 5)).float())


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_mask_channels_and_back(factor):
    mask = torch.stack(list(OUTLINES.values()))[:, None]
    deep = mask_channels(mask, factor, factor * factor)
    assert deep.shape[1:] == (factor * factor, SIZE // factor, SIZE // factor)
    assert torch.equal(masks.head_to_pixels(deep, factor), mask.float())
    assert torch.equal(masks.head_to_cells(deep), hole_of(mask, factor))
    assert torch.equal(mask_channels(mask, factor, 1), hole_of(mask, factor))
    assert deep[0, 1, 3, 2] == mask[0, 0, 3 * factor, 2 * factor + 1]  # channel = row in the cell * f + column


def test_mask_channels_checks_the_count():
    with pytest.raises(ValueError, match="1 or f[*]f = 16 for a VAE of factor 4, not 4"):
        mask_channels(torch.zeros(1, 1, 8, 8), 4, 4)
    with pytest.raises(ValueError, match="f[*]f = 16"):
        masks.head_to_pixels(torch.zeros(1, 4, 2, 2), 4)


@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("channels", [1, 16])
def test_the_head_target_keeps_the_area(name, channels):
    outline = OUTLINES[name][None, None]
    target = head_target(outline, 4, channels)
    cells_px = 16 if channels == 1 else 1
    assert float(target.sum()) * cells_px == float(outline.sum())  # exact: sixteenths
    assert 0 <= float(target.min()) and float(target.max()) <= 1


def test_head_of_one_channel_comes_back_at_image_size():
    flat = masks.head_to_pixels(torch.full((2, 1, 8, 8), 0.25), 4)
    torch.testing.assert_close(flat, torch.full((2, 1, 32, 32), 0.25))


def test_dilate_is_a_square():
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    assert torch.equal(masks.dilate(point, 2)[0, 0].nonzero().amin(0), torch.tensor([2, 2]))
    assert float(masks.dilate(point, 2).sum()) == 25
    assert torch.equal(masks.dilate(point, 0), point)


@pytest.mark.parametrize("feather_px", [0, 1, 4])
@pytest.mark.parametrize("name", OUTLINES)
@pytest.mark.parametrize("head", [None, "noise", "same", "nothing"])
def test_paste_never_leaves_the_users_mask(name, head, feather_px):
    mask = OUTLINES[name][None, None]
    predicted = {None: None, "noise": torch.rand(mask.shape), "same": mask.float(), "nothing": mask * 0.0}[head]
    paste = paste_mask(mask, predicted, threshold=0.5, dilate_px=2, feather_px=feather_px)
    assert paste.shape == mask.shape
    assert 0 <= float(paste.min()) and float(paste.max()) <= 1
    assert not paste[mask == 0].any()  # exactly zero: those pixels stay bit-equal
    if head == "nothing":
        assert not paste.any()
    if feather_px == 0 and head in (None, "same"):
        assert torch.equal(paste, mask.float())


@pytest.mark.parametrize("head", [None, "same"])
@pytest.mark.parametrize("name", ["disc", "thin_line", "three_px", "one_px", "column", "diagonal", "ring"])
def test_feathering_does_not_erase_thin_objects(name, head):
    """Somewhere, a stroke thinner than the feather is still painted in full."""
    mask = OUTLINES[name][None, None]
    predicted = mask.float() if head == "same" else None
    paste = paste_mask(mask, predicted, threshold=0.5, dilate_px=0, feather_px=4)
    assert float(paste.max()) == pytest.approx(1.0)


def test_feather_is_full_deep_inside_and_falls_towards_the_edge():
    mask = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    mask[..., 5:36, 5:36] = 1
    paste = paste_mask(mask, None, threshold=0.5, dilate_px=0, feather_px=4)[0, 0, 20]
    assert float(paste[20]) == 1 and bool((paste[:21].diff() >= -1e-6).all()) and 0 < float(paste[6]) < 1


def test_paste_keeps_the_background_the_object_does_not_cover():
    mask = torch.ones(1, 1, 40, 40, dtype=torch.uint8)
    predicted = torch.zeros(1, 1, 40, 40)
    predicted[..., 15:25, 15:25] = 0.9
    paste = paste_mask(mask, predicted, threshold=0.5, dilate_px=1, feather_px=2)
    assert float(paste[0, 0, 20, 20]) == 1
    far = torch.ones(40, 40, dtype=torch.bool)
    far[11:29, 11:29] = False  # 10..: object, one px grown, two px feathered, one px spare
    assert not paste[0, 0][far].any()
