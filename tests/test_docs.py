"""What README and docs tell a reader to type works: their ``sh`` blocks run, in order, beside small models and data.

Above a block ``<!-- slow: why -->`` leaves it to the slow tests, ``<!-- not run: why -->`` only has its tools, flags
and run files checked, and ``<!-- file: NAME -->`` writes a block of any language to that file.
"""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from torchvision.io import write_png

from sb import config
from sb.data.shapes import ShapesSource
from sb.data.write import build_shards
from sb.evaluate.oracle import Oracle
from sb.evaluate.requests import make_cases, masks_at
from sb.masks import Ladder
from tests.test_tools import tool

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- (slow|not run|file): ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its mark and what the mark says, its language and its text."""

    mark: str
    note: str
    language: str
    text: str

    def commands(self) -> list[list[str]]:
        """The words of each line, continued lines joined and comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall((ROOT / page).read_text())]


RUN = [page for page in PAGES if any(b.language == "sh" and b.mark in ("", "slow") for b in blocks(page))]
SLOW = [page for page in RUN if any(b.mark == "slow" for b in blocks(page))]


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """The folder of the quickstart's VAE at its full, small width, untrained."""
    from sb.assemble import assemble

    folder = tmp_path_factory.mktemp("world")
    for split, images in (("train", 64), ("val", 8)):
        build_shards(ShapesSource(images, size_px=64, split=split), folder / "shards" / split)
    assemble(config.load(ROOT / "configs" / "quickstart_vae.yaml", [
        f"run_dir={folder}/vae", "trainer.images=4", "trainer.val_every_images=4", "trainer.progress_bar=false",
        *(f"data.{split}=[{{shards: {folder}/shards/{split}}}]" for split in ("train", "val")),
    ])).fit()
    return folder


@pytest.fixture
def place(vae, trained_model, tmp_path, monkeypatch, own_registry):
    """A folder as after ``make quickstart``, of small networks that have learned nothing, and a few photos."""
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(trained_model, tmp_path / "runs" / "quickstart")
    for name in ("shards", "vae"):
        shutil.copytree(vae / name, tmp_path / "runs" / "quickstart" / name)
    oracle = Oracle()
    oracle.accuracy = {"real": 1.0}  # as if it had learned
    oracle.save(tmp_path / "runs" / "quickstart" / "oracle.safetensors")
    cases = make_cases(4, size_px=32)
    box = masks_at(cases, Ladder([{"name": "outline"}, {"name": "box"}]), 1)[0]
    pictures = {"scene": cases[0].background, "outline": cases[0].outline * 255, "box": box * 255}
    (tmp_path / "runs" / "quickstart" / "examples").mkdir()
    for name, picture in pictures.items():
        write_png(picture, str(tmp_path / "runs" / "quickstart" / "examples" / f"{name}.png"))
    for number, case in enumerate(cases):
        photo = tmp_path / "photos" / ("train" if number else "val") / f"{number}"
        photo.parent.mkdir(parents=True, exist_ok=True)
        write_png(case.image, f"{photo}.png")
        write_png(case.outline * 255, f"{photo}.1.mask.png")
        Path(f"{photo}.1.txt").write_text("star\na blue star\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme"]:  # a page's own package
        del sys.modules[name]


def follow(page: str, marks: tuple[str, ...]) -> None:
    """Run the blocks of a page in order, each command in this process, as its tool would in one of its own."""
    for block in blocks(page):
        if block.mark == "file":
            Path(block.note).parent.mkdir(parents=True, exist_ok=True)
            Path(block.note).write_text(block.text)
        elif block.language == "sh" and block.mark in marks:
            for words in block.commands():
                assert words[0] == "python" and words[1].startswith("tools/"), f"{page}: cannot run {shlex.join(words)}"
                assert tool(Path(words[1]).stem, *words[2:]) == 0, f"{page}: {shlex.join(words)}"


@pytest.mark.parametrize("page", RUN)
def test_commands_run(page, place):
    follow(page, ("",))


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_slow_commands_run_too(page, place):
    follow(page, ("", "slow"))


@pytest.mark.parametrize("page", PAGES)
def test_what_commands_name_is_there(page):
    for words in [words for block in blocks(page) if block.language == "sh" for words in block.commands()]:
        for name in [word for word in words if re.fullmatch(r"(tools|configs|tests)/[\w/.]+", word)]:
            assert (ROOT / name).is_file(), f"{page}: there is no {name}"
        if words[0] == "python":
            text = (ROOT / words[1]).read_text()
            for flag in [word.partition("=")[0] for word in words if word.startswith("--")]:
                named = any(f'"{name}"' in text for name in (flag, flag.removeprefix("--")))
                assert named, f"{page}: {words[1]} has no {flag}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / page).read_text()):
        name, _, heading = target.partition("#")
        there = (ROOT / page).parent / name if name else ROOT / page
        assert there.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page}: {target}"


def test_a_broken_command_is_seen(place, tmp_path):
    command = "python tools/explain_config.py configs/quickstart.yaml \\\n    nmae=x"
    (tmp_path / "page.md").write_text(f"```sh\n{command}\n```\n")
    with pytest.raises(AssertionError, match="explain_config.py configs/quickstart.yaml nmae=x"):
        follow(str(tmp_path / "page.md"), ("",))
