"""A list painted and measured in chunks by any number of processes: what is finished is never done again.

A chunk is painted together and its file of rows is written last, so that its result depends neither on the process that
did it nor on what was killed before.

Legend: N requests, B those of a chunk, H W pixels, D width of a feature network.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from sb.config import check_keys, difference, import_plugins, locked, write_whole
from sb.data.write import fingerprint_of
from sb.evaluate.adapters import Adapter, picture_name
from sb.evaluate.lists import Case, CaseList, read_list
from sb.evaluate.lpips import lpips_distance
from sb.evaluate.painting import Painting
from sb.evaluate.photos import open_pictures
from sb.launch import find_device
from sb.models.weights import write_state
from sb.pictures import save_png
from sb.registry import build, build_fitted, call, filled, lookup, takes
from sb.types import Request

# what metrics look with, and its kind
ROLES = {"reader": "reader", "features": "feature network", "clip": "feature network", "lpips": ""}
VARIATION = 1_000_000_000  # from one seed of a request to the next
START = "spawn"  # how processes begin: CUDA cannot be forked
LIST, ABOUT, PICTURES, ROWS, LOCK = "list.jsonl", "run.json", "pictures", "rows", ".lock"
SCHEMA = 2  # of the folder's rows
Spec = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """An evaluation as plain data, which every process of it is told.

    out: its folder, which holds the list. data: shard addresses of the list's pictures. adapter: section of the system.
    metrics: sections. networks: sections of what the metrics look with, by ``ROLES``.
    variations: how often each request is painted, with other seeds; all metrics but diversity look at the first. chunk:
    requests painted at once. threads: of each process, which decide the last digits on a CPU.
    """

    out: str
    data: tuple[str, ...]
    adapter: Spec
    metrics: tuple[Spec, ...]
    networks: dict[str, Spec] = field(default_factory=dict)
    variations: int = 1
    chunk: int = 16
    threads: int = 1
    device: str = "auto"
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.chunk, self.threads, self.variations) < 1:
            raise ValueError("evaluate: requests at once, threads and variations must be at least 1, not "
                             f"{self.chunk}, {self.threads} and {self.variations}")
        if not self.metrics:
            raise ValueError("evaluate: needs at least one metric")
        check_keys("networks", self.networks, ROLES)

    def device_of(self, part: int) -> str:
        """Processes take turns on the GPUs, where ``device`` names none of them; ValueError for none that is here."""
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        find_device(kind)
        return f"cuda:{part % torch.cuda.device_count()}" if kind == "cuda" else kind


@dataclass
class Measured:
    """A finished list: values (N,) by name, NaN where undefined, rows (N, D) by ``metric.part``, and by the values'
    names the metrics that gave them."""

    values: dict[str, Tensor]
    features: dict[str, Tensor]
    metrics: dict[str, str]


def build_metrics(job: Job, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metrics by name, and what the networks that they look with say of themselves by role.

    ValueError for a metric that is named twice, and for one that needs a network which is not there.
    """
    offered = {role: _network(role, spec, device) for role, spec in job.networks.items()}
    metrics: dict[str, Any] = {}
    for spec in job.metrics:
        name, entry = str(spec["name"]), lookup("metric", str(spec["name"]))
        missing = [role for role in getattr(entry, "needs", ()) if role not in offered]
        if missing or name in metrics:
            what = f"needs a network: give --{missing[0]}" if missing else "is asked for twice"
            raise ValueError(f"metric '{name}' {what}")
        metrics[name] = build_fitted("metric", spec, offered)
    return metrics, {role: _told_of(network, job.networks[role]) for role, network in offered.items()}


