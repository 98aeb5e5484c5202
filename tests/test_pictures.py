"""Reading pictures and masks as a person sees them, and writing without overwriting."""

import numpy as np
import pytest
import torch
from PIL import Image

from sb import pictures


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "turned.png", exif=exif)
    assert pictures.image_tensor(tmp_path / "turned.png").shape == (3, 4, 2)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "I;16"])
def test_every_mode_becomes_rgb(mode):
    picture = Image.new("L", (5, 3), 200).convert("RGB").convert(mode) if mode != "I;16" else Image.fromarray(
        np.full((3, 5), 200 * 257, np.uint16))
    tensor = pictures.image_tensor(picture)
    assert tensor.shape == (3, 3, 5) and tensor.dtype == torch.uint8
    assert mode == "1" or (tensor.int() - 200).abs().max() <= (4 if mode == "P" else 1)


def test_masks_from_pictures_layers_and_arrays():
    drawn = np.zeros((4, 6), np.uint8)
    drawn[1:3, 2:5] = 255
    expected = torch.from_numpy(drawn // 255)[None]
    layer = np.zeros((4, 6, 4), np.uint8)
    layer[..., 3] = drawn
    picture = Image.fromarray(drawn)
    for mask in (picture, Image.fromarray(layer), drawn, drawn // 255, picture.convert("1")):
        assert torch.equal(pictures.mask_tensor(mask), expected)


def test_a_mask_saved_as_labels_is_a_mask(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 2:5] = 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray(np.stack([labels] * 3, 2)).save(tmp_path / "rgb.png")
    for path in ("labels.png", "rgb.png"):
        assert torch.equal(pictures.mask_tensor(tmp_path / path), torch.from_numpy(labels)[None])
    Image.fromarray(labels * 100).save(tmp_path / "dim.png")  # dark grey is still below half
    assert int(pictures.mask_tensor(tmp_path / "dim.png").sum()) == 0
    assert int(pictures.mask_tensor(Image.new("L", (3, 3))).sum()) == 0


def test_a_huge_picture_is_refused_on_one_line(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="huge.png cannot be read as an image: Image size .1600 pixels") as caught:
        pictures.open_image(tmp_path / "huge.png")
    assert "\n" not in str(caught.value)


def test_boxes():
    mask = pictures.box_mask(pictures.parse_box("2,1,3,2"), 4, 6)
    assert int(mask.sum()) == 6 and int(mask[0, 1:3, 2:5].sum()) == 6
    with pytest.raises(ValueError, match="box 4,1,3,2 does not lie inside the 6x4 px image"):
        pictures.box_mask((4, 1, 3, 2), 4, 6)
    with pytest.raises(ValueError, match="must read x,y,w,h"):
        pictures.parse_box("1,2,3")


def test_an_unreadable_picture_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="bad.png cannot be read as an image"):
        pictures.open_image(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="no image at"):
        pictures.open_image(tmp_path / "absent.png")


def test_alpha_and_profile_are_copied_through():
    source = Image.new("RGBA", (4, 4), (10, 20, 30, 77))
    source.info["icc_profile"] = b"profile"
    painted = pictures.like_source(Image.new("RGB", (4, 4), (1, 2, 3)), source)
    assert painted.getpixel((0, 0)) == (1, 2, 3, 77) and painted.info["icc_profile"] == b"profile"


@pytest.mark.parametrize("mode, copied", [("RGB", True), ("RGBA", True), ("L", False), ("LA", False), ("CMYK", False)])
def test_only_a_profile_of_rgb_is_copied(mode, copied, tmp_path):
    source = Image.new(mode, (4, 4))
    source.info["icc_profile"] = b"profile"
    pictures.save_png(pictures.like_source(Image.new("RGB", (4, 4)), source), tmp_path / "out.png")
    assert ("icc_profile" in pictures.open_image(tmp_path / "out.png").info) == copied


def test_numbers_find_the_first_free_name(tmp_path):
    assert pictures.free_number(tmp_path, ("result.png",), False) == 0
    (tmp_path / "result.png").touch()
    (tmp_path / "result-1.png").touch()
    assert pictures.free_number(tmp_path, ("result.png",), False) == 2
    assert pictures.free_number(tmp_path, ("result.png",), True) == 0
