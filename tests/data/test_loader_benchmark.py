import pytest

from sb.data.loader_benchmark import benchmark_loader


def test_figures_are_of_the_same_samples(tiny, tmp_path):
    lines = []
    folder = tiny.set(tmp_path / "set", [20, 20])
    figures = benchmark_loader([folder], size_px=24, batch_size=4, images=16, passes=2, report=lines.append)
    assert set(figures) == {"bare", "loader", "decode", "ratio", "decode_ratio"} and min(figures.values()) > 0
    assert len(lines) == 2 and "images/s" in lines[0]


def test_remote_shards_are_refused(tiny, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(tiny.set(tmp_path / "set", [4]), "/slow", recursive=True)
    with pytest.raises(ValueError, match="give local shards"):
        benchmark_loader(["memory://slow"])
    memory.rm("/slow", recursive=True)
