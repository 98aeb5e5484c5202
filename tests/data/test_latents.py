"""What a latent shard holds: plain .npy files of fp16, of the shape its manifest says."""

import io
import pickle

import numpy as np
import pytest

from sb.data.latents import Latents, TextTable, look_up, moments_bytes, same_latents, write_texts
from sb.data.ledger import Broken

FRAMES = {"image_size": 16, "crop": {"variants": 2}, "flip": 0.5, "min_area": 0.0, "max_area": 1.0}

TOWER = {"digest": 2, "settings": {"pad": "zero"}}


def latents(std=False, where="here", **other):
    vae = {"digest": 1, "factor": 4, "channels": 3, "settings": {"norm_groups": 8}, "std": std}
    return Latents(where, vae, {**FRAMES, **other}, TOWER, "bf16-mixed")


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


@pytest.mark.parametrize("std, shape", [(False, (3, 4, 4)), (True, (6, 4, 4))])
def test_moments_are_an_npy_file_of_their_bits(std, shape):
    values = numbers(*shape)
    body = moments_bytes(values.view(np.int16))
    assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), values)
    assert latents(std).shape == shape and latents(std).members == ["0.npy", "1.npy"]
    written = io.BytesIO()
    np.save(written, np.asfortranarray(values))  # as another program may write it
    for content in (body, written.getvalue()):
        assert np.array_equal(latents(std).read(content).view(np.float16), values)


@pytest.mark.parametrize("body", [
    b"", b"garbage", moments_bytes(numbers(3, 4, 4).view(np.int16))[:-1],
    moments_bytes(numbers(3, 4, 2).view(np.int16)),
])
def test_bytes_of_another_kind_are_broken(body):
    with pytest.raises(Broken, match="bad_moments"):
        latents().read(body)


def test_no_pickle_is_read():
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Broken, match="bad_moments"):
        latents().read(file.getvalue())


def test_sources_agree_or_are_named():
    assert same_latents([("a", None), ("b", None)]) is None
    assert same_latents([("a", latents()), ("b", latents(where="b"))]) == latents()
    with pytest.raises(ValueError, match=r"the latents of a and b differ in frames.flip \(0.5 there, 0.0 now\)"):
        same_latents([("a", latents()), ("b", latents(flip=0.0))])
    with pytest.raises(ValueError, match="b holds latents and a pictures"):
        same_latents([("a", None), ("b", latents())])


@pytest.mark.parametrize("vae, tower, precision, says", [
    ({"settings": {"norm_groups": 4}}, {}, "bf16-mixed", r"vae.settings.norm_groups \(8 there, 4 now\)"),
    ({}, {"settings": {"pad": "eos"}}, "bf16-mixed", r'text.settings.pad \("zero" there, "eos" now\)'),
    ({}, {}, "32-true", r'trainer.precision \("bf16-mixed" there, "32-true" now\)'),
])
def test_what_no_tensor_shows_must_agree(vae, tower, precision, says):
    made = latents()
    made.check_networks({name: made.vae[name] for name in ("digest", "settings")}, TOWER, "bf16-true")
    with pytest.raises(ValueError, match=f"^here holds the latents of a run that differs in {says}; "):
        made.check_networks({**made.vae, **vae}, {**TOWER, **tower}, precision)


def test_texts_have_their_rows(tmp_path):
    rows = numbers(3, 5).view(np.int16)
    write_texts(tmp_path, ["", "red", "blue"], 5, iter([rows[:2], rows[2:]]))
    table = TextTable(tmp_path / "texts.json", tmp_path / "texts.npy")
    assert np.array_equal(look_up([table], ["blue", "", "red"]), rows[[2, 0, 1]])
    assert len(pickle.dumps(table)) < 300 and np.array_equal(pickle.loads(pickle.dumps(table)).rows, rows)
    np.save(tmp_path / "texts.npy", rows)
    with pytest.raises(ValueError, match="texts.npy holds int16, not float16"):
        TextTable(tmp_path / "texts.json", tmp_path / "texts.npy")
    write_texts(tmp_path, ["", "red", "blue"], 5, iter([rows]))
    (tmp_path / "texts.npy").write_bytes((tmp_path / "texts.npy").read_bytes()[:-3])
    with pytest.raises(ValueError, match="the features of its texts cannot be read"):
        TextTable(tmp_path / "texts.json", tmp_path / "texts.npy")
