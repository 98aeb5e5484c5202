"""Every metric on ideal results and on damaged ones: ideal values, and each damage moves its metric the stated way."""

import math

import pytest
import torch

from sb.evaluate.features import FeatureNetwork
from sb.evaluate.metrics import Diversity
from sb.evaluate.readers import Reader
from sb.masks import box_of, dilate, gaussian_blur
from sb.models.tiny_vae import TinyVAE
from sb.registry import build_fitted, lookup, names

IDEAL = {
    "class_accuracy": 1, "mask_iou": 1, "mask_dice": 1, "background_psnr": 60, "background_lpips": 0, "seam": 0,
    "colour_shift": 0, "outside_equal": 1, "fid": 0, "local_fid": 0,
}
TWICE = ("background_psnr", "background_lpips", "seam", "colour_shift")  # these also come as NAME_predicted
SMALL = {"local_fid": {"side_px": 64}, "background_lpips": {"side_px": 48}}


class PooledLatents(torch.nn.Module):
    """Mean and spread of a small random autoencoder's latents."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.vae = TinyVAE(stages=1, widths=8, blocks=1)

    def forward(self, images):
        z = self.vae.encode(images.float() / 127.5 - 1).mean
        return torch.cat([z.mean((2, 3)), z.std((2, 3))], 1)


def sees_saturation(images, boxes):
    """Reads "object" where enough of the box is strongly coloured."""
    found = []
    for image, (left, top, width, height) in zip(images.int(), boxes.tolist(), strict=True):
        inside = image[:, top: top + height, left: left + width]
        found.append("Object " if float((inside.amax(0) - inside.amin(0) > 90).float().mean()) > 0.1 else "none")
    return found


def rms(one, two):
    """A distance of stacks of pictures (P, 3, h, w) in [-1, 1]."""
    return (one - two).square().mean((1, 2, 3)).sqrt()


OFFERED = {"reader": Reader("saturation", sees_saturation, ""), "lpips": rms,
           "features": FeatureNetwork("latents", PooledLatents())}


def score(paintings, chosen=tuple(IDEAL)):
    """The mean of every metric, pooled ones too, in order of name."""
    found = {}
    for painting in paintings:
        painting.case.label = "object"
    for name in chosen:
        metric = build_fitted("metric", {"name": name, **SMALL.get(name, {})}, OFFERED)
        if hasattr(metric, "pooled"):
            found |= metric.pooled(**metric.features(paintings))
        else:
            found |= {key: float(values.nanmean()) for key, values in metric(paintings).items()}
    return found


def test_every_metric_says_what_it_needs():
    built_in = {name for name in names("metric") if lookup("metric", name).__module__.startswith("sb.")}
    assert set(IDEAL) | {"clip_score", "diversity"} == built_in
    needed = {name: lookup("metric", name).needs for name in built_in}
    assert needed.pop("clip_score") == ("clip",) and needed.pop("class_accuracy") == ("reader",)
    assert needed.pop("background_lpips") == ("lpips",)
    assert needed.pop("fid") == needed.pop("local_fid") == ("features",)
    assert set(needed.values()) == {()}


def test_ideal_results_have_the_ideal_values(paintings):
    found = score(paintings(8))
    assert set(found) == {*IDEAL, *(f"{name}_predicted" for name in TWICE)}
    for name, value in found.items():
        assert value == pytest.approx(IDEAL[name.removesuffix("_predicted")], abs=1e-6), name


def blurred(painting, sigma=2.0):
    soft = gaussian_blur(painting.pixels[:, None].float(), torch.full((3,), sigma))[:, 0].round().to(torch.uint8)
    painting.pixels = torch.where(painting.mask > 0, soft, painting.pixels)


def shifted(painting, px=5):
    moved = torch.where(painting.outline > 0, painting.real, painting.picture).roll(px, 2)
    painting.predicted = painting.predicted.roll(px, 2)
    inside = (painting.predicted > 0) & (painting.mask > 0)
    painting.pixels = torch.where(inside, moved, painting.picture)


def recoloured(painting, by=12):
    away = ~dilate(painting.outline[None].float(), 3)[0].bool() & (painting.mask > 0)
    painting.pixels = torch.where(away, (painting.pixels.int() + by).clamp(0, 255).to(torch.uint8), painting.pixels)


def noisy(painting, std=20.0):
    generator = torch.Generator().manual_seed(painting.case.seed)
    noise = std * torch.randn(painting.pixels.shape, generator=generator)
    spoiled = (painting.pixels + noise).round().clamp(0, 255).to(torch.uint8)
    away = ~dilate(painting.outline[None].float(), 3)[0].bool() & (painting.mask > 0)
    painting.pixels = torch.where(away, spoiled, painting.pixels)


def missing(painting):
    painting.pixels, painting.predicted = painting.picture.clone(), torch.zeros_like(painting.predicted)


def leaking(painting):
    row, column = (painting.mask[0] == 0).nonzero()[0].tolist()
    painting.pixels[0, row, column] ^= 1


BACKGROUND = {"background_psnr": -1, "background_psnr_predicted": -1, "background_lpips": 1,
              "background_lpips_predicted": 1}
SAME = ("outside_equal", "mask_iou", "mask_dice", "class_accuracy")


@pytest.mark.parametrize("damage, moved, kept", [
    (blurred, {"fid": 1, "local_fid": 1, "background_psnr": -1, "background_lpips": 1}, ("outside_equal", "mask_iou")),
    (shifted, {"mask_iou": -1, "mask_dice": -1, "background_psnr": -1, "background_lpips": 1},
     ("outside_equal", "background_psnr_predicted", "background_lpips_predicted", "seam_predicted")),
    (recoloured, {**BACKGROUND, "colour_shift": 1, "colour_shift_predicted": 1, "seam": 1, "fid": 1, "local_fid": 1},
     SAME),
    (noisy, {**BACKGROUND, "seam": 1, "seam_predicted": 1, "fid": 1, "local_fid": 1}, SAME),
    (missing, {"class_accuracy": -1, "mask_iou": -1, "mask_dice": -1, "fid": 1, "local_fid": 1},
     ("outside_equal", "background_psnr", "background_lpips", "seam", "colour_shift")),
    (leaking, {"outside_equal": -1}, (*SAME[1:], "background_psnr", "colour_shift")),
], ids=lambda value: getattr(value, "__name__", ""))
def test_each_damage_moves_its_metrics(paintings, damage, moved, kept):
    ideal, damaged = score(paintings(6)), paintings(6)
    for painting in damaged:
        damage(painting)
    found = score(damaged)
    for name, way in moved.items():
        assert way * (found[name] - ideal[name]) > 1e-4 * max(abs(ideal[name]), 0.1), name
    for name in kept:
        assert found[name] == ideal[name], name


def test_more_damage_moves_them_more(paintings):
    for damage, steps, chosen in (
        (blurred, (0.5, 1.0, 2.0), ("fid", "local_fid", "background_psnr", "background_lpips")),
        (shifted, (2, 4, 8), ("mask_iou", "mask_dice")),
        (recoloured, (4, 8, 16), ("background_psnr", "background_lpips", "colour_shift")),
        (noisy, (5.0, 10.0, 20.0), ("background_psnr", "background_lpips", "seam")),
    ):
        rows = []
        for step in steps:
            damaged = paintings(6)
            for painting in damaged:
                damage(painting, step)
            rows.append(score(damaged, chosen))
        for name in chosen:
            values = [row[name] for row in rows]
            assert values == sorted(values, reverse=IDEAL[name] > 0), (damage.__name__, name)


def test_a_seam_is_told_in_grey_levels(paintings):
    """A flat picture with a small step, and one that is rougher than what was painted in it."""
    flat, rough = paintings(2)
    for painted, by in ((flat, 5), (rough, 0)):
        painted.picture = painted.truth = torch.full_like(painted.pixels, 100)
        painted.outline, painted.predicted = torch.zeros_like(painted.outline), None
        painted.pixels = painted.picture + by * painted.mask
    rough.picture = rough.truth = rough.picture.clone()
    rough.picture[..., ::2] = 104
    values = build_fitted("metric", {"name": "seam"}, OFFERED)([flat, rough])["seam"]
    assert float(values[0]) == pytest.approx(5) and -4 <= float(values[1]) < -1


def test_known_values(paintings):
    painted = paintings(1)[0]
    painted.outline = torch.zeros_like(painted.outline)
    painted.outline[:, 20:30, 20:30] = 1
    painted.predicted = painted.outline.float().roll(5, 1)
    painted.mask = box_of(dilate(painted.outline[None].float(), 8))[0].to(torch.uint8)
    painted.picture = painted.truth = torch.full_like(painted.pixels, 100)
    painted.pixels = painted.picture + 10 * painted.mask
    found = score([painted], ("mask_iou", "mask_dice", "background_psnr", "colour_shift"))
    assert found["mask_iou"] == pytest.approx(1 / 3) and found["mask_dice"] == pytest.approx(1 / 2)
    assert found["background_psnr"] == found["background_psnr_predicted"] == pytest.approx(20 * math.log10(25.5))
    assert found["colour_shift"] == pytest.approx(10)


def test_what_is_not_known_is_not_a_number(paintings):
    painted = paintings(2)
    for painting in painted:
        painting.predicted = None
    found = score(painted)
    assert all(math.isnan(found[f"{name}_predicted"]) for name in TWICE)
    assert math.isnan(found["mask_iou"]) and not any(math.isnan(found[name]) for name in TWICE)
    for painting in painted:
        painting.outline = None
    assert all(math.isnan(score(painted)[name]) for name in TWICE)
    filled = paintings(2)
    for painting in filled:
        painting.mask = painting.outline
    found = score(filled)
    assert all(math.isnan(found[name]) for name in TWICE if name != "seam") and found["outside_equal"] == 0


def test_pictures_of_several_sizes_are_scored_together(paintings):
    mixed = [paintings(3)[0], paintings(3, 48)[1], paintings(3)[2]]
    mixed[1].pixels = mixed[1].picture  # the only one without its object
    metric = build_fitted("metric", {"name": "class_accuracy"}, OFFERED)
    for painting in mixed:
        painting.case.label = "object"
    assert metric(mixed)["class_accuracy"].tolist() == [1, 0, 1]
    found = score(mixed, ("background_psnr", "fid", "local_fid"))
    assert found["background_psnr"] == 60 and found["fid"] > 0


def test_seeds_of_one_case_are_as_diverse_as_they_differ(paintings):
    one, other = paintings(2)
    seeds = []
    for level in (0, 6):
        case = paintings(1)[0]
        case.pixels = torch.full_like(case.pixels, 100 + level)
        seeds.append(case)
    found = Diversity()([seeds[0], other, seeds[1]])["diversity"]
    assert float(found[0]) == pytest.approx(6) and found[1:].isnan().all()
    found = build_fitted("metric", {"name": "diversity"}, OFFERED)([seeds[0], other, seeds[1]])
    assert float(found["diversity_lpips"][0]) == pytest.approx(6 / 127.5)
    assert float(Diversity()([one, one])["diversity"][0]) == 0


def test_lpips_is_of_the_background_alone(paintings):
    painted = paintings(4)
    for painting in painted:
        near = dilate(painting.outline[None].float(), 3)[0] > 0
        painting.pixels = torch.where(near | (painting.mask == 0), 255 - painting.pixels, painting.pixels)
    found = score(painted, ("background_lpips", "background_psnr"))
    assert found["background_lpips"] == 0 and found["background_psnr"] == 60


def test_the_crop_of_a_metric_is_what_it_is_told(paintings):
    painted = paintings(4)
    for painting in painted:
        recoloured(painting)
    narrow, wide = (
        float(build_fitted("metric", {"name": "background_lpips", "side_px": 64, "context": context}, OFFERED)(painted)
              ["background_lpips"].mean())
        for context in (1.0, 3.0)
    )
    assert wide < narrow  # the same damage in more that is untouched
