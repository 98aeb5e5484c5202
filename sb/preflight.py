"""Whether a run can start, go on and end here, before it costs a night: one line per check.

Nothing is written to the run's folder. As in training, tars of others get an index beside them, and remote shards that
are read fill ``cache_dir``.
Every rank that is started looks for itself; rank zero shows the worst of what they found.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sb import assemble, checkpoints, config, reach, rehearsal, scale
from sb.data.pipeline import check_enough_shards
from sb.estimate import STRATEGIES, checkpoint_bytes
from sb.formats.source import open_source
from sb.launch import Placement
from sb.registry import build, call

GIB = 2**30
OK, WARN, FAIL, SKIPPED = "ok", "warn", "FAIL", "-"
SHM = Path("/dev/shm")
READ_S = 1.0
NEAR = 0.9  # of the memory: from here on an estimate is no promise
SMALLER = "lower data.batch_size, trainer.recompute=true, or shard: trainer/zero2"


class Line(NamedTuple):
    """One check: what was found, and what to do about it."""

    check: str
    status: str
    found: str
    advice: str = ""


@dataclass
class Look:
    """What is known of a run so far; a check that fails leaves what it should have found at None."""

    cfg: dict[str, Any]
    ladder: Any = None
    data: Any = None
    placement: Any = None
    run: Any = None
    rate: float | None = None  # images/s that one worker reads
    need: int | None = None  # bytes of a rank's device, by estimate
    lines: list[Line] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where this rank trains."""
        on_gpu = self.cfg["trainer"].get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda", reach.local_rank()) if on_gpu else torch.device("cpu")

    @property
    def strategy(self) -> str:
        """What the estimate calls the run's strategy."""
        return scale.strategy_of(self.cfg, self.placement.ranks if self.placement else 1)

    @property
    def callbacks(self) -> dict[str, dict[str, Any]]:
        """The run file's callbacks by the name they are registered under."""
        return {spec["name"]: spec for spec in (self.cfg.get("callbacks") or {}).values() if spec and "name" in spec}


Found = Iterator[tuple[str, str, str]]  # status, what was found, what to do


def preflight(path: str | Path, overrides: Sequence[str]) -> list[Line]:
    """The table of a run file's checks, the same on every rank. ValueError for a run file that cannot be read."""
    cfg = config.plain(config.load(path, overrides))
    look = Look(cfg)
    with rehearsal.quiet(), reach.group(look.device) as meeting:
        if reach.world() > 1:
            look.lines += [Line("ranks", *found) for found in reach.talk(look.device, _fingerprint(look), meeting)]
        for check in CHECKS:
            name = check.__name__.removeprefix("_").replace("_", " ")
            try:
                found = list(check(look))
            except Exception as error:  # whatever it is, the table goes on: this is what the run would die of
                known = isinstance(error, (ValueError, OSError))
                found = [(FAIL, f"{'' if known else type(error).__name__ + ': '}{error}", "")]
            look.lines += [Line(name, status, " ".join(said.split()), advice) for status, said, advice in found]
        return reach.worst(look.lines, meeting)


def go(lines: Sequence[Line]) -> bool:
    """Whether nothing failed."""
    return all(line.status != FAIL for line in lines)


def table(lines: Sequence[Line]) -> str:
    """One row per line: check, status, what was found, what to do."""
    width = max(len(line.check) for line in lines)
    return "\n".join(
        f"{line.check:{width}}  {line.status:4}  {line.found}{'; ' + line.advice if line.advice else ''}"
        for line in lines
    )


def _run_file(look: Look) -> Found:
    assemble.check(look.cfg)
    look.ladder = call("ladder", assemble.Ladder, look.cfg["ladder"]) if look.cfg.get("ladder") else None
    yield OK, f"'{look.cfg['name']}', every section is there", ""


