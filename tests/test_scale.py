"""The tables hold what the estimates say, for a real run file; a tiny network and size keep it quick."""

import runpy
import sys

import pytest

from sb import config, scale
from sb.estimate import memory
from sb.scale import GIB, Cluster, Counts

CLUSTER = Cluster(rate=1e14, bandwidth=1e10)
COUNTS = Counts(
    trained=10**9, frozen=10**8, unet={512: 10**12}, encode={512: 10**12}, text=10**10, kept={512: GIB},
    recomputed={512: GIB // 8},
    latent={512: 67_536},
)


def cells(lines: str, first: str) -> list[str]:
    return next(row.split(" | ")[1:] for row in lines.splitlines() if row.startswith(f"| {first} |"))


def test_networks_of_a_run_file_are_counted_without_weights():
    cfg = config.plain(config.load("configs/quickstart.yaml"))  # names a VAE that need not be there
    counts = scale.count(cfg, [64, 128])
    assert counts.trained > 10**6 and counts.frozen > 49_408 * 128  # a row of the text tower for each of its words
    assert 3 < counts.unet[128] / counts.unet[64] < 6 and 3 < counts.kept[128] / counts.kept[64] < 6
    assert counts.latent[64] == 2 * 4 * 16 * 16 * 2 + scale.RECORD_BYTES
    assert 0 < counts.recomputed[64] < counts.kept[64] / 3
    with pytest.raises(ValueError, match="image size 100 is no multiple of 16"):
        scale.count(cfg, [100])
    cfg["system"]["train_text"] = True
    more = scale.count(cfg, [])
    assert more.trained > counts.trained and more.trained + more.frozen == counts.trained + counts.frozen


def test_memory_table_says_what_memory_says():
    lines = scale.memory_table(COUNTS, [1, 8], 512, 4, 1, False)
    wanted = memory(10**9, 10**8, strategy="zero2", ranks=8, activations=4 * GIB)["total"] / GIB
    assert cells(lines, "zero2")[1].rstrip(" |") == f"{wanted:.1f}"
    less = scale.memory_table(COUNTS, [1, 8], 512, 4, 1, True)
    kept, left = (float(cells(found, "ddp")[1].rstrip(" |")) for found in (lines, less))
    assert kept - left == pytest.approx(0.3, abs=0.1)  # 4 GiB, and the weights that validation puts aside instead
    assert "host" in cells(lines, "zero3_offload")[1]


def test_a_fixed_global_batch_leaves_less_for_each_gpu():
    lines = scale.speed_table(COUNTS, [1, 8, 512], CLUSTER, strategy="ddp", batch=16, global_batch=2048)
    plans = [row.split(" | ")[2] for row in lines.splitlines()[2:]]
    assert plans == ["16 x 128", "16 x 16", "4 x 1"]
    alone = float(lines.splitlines()[2].split(" | ")[3])
    assert alone == pytest.approx(1e14 / 3e12, abs=0.5)
    with pytest.raises(ValueError, match="leaves nothing for each of 512 GPUs"):
        scale.speed_table(COUNTS, [512], CLUSTER, strategy="ddp", batch=16, global_batch=256)


def test_remote_shards_come_whole_to_every_node():
    row = scale.storage_table(
        COUNTS, [64], CLUSTER, strategy="ddp", batch=16, global_batch=2048, image_bytes=98_000
    ).splitlines()[2]
    per_node, read, _, fetched, _ = (float(cell.strip(" |").replace(",", "")) for cell in row.split(" | ")[2:])
    assert read == pytest.approx(per_node * 0.1, abs=1) and fetched == pytest.approx(8 * read, abs=8)


def test_shards_and_checkpoints_by_hand():
    shards = scale.shard_table(COUNTS, 1_000_000, 1000, 16, 98_000)
    assert [cell.strip(" |") for cell in cells(shards, "pixels")] == ["100", "1,000", "100", "16,000", "1.6"]
    saved = scale.checkpoint_table(COUNTS, CLUSTER, 1)
    assert [cell.strip(" |") for cell in cells(saved, "adamw")] == ["16.0", "8"]


def test_the_slowest_link_counts():
    assert CLUSTER.link(8) == 200e9 and CLUSTER.link(16) == 1e10
    assert Cluster(1e14, bandwidth=1e12).link(16) == 200e9
    with pytest.raises(ValueError, match="above 0"):
        Cluster(0, 1)


SMALL = ["configs/quickstart.yaml", "--gpus=8", "image_size=64"]


def run(monkeypatch, capsys, *arguments: str):
    monkeypatch.setattr(sys, "argv", ["scale.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("tools/scale.py", run_name="__main__")
    return ended.value.code, capsys.readouterr()


def test_the_tool_takes_its_defaults_from_the_run_file(monkeypatch, capsys):
    seen = []
    real = scale.memory_table
    monkeypatch.setattr(scale, "memory_table", lambda *given: seen.append(given[2:]) or real(*given))
    code, out = run(monkeypatch, capsys, *SMALL, "optimizer.name=adamw8bit", "trainer.recompute=true",
                    "data.batch_size=5", "trainer.strategy=fsdp")
    assert code == 0, out.err
    assert seen == [(64, 5, 1, True, 2)] and "## Images/s, fsdp" in out.out
    code, out = run(monkeypatch, capsys, *SMALL, "trainer.recompute=true", "--no-recompute", "--batch", "3",
                    "--strategy", "zero2", "--image-size", "128")
    assert code == 0 and seen[1] == (128, 3, 1, False, 8) and "## Images/s, zero2" in out.out


@pytest.mark.parametrize("arguments, said", [
    (["configs/quickstart_vae.yaml"], "needs a run file with a denoiser, and 'quickstart_vae' has none"),
    ([*SMALL, "--shard-images", "0"], "must be at least 1, not 10000000, 0 and"),
    ([*SMALL, "trainer.strategy=ours"], "strategy 'ours' on 8 ranks; it is one of"),
])
def test_what_cannot_be_told_is_one_line(monkeypatch, capsys, arguments, said):
    code, out = run(monkeypatch, capsys, *arguments)
    assert code == 2 and out.err.startswith("error: ") and said in out.err and out.err.count("\n") == 1


def test_memory_of_a_run_file_follows_its_options(monkeypatch):
    monkeypatch.setattr(scale, "count", lambda cfg, sizes: COUNTS)
    overrides = ["image_size=512", "data.batch_size=64", "trainer.precision=bf16-mixed"]
    ema = {"averages": {"main": {}}}

    def need(*more: str, **device: str) -> tuple[int, int]:
        cfg = config.plain(config.load("configs/quickstart.yaml", [*overrides, *more]))
        return scale.memory_of(cfg, 10**9, 10**8, ranks=1, ema={**ema, **device})

    total, host = need()
    assert host == 0 and total == memory(10**9, 10**8, strategy="single", ranks=1, activations=64 * GIB)["total"]
    assert need("trainer.recompute=true") == (total - 56 * GIB, 0)
    assert need("trainer.precision=32-true") == (total + 64 * GIB, 0)
    assert need(device="cpu") == (total - 4 * 10**9, 4 * 10**9)
    assert need("optimizer.name=adamw8bit") == (total - 6 * 10**9, 0)


def test_another_denoiser_has_no_estimate(monkeypatch):
    monkeypatch.setattr(scale.networks, "outlines", lambda cfg: dict.fromkeys(("unet", "vae", "text")))
    with pytest.raises(scale.NoEstimate, match="no estimate for denoiser 'unet', which has no grid"):
        scale.count({"name": "x", "denoiser": {"name": "unet"}}, [64])
