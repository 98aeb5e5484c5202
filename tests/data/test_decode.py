import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sb.data.decode import decode_image, decode_mask, read_record
from sb.data.ledger import Broken


def rle(mask):
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


@pytest.mark.parametrize("number", range(12))
def test_masks_equal_pycocotools(number):
    rng = np.random.default_rng(number)
    height, width = rng.integers(1, 400, 2)
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    if number % 2:
        mask[:] = 0
        mask[height // 3 : height // 2 + 1, width // 4 : width // 2 + 1] = 1
    decoded = decode_mask({"size": [height, width], "counts": rle(mask)}, width, height)
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, mask)
    assert np.array_equal(decoded, coco_mask.decode({"size": [int(height), int(width)], "counts": rle(mask)}))


def test_a_bad_rle_has_a_reason():
    mask = np.zeros((30, 40), np.uint8)
    mask[5:20, 7:30] = 1
    good = rle(mask)
    for bad in (good[:-1], good[:5], good + good, "", "zz~~", "é", None, 7, [3, 4], "0" * 4, "ooooooooooooooo0"):
        with pytest.raises(Broken, match="bad_mask"):
            decode_mask({"size": [30, 40], "counts": bad}, 40, 30)
    for other in ({"size": [40, 30], "counts": good}, {"counts": good}, None):
        with pytest.raises(Broken, match="bad_mask"):
            decode_mask(other, 40, 30)


def jpeg(width, height):
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    body = io.BytesIO()
    Image.fromarray(ramp).save(body, "JPEG", quality=95)
    return body.getvalue()


def test_images_become_rgb(tiny):
    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        body = io.BytesIO()
        Image.new(mode, (9, 7), 3 if mode in "LP" else None).save(body, "TIFF" if mode == "CMYK" else "PNG")
        image = decode_image(body.getvalue(), 9, 7)
        assert image.mode == "RGB" and image.size == (9, 7)


def test_a_bad_image_has_a_reason():
    body = jpeg(64, 48)
    for bad in (body[: len(body) // 2], body[10:], b"", b"GIF89a"):
        with pytest.raises(Broken, match="bad_image"):
            decode_image(bad, 64, 48)
    with pytest.raises(Broken, match="absurd_size"):
        decode_image(body, 48, 64)


def test_a_large_jpeg_is_decoded_no_larger_than_needed():
    body = jpeg(640, 480)
    assert decode_image(body, 640, 480, (640, 480)).size == (640, 480)
    small = decode_image(body, 640, 480, (150, 110))
    assert small.size == (160, 120)
    whole = decode_image(body, 640, 480).resize((160, 120), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - np.asarray(whole, int)).mean() < 2


def test_a_bad_record_has_a_reason(tiny):
    record = tiny.sample(0)["json"]

    def reason(**changes):
        changed = {k: v for k, v in {**record, **changes}.items() if v is not None}
        with pytest.raises(Broken) as caught:
            read_record(json.dumps(changed).encode(), 10_000)
        return caught.value.reason

    assert read_record(json.dumps(record).encode(), 10_000) == record
    assert reason(width=None) == reason(instances=None) == "missing_key"
    assert reason(schema_version=2) == reason(instances={}) == reason(instances="x") == "bad_schema"
    assert reason(width=0) == reason(width="48") == reason(width=10**6) == "absurd_size"
    for body in (b"{", b"[]", b"\xff\xfe", b"", b"[" * 100_000):
        with pytest.raises(Broken, match="bad_json"):
            read_record(body, 10_000)
