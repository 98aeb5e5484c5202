"""A system evaluated on a request list, from the list to the report.

Legend: N requests, H W pixels.
"""

import inspect
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sb.card import fill_card
from sb.config import import_plugins, locked, spec_of, write_whole
from sb.evaluate.adapters import picture_name
from sb.evaluate.compare import PER_REQUEST
from sb.evaluate.lists import CaseList, read_list
from sb.evaluate.page import CASES, KINDS, Shown, number, write_page
from sb.evaluate.photos import open_pictures
from sb.evaluate.protocols import make_list
from sb.evaluate.quantity import finite
from sb.evaluate.runner import (
    ABOUT, LIST, LOCK, PICTURES, Job, Measured, build_metrics, fingerprints, finished, measured,
    over_seeds, run_part, run_parts,
)
from sb.evaluate.summary import Pooled, better, objects_of, ranked, share_of, summarise
from sb.pictures import image_tensor
from sb.registry import lookup, names, takes

REPORT, PAGE, BOARD, REFERENCE = "report.json", "report.html", "tensorboard", "reference"
SCHEMA = 1
PAINT = torch.tensor([255.0, 64.0, 64.0]).view(3, 1, 1)  # what a mask is shown in


def metric_specs(
    texts: Sequence[str], networks: Mapping[str, Any], variations: int = 1, reference: str | None = None
) -> tuple[dict[str, Any], ...]:
    """Metrics' sections by ``spec_of``; for none, of all that these networks (by role) and variations allow.

    reference: the folder ``reference`` of another evaluation, whose stored statistics take the real pictures' place.
    """
    specs = [spec_of(text) for text in texts]
    for name in () if specs else names("metric"):
        entry = lookup("metric", name)
        if set(getattr(entry, "needs", ())) <= set(networks) and (variations > 1 or not over_seeds(entry)):
            specs.append({"name": name})
    for spec in specs:
        if reference and takes("metric", str(spec["name"]), "reference"):
            spec.setdefault("reference", str(Path(reference) / f"{spec['name']}.safetensors"))
    return tuple(specs)


def part_of(text: str | None) -> tuple[int, int] | None:
    """``2/4`` as (1, 4), the second of four parts, None for none; ValueError otherwise."""
    if text is None:
        return None
    number, _, parts = text.partition("/")
    if not (number.isdigit() and parts.isdigit() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"part '{text}' must read P/N with P from 1 to N, for example 1/4")
    return int(number) - 1, int(parts)


def place_list(
    out: str | Path, file: str | Path | None = None, *, protocol: Mapping[str, Any] | None = None, count: int = 0,
    data: Sequence[str] = (), seed: int = 0, size_px: int | None = None,
) -> CaseList:
    """Put a list, read from a file or made by a protocol, into an evaluation's folder.

    ValueError where the folder holds the results of another list.
    """
    place = Path(out) / LIST
    with tempfile.TemporaryDirectory() as aside:
        if protocol is not None:
            file = Path(aside) / LIST
            make_list(file, protocol, count, data=data, seed=seed, size_px=size_px)
        assert file is not None
        found = read_list(file)
        with locked(place.parent / LOCK):
            if not place.is_file():
                write_whole(place, Path(file).read_bytes())
    if read_list(place).digest != found.digest:
        raise ValueError(f"{out} holds an evaluation of another list: choose another folder, or remove it")
    return found


def evaluate_list(job: Job, processes: int = 1, part: tuple[int, int] | None = None) -> dict[str, Any] | None:
    """Do what is left of a job and write its report, which is returned; None while other parts are not done.

    processes: how many of this machine work at it. part: (p, parts), to do the chunks of one part alone, for machines
    that share the folder; whichever ends last writes the report. The report depends on neither, nor on how often the
    evaluation was stopped.
    """
    if processes < 1 or part is not None and processes > 1:
        raise ValueError(f"evaluate: needs processes of at least 1, and 1 for a part alone, not {processes}")
    if part is None:
        run_parts(job, processes)
    else:
        run_part(job, *part)
    if not finished(job):
        return None
    with locked(Path(job.out) / LOCK):  # the last parts may find that at once
        return write_report(job)


