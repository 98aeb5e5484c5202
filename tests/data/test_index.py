import json

import pytest
import webdataset

from sb.data.index import index_address, index_tar, parse_index, read_index, split_name, write_index


def test_offsets_are_those_that_webdataset_reads(tiny, tmp_path):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(n) for n in range(7)])
    index, body = write_index(path), path.read_bytes()
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [s["key"] for s in index["samples"]] == [s["__key__"] for s in read]
    for mine, theirs in zip(index["samples"], read, strict=True):
        for extension, (offset, size) in mine["members"].items():
            assert body[offset : offset + size] == theirs[extension]
    assert json.loads((tmp_path / "a.index.json").read_text()) == index
    assert index["tar_bytes"] == len(body)


def test_names_split_as_webdataset_splits_them():
    assert split_name("x/a.b.JPG") == ("x/a", "b.jpg")
    assert split_name("x.y/a.json") == ("x.y/a", "json")
    assert split_name("x/README") is None and split_name(".hidden") is None


def test_made_at_first_use_and_again_when_the_tar_grew_but_kept_when_it_was_cut(tiny, tmp_path):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(0)])
    assert len(read_index(path)["samples"]) == 1
    assert (tmp_path / "a.index.json").is_file()
    tiny.tar(path, [tiny.sample(n) for n in range(9)])
    assert len(read_index(path)["samples"]) == 9
    path.write_bytes(path.read_bytes()[:5000])
    assert len(read_index(path)["samples"]) == 9


@pytest.mark.parametrize("damage", [
    b"", b"{", b"[]", b"null", b'{"schema_version": 1, "tar_bytes": null, "samples": []}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": null}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": [5]}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": [{"key": 1, "members": {}}]}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": [{"key": "a", "members": {"png": [1]}}]}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": [{"key": "a", "members": {"png": ["1", 2]}}]}',
    b'{"schema_version": 1, "tar_bytes": 9000, "samples": [{"key": "a", "members": {"png": [-1, 2]}}]}',
])
def test_a_damaged_index_is_made_again(tiny, tmp_path, damage):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(0)])
    fresh = write_index(path)
    (tmp_path / "a.index.json").write_bytes(damage)
    if damage == b"[]":
        assert parse_index(damage, "a.index.json") is None
    assert read_index(path) == fresh == json.loads((tmp_path / "a.index.json").read_text())


@pytest.mark.parametrize("numbers", [range(7, 9), range(0, 3), range(20, 29)])
def test_the_index_of_a_tar_that_was_replaced_is_made_again(tiny, tmp_path, numbers):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(n) for n in range(9)])
    write_index(path)
    wanted = [tiny.sample(n, size=(44, 44), captions=("blue",)) for n in numbers]
    tiny.tar(path, wanted)
    assert [s["key"] for s in read_index(path)["samples"]] == [s["__key__"] for s in wanted]
    assert read_index(path) == index_tar(path)


def test_a_damaged_first_header_leaves_the_index_in_use(tiny, tmp_path):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(n) for n in range(4)])
    fresh, body = write_index(path), bytearray(path.read_bytes())
    body[0] ^= 255
    path.write_bytes(body)
    assert read_index(path) == fresh


def test_a_cut_tar_without_an_index_is_read_as_far_as_it_goes(tiny, tmp_path):
    path = tmp_path / "a.tar"
    tiny.tar(path, [tiny.sample(n) for n in range(5)])
    whole = index_tar(path)["samples"]
    members = whole[2]["members"]
    body = path.read_bytes()
    path.write_bytes(body[: members["json"][0] + 10])
    assert index_tar(path)["samples"] == [*whole[:2], {"key": whole[2]["key"], "members": {"json": members["json"]}}]
    path.write_bytes(body[: members["png"][0] + 10])
    assert index_tar(path)["samples"] == whole[:3]


def test_no_tar_is_one_clear_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(ValueError, match="a.tar is not a tar"):
        read_index(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "b.index.json").write_text('{"schema_version": 9, "tar_bytes": 0, "samples": []}')
    with pytest.raises(ValueError, match="schema_version 9, this version reads 1"):
        read_index(tmp_path / "b.tar")
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path / "none.tar")


def test_address():
    assert index_address("s3://bucket/x.tar") == "s3://bucket/x.index.json"
