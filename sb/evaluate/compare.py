"""Two evaluations on the same requests, compared request by request: what differs between them, and how surely."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

PER_REQUEST = "per_request.json"
DEVIATIONS = 1.96  # standard errors each side: 95 % of a normal distribution


class Difference(NamedTuple):
    """One metric: means of both, mean of B - A over the requests, and the ends of its 95 % interval."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float


def compare(a_dir: str | Path, b_dir: str | Path) -> list[Difference]:
    """B - A for each metric that both evaluations hold; ValueError where they asked for different things.

    The interval is normal, from the standard error of the paired differences.
    """
    first, second = _read(a_dir), _read(b_dir)
    for key in ("size_px", "seeds", "texts"):
        if first[key] != second[key]:
            raise ValueError(
                f"{a_dir} and {b_dir} were not asked for the same ({key} differ, {len(first['seeds'])} and "
                f"{len(second['seeds'])} requests): evaluate both with the same --requests, --seed and --size"
            )
    if first["oracle"] != second["oracle"]:
        raise ValueError(f"{a_dir} and {b_dir} were read by two oracles: evaluate both with the same --oracle FILE")
    rows = []
    for metric, values in first["metrics"].items():
        if metric in second["metrics"]:
            a, b = (torch.tensor(found, dtype=torch.float64) for found in (values, second["metrics"][metric]))
            gap = float((b - a).mean())
            margin = DEVIATIONS * float((b - a).std()) / math.sqrt(len(a))
            rows.append(Difference(metric, float(a.mean()), float(b.mean()), gap, gap - margin, gap + margin))
    return rows


def table(rows: list[Difference]) -> str:
    """Lines for a terminal; a star marks an interval that leaves out 0."""
    lines = [f"{'metric':28}{'A':>10}{'B':>10}{'B - A':>10}{'95 % interval':>24}"]
    for row in rows:
        star = "  *" if row.low > 0 or row.high < 0 else ""
        interval = f"{row.low:+.4f} .. {row.high:+.4f}"
        lines.append(f"{row.metric:28}{row.a:10.4f}{row.b:10.4f}{row.difference:+10.4f}{interval:>24}{star}")
    return "\n".join(lines)


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / PER_REQUEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no {PER_REQUEST}: it is no folder of tools/evaluate.py")
    try:
        found = json.loads(path.read_text())
        return {key: found[key] for key in ("size_px", "oracle", "seeds", "texts", "metrics")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable: {error!r}") from None
