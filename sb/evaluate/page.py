"""The report that a person reads: one file with tables, curves and pictures in it, readable without a network.

At most ``CASES`` requests of each kind are shown, four pictures each, no side longer than ``SIDE_PX``, and the
``CLASSES`` most frequent classes: the file stays below 3 MB however long the list is.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sb.config import whole
from sb.evaluate.summary import share_of

CASES, SIDE_PX, CLASSES, OPEN, TEXT = 8, 160, 50, 12, 160
KINDS = {"best": "Best", "worst": "Worst", "random": "Random"}
WAYS = {"level": "level", "size": "object's size", "class": "class"}
ARROWS = {"higher": ("&uarr;", "higher is better"), "lower": ("&darr;", "lower is better"),
          "zero": ("&rarr;0", "nearer to 0 is better"), None: ("", "neither")}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #777; --ink: #2563c9; --band: #2563c930; }
@media (prefers-color-scheme: dark) { :root { --soft: #999; --ink: #79a8f5; --band: #79a8f530; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p, dl { max-width: 48rem; } .soft, dt, th, figcaption, small { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .9rem .3rem 0; text-align: right; vertical-align: top; }
th { font-weight: 500; white-space: nowrap; } td { font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; text-align: left; }
td small { display: block; } td.about { white-space: normal; text-align: left; min-width: 16rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
svg { display: block; height: auto; width: 100%; } svg text { fill: var(--soft); font-size: 11px; }
.cases { display: grid; gap: 1.4rem 2rem; }
@media (min-width: 64rem) { .cases { grid-template-columns: 1fr 1fr; } }
.pictures { display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem; margin: .3rem 0; }
.pictures img { display: block; image-rendering: pixelated; width: 100%; }
.said { font-weight: 600; overflow-wrap: anywhere; } .facts { color: var(--soft); font-size: .85rem; }
summary { cursor: pointer; }
@media (max-width: 40rem) {
  dl { display: block; } dd { margin-bottom: .5rem; }
  .overall, .overall tbody { display: block; } .overall tr:first-child { display: none; }
  .overall tr { border-bottom: 1px solid var(--line); display: grid; grid-template-columns: minmax(0, 1fr) auto auto; }
  .overall td { border: 0; padding: .15rem 0 .15rem .8rem; }
  .overall td:first-child { overflow-wrap: anywhere; padding-left: 0; white-space: normal; }
  .overall td:nth-child(4) { grid-column: 1; text-align: left; padding-left: 0; }
  .overall td:nth-child(4)::before { content: "n "; } .overall td.about { grid-column: 1 / -1; padding-left: 0; }
}
"""


@dataclass(frozen=True)
class Shown:
    """A request that the page shows: where it stands in the list, what was asked for, and by name its pictures."""

    number: int
    text: str
    facts: str
    pictures: Mapping[str, Image.Image]