def fingerprints(job: Job, networks: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """For each metric of a job what its values follow from beside the paintings: its options, the networks it uses.

    networks: what they say of themselves by role.
    """
    return {
        name: {
            "options": fingerprint_of(filled("metric", spec)),
            **{role: fingerprint_of(told) for role, told in networks.items() if takes("metric", name, role)},
        }
        for spec in job.metrics for name in [str(spec["name"])]
    }


def over_seeds(metric: Any) -> bool:
    """Whether a metric looks at all variations of a request."""
    return bool(getattr(metric, "over_seeds", False))


def _network(role: str, spec: Spec, device: str) -> Any:
    if role == "lpips":
        return call("lpips", lpips_distance, {k: v for k, v in spec.items() if k != "name"}, device=device)
    return build_fitted(ROLES[role], spec, {"device": device})


def _told_of(network: Any, spec: Spec) -> dict[str, Any]:
    """What a network says of itself; LPIPS is a function, and its section and file say it."""
    if hasattr(network, "describe"):
        return dict(network.describe())
    return {**spec, "weights": hashlib.sha256(Path(spec["weights"]).read_bytes()).hexdigest()}


def run_part(job: Job, part: int, parts: int) -> None:
    """Paint and measure chunks part, part + parts, ... of the job's list, as far as they are not finished.

    Raises ValueError where the folder holds another evaluation or memory does not suffice, and whatever adapters and
    metrics raise.
    """
    import_plugins(job.plugins)
    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        device = job.device_of(part)
        worker = _Worker(job, device)
        todo = [k for k in range(part, worker.num_chunks, parts) if not _rows(job.out, k).is_file()]
        for chunk in tqdm(todo, desc=f"part {part + 1} of {parts}", unit="chunk", position=part, mininterval=1):
            worker.do(chunk)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"out of memory: {str(error)[:120]}; lower --batch, in another folder") from None
    finally:
        torch.set_num_threads(before)


def run_parts(job: Job, processes: int) -> None:
    """All parts of a job in processes of their own; with one, in this. What one cannot do ends the others."""
    if processes < 2:
        run_part(job, 0, 1)
        return
    said = mp.get_context(START).SimpleQueue()
    try:
        mp.start_processes(_told, (job, processes, said), nprocs=processes, start_method=START)
    except mp.ProcessExitedException as error:
        if not said.empty():
            raise ValueError(said.get()) from None
        raise ChildProcessError(f"a process ended early ({error}); the same command goes on") from None


def _told(part: int, job: Job, parts: int, said: Any) -> None:
    """One process, which says in one line what the user can put right."""
    try:
        run_part(job, part, parts)
    except (ValueError, OSError) as error:
        said.put(" ".join(str(error).split()))
        raise SystemExit(2) from None


def finished(job: Job) -> bool:
    """Whether all chunks are there."""
    count = num_chunks(read_list(Path(job.out) / LIST), job.chunk)
    return all(_rows(job.out, chunk).is_file() for chunk in range(count))


def measured(job: Job) -> Measured:
    """What all chunks of a finished job found."""
    values: dict[str, list[float]] = {}
    features: dict[str, list[Tensor]] = {}
    metrics: dict[str, str] = {}
    for chunk in range(num_chunks(read_list(Path(job.out) / LIST), job.chunk)):
        for line in _rows(job.out, chunk).read_text().splitlines():
            for metric, seen in json.loads(line)["values"].items():
                metrics |= dict.fromkeys(seen, metric)
                for name, value in seen.items():
                    values.setdefault(name, []).append(float("nan") if value is None else value)
        place = _features(job.out, chunk)
        for name, rows in (load_file(place) if place.is_file() else {}).items():
            features.setdefault(name, []).append(rows)
    return Measured(
        {name: torch.tensor(found, dtype=torch.float64) for name, found in values.items()},
        {name: torch.cat(rows) for name, rows in features.items()}, metrics,
    )


def request_of(case: Case, picture: Tensor, num_levels: int) -> Request:
    """What a system is asked: the case's level on the ladder of the system."""
    return Request(picture, case.mask_pixels(), case.text, case.level / case.num_levels * num_levels, case.seed)


