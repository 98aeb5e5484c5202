"""Writing shards: any source to WebDataset tars with their indexes and a manifest, by several processes, resumable.

Shard n holds the source's items [n * images_per_shard, (n + 1) * images_per_shard). A tar is written aside and
renamed; a small record of its counts in ``OUT/.build`` says that it is finished, so that a build that was stopped
goes on where it was and ends with the same bytes. The manifest comes last: with it the set is complete.
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sb.config import difference, write_whole
from sb.data.index import index_address
from sb.data.latents import ROWS, TEXTS
from sb.data.pack import BUILD, NUM_NAMED, Plan, ShardWriter, count_file, identities, shard_name
from sb.data.schema import SCHEMA_VERSION, Source
from sb.data.shards import MANIFEST
from sb.registry import build

LABEL_ONLY, FROM_SOURCE = "label-only", "source"  # without a captions file: what the manifest says of the objects' own
_PACKAGES = ("numpy", "pillow", "pycocotools", "webdataset")
_log = logging.getLogger(__name__)


def build_shards(
    source: Source | Mapping[str, Any], out: str | Path, *, images_per_shard: int = 1000, workers: int = 1,
    captions: str | None = None, licences: Sequence[str] = (), exclude: Sequence[str] = (), overwrite: bool = False,
) -> dict[str, Any]:
    """Write a source (or the section that builds one) as shards to the folder ``out``; returns the manifest.

    ``captions`` adds captions of objects (sb.data.captions). ``licences`` keeps images whose licence, by name or
    number, is one of these. ``exclude`` names shard sets whose images, by id or by content, are left out: that
    keeps val images out of train. Images that are left out or unreadable are counted by reason and named.
    A build that was stopped goes on; a finished one is returned as it is. Raises ValueError where ``out`` holds
    another build (unless ``overwrite``), where the source mixes splits or repeats a key, or nothing is left.
    """
    built: Source = build("source", source) if isinstance(source, Mapping) else source
    out = Path(out)
    if images_per_shard < 1 or not len(built):
        raise ValueError(f"nothing to build: {len(built)} images in shards of {images_per_shard}")
    about = dict(built.describe())
    excluded = frozenset(name for where in exclude for name in identities(where))
    config = json.loads(json.dumps({
        "source": about, "num_items": len(built), "images_per_shard": images_per_shard,
        "captions": {"file": Path(captions).name, "sha256": _file_hash(captions)} if captions else LABEL_ONLY,
        "only_licences": sorted(str(licence) for licence in licences),
        "exclude": [Path(where).name for where in exclude], "exclude_sha256": fingerprint_of(sorted(excluded)),
    }))
    finished = prepare(out, config, overwrite)
    if finished is not None:
        _log.info("%s is already complete: %d images", out, finished["images"])
        return finished
    plan = Plan(built, out, images_per_shard, str(about.get("split", "")), captions,
                tuple(config["only_licences"]), excluded, fingerprint_of(config))
    shards = range(-(-len(built) // images_per_shard))
    todo = [shard for shard in shards if not is_finished(out, shard, plan.fingerprint)]
    if len(todo) < len(shards):
        _log.info("%s: going on, %d of %d shards are finished", out, len(shards) - len(todo), len(shards))
    _run(plan, todo, workers, len(built))
    finish(out, manifest := _manifest([read_json(count_file(out, shard)) for shard in shards], config, out))
    _report(out, manifest)
    return manifest


def prepare(out: Path, config: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Make the folder ready for this build; the manifest where it is finished already, ValueError for another one."""
    if overwrite:
        _clear(out)
    state = out / BUILD / "config.json"
    for place, what in ((out / MANIFEST, "a finished"), (state, "an unfinished")):
        if not place.is_file():
            continue
        stored = read_json(place)
        before = {key: stored.get(key) for key in config}
        if before.get("captions") == FROM_SOURCE:
            before["captions"] = LABEL_ONLY
        if before != config:
            raise ValueError(f"{out} holds {what} build that differs in {difference(before, config)}; "
                             "name another --out, or --overwrite")
        if place == state:
            for part in state.parent.glob("*.part"):
                part.unlink()  # of a writer that was killed
            return None
        for entry in stored["shards"]:
            tar = out / entry["file"]
            if not tar.is_file() or tar.stat().st_size != entry["bytes"]:
                raise ValueError(f"{tar} is missing or not as it was written; --overwrite builds it again")
        return stored
    if any(out.glob("*.tar")):
        raise ValueError(f"{out} holds tars that this tool did not write; name another --out")
    write_whole(state, json.dumps(config).encode())
    return None


