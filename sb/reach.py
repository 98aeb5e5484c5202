"""Whether the ranks of a job reach each other, how fast, and whether they see the same files."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

TIMEOUT_S = 60.0  # for ranks to meet
PATIENCE_S = 1800.0  # for the slowest rank's checks
PROBE_BYTES = 64 * 2**20
PROBES = 3
ORDER = ("-", "ok", "warn", "FAIL")
Row = TypeVar("Row", bound=tuple[Any, ...])


def world() -> int:
    """Ranks that the launcher says it started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def digest(value: Any) -> str:
    """A short fingerprint of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Meeting(NamedTuple):
    """All ranks that the launcher started: why they could not meet, and where they wait for each other's results."""

    failed: str = ""
    patient: Any = None


@contextmanager
def group(device: torch.device) -> Iterator[Meeting]:
    """A process group, while it lasts; none for a single process."""
    if world() == 1:
        yield Meeting()
        return
    meeting = Meeting()
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
        meeting = Meeting("", dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_S)))
    except Exception as error:  # a missing variable, an address nobody answers at, a backend that is not there
        reason = (str(error).splitlines() or [repr(error)])[0]
        meeting = Meeting(f"no process group of {world()} ranks: {reason}")
    try:
        yield meeting
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def talk(device: torch.device, facts: dict[str, str], meeting: Meeting) -> list[tuple[str, str, str]]:
    """(status, found, advice): the ranks' all-reduce and its speed, and which of the facts they do not share."""
    if meeting.failed:
        return [("FAIL", meeting.failed, "check MASTER_ADDR, MASTER_PORT, the network interface and the firewall")]
    try:
        bandwidth = _all_reduce(device)
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, facts)
    except Exception as error:
        return [("FAIL", f"the ranks do not reach each other: {(str(error).splitlines() or [repr(error)])[0]}",
                 "check the network interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)")]
    size = f"{PROBE_BYTES // 2**20} MiB"
    backend = "nccl" if device.type == "cuda" else "gloo"
    lines = [("ok", f"{len(every)} ranks on {backend}, all-reduce of {size} at {bandwidth / 1e9:.2f} GB/s", "")]
    for name in facts:
        others = [rank for rank, found in enumerate(every) if found[name] != every[0][name]]
        if others:
            lines.append(("FAIL", f"rank {others[0]} sees another {name} than rank 0", "share one file system"))
    return lines


def _all_reduce(device: torch.device) -> float:
    """Bytes/s of the best of a few, as a ring moves them: 2 (n - 1) / n times the size; checks the sum."""
    ranks, best = dist.get_world_size(), float("inf")
    for _ in range(PROBES):
        probe = torch.ones(PROBE_BYTES // 4, device=device)
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(probe)
        if float(probe[0]) != ranks or float(probe[-1]) != ranks:
            raise ValueError(f"an all-reduce of ones over {ranks} ranks gave {float(probe[0])}")
        best = min(best, time.perf_counter() - began)
    return PROBE_BYTES * 2 * (ranks - 1) / ranks / best


def worst(lines: Sequence[Row], meeting: Meeting) -> list[Row]:
    """Rank zero's lines, and those of other ranks where theirs are worse: (check, status, found, advice)."""
    if meeting.patient is None:
        return list(lines)
    make, every = type(lines[0]), [None] * world()  # type: tuple[Any, list[Any]]
    dist.all_gather_object(every, [tuple(line) for line in lines], group=meeting.patient)
    shown = [make(*line) for line in every[0]]
    for rank, theirs in enumerate(every):
        for check, status, found, advice in theirs:
            own = max((ORDER.index(line[1]) for line in every[0] if line[0] == check), default=0)
            if rank and ORDER.index(status) > own:
                shown.append(make(check, status, f"rank {rank}: {found}", advice))
    return shown
