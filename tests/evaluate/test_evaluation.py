"""From a list to a report: what is in it, what lies beside it, and the tool's two ways of being asked."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sb.evaluate.evaluation import evaluate_list, metric_specs, part_of, place_list, table
from sb.evaluate.frechet import Statistics
from sb.evaluate.lists import read_list
from sb.evaluate.oracle import Oracle
from sb.evaluate.runner import Job, fingerprints
from sb.pictures import image_tensor

from . import acme_systems

TOOL = Path(__file__).parents[2] / "tools" / "evaluate.py"


@pytest.fixture
def plugin(monkeypatch):
    """The acme team's names, wherever they are asked for."""
    acme_systems.enter()
    monkeypatch.setitem(sys.modules, "acme_systems", acme_systems)


def tool(monkeypatch, capsys, *asked):
    """Exit code, and lines on stdout and stderr, of tools/evaluate.py."""
    spec = importlib.util.spec_from_file_location("tool_evaluate", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, asked)])
    code = module.main()
    printed = capsys.readouterr()
    return code, printed.out, [line for line in printed.err.splitlines() if line.startswith("error: ")]


def test_the_report_of_a_small_model(trained_model, tmp_path):
    place_list(tmp_path, protocol={"name": "shapes"}, count=4, size_px=32)
    job = Job(str(tmp_path), (), {"name": "own", "system": str(trained_model), "options": {"steps": 2}},
              metric_specs([], {}), chunk=3, device="cpu")
    report = evaluate_list(job)
    assert report == json.loads((tmp_path / "report.json").read_text())
    cases = read_list(tmp_path / "list.jsonl")
    assert report["num_requests"] == 8 and report["list"]["digest"] == cases.digest
    assert report["system"]["images_seen"] == 8 and list(report["level"]) == ["0 of 5", "5 of 5"]
    overall = report["overall"]
    assert overall["outside_equal"] == {"value": 1.0, "low": 0.5101, "high": 1.0, "n": 8}  # Wilson's of 4 objects
    assert overall["mask_iou"]["n"] == 8 and 0 <= overall["mask_iou"]["value"] <= 1
    assert report["metrics"]["mask_iou"]["about"].startswith("Intersection over union") and "fid" not in overall
    each = json.loads((tmp_path / "per_request.json").read_text())
    assert each["list"] == cases.digest and each["seeds"] == [case.seed for case in cases.cases]
    assert each["objects"] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(each["fingerprints"]) == set(each["metrics"]) and set(each["fingerprints"]["seam"]) == {"options"}
    assert [report["metrics"][name]["better"] for name in ("mask_iou", "seam", "colour_shift")] == [
        "higher", "zero", "lower",
    ]
    values = torch.tensor(each["metrics"]["mask_iou"], dtype=torch.float64)
    assert float(values.mean()) == pytest.approx(overall["mask_iou"]["value"], abs=1e-5)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [f"{n:06d}.png" for n in range(8)]
    assert image_tensor(tmp_path / "pictures" / "000007.png").shape == (3, 32, 32)
    lines = table(report).splitlines()
    assert len(lines) == 1 + len(overall)
    assert any(line.startswith("outside_equal") and "1.000" in line for line in lines)


def test_what_a_metric_was_measured_with_has_its_fingerprint(tmp_path):
    job = Job("", (), {}, ({"name": "class_accuracy"}, {"name": "background_lpips", "side_px": 64}), {})
    told = {"reader": {"name": "oracle", "sha256": "1"}, "lpips": {"name": "lpips"}}
    found = fingerprints(job, told)
    assert {name: set(parts) for name, parts in found.items()} == {
        "class_accuracy": {"options", "reader"}, "background_lpips": {"options", "lpips"},
    }
    other = fingerprints(job, {**told, "reader": {"name": "oracle", "sha256": "2"}})
    assert other["class_accuracy"]["reader"] != found["class_accuracy"]["reader"]
    assert other["background_lpips"] == found["background_lpips"]
    default, same = (fingerprints(replace(job, metrics=({"name": "background_lpips", **more},)), told)
                     for more in ({}, {"side_px": 224}))
    assert default == same and default["background_lpips"]["options"] != found["background_lpips"]["options"]