def num_chunks(cases: CaseList, chunk: int) -> int:
    """Of a list."""
    return -(-len(cases.cases) // chunk)


class _Worker:
    """The parts of one process."""

    def __init__(self, job: Job, device: str):
        self.job, self.list = job, read_list(Path(job.out) / LIST)
        self.num_chunks = num_chunks(self.list, job.chunk)
        self.pictures = open_pictures(self.list, job.data)
        with_device = {"device": device} if takes("adapter", job.adapter["name"], "device") else {}
        self.adapter: Adapter = build("adapter", job.adapter, **with_device)
        if job.variations > 1 and not self.adapter.varies:
            raise ValueError(f"adapter '{self.adapter.name}' has one picture for a request: leave variations out")
        self.metrics, networks = build_metrics(job, device)
        _claim(Path(job.out) / ABOUT, {
            "schema": SCHEMA, "list": self.list.digest, "system": self.adapter.describe(), "networks": networks,
            "metrics": list(job.metrics),
            "variations": job.variations, "chunk": job.chunk, "threads": job.threads, "device": device.split(":")[0],
        })

    def do(self, chunk: int) -> None:
        """Paint, measure and write one chunk."""
        first = chunk * self.job.chunk
        numbers = range(first, min(first + self.job.chunk, len(self.list.cases)))
        paintings = self._painted(numbers)
        others = [painting for n in range(1, self.job.variations) for painting in self._painted(numbers, n)]
        values: dict[str, dict[str, list[float]]] = {}  # by metric, and by what it calls them
        features: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            if hasattr(metric, "pooled"):
                features |= {f"{name}.{part}": rows for part, rows in metric.features(paintings).items()}
            else:
                seen = metric([*paintings, *others] if over_seeds(metric) else paintings)
                if twice := seen.keys() & {found for other in values.values() for found in other}:
                    raise ValueError(f"metric '{name}' gives '{min(twice)}', and so does another")
                values[name] = {found: column[: len(paintings)].double().tolist() for found, column in seen.items()}
        for number, painting in zip(numbers, paintings, strict=True):
            picture = Image.fromarray(painting.pixels.permute(1, 2, 0).numpy())
            save_png(picture, Path(self.job.out) / PICTURES / f"{picture_name(number)}.png")
        if features:
            write_state(features, _features(self.job.out, chunk))
        lines = [
            {"number": number, "values": {
                metric: {name: _exactly(column[place]) for name, column in found.items()}
                for metric, found in values.items()
            }}
            for place, number in enumerate(numbers)
        ]
        write_whole(_rows(self.job.out, chunk), "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _painted(self, numbers: Sequence[int], variation: int = 0) -> list[Painting]:
        cases = [self.list.cases[number] for number in numbers]
        requests = [request_of(case, self.pictures.picture(case), self.adapter.num_levels) for case in cases]
        requests = [replace(request, seed=request.seed + variation * VARIATION) for request in requests]
        results = self.adapter.paint(requests, numbers)
        return [
            Painting(
                case=case, picture=request.image, pixels=result.pixels, predicted=result.predicted,
                truth=self.pictures.truth(case), real=self.pictures.real(case), mask=request.mask,
                outline=case.outline_pixels(),
            )
            for case, request, result in zip(cases, requests, results, strict=True)
        ]


def _claim(place: Path, about: Spec) -> None:
    """Say of a folder what is evaluated in it; ValueError where that is something else."""
    about = json.loads(json.dumps(about))
    with locked(place.parent / LOCK):
        if not place.is_file():
            write_whole(place, (json.dumps(about, indent=1) + "\n").encode())
    found = json.loads(place.read_text())
    if found != about:
        raise ValueError(f"{place.parent} holds another evaluation, which differs in {difference(found, about)}: "
                         "choose another folder, or remove it")


def _rows(out: str, chunk: int) -> Path:
    return Path(out) / ROWS / f"{chunk:06d}.jsonl"


def _features(out: str, chunk: int) -> Path:
    return Path(out) / ROWS / f"{chunk:06d}.safetensors"


def _exactly(value: float) -> float | None:
    """As strict JSON holds it."""
    return value if math.isfinite(value) else None
