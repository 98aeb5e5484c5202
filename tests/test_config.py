"""Run files: parents, sections that change their name, overrides, interpolation, and errors on one line."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from sb import config
from sb.config import load, plain, spec_of


@pytest.fixture
def write(tmp_path):
    def put(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return put


TOOL = Path(__file__).resolve().parents[1] / "tools" / "explain_config.py"
PARENT = """
image_size: 64
denoiser: {name: unet, widths: [32, 64], heads: 4}
optimizer: {name: adamw, lr: 1e-4}
data: {crop: {size: "${image_size}", scale: 1.0}, train: [{shards: [a.tar], weight: 1.0}]}
"""


def test_a_file_wins_over_its_parents_and_an_override_over_all(write):
    write("parent.yaml", PARENT)
    write("second.yaml", "optimizer: {lr: 2e-4}\nseed: 1\n")
    path = write("child.yaml", "base: [parent.yaml, second.yaml]\ndenoiser: {heads: 8}\n")
    cfg = plain(load(path, ["optimizer.lr=3e-4"]))
    assert cfg["denoiser"] == {"name": "unet", "widths": [32, 64], "heads": 8}
    assert cfg["optimizer"] == {"name": "adamw", "lr": 3e-4} and cfg["seed"] == 1 and "base" not in cfg
    assert plain(load(path))["optimizer"]["lr"] == 2e-4


def test_another_name_replaces_the_inherited_section(write):
    write("parent.yaml", PARENT)
    cfg = plain(load(write("child.yaml", "base: parent.yaml\ndenoiser: {name: dit, depth: 4}\n")))
    assert cfg["denoiser"] == {"name": "dit", "depth": 4}


def test_base_is_relative_to_the_file_then_to_configs(write, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CONFIGS", tmp_path / "configs")
    write("configs/data/near.yaml", "where: configs\n")
    path = write("mine/run.yaml", "base: data/near.yaml\n")
    assert load(path).where == "configs"
    write("mine/data/near.yaml", "where: beside\n")
    assert load(path).where == "beside"


def test_interpolation_sees_overrides(write):
    path = write("run.yaml", PARENT)
    assert load(path, ["image_size=32"]).data.crop.size == 32


def test_overrides_reach_lists_nulls_and_new_keys(write):
    path = write("run.yaml", PARENT + "clip: null\n")
    cfg = load(path, ["data.train.0.weight=0.5", "denoiser.widths=[8,16]", "clip=1.0", "+extra.deep=2",
                      "optimizer.name=sgd"])
    assert cfg.data.train[0].weight == 0.5 and cfg.denoiser.widths == [8, 16]
    assert cfg.clip == 1.0 and cfg.extra.deep == 2 and cfg.optimizer.name == "sgd"


def test_an_override_that_changes_the_name_replaces_the_section(write):
    path = write("run.yaml", PARENT + "name: here\n")
    assert plain(load(path, ["denoiser.name=dit"]))["denoiser"] == {"name": "dit"}
    assert plain(load(path, ["denoiser.name=dit", "+denoiser.depth=4"]))["denoiser"] == {"name": "dit", "depth": 4}
    assert plain(load(path, ["denoiser={name: dit, depth: 4}"]))["denoiser"] == {"name": "dit", "depth": 4}
    same = {"name": "unet", "widths": [32, 64], "heads": 8}
    for override in ("denoiser={name: unet, heads: 8}", "denoiser={heads: 8}", "denoiser.heads=8"):
        assert plain(load(path, ["denoiser.name=unet", override]))["denoiser"] == same
    assert load(path, ["name=there"]).image_size == 64  # the run's own name is no section's


def test_null_switches_off(write):
    write("parent.yaml", PARENT + "callbacks: {mask_log: {name: mask_log, every_images: 1}, ema: {name: ema}}\n")
    path = write("child.yaml", "base: parent.yaml\ncallbacks: {mask_log: null}\n")
    assert plain(load(path))["callbacks"] == {"mask_log": None, "ema": {"name": "ema"}}
    assert load(path, ["callbacks.ema=null"]).callbacks.ema is None
    assert load(path, ["+callbacks.mask_log.name=mine"]).callbacks.mask_log == {"name": "mine"}


def test_one_plugin_may_be_written_without_a_list(write, tmp_path, monkeypatch):
    write("acme_single.py", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "acme_single", raising=False)
    load(write("run.yaml", PARENT + "plugins: []\n"), ["plugins=acme_single"])
    assert sys.modules.pop("acme_single")


@pytest.mark.parametrize(
    "override, says",
    [
        ("optimiser.lr=1", "the run file has no 'optimiser'; did you mean 'optimizer'?"),
        ("denoiser.width=1", "denoiser has no 'width'; did you mean 'widths'?"),
        ("data.train.3.weight=1", "data.train has no '3'"),
        ("image_size.x=1", "image_size has no 'x'; there are: none"),
        ("image_size", "must read key=value"),
        ("denoiser.widths=[8,", "'denoiser.widths=[8,' is not valid YAML"),
        ("image_size={a: b: c}", "is not valid YAML"),
        ("image_size=${nowhere", "is not valid YAML"),
        ("+image_size.x=1", "image_size has no 'x'"),
    ],
)
def test_a_wrong_override_names_the_right_key(write, override, says):
    with pytest.raises(ValueError) as caught:
        load(write("run.yaml", PARENT), [override])
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files_get_one_clear_line(write, tmp_path):
    write("run.yaml", PARENT)
    bad = {
        tmp_path / "rum.yaml": "did you mean .*run.yaml",
        write("broken.yaml", "a: [1,\nb: 2"): "not valid YAML.*line",
        write("list.yaml", "- 1\n"): "must hold a mapping",
        write("loop.yaml", "base: loop.yaml\n"): "inherits from itself",
        write("inter.yaml", "a: ${nowhere}\n"): "nowhere",
        write("plug.yaml", "plugins: [no_such_package_here]\n"): "no module 'no_such_package_here'",
    }
    for path, says in bad.items():
        with pytest.raises(ValueError, match=says) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_saved_config_loads_as_itself(write, tmp_path):
    cfg = load(write("run.yaml", PARENT), ["image_size=48"])
    config.save(cfg, tmp_path / "out" / "config.yaml")
    assert plain(load(tmp_path / "out" / "config.yaml")) == plain(cfg)


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "f.bin"
    config.write_whole(path, b"first")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        config.write_whole(path, b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_check_keys_names_the_nearest():
    config.check_keys("trainer", ["images"], ["images", "clip"])
    with pytest.raises(ValueError, match="trainer has no key 'image'; did you mean 'images'"):
        config.check_keys("trainer", ["image"], ["images", "clip"])


def test_explain_config_prints_what_names_resolve_to(write, monkeypatch, capsys):
    run = write("run.yaml", PARENT + """