def test_results_scored_again_from_their_folder_are_worth_the_same(plugin, tmp_path):
    asked = {"data": (), "metrics": ({"name": "acme_brightness"}, {"name": "acme_gap"}), "plugins": ("acme_systems",)}
    found = {}
    for name, system in (("first", {"name": "acme_flat", "system": ""}),
                         ("again", {"name": "pictures", "system": str(tmp_path / "first" / "pictures")})):
        place_list(tmp_path / name, protocol={"name": "shapes"}, count=3, size_px=32)
        found[name] = evaluate_list(Job(str(tmp_path / name), adapter=system, **asked))
    assert found["first"]["overall"] == found["again"]["overall"]
    with pytest.raises(ValueError, match="one picture for a request"):
        place_list(tmp_path / "more", protocol={"name": "shapes"}, count=3, size_px=32)
        evaluate_list(Job(str(tmp_path / "more"), adapter=system, variations=2, **asked))


def test_variations_differ_and_change_nothing_else(plugin, tmp_path):
    found = {}
    for variations in (1, 3):
        out = tmp_path / str(variations)
        place_list(out, protocol={"name": "shapes"}, count=3, size_px=32)
        metrics = ({"name": "acme_brightness"}, {"name": "diversity"})[:variations]
        found[variations] = evaluate_list(Job(
            str(out), (), {"name": "acme_flat", "system": ""}, metrics, variations=variations,
            plugins=("acme_systems",),
        ))["overall"]
    diversity = found[3].pop("diversity")
    assert diversity["n"] == 6 and diversity["value"] > 20
    assert found[3] == found[1]


def test_the_real_pictures_statistics_are_a_reference_for_others(plugin, tmp_path, monkeypatch):
    """A network that gives the mean colour; the distance to the stored statistics is that to the real pictures."""
    from sb.evaluate.features import FeatureNetwork
    from sb.registry import register

    class MeanColour(torch.nn.Module):
        def forward(self, images):
            return images.float().mean((2, 3))

    class Mean(FeatureNetwork):
        def __init__(self):
            super().__init__("acme_mean", MeanColour())

    register("feature network", "acme_mean")(Mean)
    networks, found = {"features": {"name": "acme_mean"}}, {}
    for name, reference in (("first", None), ("second", str(tmp_path / "first" / "reference"))):
        place_list(tmp_path / name, protocol={"name": "shapes"}, count=4, size_px=32)
        metrics = metric_specs(["fid", "local_fid"], networks, reference=reference)
        found[name] = evaluate_list(Job(
            str(tmp_path / name), (), {"name": "acme_flat", "system": ""}, metrics, networks, plugins=("acme_systems",)
        ))["overall"]
    stored = Statistics.load(tmp_path / "first" / "reference" / "fid.safetensors")
    assert stored.count == 8 and stored.mean.shape == (3,)
    assert found["first"]["fid"]["value"] > 0
    for name in ("fid", "local_fid"):
        assert found["second"][name]["value"] == pytest.approx(found["first"][name]["value"], rel=1e-5)
    assert not (tmp_path / "second" / "reference").exists()


def test_a_report_of_distances_alone_shows_requests_too(plugin, tmp_path):
    """No request is better than another then: some at random are shown."""
    oracle = Oracle()
    oracle.accuracy = {"real": 1.0}  # as if it had learned
    oracle.save(tmp_path / "oracle.safetensors")
    place_list(tmp_path, protocol={"name": "shapes"}, count=3, size_px=32)
    networks = {"features": {"name": "oracle", "weights": str(tmp_path / "oracle.safetensors")}}
    report = evaluate_list(Job(str(tmp_path), (), {"name": "acme_flat", "system": ""}, ({"name": "fid"},), networks,
                               device="cpu", plugins=("acme_systems",)))
    assert report["overall"]["fid"]["value"] > 0 and report["shown"]["best"] == []
    assert sorted(report["shown"]["random"]) == list(range(6))
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg") == 4 * 6 and "<h2>Random" in page and "<h2>Best" not in page


