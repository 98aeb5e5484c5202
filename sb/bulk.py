"""Requests painted and filed: one, or a file of many in batches of alike ones, each whole or not at all.

A finished request is a folder with ``request.json``, which says all that was asked: what is asked again just so is
kept as it is, and what is asked otherwise is refused. Nothing is ever overwritten.
"""

import io
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sb import pictures
from sb.asked import RESULTS, Order, read_orders
from sb.bulk_report import THUMBNAIL, tally, write_report
from sb.config import difference, write_whole
from sb.diversity import diversity
from sb.inpaint import Inpainter
from sb.types import Request, Result

RECORD = "request.json"
NAMES = ("model", "precision")  # of the record: what they stand for is compared (weights, level), not they
STRIP_PX, THUMBNAIL_PX = 384, 144  # longest side of a picture in a strip of variations, and in the report
WAITING, WAITING_PX = 4, 100_000_000  # batches, and pixels of their pictures, that may wait to become full ones


@dataclass(eq=False)
class Job:
    """An order that is being painted: its record, its checked requests, the results so far by their number."""

    line: int
    order: Order
    record: dict[str, Any]
    source: Image.Image
    requests: list[Request]
    results: dict[int, Result] = field(default_factory=dict)
    failed: bool = False


def names(variations: int) -> list[str]:
    """The files of a finished request, the record last."""
    numbers = [""] if variations == 1 else [f"_{n}" for n in range(1, variations + 1)]
    pairs = [name for n in numbers for name in (f"result{n}.png", f"predicted_mask{n}.png")]
    return [*pairs, "side_by_side.png", RECORD]


def write(
    folder: Path, source: Image.Image, requests: Sequence[Request], results: Sequence[Result],
    record: Mapping[str, Any], number: int = 0,
) -> dict[str, Any]:
    """Write the results of one order, numbered as ``pictures.numbered`` says; what went into ``request.json``."""
    count = len(requests)
    *places, strip, last = (pictures.numbered(name, number) for name in names(count))
    files = []
    for result, painted, seen in zip(results, places[::2], places[1::2], strict=True):
        pictures.save_png(pictures.like_source(result.image, source), folder / painted)
        files.append(painted)
        if result.predicted_mask is not None:
            pictures.save_png(result.predicted_mask, folder / seen)
            files.append(seen)
    side_px = None if count == 1 else STRIP_PX
    pictures.save_png(pictures.side_by_side(requests[0], results, side_px), folder / strip)
    about = {**record, "files": [*files, strip], "seconds": _seconds(results), "loss": pictures.loss_of(source)}
    if count > 1:
        about["diversity"] = round(diversity([r.pixels for r in results], requests[0].mask), 2)
    write_whole(folder / last, json.dumps(about, indent=1).encode())
    return about


def paint_file(
    painter: Inpainter, path: Path, out: Path, model: str, common: Mapping[str, Any], batch: int = 8
) -> Counter[str]:
    """Paint what a JSON-lines file asks for into ``out``, a folder for each line, and write the report.

    common: painting options for the lines that do not say. batch: the most pictures that are painted together. Returns
    how many were painted, kept and failed; what failed is said on stderr, and the others are painted. What ends it
    early leaves a report of what was done.
    """
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, not {batch}")
    orders, faults = read_orders(path, common)
    with tqdm(total=len(orders) + len(faults), unit="request", mininterval=1) as bar:
        run = _Run(painter, out, model, batch, path.name, bar)
        try:
            for line, fault in faults.items():
                run.fail(line, fault)
            for line, order in orders.items():
                run.take(line, order)
            run.finish()
        finally:
            rows = [run.rows[line] for line in sorted(run.rows)]
            write_whole(out / RESULTS, "".join(json.dumps(row) + "\n" for row in rows).encode())
            write_report(out, path.name, rows)
    return tally(rows)


