"""A model's card says what its folder holds, what it learned from and, once it is measured, how good it is."""

import json
import shutil

import pytest
import yaml

from sb import card
from sb import config as config_files
from sb.card import places, write_card
from sb.evaluate.evaluation import evaluate_list, place_list
from sb.evaluate.oracle import Oracle
from sb.evaluate.runner import Job
from sb.evaluate.shapes import evaluate_model


@pytest.fixture
def folder(trained_model, tmp_path):
    """A model's folder in a run's."""
    shutil.copytree(trained_model / "model", tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def front(text):
    """The card's head, as a model hub reads it."""
    return yaml.safe_load(text.split("---")[1])


def test_a_run_leaves_a_card_of_its_data_settings_and_limits(trained_model, shapes_shards):
    text = (trained_model / "model" / "README.md").read_text()
    assert front(text) == {"library_name": "sb", "tags": ["inpainting", "smartbrush"]}
    meta = json.loads((trained_model / "model" / "meta.json").read_text())
    told, = meta["training_data"]
    assert told["sets"][0]["images"] == 96 and told["sets"][0]["source"]["name"] == "shapes"
    for line in (
        f"| `{shapes_shards['train']}` | 1.0 | 96 | name shapes, num_images 96, size_px 32, split train | ",
        "| images seen | 8 of 8 |", "| image size, px | 32 |", "| batch | 4 |", "| prediction | v |", "| seed | 0 |",
        "It is told how precise the mask is, and predicts which pixels the object covers.",
        "Tasks: `object`, `text_to_image`, `remove`.", "learned at 32 px", "licence of the weights | not stated",
        "Inpainter.load(", "Not yet: `python tools/evaluate.py`", "not a licence to",
    ):
        assert line in text, line
    sections = ["Load", "Training data", "Training", "Measured", "Intended use", "Limits"]
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == sections


def test_figures_of_these_weights_are_filled_in_and_others_are_not(folder):
    metrics = {"num_requests": 64, "seed": 5, "images_seen": 8, "text_outline": 0.875, "background_db_box": 31.26}
    for place in places(folder):
        (place / "metrics.json").parent.mkdir(exist_ok=True)
        (place / "metrics.json").write_text(json.dumps(metrics))
        write_card(folder)
        text = (folder / "README.md").read_text()
        assert "On 64 unseen scenes of the shapes world (seed 5)" in text
        assert "(`text_outline`) | 0.875 | 1 |" in text and "(`background_db_box`) | 31.3 dB |" in text
        (place / "metrics.json").write_text(json.dumps({**metrics, "images_seen": 4}))
        write_card(folder)
        assert "0.875" not in (folder / "README.md").read_text()
        (place / "metrics.json").unlink()


def test_an_evaluation_in_the_runs_folder_fills_the_card_of_the_model(folder, tmp_path):
    oracle = Oracle()
    oracle.accuracy = {"real": 1.0}  # as if it had learned
    oracle.save(tmp_path / "oracle.safetensors")
    before = (folder / "README.md").read_text()
    for out in (tmp_path / "elsewhere", folder.parent / "evaluation"):
        assert (folder / "README.md").read_text() == before
        evaluate_model(folder.parent, out, num_requests=2, batch=2, oracle_file=tmp_path / "oracle.safetensors")
    assert "On 2 unseen scenes" in (folder / "README.md").read_text()


def test_reports_of_request_lists_are_told_too(folder, tmp_path):
    def run(system, out):
        place_list(out, protocol={"name": "shapes"}, count=2, size_px=32)
        evaluate_list(Job(str(out), (), {"name": "own", "system": str(system), "options": {"steps": 2}},
                          ({"name": "outside_equal"},), device="cpu"))

    before = (folder / "README.md").read_text()
    run(folder.parent, tmp_path / "elsewhere")
    run(folder / "unet.raw.safetensors", folder.parent / "raw")
    assert (folder / "README.md").read_text() == before
    run(folder.parent, folder.parent / "scenes")
    text = (folder / "README.md").read_text()
    assert "On 4 requests of the protocol `shapes` at 32 px (seed 0), painted with " in text and "steps 2" in text
    assert text.count("| outside_equal | 1 | 0.3424 | 1 | 4 |") == 1 and "Not yet" not in text


def test_a_licence_is_stated_where_there_is_one(folder):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "licence": "CC BY 4.0: ours"}))
    write_card(folder)
    text = (folder / "README.md").read_text()
    assert front(text)["license_name"] == "CC BY 4.0: ours" and front(text)["license"] == "other"
    assert "| licence of the weights | CC BY 4.0: ours |" in text


def test_what_nobody_knows_of_shards_is_not_stated():
    row = card._data([{"shards": "s3://bucket/{000..999}.tar", "weight": 0.5, "sets": []}]).splitlines()[-1]
    assert row == "| `s3://bucket/{000..999}.tar` | 0.5 | not stated | not stated | not stated |"
    licensed = {"shards": "a", "images": 1200, "source": {"name": "coco"}, "licences": {"CC BY 2.0": 1000, "": 200}}
    row = card._data([{"shards": ["a"], "sets": [licensed]}]).splitlines()[-1]
    assert row == "| `a` | 1.0 | 1,200 | name coco | CC BY 2.0 (1,000), not stated (200) |"


def test_an_autoencoder_is_no_painter(folder):
    config = config_files.plain(config_files.load(folder / "config.yaml"))
    del config["denoiser"]
    text = card.card(config, json.loads((folder / "meta.json").read_text()))
    assert front(text)["tags"] == ["autoencoder"]
    assert "vae.weights=THIS_FOLDER" in text and "inpaint.py" not in text and "prediction" not in text


def test_a_model_that_does_not_say_what_it_learned_from(folder):
    """Imported models, and those of before: their cards say so, and take no other model's figures for theirs."""
    config = config_files.plain(config_files.load(folder / "config.yaml"))
    meta = json.loads((folder / "meta.json").read_text())
    del meta["training_data"], meta["images_seen"]
    assert "| images seen | not stated |" in card.card(config, meta)
    (folder / "metrics.json").write_text(json.dumps({"images_seen": None}))
    assert card._figures(folder, meta) is None
    assert card._data([{"shards": "a"}]).splitlines()[-1].startswith("| `a` |")