def test_tensorboard_has_scalars_curves_and_pictures(plugin, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place_list(tmp_path, protocol={"name": "shapes"}, count=2, size_px=32)
    report = evaluate_list(Job(str(tmp_path), (), {"name": "acme_flat", "system": ""},
                               ({"name": "acme_brightness"}, {"name": "outside_equal"}), plugins=("acme_systems",)))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    scalar, = board.Scalars("evaluation/brightness")
    assert scalar.step == 640 and scalar.value == pytest.approx(report["overall"]["brightness"]["value"], rel=1e-5)
    assert [event.step for event in board.Scalars("by_level/brightness")] == [0, 100]
    assert {"best/0", "worst/0", "random/3"} <= set(board.Tags()["images"])


def test_the_tool_makes_the_list_and_the_report(plugin, tmp_path, monkeypatch, capsys):
    asked = ("", "--adapter", "acme_flat", "--metrics", "acme_brightness", "--plugins", "acme_systems", "--protocol",
             "shapes", "--count", 3, "--size", 32, "--out", tmp_path / "out")
    code, said, _ = tool(monkeypatch, capsys, *asked, "--part", "1/2", "--batch", 2)
    assert code == 0 and "other parts are not" in said
    code, said, _ = tool(monkeypatch, capsys, *asked, "--part", "2/2", "--batch", 2)
    assert code == 0 and "brightness" in said and f"open {tmp_path}/out/report.html" in said
    code, _, errors = tool(monkeypatch, capsys, *asked, "--batch", 3)
    assert code == 2 and "differs in chunk" in errors[0]


@pytest.mark.parametrize("asked, says", [
    (["--protocol", "boxes"], "did you mean 'box'"), (["--list", "absent.jsonl"], "absent.jsonl"),
    (["--protocol", "shapes", "--part", "3/2"], "must read P/N"),
    (["--set", "steps=3", "--lpips", "lpips", "--processes", "1"],
     "--count, --lpips, --processes: of no use without --list or --protocol"),
    (["--list", "absent.jsonl", "--seed", "0", "--oracle", "o"], "--seed, --oracle: of no use with --list"),
    (["--protocol", "shapes", "--requests", "256", "--seconds", "s"], "--requests, --seconds: of no use with"),
    (["--protocol", "shapes", "--processes", "0"], "at least 1"),
    (["--protocol", "shapes", "--batch", "-1"], "at least 1"),
    (["--protocol", "shapes", "--metrics", "mask_uoi"], "did you mean 'mask_iou'"),
    (["--protocol", "shapes", "--metrics", "fid"], "metric 'fid' needs a network: give --features"),
    (["--protocol", "shapes", "--metrics", "seam", "seam"], "'seam' is asked for twice"),
    (["--protocol", "shapes", "--metrics", "side=3"], "needs a name in front"),
    (["--protocol", "shapes", "--adapter", "owm"], "did you mean 'own'"),
])
def test_what_cannot_be_asked_is_one_line(tmp_path, monkeypatch, capsys, asked, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    given = asked if "--adapter" in asked or "--set" in asked else [*asked, "--adapter", "pictures"]
    drawn = [] if "--list" in asked else ["--count", "2", "--size", "32"]
    code, _, errors = tool(monkeypatch, capsys, "pictures", "--out", "out", *drawn, *given)
    assert code == 2 and len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "out" / "report.json").exists()


def test_metrics_and_parts_from_words():
    assert part_of(None) is None and part_of("2/4") == (1, 4)
    names = {spec["name"] for spec in metric_specs([], {})}
    assert {"mask_iou", "background_psnr"} <= names and not {"fid", "clip_score", "diversity"} & names
    assert {"fid", "diversity"} <= {spec["name"] for spec in metric_specs([], {"features": {}}, 2)}
    assert metric_specs(["fid", "seam"], {}, reference="r") == (
        {"name": "fid", "reference": "r/fid.safetensors"}, {"name": "seam"},
    )
