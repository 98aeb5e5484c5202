import functools
import http.server
import os
import pickle
import threading

import fsspec
import pytest

from sb.data import shards as module
from sb.data.cache import FileCache
from sb.data.ledger import Broken
from sb.data.shards import ShardStore, list_shards


def everything(store):
    return {store.read(s, i).name for s, count in enumerate(store.counts) for i in range(count)}


def test_every_kind_of_address_reads_the_same_samples(tiny, tmp_path):
    folder = tiny.set(tmp_path / "set", [3, 4, 2])
    wanted = everything(ShardStore(folder))
    assert len(wanted) == 9
    for address in (
        f"{folder}/", f"{folder}/manifest.json", f"{folder}/*.tar", f"{folder}/shard-{{000000..000002}}.tar",
        f"{folder}/shard-00000[0-2].tar", " ".join(f"{folder}/shard-00000{n}.tar" for n in range(3)),
    ):
        assert everything(ShardStore(address.split())) == wanted, address
    assert ShardStore(folder).labels == {"block": 9}


def test_addresses_that_hold_nothing_or_run_commands_are_refused(tiny, tmp_path):
    for address, message in (
        ([], "empty"), ([str(tmp_path)], "no tar at"), (["pipe:cat x.tar"], "commands are not run"),
        ([str(tmp_path / "x.tar")], "there is no .*x.tar"), ([str(tmp_path / "*.tar")], "no tar at"),
    ):
        with pytest.raises(ValueError, match=message):
            list_shards(address)
    folder = tiny.set(tmp_path / "set", [1, 1])
    os.remove(f"{folder}/shard-000001.tar")
    with pytest.raises(ValueError, match="shard-000001.tar, which its manifest lists"):
        list_shards(folder)


def test_bytes_are_the_members(tiny, tmp_path):
    store = ShardStore(tiny.set(tmp_path, [3, 3]))
    raw = store.read(1, 2)
    assert raw.name == "shard-000001.tar/tiny-000005"
    assert raw.image == tiny.sample(5)["png"]
    assert pickle.loads(pickle.dumps(store)).read(1, 2) == raw


def test_open_files_are_bounded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_FILES", 3)
    store = ShardStore(tiny.set(tmp_path, [1] * 8))
    before = len(os.listdir("/proc/self/fd"))
    everything(store)
    assert len(os.listdir("/proc/self/fd")) - before <= 3
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_cut_shard_lost_is_counted_with_or_without_its_index(tiny, tmp_path):
    folder = tiny.set(tmp_path, [6])
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for _ in range(2):
        store, reasons = ShardStore(folder), []
        for sample in range(6):
            try:
                store.read(0, sample)
                reasons.append("")
            except Broken as error:
                reasons.append(error.reason)
                assert error.name.startswith("shard-000000.tar/")
        assert 0 < reasons.count("") < 6 and set(reasons) <= {"", "truncated", "missing_key"}
        (tmp_path / "shard-000000.index.json").unlink()


@pytest.fixture
def remote(tiny, tmp_path):
    """The same set as a folder and in fsspec's memory."""
    folder = tiny.set(tmp_path / "set", [3, 3, 3, 3])
    memory = fsspec.filesystem("memory")
    memory.put(folder, "/remote-set", recursive=True)
    yield folder, "memory://remote-set", memory
    memory.rm("/remote-set", recursive=True)


def test_remote_shards_come_through_a_bounded_cache(remote, tmp_path):
    folder, address, memory = remote
    size = os.path.getsize(f"{folder}/shard-000000.tar")
    cache = tmp_path / "cache"
    store = ShardStore(address, cache_dir=cache, cache_gib=2.5 * size / 2**30)
    assert everything(store) == everything(ShardStore(folder))
    kept = [p for p in cache.iterdir() if not p.name.startswith(".")]
    assert sum(p.stat().st_size for p in kept) <= 2.5 * size
    assert not list(cache.glob(".part-*"))
    assert everything(ShardStore(f"{address}/*.tar", cache_dir=cache)) == everything(ShardStore(folder))


def test_a_shard_that_cannot_be_fetched_is_counted_as_unreachable(remote, tmp_path, monkeypatch):
    _, address, memory = remote
    monkeypatch.setattr("sb.data.cache.time.sleep", lambda seconds: None)
    store = ShardStore(address, cache_dir=tmp_path / "cache")
    memory.rm("/remote-set/shard-000002.tar")
    memory.pipe("/remote-set/shard-000003.tar", b"short")  # another size than the manifest's
    for shard in (2, 3):
        with pytest.raises(Broken, match="unreachable"):
            store.read(shard, 0)
    assert store.read(0, 0).image and not list((tmp_path / "cache").glob("*shard-000003.tar"))


def test_an_unreachable_shard_is_asked_for_once_a_minute(remote, tmp_path, monkeypatch):
    _, address, memory = remote
    asked, now = [], [1000.0]
    monkeypatch.setattr("sb.data.cache.time.sleep", asked.append)
    monkeypatch.setattr("sb.data.shards.time.monotonic", lambda: now[0])
    store = ShardStore(address, cache_dir=tmp_path / "cache")
    body = memory.cat("/remote-set/shard-000001.tar")
    memory.pipe("/remote-set/shard-000001.tar", b"short")
    for sample in (0, 1, 2):
        with pytest.raises(Broken, match="unreachable"):
            store.read(1, sample)
    assert len(asked) == 2  # the pauses between three tries, once
    memory.pipe("/remote-set/shard-000001.tar", body)
    now[0] += 61
    assert store.read(1, 0).image


def test_a_damaged_remote_index_is_made_again(remote, tmp_path):
    folder, address, memory = remote
    damaged = b'{"schema_version": 1, "tar_bytes": 9, "samples": [{"key": 5}]}'
    memory.pipe("/remote-set/shard-000001.index.json", damaged)
    assert everything(ShardStore(address, cache_dir=tmp_path / "cache")) == everything(ShardStore(folder))


def test_every_extension_of_a_jpeg_is_read(tiny, tmp_path):
    for extension in ("jpg", "jpeg"):
        store = ShardStore(tiny.set(tmp_path / extension, [1], extension=extension))
        assert store.read(0, 0).image[:2] == b"\xff\xd8"


def test_fetching_ahead_fills_the_cache(remote, tmp_path):
    _, address, memory = remote
    store = ShardStore(address, cache_dir=tmp_path / "cache")
    store.fetch_ahead([1, 3])
    store._ahead.join()
    memory.rm("/remote-set/shard-000003.tar")
    assert store.read(3, 0).image


def test_two_threads_fetch_a_file_once(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/once.bin", b"x" * 1000)
    caches = [FileCache(tmp_path, 1.0) for _ in range(4)]
    threads = [threading.Thread(target=c.get, args=("memory://once.bin",)) for c in caches]
    [t.start() for t in threads], [t.join() for t in threads]
    assert [p.read_bytes() for p in tmp_path.iterdir() if not p.name.startswith(".")] == [b"x" * 1000]
    memory.rm("/once.bin")


def test_http(tiny, tmp_path):
    pytest.importorskip("aiohttp", reason="http shards need the extra [http]")
    folder = tiny.set(tmp_path / "set", [2, 2])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.func.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        store = ShardStore(f"http://127.0.0.1:{server.server_port}", cache_dir=tmp_path / "cache")
        assert everything(store) == everything(ShardStore(folder))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