class _Run:
    """Orders in, batches of alike requests to the painter, rows of what became of each line out."""

    def __init__(self, painter: Inpainter, out: Path, model: str, batch: int, file: str, bar: tqdm):
        self.painter, self.out, self.model, self.batch, self.file, self.bar = painter, out, model, batch, file, bar
        self.rows: dict[int, dict[str, Any]] = {}
        self._waiting: dict[tuple[Any, ...], list[tuple[Job, int]]] = {}

    def take(self, line: int, order: Order) -> None:
        """Open an order and paint what has become a batch."""
        try:
            record = order.record(self.painter, self.model)
            there = _there(self.out / order.id, record)
            if there is not None:
                self._done(line, order, "kept", there)
                return
            source, image, mask = order.open()
            job = Job(line, order, record, source, order.requests(image, mask, self.painter))
        except ValueError as error:
            self.fail(line, error, order)
            return
        chosen = replace(self.painter.options, **order.options)
        alike = (self.painter.frame(job.requests[0].mask, **order.options).size, chosen)
        self._waiting.setdefault(alike, []).extend((job, n) for n in range(len(job.requests)))
        while len(self._waiting.get(alike, ())) >= self.batch:
            self._paint(alike)
        while self._full():
            self._paint(max(self._waiting, key=lambda key: len(self._waiting[key])))

    def finish(self) -> None:
        """Paint what is left."""
        while self._waiting:
            self._paint(next(iter(self._waiting)))

    def fail(self, line: int, error: object, order: Order | None = None) -> None:
        """Say what is wrong with a line, and go on."""
        said = " ".join(str(error).split())
        tqdm.write(f"error: {self.file}:{line}: {said}", file=sys.stderr)
        self.rows[line] = {"line": line, "id": order and order.id, "status": "failed", "error": said}
        self.bar.update()

    def _full(self) -> bool:
        held = [job.requests[n].mask.numel() for pairs in self._waiting.values() for job, n in pairs]
        return len(held) > WAITING * self.batch or sum(held) > WAITING_PX

    def _paint(self, alike: tuple[Any, ...]) -> None:
        waiting = self._waiting.pop(alike)
        if len(waiting) > self.batch:
            self._waiting[alike] = waiting[self.batch:]
        self._together([(job, n) for job, n in waiting[: self.batch] if not job.failed])

    def _together(self, some: list[tuple[Job, int]]) -> None:
        if not some:
            return
        try:
            results = self.painter.paint([job.requests[n] for job, n in some], **some[0][0].order.options)
        except Exception as error:
            if len(some) == 1:
                job = some[0][0]
                job.failed = True
                self.fail(job.line, str(error) or type(error).__name__, job.order)
                return
            for one in some:  # one of them spoils it for the others, or they do not fit together
                self._together([one] if not one[0].failed else [])
            return
        for (job, n), result in zip(some, results, strict=True):
            job.results[n] = result
            if len(job.results) == len(job.requests):
                self._file(job)

    def _file(self, job: Job) -> None:
        """Write a finished job into a folder of its own, which appears with all that is in it."""
        aside, folder = self.out / f".{job.order.id}.writing", self.out / job.order.id
        shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
        results = [job.results[n] for n in range(len(job.requests))]
        strip = pictures.side_by_side(job.requests[0], results, THUMBNAIL_PX)
        thumbnail = io.BytesIO()
        strip.save(thumbnail, format="JPEG", quality=80)
        write_whole(aside / THUMBNAIL, thumbnail.getvalue())
        about = write(aside, job.source, job.requests, results, job.record)
        os.rename(aside, folder)
        self._done(job.line, job.order, "painted", about)

    def _done(self, line: int, order: Order, status: str, about: Mapping[str, Any]) -> None:
        row = {"line": line, "id": order.id, "status": status}
        self.rows[line] = {**row, **{key: value for key, value in about.items() if key not in row}}
        self.bar.update()


def _there(folder: Path, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a folder says of its finished result, None where there is no folder; ValueError where it holds another."""
    if not folder.exists():
        return None
    remedy = "give this line another id, or remove that folder"
    try:
        found = json.loads((folder / RECORD).read_text())
        record = {key: value for key, value in record.items() if key not in NAMES}
        asked = {key: found.get(key) for key in record}
        missing = [name for name in found["files"] if not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder} is there and holds no finished request: {remedy}") from None
    if asked != record:
        differs = difference(asked, dict(record))
        raise ValueError(f"{folder} holds the result of another request, which differs in {differs}: {remedy}")
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}: {remedy}")
    return dict(found)


def _seconds(results: Sequence[Result]) -> dict[str, float]:
    return {stage: round(seconds, 3) for stage, seconds in results[-1].seconds.items()}
