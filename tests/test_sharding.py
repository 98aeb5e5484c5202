"""Parts of trained weights: the whole comes of them and they come of the whole. Real splits: test_strategies.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sb import sharding


def network() -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 5, 3), torch.nn.BatchNorm2d(5))
    module[0].bias.requires_grad_(False)
    return module


def stepped(module: torch.nn.Module) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 0.1)
    module(torch.randn(2, 2, 6, 6)).square().sum().backward()
    optimizer.step()
    return optimizer


def shards(module, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module


def go_through_a_checkpoint(mesh) -> None:
    """Weights, buffers and the optimizer's moments, from whole or sharded (with a mesh) to fresh ones of both kinds."""
    kinds = [lambda module: module] + ([lambda module: shards(module, mesh)] if mesh else [])
    for kind in kinds:
        first = kind(network())
        optimizer = stepped(first)
        weights, moments = sharding.whole_state(first), sharding.optimizer_state(first, optimizer)
        assert set(weights) == set(network().state_dict())
        for other in (kind(network()) for kind in kinds):
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.zero_()
            again = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], 0.1)
            sharding.load_whole(other, weights)
            sharding.load_optimizer_state(other, again, moments)
            copied = sharding.whole_state(other)
            for name, value in weights.items():
                if name != "0.bias":  # frozen: it comes from its own file
                    assert torch.equal(value, copied[name]), name
            for number, kept in sharding.optimizer_state(other, again)["state"].items():
                for key, value in kept.items():
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments["state"][number][key])), key
    assert mesh is None or sharding.is_sharded(first)


def test_state_goes_through_a_checkpoint():
    go_through_a_checkpoint(None)


def test_sharded_state_goes_through_a_checkpoint(tmp_path):
    """In a process of its own: torch keeps meshes whose process group is gone."""
    script = f"""
import runpy
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
dist.init_process_group("gloo", init_method="file://{tmp_path}/group", rank=0, world_size=1)
runpy.run_path({__file__!r})["go_through_a_checkpoint"](init_device_mesh("cpu", (1,)))
dist.destroy_process_group()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_torch_reads_what_is_written():
    module = network()
    moments = sharding.optimizer_state(module, stepped(module))
    fresh = torch.optim.AdamW([p for p in network().parameters() if p.requires_grad], 0.1)
    fresh.load_state_dict(moments)
    assert [tuple(state["exp_avg"].shape) for state in fresh.state.values()] == [(5, 2, 3, 3), (5,), (5,)]


def test_a_rank_that_does_not_keep_gets_nothing():
    module = network()
    assert sharding.whole_state(module, keep=False) == {}
    assert sharding.optimizer_state(module, stepped(module), keep=False) == {}


def test_state_that_does_not_lie_along_its_weights_is_refused():
    module = network()
    optimizer = stepped(module)
    optimizer.state[module[0].weight]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match="the optimizer's exp_avg of 0.weight does not lie along its weights"):
        sharding.optimizer_state(module, optimizer)


def test_moments_take_the_layout_of_their_weights():
    module = network().to(memory_format=torch.channels_last)
    moments = sharding.optimizer_state(network(), stepped(network()))
    moments = {"param_groups": [{"params": [0, 1, 2]}], "state": {0: {
        "step": torch.tensor(3.0), "exp_avg": torch.randn(5, 2, 3, 3)}}}
    before = moments["state"][0]["exp_avg"].clone()
    sharding.lay_out(module, moments)
    after = moments["state"][0]["exp_avg"]
    assert torch.equal(before, after) and after.stride() == module[0].weight.stride()
    assert float(moments["state"][0]["step"]) == 3
