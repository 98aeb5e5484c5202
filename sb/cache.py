"""What a run's frozen parts make of its data, once for all its epochs: fixed frames to moments, texts to features.

Shard n of the cache holds the images of shard n of the pictures in their order, so that both give the same samples; an
image that cannot be read keeps its place without moments, and is replaced in both.
"""

import logging
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sb import config as run_files
from sb import launch, provenance
from sb.assemble import build_data, check
from sb.data.decode import read_record
from sb.data.latents import Bits, moments_bytes, write_texts
from sb.data.ledger import Broken
from sb.data.pack import count_file, skip, write_shard
from sb.data.pipeline import MALFORMED, Look, key_of
from sb.data.schema import SCHEMA_VERSION
from sb.data.shards import ShardStore
from sb.data.write import LABEL_ONLY, fingerprint_of, finish, is_finished, listed, prepare, read_json
from sb.launch import find_device
from sb.masks import Ladder
from sb.models.latents import facts_of, tower_facts
from sb.networks import build_text, build_vae
from sb.registry import call

TEXTS_AT_ONCE = 256
log = logging.getLogger(__name__)


def cache_latents(
    config: Any, out: str | Path, *, split: str = "train", with_text: bool = False, workers: int = 1, batch: int = 16,
    device: str = "auto", overwrite: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write the fixed frames of ``data.train``, ``data.val`` or ``both`` as the run's VAE encodes them, in the run's
    precision, to shards in ``out``; returns manifests by folder (``out``, its ``train`` and ``val``, or for several
    sources their numbers below that).

    with_text: also the text tower's features of every text that can be drawn. batch: images encoded at once. A build
    that was stopped goes on. Raises ValueError for a run without fixed frames, and where ``out`` holds another build.
    """
    cfg = run_files.plain(config)
    check(cfg)
    if with_text and cfg.get("text") is None:
        raise ValueError("cache: the run file has no 'text:' section to encode texts with")
    if batch < 1 or workers < 0:
        raise ValueError(f"cache: needs batch >= 1 and workers >= 0, not {batch} and {workers}")
    launch.seed_everything(cfg["seed"])
    data = build_data(cfg, call("ladder", Ladder, cfg["ladder"]))
    if not data.look.variants:
        raise ValueError(
            "cache: data.crop draws a fresh frame for each sample, which cannot be cached; give each image fixed ones: "
            "data.crop={..., variants: 2}"
        )
    encoders = _Encoders(cfg, with_text, device)
    made = {}
    for part in ("train", "val") if split == "both" else (split,):
        stores = data.samples(part).stores
        for number, store in enumerate(stores):
            if store.latents is not None:
                raise ValueError(f"cache: data.{part} names {store.latents.where}, which holds latents already; "
                                 f"name the pictures' shards: data.{part}.{number}.shards=DIR")
            folder = Path(out) / (part if split == "both" else "") / (str(number) if len(stores) > 1 else "")
            made[str(folder)] = _build(store, data.look, encoders, folder, workers, batch, overwrite)
    return made


class _Encoders:
    """The run's VAE and text tower as training calls them: frozen, on one device, in the run's precision."""

    def __init__(self, cfg: Mapping[str, Any], with_text: bool, device: str) -> None:
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        layout = torch.channels_last if cfg["trainer"].get("channels_last") else torch.contiguous_format
        self.device, self.precision = find_device(chosen), str(cfg["trainer"].get("precision", "32-true"))
        self.dtype = {"bf": torch.bfloat16, "16": torch.float16}.get(self.precision[:2], torch.float32)
        vae = build_vae(cfg).eval().requires_grad_(False)
        self.vae = vae.to(self.device, memory_format=layout)
        self.text = build_text(cfg).eval().requires_grad_(False).to(self.device) if with_text else None
        cells = torch.zeros(1, 3, 2 * vae.factor, 2 * vae.factor, device=self.device)
        with torch.no_grad():
            self.with_std = bool(self.vae.encode(cells).std.any())
        self.facts = {
            "vae": {**facts_of(vae, cfg["vae"]), "std": self.with_std}, "precision": self.precision,
            "text": tower_facts(self.text, cfg["text"]) if self.text is not None else None,
        }

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Bits:
        """Images (N, 3, S, S) uint8 to (N, C or 2C, h, w)."""
        with self._autocast():
            posterior = self.vae.encode(images.to(self.device).float() / 127.5 - 1)
        stored = posterior.stored(self.with_std)
        if not bool(stored.view(torch.float16).isfinite().all()):
            raise ValueError("cache: the VAE's latents leave the range of fp16 (65,504); are these its weights?")
        return np.asarray(stored.cpu())

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Bits:
        """Texts to rows (N, T*D + P), rounded as the network rounds its input: to bf16 where the run is in bf16."""
        assert self.text is not None
        with self._autocast():
            told = self.text.encode(list(texts))
        parts = [told.tokens.flatten(1), *([] if told.pooled is None else [told.pooled])]
        return np.asarray(torch.cat([part.to(self.dtype).half() for part in parts], dim=1).view(torch.int16).cpu())


@dataclass
class _Image:
    """An image on its way into the cache: its key, json and texts, or why it has no frames."""

    key: str
    record: bytes
    texts: list[str]
    reason: str = ""


class _Frames(Dataset[tuple[list[_Image], Tensor] | OSError | ValueError]):
    """Stored images, by lists of (shard, sample), and all their frames (N, 3, S, S) uint8, one image after another."""

    def __init__(self, store: ShardStore, look: Look, with_text: bool) -> None:
        self.store, self.look, self.with_text = store, look, with_text

    def __getitem__(self, places: list[tuple[int, int]]) -> tuple[list[_Image], Tensor] | OSError | ValueError:
        images, frames = [], []
        try:
            for shard, sample in places:
                image, shown = self._image(shard, sample)
                images.append(image)
                frames += shown
        except (OSError, ValueError) as error:
            return error  # raised in a loader process, it would come with a traceback
        size = self.look.size_px
        pixels = np.stack(frames) if frames else np.empty((0, size, size, 3), np.uint8)
        return images, torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _image(self, shard: int, sample: int) -> tuple[_Image, list[Any]]:
        key, body = f"lost-{shard}-{sample}", b"{}"
        try:
            raw = self.store.read(shard, sample)
        except Broken as error:
            if error.reason == "unreachable":
                raise OSError(f"{error.name} cannot be read now; once it can, the same command goes on") from None
            return _Image(key, body, [], error.reason), []
        try:
            key, body = key_of(raw), raw.record
            record = read_record(body, self.look.max_pixels)
            frames = [self.look.frame(record, key, variant) for variant in range(self.look.variants)]
            texts = _texts(record) if self.with_text else []
            return _Image(key, body, texts), [self.look.pixels(raw.image, record, frame) for frame in frames]
        except Broken as error:
            return _Image(key, body, [], error.reason), []
        except MALFORMED:
            return _Image(key, body, [], "bad_schema"), []


def _texts(record: Mapping[str, Any]) -> list[str]:
    """Every text that a task of ours can draw from a record; what is none is left to the task that reads it."""
    told = []
    for of in (record, *record["instances"]):
        captions = of.get("captions")
        told += [of.get("caption" if of is record else "label"), *(captions if isinstance(captions, list) else [])]
    return [text for text in told if isinstance(text, str)]


def _build(
    store: ShardStore, look: Look, encoders: _Encoders, out: Path, workers: int, batch: int, overwrite: bool
) -> dict[str, Any]:
    shards = [[shard.name, count, shard.sha256 or shard.size]
              for shard, count in zip(store.shards, store.counts, strict=True)]
    config = {
        "source": {"first": store.shards[0].address, "shards": fingerprint_of(shards)},
        "latents": {"frames": look.frames(), **encoders.facts}, "batch": batch,
    }
    finished = prepare(out, config, overwrite)
    if finished is not None:
        log.info("%s is already complete: %d images", out, finished["images"])
        return finished
    fingerprint = fingerprint_of(config)
    todo = [shard for shard in range(len(shards)) if not is_finished(out, shard, fingerprint)]
    if len(todo) < len(shards):
        log.info("%s: going on, %d of %d shards are finished", out, len(shards) - len(todo), len(shards))
    chunks = {shard: [[(shard, sample) for sample in range(first, min(first + batch, store.counts[shard]))]
                      for first in range(0, store.counts[shard], batch)] for shard in todo}
    loader = iter(DataLoader(
        _Frames(store, look, encoders.text is not None), batch_size=None, num_workers=workers, shuffle=False,
        sampler=[places for shard in todo for places in chunks[shard]],  # type: ignore[arg-type]
    ))
    done = sum(store.counts) - sum(store.counts[shard] for shard in todo)
    with tqdm(total=sum(store.counts), initial=done, desc=out.name, unit=" images") as bar:
        for shard in todo:
            counts: dict[str, Any] = {"samples": 0, "skipped": Counter(), "named": {}, "texts": []}
            parts = (next(loader) for _ in chunks[shard])
            samples = _samples(parts, look.variants, encoders.moments, counts, bar.update)
            write_shard(out, shard, samples, counts, fingerprint)
    every = [read_json(count_file(out, shard)) for shard in range(len(shards))]
    texts: list[str] = []
    if encoders.text is not None:
        texts = ["", *sorted({text for part in every for text in part["texts"]} - {""})]
        _write_features(out, texts, encoders.features)
    finish(out, manifest := _manifest(every, config, store, len(texts)))
    return manifest


def _samples(
    parts: Iterator[tuple[list[_Image], Tensor] | Exception], variants: int, encode: Callable[[Tensor], Bits],
    counts: dict[str, Any], advance: Callable[[int], Any],
) -> Iterator[dict[str, Any]]:
    """A shard's samples as its tar holds them, counted."""
    texts: set[str] = set()
    for part in parts:
        if isinstance(part, Exception):
            raise part
        images, frames = part
        moments = iter(encode(frames) if len(frames) else ())
        for image in images:
            sample = {"__key__": image.key, "json": image.record}
            if image.reason:
                skip(counts, image.reason, image.key)
            else:
                sample |= {f"{variant}.npy": moments_bytes(next(moments)) for variant in range(variants)}
            texts.update(image.texts)
            counts["samples"] += 1
            yield sample
            advance(1)
    counts["texts"] = sorted(texts)


def _write_features(out: Path, texts: Sequence[str], encode: Callable[[Sequence[str]], Bits]) -> None:
    row_bytes, free = encode(texts[:1]).nbytes, shutil.disk_usage(out).free
    if row_bytes * len(texts) > free:
        raise ValueError(f"{out}: the features of {len(texts)} texts take {row_bytes * len(texts) / 2**30:.1f} GiB and "
                         f"{free / 2**30:.1f} are free; leave texts out of the cache")

    def rows() -> Iterator[Bits]:
        for first in tqdm(range(0, len(texts), TEXTS_AT_ONCE), desc="texts", unit=f" x {TEXTS_AT_ONCE}"):
            yield encode(texts[first : first + TEXTS_AT_ONCE])

    write_texts(out, texts, row_bytes // 2, rows())


def _manifest(
    every: Sequence[Mapping[str, Any]], config: Mapping[str, Any], store: ShardStore, num_texts: int
) -> dict[str, Any]:
    skipped = sum((Counter(part["skipped"]) for part in every), Counter())
    named = [name for part in every for names in part["named"].values() for name in names]
    if skipped:
        log.warning("%d images have no latents (%s), the first: %s", sum(skipped.values()),
                    ", ".join(f"{n} {reason}" for reason, n in skipped.items()), ", ".join(named[:3]))
    return {
        "schema_version": SCHEMA_VERSION, "images": sum(part["samples"] for part in every), "texts": num_texts,
        "skipped": dict(skipped), "labels": dict(store.labels), "shards": listed(every), **config,
        "captions": LABEL_ONLY if store.label_only else "source",
        "versions": {"python": platform.python_version(), **provenance.versions()},
    }
