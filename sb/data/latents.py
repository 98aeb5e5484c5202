"""Latent shards: beside each image's json, what a VAE made of the image's fixed frames, instead of the image.

A sample holds ``KEY.json`` and for each variant v ``KEY.v.npy``: fp16 (C, h, w), the mean of raw z, or (2C, h, w), mean
and std. The manifest's ``latents`` says what made them. ``texts.npy`` (N, T*D + P) fp16, where it is, holds the text
tower's tokens and pooled features of the N texts in ``texts.json``.

Legend: C latent channels, h w latent cells, T tokens, D text width, P pooled width.
"""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb.config import difference, whole, write_whole
from sb.data.ledger import Broken

Bits = NDArray[np.int16]  # of fp16
TEXTS, ROWS = "texts.json", "texts.npy"


@dataclass(frozen=True)
class Latents:
    """What made a set's latents. vae: digest, factor, channels, settings, std (whether
    it is stored). frames: image_size, crop,
    flip, min_area and max_area of the run file. text: digest and settings of the tower whose features lie beside, or
    None. precision: the trainer's, in which both encoded."""

    where: str
    vae: Mapping[str, Any]
    frames: Mapping[str, Any]
    text: Mapping[str, Any] | None
    precision: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C or 2C, h, w) of one frame's moments."""
        cells = self.frames["image_size"] // self.vae["factor"]
        return self.vae["channels"] * (2 if self.vae["std"] else 1), cells, cells

    @property
    def members(self) -> list[str]:
        """The tar members that hold a sample's moments, frame by frame."""
        return [f"{variant}.npy" for variant in range(self.frames["crop"]["variants"])]

    def read(self, body: bytes) -> Bits:
        """One frame's moments; Broken where the bytes are no fp16 numbers of this shape."""
        head = _head(self.shape)
        if body.startswith(head) and len(body) == len(head) + 2 * int(np.prod(self.shape)):
            return np.frombuffer(body, "<i2", offset=len(head)).reshape(self.shape)
        try:
            moments = np.load(io.BytesIO(body), allow_pickle=False)
        except Exception:  # numpy raises OSError, ValueError, EOFError, SyntaxError, ... for bytes that are no array
            raise Broken("bad_moments") from None
        if moments.dtype != np.float16 or moments.shape != self.shape:
            raise Broken("bad_moments")
        return np.ascontiguousarray(moments).view(np.int16)

    def check_frames(self, frames: Mapping[str, Any]) -> None:
        """Raise ValueError where a run crops its images otherwise."""
        self._check("", self.frames, frames)

    def check_networks(self, vae: Mapping[str, Any], tower: Mapping[str, Any], precision: str) -> None:
        """Raise ValueError where a run's VAE, text tower or precision (mixed or true alike) is another."""
        self._check("vae", {name: self.vae.get(name) for name in vae}, vae)
        if self.text is not None:
            self._check("text", self.text, tower)
        if self.precision[:2] != precision[:2]:
            self._check("", {"trainer.precision": self.precision}, {"trainer.precision": precision})

    def _check(self, section: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        if dict(there) != dict(here):
            other = difference(dict(there), dict(here), section)
            raise ValueError(f"{self.where} holds the latents of a run that differs in {other}; "
                             "change the run file, or build them anew with tools/cache_latents.py")


def same_latents(every: Iterable[tuple[str, Latents | None]]) -> Latents | None:
    """What made all of these sources, by address; ValueError where it is not the same, or some hold pictures."""
    (first, latents), *others = every
    for where, other in others:
        if (latents is None) != (other is None):
            cached, plain = (first, where) if latents else (where, first)
            raise ValueError(f"shards: {cached} holds latents and {plain} pictures; a run reads one kind")
        if latents is not None and other is not None:
            there, here = (
                {"vae": of.vae, "frames": of.frames, "text": of.text, "precision": of.precision[:2]}
                for of in (latents, other)
            )
            if there != here:
                raise ValueError(f"shards: the latents of {first} and {where} differ in {difference(there, here)}")
    return latents


def moments_bytes(moments: Bits) -> bytes:
    """One frame's moments as a .npy file of fp16."""
    return _head(moments.shape) + np.ascontiguousarray(moments).tobytes()


def write_texts(folder: Path, texts: Sequence[str], width: int, rows: Iterable[Bits]) -> None:
    """Write the features of texts, which come a few rows (n, width) at a time; each file whole or not at all."""
    with whole(folder / ROWS) as aside, aside.open("wb") as file:
        file.write(_head((len(texts), width)))
        for some in rows:
            file.write(some.tobytes())
    write_whole(folder / TEXTS, json.dumps(list(texts), ensure_ascii=False).encode())


class TextTable:
    """The features of texts, left in their file until they are asked for."""

    def __init__(self, texts: Path, rows: Path) -> None:
        self.path = rows
        try:
            self.place = {text: row for row, text in enumerate(json.loads(texts.read_bytes()))}
            found = self.rows
        except (OSError, ValueError) as error:
            raise ValueError(f"{rows.parent}: the features of its texts cannot be read: {error}") from None
        if found.ndim != 2 or len(found) != len(self.place) or not found.shape[1]:
            raise ValueError(f"{rows} has {found.shape} numbers for {len(self.place)} texts")

    @cached_property
    def rows(self) -> Bits:
        """The features (N, T*D + P), mapped where they are first asked for."""
        rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if rows.dtype != np.float16:
            raise ValueError(f"{self.path} holds {rows.dtype}, not float16")
        return np.asarray(rows.view(np.int16))

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "place": self.place}


def look_up(tables: Sequence[TextTable], texts: Sequence[str]) -> Bits:
    """The rows (len(texts), T*D + P) of texts; ValueError for one that no table has."""
    found = []
    for text in texts:
        table = next((table for table in tables if text in table.place), None)
        if table is None:
            raise ValueError(f"{tables[0].path} has no features of the text '{text}'; build it anew, without --text")
        found.append(table.rows[table.place[text]])
    return np.stack(found)


@cache
def _head(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": tuple(shape)})
    return file.getvalue()
