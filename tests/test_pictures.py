"""Reading pictures and masks as a person sees them, and writing without overwriting."""

import struct
import zlib

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


def deep_png(path, values, kind, clear=None):
    """A 16-bit PNG of values (H, W, channels), which Pillow cannot write; clear: the value that is transparent."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    see_through = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + see_through + chunk(b"IDAT", zlib.compress(rows))
                     + chunk(b"IEND", b""))


GREY = {"grey", "la", "bilevel", "png16grey", "png16la", "tiff16", "tiff_float"}
DEEP = {"png16grey": 0, "png16rgb": 2, "png16la": 4, "png16rgba": 6}  # PNG's own numbers of these kinds
CLEAR = ("la", "rgba", "palette_clear", "png16la", "png16rgba")


def a_file(kind, folder, left=(200, 100, 0), right=(0, 50, 255)):
    """A 4 x 3 px file of a kind, its left half and its right half of a colour, the first row a little transparent
    where the kind allows it; its path, what it should be read as (H, W, 3) and its alpha (H, W)."""
    path = folder / f"{kind}.{'jpg' if 'jpeg' in kind else 'tif' if 'tiff' in kind else 'png'}"
    pixels, alpha = np.empty((3, 4, 3), np.uint8), np.full((3, 4), 255, np.uint8)
    pixels[:, :2], pixels[:, 2:], alpha[0] = left, right, 90
    if kind in GREY:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    if kind == "bilevel":
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    picture = Image.fromarray(pixels).convert("L" if kind in GREY else "RGB")
    if kind in DEEP:
        channels = np.atleast_3d(np.asarray(picture))
        deep = np.concatenate([channels, alpha[..., None]], 2) if kind in CLEAR else channels
        deep_png(path, deep.astype(np.uint16) * 256 + 77, DEEP[kind])
    elif kind == "tiff16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + 77).save(path)
    elif kind == "tiff_float":
        Image.fromarray(pixels[..., 0] / np.float32(255)).save(path)
    elif kind.startswith("palette"):
        picture = picture.quantize(2)
        clear = picture.getpixel((0, 0))
        picture.save(path, **({"transparency": clear} if kind in CLEAR else {}))
        alpha = np.repeat([[0, 0, 255, 255]], 3, axis=0)
    elif kind.startswith("jpeg_cmyk"):
        inks = [Image.fromarray(255 - pixels[..., channel]) for channel in range(3)]
        Image.merge("CMYK", [*inks, Image.new("L", (4, 3))]).save(path, quality=100, subsampling=0)
        if kind.endswith("unmarked"):  # as readers of the web do, it is taken to be inverted like Adobe's
            before, _, after = path.read_bytes().partition(b"\xff\xee\x00\x0eAdobe")
            path.write_bytes(before + after[7:])
    else:
        if kind in CLEAR:
            picture.putalpha(Image.fromarray(alpha))
        (picture.convert("1") if kind == "bilevel" else picture).save(path)
    return path, pixels, alpha


LOSSES = {
    **dict.fromkeys(("rgb", "rgba", "grey", "la", "bilevel", "palette", "palette_clear")),
    **dict.fromkeys((*DEEP, "tiff16"), "16 bits a channel become 8, the high ones"),
    "tiff_float": "numbers with a fraction become 8 bits a channel",
    **dict.fromkeys(("jpeg_cmyk", "jpeg_cmyk_unmarked"), "CMYK becomes RGB"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_files_of_every_kind_are_read_in_their_colours_and_written_with_their_alpha(kind, tmp_path):
    path, expected, alpha = a_file(kind, tmp_path)
    source = pictures.open_image(path)
    seen = pictures.image_tensor(source).permute(1, 2, 0).numpy()
    assert seen.shape == (3, 4, 3) and np.abs(seen.astype(int) - expected).max() <= (3 if "jpeg" in kind else 0)
    assert pictures.loss_of(source) == LOSSES[kind]
    pictures.save_png(pictures.like_source(Image.fromarray(seen), source), tmp_path / "written.png")
    written = np.asarray(Image.open(tmp_path / "written.png"))
    assert np.array_equal(written[..., :3], seen)
    assert np.array_equal(written[..., 3], alpha) if kind in CLEAR else written.shape == (3, 4, 3)


@pytest.mark.parametrize("kind", LOSSES)
def test_masks_of_every_kind_mark_what_is_bright_or_opaque(kind, tmp_path):
    path, _, alpha = a_file(kind, tmp_path, left=(129, 129, 129), right=(126, 126, 126))
    expected = alpha > 127 if kind in CLEAR else np.repeat([[1, 1, 0, 0]], 3, axis=0)
    assert np.array_equal(pictures.mask_tensor(path)[0].numpy(), expected)


def test_a_deep_grey_picture_with_a_transparent_value_has_alpha(tmp_path):
    values = np.array([[[0x1234], [0xFFEE]]], np.uint16)
    deep_png(tmp_path / "clear.png", values, 0, clear=0x1234)
    source = pictures.open_image(tmp_path / "clear.png")
    assert pictures.image_tensor(source)[0].tolist() == [[0x12, 0xFF]]
    assert np.asarray(pictures.like_source(Image.new("RGB", (2, 1)), source))[..., 3].tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["I;16", "F", "1", "LA", "P", "CMYK", "RGBA"])
def test_every_mode_is_turned_upright(mode, tmp_path):
    corner = np.zeros((3, 5), np.uint8)
    corner[0, 0] = 255
    picture = Image.fromarray(corner if mode != "I;16" else corner.astype(np.uint16) * 257)
    picture = picture.convert("RGB").convert(mode) if mode not in ("I;16", "F") else picture.convert(mode)
    if mode == "F":
        picture = picture.point(lambda level: level * (1 / 255) + 0)
    exif = Image.Exif()
    exif[0x0112] = 8  # the right edge of what is stored is the top
    picture.save(tmp_path / "turned.tif", exif=exif)
    source = pictures.open_image(tmp_path / "turned.tif")
    expected = torch.zeros(1, 5, 3, dtype=torch.uint8)
    expected[0, 4, 0] = 1
    assert torch.equal(pictures.image_tensor(source), expected.expand(3, -1, -1) * 255)
    assert torch.equal(pictures.mask_tensor(source), expected)
    assert pictures.like_source(Image.new("RGB", (3, 5)), source).size == (3, 5)


@pytest.mark.parametrize("values, says", [
    (np.array([[0.0, 2.5]], np.float32), "a picture of float32 holds values from 0 to 1, this one 0 to 2.5"),
    (np.array([[0.0, np.nan]], np.float32), "this one nan to nan"),
    (np.array([[-1, 0]], np.int32), "a picture of int32 holds values from 0 to 65535, this one -1 to 0"),
])
def test_values_of_an_unknown_range_are_refused(values, says):
    for read in (pictures.image_tensor, pictures.mask_tensor):
        with pytest.raises(ValueError, match=says):
            read(Image.fromarray(values))


@pytest.mark.parametrize("array", [
    np.zeros((4, 4, 2), np.uint8), np.zeros((4,), np.uint8), np.zeros((4, 4, 3), np.float32),
])
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(ValueError, match="a picture array must be .H, W, 3. uint8, not"):
        pictures.image_tensor(array)


def test_a_mode_that_cannot_be_shown_is_refused():
    with pytest.raises(ValueError, match="mode La cannot be read as RGB"):
        pictures.image_tensor(Image.new("La", (2, 2)))


def test_masks_from_pictures_layers_and_arrays():
    drawn = np.zeros((4, 6), np.uint8)
    drawn[1:3, 2:5] = 255
    expected = torch.from_numpy(drawn // 255)[None]
    layer = np.zeros((4, 6, 4), np.uint8)
    layer[..., 3] = drawn
    picture = Image.fromarray(drawn)
    deep, labels = drawn.astype(np.uint16) * 257, (drawn // 255).astype(int)
    arrays = (drawn, drawn // 255, drawn > 0, drawn / 255 * 0.6, deep, labels)
    for mask in (picture, Image.fromarray(layer), picture.convert("1"), *arrays):
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


@pytest.mark.parametrize("mode, copied", [
    ("RGB", True), ("RGBA", True), ("P", True), ("L", False), ("LA", False), ("CMYK", False),
])
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
