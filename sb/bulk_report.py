"""The page that a person reads after many requests: one file with its thumbnails in it, readable without a network."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sb.asked import REPORT
from sb.config import whole

THUMBNAIL = "thumbnail.jpg"
STATUSES = ("painted", "kept", "failed")
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
.row {{ border-top: 1px solid #8884; padding: .8rem 0; }}
.row img {{ height: 8rem; max-width: 100%; object-fit: contain; object-position: left; margin: .4rem 0; }}
.said {{ font-weight: 600; }}
.facts, .facts a {{ color: #777; }}
.failed .said {{ color: #c33; }}
</style></head><body><h1>{title}</h1><p>{counts}</p>
"""


def tally(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How many were painted, kept and failed, in this order."""
    return Counter(sorted((row["status"] for row in rows), key=STATUSES.index))


def write_report(out: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``report.html``, whole: every line of the file ``name`` with what was asked, and its result or its error.

    rows: what ``results.jsonl`` holds.
    """
    with whole(out / REPORT) as aside, open(
        aside, "w", encoding="utf-8", errors="backslashreplace"  # JSON may hold half a pair of surrogates
    ) as file:
        counts = ", ".join(f"{count} {status}" for status, count in tally(rows).items())
        file.write(HEAD.format(title=escape(f"Requests of {name}"), counts=escape(counts)))
        for row in sorted(rows, key=lambda row: row["status"] != "failed"):
            file.writelines(_shown(out, row))
        file.write("</body></html>\n")


def _shown(out: Path, row: Mapping[str, Any]) -> Iterator[str]:
    failed = row["status"] == "failed"
    yield f'<div class="row {escape(row["status"])}">'
    yield f'<div class="said">{escape(row["error"] if failed else row["text"] or "(no text)")}</div>'
    facts = [f"line {row['line']}", row["id"] or "", row["status"]]
    if not failed:
        thumbnail = out / row["id"] / THUMBNAIL
        if thumbnail.is_file():
            picture = base64.b64encode(thumbnail.read_bytes()).decode()
            yield f'<img alt="input, mask and result" src="data:image/jpeg;base64,{picture}">'
        facts += [f"{'mask' if row['mask'] else 'box'}, precision {row['precision']}", f"seed {row['seed']}"]
        facts += [f"{row[key]}" for key in ("task", "loss") if row[key]]
        facts += [f"not {row['negative']}"] if row["negative"] else []
        facts += [f"{row['variations']} variations, {row['diversity']:g} of 255 apart"] if "diversity" in row else []
        facts.append(f"{sum(row['seconds'].values()):.1f} s in its batch")
    links = [f'<a href="{quote(row["id"])}/{quote(file)}">{escape(file)}</a>' for file in row.get("files", ())]
    yield f'<div class="facts">{" &middot; ".join([*(escape(fact) for fact in facts if fact), *links])}</div></div>\n'