sampler: {name: dpmpp_2m}
ladder: {levels: [{name: outline}, {name: blur, sigma: 0.1}, {name: box}]}
callbacks: {ema: {name: ema}}
""")
    main = runpy.run_path(str(TOOL))["main"]
    monkeypatch.setattr("sys.argv", ["explain_config.py", str(run), "image_size=48"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "image_size: 48" in out and "sampler: sampler 'dpmpp_2m'\n    sb.samplers.dpmpp_2m(" in out
    assert "ladder.levels.1: degradation 'blur'\n    sb.masks.blur_rung(sigma: float" in out
    assert "callbacks.ema: callback 'ema'\n    sb.callbacks.ema." in out

    monkeypatch.setattr("sys.argv", ["explain_config.py", str(run), "sampler.name=dpmpp_2s"])
    assert main() == 2
    assert "error: no sampler named 'dpmpp_2s'; did you mean 'dpmpp_2m'?" in capsys.readouterr().err


def test_the_worked_example_of_explain_config_works(monkeypatch, capsys):
    tool = runpy.run_path(str(TOOL))
    words = shlex.split(tool["EXAMPLE"].splitlines()[1])[1:]
    monkeypatch.chdir(TOOL.parents[1])
    monkeypatch.setattr("sys.argv", words)
    assert tool["main"]() == 0 and "steps: 20" in capsys.readouterr().out


def test_a_section_in_words():
    assert spec_of("fid") == {"name": "fid"} and spec_of("a: b=1 c=x") == {"name": "a", "b": 1, "c": "x"}
    assert spec_of(" a : file='my weights.pth'") == {"name": "a", "file": "my weights.pth"}
    for text, says in ((": b=1", "name in front"), ("b=1", "name in front"), ("a: name=b", "name in front"),
                       ("a: b", "'a: b': option 'b' must read"), ("a: b='c", "'a: b=.*closing quotation")):
        with pytest.raises(ValueError, match=says):
            spec_of(text)
