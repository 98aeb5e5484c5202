"""Checkpoint files: whole or not there, and the newest that fits is found."""

import logging

import pytest
import torch

from sb.checkpoints import StraightToFile, newest, place, read


def checkpoint(images: int, **more) -> dict:
    return {"state_dict": {"w": torch.full((3,), float(images))}, "images_seen": images, "loops": {}, **more}


def fits(checkpoint, where):
    if checkpoint["state_dict"]["w"].shape != (3,):
        raise ValueError(f"{where} does not fit this model")


@pytest.fixture
def folder(tmp_path):
    """A run with three checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    for name, images in (("last", 30), ("best", 20), ("images-000000010", 10)):
        torch.save(checkpoint(images), tmp_path / "checkpoints" / f"{name}.ckpt")
    return tmp_path / "checkpoints"


def found(folder):
    return newest(folder.parent, fits)


def test_the_newest_is_found_whatever_it_is_called(folder, tmp_path):
    assert found(folder).name == "last.ckpt"
    torch.save(checkpoint(40), folder / "images-000000040.ckpt")
    assert found(folder).name == "images-000000040.ckpt"
    torch.save(checkpoint(40), folder / "last.ckpt")
    assert found(folder).name == "last.ckpt"  # of two as new, the one that is replaced first
    assert newest(tmp_path / "elsewhere", fits) is None


@pytest.mark.parametrize("damage, reason", [
    (lambda path: path.write_bytes(path.read_bytes()[:300]), "not a readable checkpoint"),
    (lambda path: path.write_bytes(b""), "not a readable checkpoint"),
    (lambda path: torch.save({"weights": 1}, path), "not a checkpoint of a run of ours"),
    (lambda path: torch.save({**checkpoint(50), "state_dict": {"w": torch.ones(4)}}, path), "does not fit"),
    (lambda path: torch.save(checkpoint(50, odd=logging.Formatter()), path), "it holds a logging.Formatter"),
])
def test_one_that_is_cut_off_or_foreign_is_passed_over_by_name(folder, caplog, damage, reason):
    damage(folder / "last.ckpt")
    assert found(folder).name == "best.ckpt"
    assert str(folder / "last.ckpt") in caplog.text and reason in caplog.text


def test_a_file_that_is_being_written_is_not_looked_at(folder):
    (folder / ".writing.ckpt").write_bytes(b"half")
    assert found(folder).name == "last.ckpt"


def test_where_none_can_be_used_the_run_is_not_started_over(folder):
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of the 3 checkpoints in .* can be resumed, the first: .*last.ckpt"):
        found(folder)


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    """A writer that silently loses bytes leaves no file and says so."""
    writer, path = StraightToFile(), tmp_path / "new" / "a.ckpt"
    writer.save_checkpoint(checkpoint(1), path)
    assert writer.failed is None and read(path)["images_seen"] == 1
    whole = torch.save

    def save(state, file):
        whole(state, file)
        file.truncate(200)

    monkeypatch.setattr(torch, "save", save)
    writer.save_checkpoint(checkpoint(2), path)
    assert isinstance(writer.failed, ValueError) and "not a readable checkpoint" in str(writer.failed)
    assert not path.exists()


def test_state_that_could_not_be_read_again_is_refused_at_once(tmp_path):
    writer = StraightToFile()
    writer.save_checkpoint(checkpoint(1, odd=logging.Formatter()), tmp_path / "a.ckpt")
    assert "it holds a logging.Formatter, where only tensors" in str(writer.failed)


def test_a_folder_that_cannot_be_written_is_said_and_not_raised(tmp_path):
    (tmp_path / "file").write_text("")
    writer = StraightToFile()
    writer.save_checkpoint(checkpoint(1), tmp_path / "file" / "a.ckpt")
    assert isinstance(writer.failed, OSError)


def test_all_names_hold_the_same_and_the_written_file_is_gone(tmp_path):
    aside = tmp_path / ".writing.ckpt"
    torch.save(checkpoint(7), aside)
    (tmp_path / "last.ckpt").write_bytes(b"older")
    place(aside, tmp_path, ["images-000000007.ckpt", "last.ckpt"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000007.ckpt", "last.ckpt"]
    assert all(read(path)["images_seen"] == 7 for path in tmp_path.iterdir())