def _device(look: Look) -> Found:
    trainer = look.cfg["trainer"]
    wanted, there = trainer.get("accelerator", "auto"), torch.cuda.device_count()
    if wanted in ("gpu", "cuda") and not there:
        yield FAIL, "no CUDA device here", "run this where the job will run, or set trainer.accelerator=cpu"
        return
    placement = call("trainer", Placement, trainer, batch_size=int(look.cfg["data"]["batch_size"]))
    on_gpu, here = look.device.type == "cuda", placement.ranks // placement.num_nodes
    if on_gpu and here > there:
        yield FAIL, f"{here} devices asked for, {there} here", f"trainer.devices={there}"
        return
    if reach.world() not in (1, placement.ranks):
        advice = "start as many processes as trainer.devices x trainer.num_nodes"
        yield FAIL, f"the launcher started {reach.world()} ranks, the run file says {placement.ranks}", advice
        return
    look.placement = placement
    placement.check_optimizer(build("optimizer", look.cfg["optimizer"]))
    slow = on_gpu and str(placement.precision) == "bf16-mixed" and not torch.cuda.is_bf16_supported()
    name = torch.cuda.get_device_name(look.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads a rank"
    said = f"{placement.ranks} ranks, {look.strategy}, {placement.precision}, {name}"
    yield (WARN if slow else OK), said, "this GPU has no bf16: trainer.precision=16-mixed" if slow else ""


def _weights(look: Look) -> Found:
    sections = {part: look.cfg.get(part) or {} for part in ("vae", "text", "denoiser")}
    given = {f"{part}.weights": str(spec["weights"]) for part, spec in sections.items() if spec.get("weights")}
    for key, path in given.items():
        if not Path(path).exists():
            yield FAIL, f"{key}: there is no {path}", f"give {key}=PATH"
        else:
            yield OK, f"{key}: {path} holds {', '.join(open_source(path).parts)}", ""
    if not given:
        yield OK, "none are asked for: all networks start from random numbers", ""


def _train_shards(look: Look) -> Found:
    if look.placement is None or look.ladder is None:
        yield SKIPPED, "not looked at: the run file or the device comes first", ""
        return
    data = assemble.build_data(look.cfg, look.ladder)
    samples = data.samples("train")
    shards, images = sum(len(s.shards) for s in samples.stores), sum(o.num_samples for o in samples.orders)
    check_enough_shards("data.train", shards, look.placement.ranks, data.workers)
    data.setup("fit")
    look.data, data.total_images = data, look.placement.total_images
    total = look.placement.total_images
    readers = f"{look.placement.ranks} ranks x {max(data.workers, 1)} workers"
    yield OK, f"{shards} shards for {readers}, {images:,} images; {total:,} to see: {total / images:.1f} epochs", ""
    bare = [folder for store in samples.stores for folder in store.label_only]
    if bare and look.cfg.get("text"):
        yield WARN, f"no captions of single objects in {', '.join(bare)}", "labels are the text; tools/caption.py"


def _val_shards(look: Look) -> Found:
    if look.data is None:
        yield SKIPPED, "not looked at: the training shards come first", ""
    elif not look.data.val_spec:
        yield WARN, "none: nothing says which checkpoint is best", "give data.val"
    else:
        images = sum(order.num_samples for order in look.data.samples("val").orders)
        used = min(images, look.data.val_images)
        if used < look.placement.ranks:
            yield FAIL, f"{used} images cannot be split over {look.placement.ranks} ranks", "raise data.val_images"
        else:
            yield OK, f"{images:,} images, {used:,} used, every {look.placement.val_every_images:,}", ""


def _run_folder(look: Look) -> Found:
    folder, resume = Path(look.cfg["run_dir"]).absolute(), look.cfg["resume"]
    place = _standing(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield FAIL, f"{folder} cannot be written: {place} is {'read-only' if place.is_dir() else 'a file'}", "run_dir="
        return
    kept = sorted((folder / checkpoints.FOLDER).glob("[!.]*.ckpt"))
    if (folder / "config.yaml").exists() and resume != "auto":
        yield FAIL, f"{folder} holds a run already", "resume=auto continues it, run_dir=... starts another"
    elif resume == "auto" and kept:
        yield OK, f"{folder}: {len(kept)} checkpoints to resume from", ""  # which one, the build says
    else:
        yield OK, f"{folder}: fresh", ""


def _networks(look: Look) -> Found:
    if look.data is None:
        yield SKIPPED, "not looked at: the training shards come first", ""
        return
    with tempfile.TemporaryDirectory() as empty:
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        own = {**look.cfg, "run_dir": f"{empty}/run", "resume": "never", "trainer": {**look.cfg["trainer"], **alone}}
        look.run = assemble.assemble(own)
    look.placement.check_system(look.run.system)
    trained, frozen = _counts(look)
    yield OK, f"{trained / 1e6:,.1f} M parameters trained, {frozen / 1e6:,.1f} M frozen", ""
    if look.cfg["resume"] == "auto":
        path = checkpoints.newest(Path(look.cfg["run_dir"]), look.run.system.check)
        if path is not None:
            checkpoint = checkpoints.read(path)
            yield OK, f"resumes from {path}, {int(checkpoint['images_seen']):,} images", ""
            yield from _refusals(look, checkpoint, path)


def _disk(look: Look) -> Found:
    save = look.callbacks.get("save")
    if look.run is None or save is None:
        yield SKIPPED, "not looked at: " + ("the networks come first" if save else "nothing is saved"), ""
        return
    trained, frozen = _counts(look)
    each = checkpoint_bytes(trained, averages=_averages(look), optimizer_bytes=scale.optimizer_bytes_of(look.cfg))
    keep = save.get("keep_images")
    count = 2 + (save.get("monitor", "val/loss") is not None) + (look.placement.total_images // keep if keep else 0)
    needed = count * each + 4 * (2 * trained + frozen)
    folder = Path(look.cfg["run_dir"]).absolute()
    free = shutil.disk_usage(_standing(folder)).free + checkpoints.size(folder)
    said = f"{count} checkpoints of {each / GIB:.2f} GiB and the model: {needed / GIB:.1f} of {free / GIB:.1f} GiB free"
    status = FAIL if needed > free else WARN if needed > NEAR * free else OK
    yield status, said, "" if status == OK else "make room, or raise callbacks.save.keep_images"


def _device_memory(look: Look) -> Found:
    if look.run is None:
        yield SKIPPED, "not looked at: the networks come first", ""
        return
    if look.strategy not in STRATEGIES:
        yield SKIPPED, f"no estimate for strategy '{look.strategy}'", ""
        return
    try:
        ema = look.callbacks.get("ema") or {}
        need, host = scale.memory_of(look.cfg, *_counts(look), ranks=look.placement.ranks, ema=ema)
    except scale.NoEstimate as error:
        yield SKIPPED, str(error).removeprefix("scale: "), ""
        return
    look.need = need
    here = look.placement.ranks // look.placement.num_nodes
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // here
    on_gpu = look.device.type == "cuda"
    there = torch.cuda.get_device_properties(look.device).total_memory if on_gpu else ram
    without = "" if "denoiser" in look.cfg else " without activations"
    said = f"{need / GIB:.1f} GiB a rank by estimate{without}, {there / GIB:.1f} GiB there"
    status = FAIL if need > there else WARN if need > NEAR * there else OK
    yield status, said, "" if status == OK else SMALLER
    if host:
        status = FAIL if host > ram else WARN if host > NEAR * ram else OK
        said = f"{host / GIB:.1f} GiB of host memory a rank by estimate, {ram / GIB:.1f} GiB there"
        yield status, said, "" if status == OK else "share out over more nodes, or keep it on the device"


def _shared_memory(look: Look) -> Found:
    if look.data is None or not look.data.workers or not SHM.is_dir():
        yield SKIPPED, "not looked at: no worker processes hand over batches, or there is none", ""
        return
    batch = next(iter(rehearsal.batches(look.data)))
    size = sum(t.nbytes for t in vars(batch).values() if isinstance(t, torch.Tensor))
    here = look.placement.ranks // look.placement.num_nodes
    need, free = size * look.data.workers * (look.data.prefetch + 1) * here, shutil.disk_usage(SHM).free
    said = f"{need / 2**20:,.0f} MiB of {free / 2**20:,.0f} MiB in {SHM} for batches on their way"
    yield (FAIL if need > free else OK), said, "lower data.workers or data.prefetch" if need > free else ""


def _reading(look: Look) -> Found:
    if look.data is None:
        yield SKIPPED, "not looked at: the training shards come first", ""
        return
    look.rate = rehearsal.reading_rate(look.data, READ_S)
    yield OK, f"{look.rate:,.0f} images/s by one worker", ""


def _step(look: Look) -> Found:
    if look.run is None:
        yield SKIPPED, "not looked at: the networks come first", ""
        return
    try:
        seen = rehearsal.step(look.run, look.data, look.device, str(look.placement.precision), look.placement.clip)
    except torch.OutOfMemoryError:
        if look.strategy in ("single", "ddp") or (look.placement.ranks == 1 and "offload" not in look.strategy):
            yield FAIL, "one process: out of device memory", SMALLER
        else:
            need = f"needs {look.need / GIB:.1f} GiB" if look.need is not None else "is not known to fit"
            yield WARN, f"one process: does not fit unshared; by estimate a rank {need}", ""
        return
    speed = look.data.batch_size / seen.seconds
    said = f"one process: loss {seen.loss:.4g}, {seen.seconds:.2f} s, {seen.peak / GIB:.2f} GiB, {speed:,.1f} images/s"
    if not math.isfinite(seen.loss):
        yield FAIL, said, "the loss is not finite: look at weights and learning rate"
        return
    yield OK, said, ""
    workers = max(look.data.workers, 1)
    if look.rate is not None and look.rate * workers < speed:
        yield WARN, f"{workers} workers read {look.rate * workers:,.0f} images/s of {speed:,.0f}", "raise data.workers"


CHECKS: tuple[Callable[[Look], Found], ...] = (
    _run_file, _device, _weights, _train_shards, _val_shards, _run_folder, _networks, _disk, _device_memory,
    _shared_memory, _reading, _step,
)


def _standing(folder: Path) -> Path:
    """The nearest place on the way to a folder that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _refusals(look: Look, checkpoint: dict[str, Any], path: Path) -> Found:
    """What of a checkpoint only the start of training would refuse."""
    own = look.run.system.find_frozen()
    others = [name for name, seen in checkpoint.get("frozen", {}).items() if own.get(name) != seen]
    if others:
        yield FAIL, f"{path} was trained with another {' and '.join(others)}", "resume with the one of then"
    stored = checkpoint.get("callbacks", {}).get("ema", {}).get("averages")
    asked = look.callbacks.get("ema", {}).get("averages")
    if stored is not None and asked is not None and set(stored) != set(asked):
        said = f"{path} holds the averages {', '.join(sorted(stored))}, this run asks for {', '.join(sorted(asked))}"
        yield FAIL, said, "use the same names"


def _counts(look: Look) -> tuple[int, int]:
    system = look.run.system
    outside = [p for module in getattr(system, "_outside", {}).values() for p in module.parameters()]
    every = [*system.parameters(), *outside]
    trained = sum(p.numel() for p in every if p.requires_grad)
    return trained, sum(p.numel() for p in every) - trained


def _averages(look: Look) -> int:
    return len(look.callbacks.get("ema", {}).get("averages", ()))


def _fingerprint(look: Look) -> dict[str, str]:
    """What every rank must see alike: the run file, and the checkpoints it would resume from."""
    files = sorted((Path(look.cfg["run_dir"]) / checkpoints.FOLDER).glob("[!.]*.ckpt"))
    return {
        "run file": reach.digest(look.cfg),
        "checkpoints": reach.digest([(path.name, path.stat().st_size) for path in files]),
    }
