"""Errors of the machinery underneath that a user can do something about, in one line."""

import re

WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) (?:is killed by signal: (\w[\w ]*)|exited)")
CONTACT = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe|socket|TCPStore", re.IGNORECASE)


def explain(error: BaseException) -> str | None:
    """One line for a loader process that died, a rank that is gone, memory that does not suffice and settings that
    Lightning refuses; None for an error of another kind."""
    import torch
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from torch import distributed

    text = " ".join(str(error).split())
    died = WORKER.search(text)
    if died:
        how = f"dead ({died[2]})" if died[2] else "gone"
        return (
            f"a loader process (pid {died[1]}) is {how}, mostly for lack of memory: lower data.workers or data.prefetch"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"out of memory: {text[:120]}; lower data.batch_size and raise trainer.accumulate, or set "
            "trainer.recompute=true, or use a sharded strategy (tools/preflight.py estimates each)"
        )
    if isinstance(error, MisconfigurationException):
        return text
    kinds = (distributed.DistError,) if distributed.is_available() else ()
    if isinstance(error, kinds) or (type(error) is RuntimeError and CONTACT.search(text)):
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else "?"
        return f"rank {rank}: lost contact with another rank, whose own lines say more ({text[:160]})"
    return None
