"""The card of a model: what a person should know who finds the folder, filled from what lies in it and beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb import config as run_files
from sb.config import write_whole
from sb.evaluate.report import metric_rows
from sb.formats.own import find_folder

CARD_FILE = "README.md"  # what model hubs show
NOT_STATED = "not stated"
CARD = """\
---
{licence}library_name: sb
tags: [{tags}]
---
# {name}

{what}

## Load

{load}

## Training data

{data}

## Training

{training}

## Measured

{measured}

## Intended use

{use}

## Limits

{limits}
"""
SMARTBRUSH = """\
Paints the object that a text names into a mask in a picture: a latent diffusion model trained with `sb`, a framework
for SmartBrush ([arXiv 2212.05034](https://arxiv.org/abs/2212.05034)). {abilities} Pixels outside the mask stay as they
are."""
AUTOENCODER = "An autoencoder for latent diffusion, trained with `sb`. It paints nothing by itself."
PAINTER = """\
```
python tools/inpaint.py --model THIS_FOLDER --image IMAGE --mask MASK --text TEXT --out painted
```

```python
from sb import Inpainter

painter = Inpainter.load("THIS_FOLDER")
```

The folder is self-contained. `unet.safetensors` holds averaged weights, `unet.raw.safetensors` the last ones."""
PART = "In a run file: `vae.weights=THIS_FOLDER`."
PAINTER_USE = """\
Painting and replacing objects in pictures like those it was trained on, for a person who looks at the results, and
research on it. Who uses it answers for the right to change a picture and for what the result is shown as."""
PART_USE = "The start of a run that trains or uses latents of pictures like those it was trained on."
LIMITS = """\
- It learned at {size} px, from the data above, and knows what is in that data: its objects, its words, its biases.
- What is measured above holds for the data it was measured on.
- The method is the subject of a granted US patent (US 12,430,829 B2); a licence to weights or code is not a licence to
  the patent."""


def places(folder: Path) -> list[Path]:
    """Where figures measured on a model are looked for: its folder, its run, its run's ``evaluation``."""
    return [folder, folder.parent, folder.parent / "evaluation"]


def fill_card(model: str | Path, out: Path) -> None:
    """Write the card of a model anew whose evaluation in ``out`` lies where the card looks for figures."""
    folder = None if Path(model).is_file() else find_folder(model)  # a file's may be the raw weights
    if folder is None:
        return
    told = [*places(folder), *(parent / out.name for parent in _parents(folder))]
    if out.resolve() in [place.resolve() for place in told]:
        write_card(folder)


def write_card(folder: Path) -> None:
    """Write a model folder's card from its ``config.yaml``, its ``meta.json`` and the evaluation beside it."""
    config = run_files.plain(run_files.load(folder / "config.yaml"))
    meta = json.loads((folder / "meta.json").read_text())
    write_whole(folder / CARD_FILE, card(config, meta, _figures(folder, meta), _reports(folder, meta)).encode())


def card(
    config: Mapping[str, Any], meta: Mapping[str, Any], metrics: Mapping[str, Any] | None = None,
    reports: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card's text. metrics: those of an evaluation on the shapes world, None where there is none. reports: of
    request lists."""
    paints = "denoiser" in config
    licence = meta.get("licence")
    front = f"license: other\nlicense_name: {json.dumps(licence)}\n" if licence else ""
    return CARD.format(
        licence=front, tags="inpainting, smartbrush" if paints else "autoencoder", name=meta["name"],
        what=SMARTBRUSH.format(abilities=_abilities(config)) if paints else AUTOENCODER,
        load=PAINTER if paints else PART, data=_data(meta.get("training_data", [])),
        training=_table(["setting", "value"], _settings(config, meta)),
        measured=_measured(metrics, reports) if paints else "See `val/` in the run's TensorBoard.",
        use=PAINTER_USE if paints else PART_USE, limits=LIMITS.format(size=config["image_size"]),
    )


def _abilities(config: Mapping[str, Any]) -> str:
    denoiser, conditioning = config["denoiser"], config["conditioning"]["name"]
    level = "It is told" if denoiser.get("with_level", True) else "It is not told"
    head = "predicts" if denoiser.get("with_mask_head", True) else "does not predict"
    tasks = ", ".join(f"`{task['name']}`" for task in config["data"]["tasks"])
    return (
        f"{level} how precise the mask is, and {head} which pixels the object covers. Conditioning: `{conditioning}`. "
        f"Tasks: {tasks}."
    )


def _data(entries: list[Mapping[str, Any]]) -> str:
    """A row for each set of shards: how often it is drawn, how much it holds, where from, under which licences."""
    rows = []
    for entry in entries:
        for found in entry.get("sets") or [{"shards": entry["shards"]}]:
            licences = [f"{name or NOT_STATED} ({count:,})" for name, count in (found.get("licences") or {}).items()]
            source = [f"{key} {value}" for key, value in (found.get("source") or {}).items() if value]
            told = (f"{found['images']:,}" if found.get("images") else "", ", ".join(source), ", ".join(licences))
            rows.append([f"`{found['shards']}`", entry.get("weight", 1.0), *(text or NOT_STATED for text in told)])
    return _table(["shards", "weight", "images", "source", "licences (images)"], rows)


def _settings(config: Mapping[str, Any], meta: Mapping[str, Any]) -> list[list[Any]]:
    trainer, optimizer = config["trainer"], config["optimizer"]
    rows = [
        ["images seen", f"{meta['images_seen']:,} of {trainer['images']:,}" if "images_seen" in meta else NOT_STATED],
        ["image size, px", config["image_size"]],
        ["batch", config["data"]["batch_size"] * trainer.get("accumulate", 1)],
        ["objective", _line(config["objective"])], ["optimizer", _line(optimizer)],
        ["precision", trainer.get("precision")], ["seed", config["seed"]],
        ["adapts", meta["adapter"]["of"] if "adapter" in meta else None],
        ["licence of the weights", meta.get("licence") or NOT_STATED],
        ["torch, sb", f"{meta['versions']['torch']}, {meta['versions']['commit']}"],
    ]
    if "denoiser" in config:
        rows[4:4] = [["prediction", meta["prediction"]], ["level weights", config["ladder"]["level_weights"]]]
    return [row for row in rows if row[1] is not None]


def _line(section: Mapping[str, Any]) -> str:
    return ", ".join(str(value) if key == "name" else f"{key} {value}" for key, value in section.items())


def _figures(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an evaluation of these weights measured; None where there is none, or one of an earlier state."""
    for place in places(folder):
        if (place / "metrics.json").is_file():
            metrics: dict[str, Any] = json.loads((place / "metrics.json").read_text())
            if metrics.get("images_seen") == meta.get("images_seen") is not None:
                return metrics
    return None


def _parents(folder: Path) -> list[Path]:
    """The model's folder, and its run's where it has one."""
    return [folder, folder.parent] if folder.name == "model" else [folder]


def _reports(folder: Path, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reports of request lists that these weights painted, in folders of the model's folder or its run's."""
    paths = [path for parent in _parents(folder) for path in sorted(parent.glob("*/report.json"))]
    found = [json.loads(path.read_text()) for path in paths]
    whose = (folder.name, folder.parent.name)  # a file's may be the raw weights
    return [report for report in found if report["system"]["name"] == "own" and report["system"]["system"] in whose
            and report["system"]["images_seen"] == meta.get("images_seen") is not None]


def _measured(metrics: Mapping[str, Any] | None, reports: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if metrics is not None:
        painted = f", painted with {_line(inpaint)}" if (inpaint := metrics.get("inpaint")) else ""
        parts += [f"On {metrics['num_requests']} unseen scenes of the shapes world (seed {metrics['seed']}){painted}:",
                  "\n".join(metric_rows(metrics))]
    for report in reports:
        asked = report["list"]
        rows = [[name, *(NOT_STATED if cell[key] is None else f"{cell[key]:.4g}" for key in ("value", "low", "high")),
                 cell["n"]] for name, cell in report["overall"].items()]
        where = f"`{asked['protocol']}` at {asked['size_px']} px (seed {asked['seed']})"
        painted = f"painted with {_line(report['system']['options'])}"
        parts += [f"On {report['num_requests']} requests of the protocol {where}, {painted}:",
                  _table(["metric", "value", "95 % from", "to", "requests"], rows)]
    unknown = "Not yet: `python tools/evaluate.py` fills this in where its results lie in the run's folder."
    return "\n\n".join(parts) or unknown


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