def write_page(path: str | Path, report: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> None:
    """Write the page, whole. report: what ``report.json`` holds; shown: requests by ``KINDS``."""
    with whole(path) as aside, open(aside, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(_page(report, shown))


def curve(name: str, points: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
    """An SVG of a metric's values and intervals over x in [0, 1]; "" for fewer than two that have a value."""
    known = [(x, cell) for x, cell in points if cell["value"] is not None]
    if len(known) < 2:
        return ""
    ends = [(cell["value"] if cell[end] is None else cell[end]) for _, cell in known for end in ("low", "high")]
    low, high = min(ends), max(ends)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    left, top, width, height = 46, 8, 220, 110

    def at(x: float, y: float) -> str:
        return f"{left + 8 + x * (width - 16):.1f},{top + (high - y) / (high - low) * height:.1f}"

    def end(cell: Mapping[str, Any], side: str) -> float:
        return float(cell["value"] if cell[side] is None else cell[side])

    upper, lower = ([at(x, end(cell, side)) for x, cell in known] for side in ("high", "low"))
    line = " ".join(at(x, cell["value"]) for x, cell in known)
    dots = "".join(
        f'<circle cx="{place[0]}" cy="{place[1]}" r="3" fill="var(--ink)"><title>{_cell_text(cell)}</title></circle>'
        for x, cell in known for place in [at(x, cell["value"]).split(",")]
    )
    ticks = "".join(
        f'<path d="M{left},{y}h{width}" stroke="var(--line)"/>'
        f'<text x="{left - 5}" y="{y + 4}" text-anchor="end">{number(value)}</text>'
        for value in (high, (low + high) / 2, low) for y in [round(top + (high - value) / (high - low) * height, 1)]
    )
    return (
        f'<svg viewBox="0 0 {left + width + 6} {top + height + 24}" role="img" aria-label="{escape(name)} by level">'
        f'{ticks}<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="var(--band)"/>'
        f'<polyline points="{line}" fill="none" stroke="var(--ink)" stroke-width="2"/>{dots}'
        f'<text x="{left}" y="{top + height + 18}">outline</text>'
        f'<text x="{left + width}" y="{top + height + 18}" text-anchor="end">box</text></svg>'
    )


def number(value: float | None) -> str:
    """Four figures or so."""
    if value is None:
        return "&ndash;"
    return f"{value:.{3 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}"


def _page(report: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> Iterator[str]:
    system = report["system"]
    title = escape(f"Evaluation of {system.get('system', system['name'])}")
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
    yield f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>\n'
    looked = [f"{role}: {facts['name']}" for role, facts in report["networks"].items()]
    facts = [f"{report['num_requests']} requests", f"protocol {report['list']['protocol']}", *looked]
    yield f"<h1>{title}</h1><p>{escape(', '.join(facts))}. Intervals hold 95 % over the requests.</p>\n"
    about = {key: value for key, value in report["list"].items() if key not in ("schema", "count", "rules")}
    told = {"System": system, "List": about, "Rules of the list": report["list"]["rules"], **report["networks"],
            "Settings": report["settings"]}
    yield "<details><summary>System, list, networks and settings</summary><dl>"
    for name, settings in told.items():
        yield f"<dt>{escape(name)}</dt><dd>{escape(_said(settings))}</dd>"
    yield "</dl></details>\n<h2>Overall</h2>\n"
    yield from _overall(report)
    yield from _curves(report)
    for way, words in WAYS.items():
        yield from _table(report, way, words)
    for kind, heading in KINDS.items():
        if shown[kind]:
            yield from _cases(heading, shown[kind])
    yield "</body></html>\n"


def _overall(report: Mapping[str, Any]) -> Iterator[str]:
    yield '<table class="overall"><tr><th>metric<th>value<th>95 % interval<th>n<th><th></tr>\n'
    for name, cell in report["overall"].items():
        about = report["metrics"].get(name, {"better": None, "about": ""})
        arrow, words = ARROWS[about["better"]]
        yield f"<tr><td>{escape(name)}<td>{number(cell['value'])}<td>{_interval(cell)}<td>{cell['n']}"
        yield f'<td><span title="{words}">{arrow}</span><td class="about soft">{escape(about["about"])}</tr>\n'
    yield "</table>\n"


def _curves(report: Mapping[str, Any]) -> Iterator[str]:
    places = {name: share_of(name) for name in report["level"]}
    drawn = {
        name: curve(name, [(places[level], row[name]) for level, row in report["level"].items() if name in row])
        for name in report["overall"]
    }
    if any(drawn.values()):
        yield '<h2>Over the levels of the mask</h2><div class="curves">\n'
        for name, figure in drawn.items():
            if figure:
                yield f"<figure><figcaption>{escape(name)}</figcaption>{figure}</figure>\n"
        yield "</div>\n"


def _table(report: Mapping[str, Any], way: str, words: str) -> Iterator[str]:
    groups = report[way]
    counts = {name: max(cell["n"] for cell in row.values()) if row else 0 for name, row in groups.items()}
    names = list(groups)
    if len(names) > CLASSES:
        names = sorted(names, key=lambda name: -counts[name])[:CLASSES]
    columns = list(dict.fromkeys(metric for name in names for metric in groups[name]))
    more = f", the {CLASSES} most frequent of {len(groups)}; all are in report.json" if len(names) < len(groups) else ""
    yield f"<h2>By {words}</h2>"
    yield f"<details><summary>{len(names)} rows{more}</summary>" if len(groups) > OPEN else ""
    yield f'<div class="wide"><table><tr><th>{words}<th>n{"".join(f"<th>{escape(c)}" for c in columns)}</tr>\n'
    for name in names:
        yield f"<tr><td>{escape(name[:TEXT])}<td>{counts[name]}"
        for column in columns:
            cell = groups[name].get(column)
            less = "" if cell is None or cell["n"] == counts[name] else f" n {cell['n']}"
            yield "<td>" if cell is None else f"<td>{number(cell['value'])}<small>{_interval(cell)}{less}</small>"
        yield "</tr>\n"
    yield f"</table></div>{'</details>' if len(groups) > OPEN else ''}\n"


def _cases(heading: str, cases: Sequence[Shown]) -> Iterator[str]:
    yield f'<h2>{heading}</h2><div class="cases">\n'
    for case in cases:
        yield f'<div><div class="said">{escape(case.text[:TEXT]) or "(no text)"}</div><div class="pictures">'
        for name, picture in case.pictures.items():
            content = base64.b64encode(_jpeg(picture)).decode()
            yield f'<figure><img alt="{escape(name)}" src="data:image/jpeg;base64,{content}">'
            yield f"<figcaption>{escape(name)}</figcaption></figure>"
        yield f'</div><div class="facts">{escape(case.facts)}</div></div>\n'
    yield "</div>\n"


def _jpeg(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=85)
    return content.getvalue()


def _interval(cell: Mapping[str, Any]) -> str:
    return "" if cell["low"] is None else f"{number(cell['low'])} &hellip; {number(cell['high'])}"


def _cell_text(cell: Mapping[str, Any]) -> str:
    return f"{number(cell['value'])} ({_interval(cell)}), n {cell['n']}"


def _said(facts: Any) -> str:
    """Nested settings as words."""
    if isinstance(facts, Mapping):
        return ", ".join(f"{key} {_said(value)}" for key, value in facts.items() if value not in (None, {}, ""))
    return ", ".join(map(_said, facts)) if isinstance(facts, list) else str(facts)
