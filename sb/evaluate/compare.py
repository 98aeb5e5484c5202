"""Evaluations on the same requests, compared request by request: what differs between them, and how surely.

A side is one or more evaluations of one system: of several training seeds, say.

Legend: R runs of a side, N requests.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sb.config import nearest
from sb.evaluate.quantity import Quantity, Scale, nested_difference, nested_mean

PER_REQUEST = "per_request.json"
PARTS = {"options": "set of options", "features": "feature network", "clip": "CLIP", "lpips": "LPIPS network"}
ASKED = ("list", "size_px", "seeds", "texts", "objects")
MSE, DB = "background_mse", "background_db"  # stored per request, and what it is given as
MAX_DB = 60.0
Folders = str | Path | Sequence[str | Path]
Run = dict[str, Any]  # a folder's per_request.json


class Difference(NamedTuple):
    """One metric: means of both sides, B - A, the ends of its 95 % interval, of how many requests, runs of A and B."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    requests: int
    runs: tuple[int, int]


def compare(a_dirs: Folders, b_dirs: Folders, metrics: Sequence[str] = ()) -> list[Difference]:
    """B - A for each metric that every evaluation holds, or those named; ValueError where they asked for different
    things, or a metric was measured in two ways.

    Intervals are percentiles of a bootstrap over requests, paired, and over the runs of a side that has several.
    """
    first, second = _read_all(a_dirs), _read_all(b_dirs)
    _check_alike([*first, *second])
    rows = []
    chosen = _chosen(metrics, [*first, *second], everywhere=True)
    _check_measured_alike(chosen, [*first, *second])
    for metric in chosen:
        runs = torch.stack([_values(run, metric) for run in (*first, *second)])  # (R, N)
        counted = ~runs.isnan().any(0)
        a, b = list(runs[: len(first), counted]), list(runs[len(first):, counted])
        groups = _groups(first[0])[counted]
        gap = nested_difference(a, b, groups, scale=_scale(metric))
        of_a, of_b = (nested_mean(side, groups, resamples=2, scale=_scale(metric)).value for side in (a, b))
        rows.append(Difference(metric, of_a, of_b, gap.value, gap.low, gap.high, gap.n, (len(a), len(b))))
    return rows


def table(rows: Sequence[Difference], markdown: bool = False) -> str:
    """Lines for a terminal or a page; a star marks an interval that leaves out 0."""
    heads = ("metric", "A", "B", "B - A", "95 % interval", "runs x requests", "")
    lines = [heads] + [(
        row.metric, f"{row.a:.4f}", f"{row.b:.4f}", f"{row.difference:+.4f}", f"{row.low:+.4f} .. {row.high:+.4f}",
        f"{row.runs[0]}, {row.runs[1]} x {row.requests}", "*" * _sure(row.low, row.high),
    ) for row in rows]
    if markdown:
        return _markdown(lines)
    return "\n".join(
        f"{name:28}{a:>10}{b:>10}{gap:>10}{interval:>24}{count:>18} {star}".rstrip()
        for name, a, b, gap, interval, count, star in lines
    )


def grid(systems: Mapping[str, Folders], metrics: Sequence[str] = ()) -> str:
    """A Markdown table, a row for each system (one or more evaluations): means with 95 % intervals and, below them, the
    difference to the first system, a star where its interval leaves out 0. ``-``: a system without the metric,
    or with no value of it.
    """
    runs = {name: _read_all(folders) for name, folders in systems.items()}
    everyone = [run for side in runs.values() for run in side]
    _check_alike(everyone)
    shown = _chosen(metrics, everyone)
    _check_measured_alike(shown, everyone)
    first = next(iter(runs.values()))
    lines = [["", "runs x requests", *shown]]
    for name, side in runs.items():
        others = None if side is first else first
        cells = [_cell(metric, side, others) for metric in shown]
        lines.append([name, f"{len(side)} x {len(side[0]['seeds'])}", *cells])
    return _markdown(lines)


def parse_systems(texts: Sequence[str]) -> dict[str, list[str]]:
    """``NAME=DIR,DIR`` for each system as names and folders; ValueError otherwise."""
    systems = {}
    for text in texts:
        name, _, folders = text.partition("=")
        if not name or not all(folders.split(",")) or name in systems:
            raise ValueError(f"system '{text}' must read NAME=DIR or NAME=DIR,DIR, each with another name")
        systems[name] = folders.split(",")
    return systems