def write_report(job: Job) -> dict[str, Any]:
    """Of a finished job: ``report.json``, ``report.html``, ``per_request.json`` and TensorBoard's events."""
    import_plugins(job.plugins)
    out = Path(job.out)
    cases, found = read_list(out / LIST), measured(job)
    about = json.loads((out / ABOUT).read_text())
    metrics, _ = build_metrics(job, job.device_of(0))
    of = dict(found.metrics)
    pooled = [_pooled(name, metric, found, of) for name, metric in metrics.items() if hasattr(metric, "pooled")]
    shares = [name for name in found.values if getattr(metrics[of[name]], "share", False)]
    groups = summarise(cases.cases, found.values, pooled, shares)
    sides = {name: better(metrics[of[name]], name) for name in groups["overall"]}
    order = ranked(found.values, sides)
    shuffled = torch.randperm(len(cases.cases), generator=torch.Generator().manual_seed(0)).tolist()
    picked = {"best": order[:CASES], "worst": order[::-1][:CASES], "random": shuffled[:CASES]}
    report = {
        "schema": SCHEMA, "num_requests": len(cases.cases), "list": {**cases.header, "digest": cases.digest},
        "system": about["system"], "networks": about["networks"],
        "settings": {key: about[key] for key in ("metrics", "variations", "chunk", "threads", "device")},
        "metrics": {name: {"better": side, "about": _about(metrics[of[name]])} for name, side in sides.items()},
        **groups, "shown": picked,
    }
    shown = _shown(job, cases, found, picked)
    _keep_reference(out / REFERENCE, metrics, found)
    write_page(out / PAGE, report, shown)
    _write_board(out / BOARD, report, shown)
    made_by = fingerprints(job, about["networks"])
    write_whole(out / PER_REQUEST, (json.dumps({
        "list": cases.digest, "seeds": [case.seed for case in cases.cases],
        "texts": [case.text for case in cases.cases], "objects": objects_of(cases.cases).tolist(), "shares": shares,
        "fingerprints": {name: made_by[metric] for name, metric in found.metrics.items()},
        "metrics": {name: [finite(value) for value in column.tolist()] for name, column in found.values.items()},
    }) + "\n").encode())
    write_whole(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())  # last: all is there
    if job.adapter["name"] == "own":
        fill_card(job.adapter["system"], out)
    return report


def table(report: Mapping[str, Any]) -> str:
    """Lines for a terminal."""
    width = max(map(len, report["overall"])) + 2
    lines = [f"{'metric':{width}}{'value':>10}{'95 % interval':>24}{'n':>8}"]
    for name, cell in report["overall"].items():
        value, low, high = (number(cell[key]).replace("&ndash;", "-") for key in ("value", "low", "high"))
        lines.append(f"{name:{width}}{value:>10}{f'{low} .. {high}':>24}{cell['n']:8}")
    return "\n".join(lines)


def _pooled(name: str, metric: Any, found: Measured, of: dict[str, str]) -> Pooled:
    """of: told by the values' names which metric gave them."""
    sides = {part: found.features[f"{name}.{part}"] for part in ("fake", "real") if f"{name}.{part}" in found.features}

    def measure(numbers: torch.Tensor) -> dict[str, float]:
        values: dict[str, float] = metric.pooled(**{part: rows[numbers] for part, rows in sides.items()})
        of.update(dict.fromkeys(values, name))
        return values

    return Pooled(measure, sides["fake"].shape[1])


def _keep_reference(folder: Path, metrics: Mapping[str, Any], found: Measured) -> None:
    """The real pictures' statistics, which another evaluation can be measured against."""
    for name, metric in metrics.items():
        rows = found.features.get(f"{name}.real")
        if rows is not None and hasattr(metric, "statistics") and len(rows) > 1:
            metric.statistics(rows).save(folder / f"{name}.safetensors")


def _about(metric: Any) -> str:
    """What a metric's code says first of it."""
    return " ".join((inspect.getdoc(metric) or "").partition("\n\n")[0].replace("``", "").split())


def _shown(
    job: Job, cases: CaseList, found: Measured, picked: Mapping[str, Sequence[int]]
) -> dict[str, list[Shown]]:
    pictures = open_pictures(cases, job.data)

    def one(place: int) -> Shown:
        case = cases.cases[place]
        image, mask = pictures.picture(case), case.mask_pixels()
        result = image_tensor(Path(job.out) / PICTURES / f"{picture_name(place)}.png")
        tinted = (image + 0.5 * mask * (PAINT - image)).round().to(torch.uint8)
        panels = {"input": image, "mask": tinted, "result": result, "real": pictures.real(case)}
        facts = [f"{picture_name(place)}, level {case.level:g} of {case.num_levels}"]
        facts += [f"{name} {value:.3g}" for name, column in found.values.items()
                  if (value := float(column[place])) == value]
        images = {name: Image.fromarray(panel.permute(1, 2, 0).numpy()) for name, panel in panels.items()}
        return Shown(place, case.text, " \N{MIDDLE DOT} ".join(facts), images)

    return {kind: [one(place) for place in picked[kind]] for kind in KINDS}


def _write_board(folder: Path, report: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> None:
    """TensorBoard's events: scalars at the number of images seen, curves over the level in hundredths, pictures."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    step = report["system"].get("images_seen") or 0
    with SummaryWriter(str(folder)) as board:
        for name, cell in report["overall"].items():
            if cell["value"] is not None:
                board.add_scalar(f"evaluation/{name}", cell["value"], step)
        for level, row in report["level"].items():
            for name, cell in row.items():
                if cell["value"] is not None:
                    board.add_scalar(f"by_level/{name}", cell["value"], round(100 * share_of(level)))
        for kind, some in shown.items():
            for place, case in enumerate(some):
                strip = torch.cat([image_tensor(picture) for picture in case.pictures.values()], dim=2)
                board.add_image(f"{kind}/{place}", strip, step)