def finish(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, which makes the set complete, and remove what was needed to build it."""
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
    shutil.rmtree(out / BUILD)


def _clear(out: Path) -> None:
    """Remove what a build wrote, and nothing else."""
    for name in (MANIFEST, TEXTS, ROWS):
        (out / name).unlink(missing_ok=True)
    for tar in out.glob("shard-[0-9]*.tar"):
        tar.unlink()
        Path(index_address(tar)).unlink(missing_ok=True)
    if (out / BUILD).is_dir():
        shutil.rmtree(out / BUILD)


def is_finished(out: Path, shard: int, fingerprint: str) -> bool:
    """Whether a shard was written by this very build; a part that a stopped writer left is not looked at."""
    place = count_file(out, shard)
    if not place.is_file():
        return False
    counts, tar = read_json(place), out / shard_name(shard)
    whole = tar.is_file() and tar.stat().st_size == counts.get("bytes") and Path(index_address(tar)).is_file()
    return counts["fingerprint"] == fingerprint and (whole or not counts["samples"])


def _run(plan: Plan, todo: list[int], workers: int, num_items: int) -> None:
    """Write the shards that are missing, with one bar over images."""
    missing = sum(min(plan.images_per_shard, num_items - shard * plan.images_per_shard) for shard in todo)
    with tqdm(total=num_items, initial=num_items - missing, desc=plan.out.name, unit=" images") as bar:
        if workers <= 1 or len(todo) <= 1:
            if todo:
                writer = ShardWriter(plan, bar.update)
            for shard in todo:
                writer.write(shard)
            return
        context = get_context("spawn")
        counter, stop = context.Value("q", 0), context.Event()
        with ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, (plan, counter, stop)) as pool:
            pending: set[Future[None]] = {pool.submit(_work, shard) for shard in todo}
            try:
                while pending:
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    bar.update(num_items - missing + counter.value - bar.n)
                    for future in done:
                        future.result()
            except BrokenProcessPool:
                raise ValueError("a worker process died (out of memory?); run again to go on, "
                                 "finished shards are kept") from None
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


_writer: "ShardWriter | None" = None


def _start_worker(plan: Plan, counter: Any, stop: Any) -> None:
    global _writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the parent tells us
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    def advance(num: int) -> None:
        with counter.get_lock():
            counter.value += num
        if stop.is_set():
            raise InterruptedError("the build was stopped")

    _writer = ShardWriter(plan, advance)


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(shard: int) -> None:
    assert _writer is not None
    _writer.write(shard)


def _manifest(counts: Sequence[Mapping[str, Any]], config: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Everything that is known of the set; ValueError for a repeated key, or where nothing came of it."""
    total: dict[str, Counter[str]] = {name: Counter() for name in ("skipped", "labels", "licences")}
    named: dict[str, list[str]] = {}
    seen: set[str] = set()
    for part in counts:
        for name, counter in total.items():
            counter.update(part[name])
        for reason, names in part["named"].items():
            named[reason] = (named.get(reason, []) + names)[:NUM_NAMED]
        for key in part["keys"]:
            if key in seen:
                raise ValueError(f"the source gives the key '{key}' twice; keys must be unique")
            seen.add(key)
    sums = {name: sum(part[name] for part in counts)
            for name in ("samples", "instances", "crowds", "captioned_images", "captioned", "told")}
    if not seen:
        _clear(out)
        raise ValueError(f"nothing is left of {config['num_items']} images: {_told(total['skipped'], named)}")
    if config["captions"] != LABEL_ONLY and not sums["told"]:
        _clear(out)
        raise ValueError(f"none of the {sums['instances']} instances is named in {config['captions']['file']}; "
                         f"its image_id must be a key such as {min(seen)} or the source's own image id")
    return {
        "schema_version": SCHEMA_VERSION, "images": sums["samples"], "instances": sums["instances"],
        "crowds": sums["crowds"], "images_with_caption": sums["captioned_images"],
        "instances_with_caption": sums["captioned"],
        "skipped": _sorted(total["skipped"]), "skipped_named": named, "labels": _sorted(total["labels"]),
        "licences": _sorted(total["licences"]),
        "shards": listed(counts),
        **config,
        **({"captions": FROM_SOURCE} if config["captions"] == LABEL_ONLY and sums["captioned"] else {}),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }


def listed(counts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's list of shards, from the counts of each."""
    return [{name: part[name] for name in ("file", "samples", "bytes", "sha256")} for part in counts if part["samples"]]


def _report(out: Path, manifest: Mapping[str, Any]) -> None:
    _log.info("%s: %d images, %d instances (%d crowds), %d shards", out, manifest["images"], manifest["instances"],
              manifest["crowds"], len(manifest["shards"]))
    if manifest["captions"] == LABEL_ONLY:
        _log.info("no object has a caption, their labels are the text; tools/caption.py writes captions")
    if manifest["skipped"]:
        _log.info("left out: %s", _told(manifest["skipped"], manifest["skipped_named"]))


def _told(skipped: Mapping[str, int], named: Mapping[str, Sequence[str]]) -> str:
    """Counts by reason, each with its first names."""
    return "; ".join(f"{count} {reason} ({', '.join(named[reason][:3])}{', ...' if count > 3 else ''})"
                     for reason, count in skipped.items())


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _file_hash(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ValueError(f"no captions file {path}") from None


def fingerprint_of(value: Any) -> str:
    """What tells one build's settings from another's."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    body: dict[str, Any] = json.loads(path.read_bytes())
    return body