def _cell(metric: str, side: Sequence[Run], first: Sequence[Run] | None) -> str:
    if not all(_stored(metric) in run["metrics"] for run in side):
        return "-"
    values, groups, scale = [_values(run, metric) for run in side], _groups(side[0]), _scale(metric)
    mean = nested_mean(values, groups, scale=scale, share=metric in side[0].get("shares", ()))
    if not mean.n:
        return "-"
    cell = _shown(mean, len(values[0]))
    if first is None or not all(_stored(metric) in run["metrics"] for run in first):
        return cell
    gap = nested_difference([_values(run, metric) for run in first], values, groups, scale=scale)
    if not gap.n:
        return cell
    return f"{cell}<br>{_shown(gap, len(values[0]), '+')}" + "*" * _sure(gap.low, gap.high)


def _shown(found: Quantity, asked: int, sign: str = "") -> str:
    few = f", n = {found.n}" * (found.n < asked)
    return f"{found.value:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f}{few})"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(cell.replace("*", r"\*") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def _sure(low: float, high: float) -> bool:
    return low > 0 or high < 0


def _chosen(metrics: Sequence[str], runs: Sequence[Run], everywhere: bool = False) -> list[str]:
    """The metrics named, or all that the runs hold."""
    names = {name.replace(MSE, DB): None for run in runs for name in run["metrics"]}  # as found
    if everywhere:
        names = {name: None for name in names if all(_stored(name) in run["metrics"] for run in runs)}
    for metric in metrics:
        if metric not in names:
            raise ValueError(f"no metric '{metric}' to compare by; {nearest(metric, names)}")
    return list(metrics) or list(names)


def _stored(metric: str) -> str:
    return metric.replace(DB, MSE)


def _values(run: Run, metric: str) -> Tensor:
    """(N,), NaN where a request has no value."""
    found = run["metrics"][_stored(metric)]
    return torch.tensor([math.nan if value is None else value for value in found], dtype=torch.float64)


def _groups(run: Run) -> Tensor:
    """(N,) requests of one object share a number; each has its own where nothing is said of it."""
    return torch.tensor(run.get("objects") or range(len(run["seeds"])))


def _scale(metric: str) -> Scale | None:
    return _decibel if DB in metric else None


def _decibel(mse: Tensor) -> Tensor:
    """PSNR of a mean square error in [0, 255]^2, at most 60 dB."""
    return (10 * (255.0**2 / mse).log10()).clamp(max=MAX_DB)


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for other in runs[1:]:
        for key in ASKED:
            if first.get(key) != other.get(key):
                raise ValueError(
                    f"{first['folder']} and {other['folder']} were not asked for the same ({key} differ, "
                    f"{len(first['seeds'])} and {len(other['seeds'])} requests): evaluate both with the same list, or "
                    "the same --requests, --seed and --size"
                )


def _check_measured_alike(metrics: Sequence[str], runs: Sequence[Run]) -> None:
    """ValueError for a metric that runs which hold it have measured with other options or networks."""
    for metric in metrics:
        first, *others = (run for run in runs if _stored(metric) in run["metrics"])
        one = first["fingerprints"][_stored(metric)]
        for run in others:
            other = run["fingerprints"][_stored(metric)]
            parts = [part for part in {**one, **other} if one.get(part) != other.get(part)]
            if parts:
                raise ValueError(
                    f"{metric} of {first['folder']} and of {run['folder']} was measured with another "
                    f"{' and '.join(PARTS.get(part, part) for part in parts)}: evaluate both with the same, or name "
                    "the metrics to compare by (--metrics)"
                )


def _read_all(folders: Folders) -> list[Run]:
    places = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
    if len({place.resolve() for place in places}) < len(places):
        raise ValueError(f"{', '.join(map(str, places))}: a side holds each of its runs once")
    return [_read(place) for place in places]


def _read(folder: Path) -> Run:
    path = folder / PER_REQUEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no {PER_REQUEST}: it is no folder of tools/evaluate.py")
    try:
        found = json.loads(path.read_text())
        counts = {len(values) for values in (found["seeds"], found["texts"], *found["metrics"].values())}
        if len(counts) > 1:
            raise ValueError(f"lists of {sorted(counts)} requests")
        if "oracle" in found:  # of scenes, where it reads all
            found["fingerprints"] = dict.fromkeys(found["metrics"], {"oracle": found["oracle"]})
        if set(found["fingerprints"]) != set(found["metrics"]):
            raise ValueError("fingerprints of other metrics than it holds")
        return {**found, "folder": folder}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable: {error!r}") from None
