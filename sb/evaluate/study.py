"""A preference study in a folder: pairs of two systems' results in random order and side, shown by a page that needs no
network.

Legend: H W pixels.
"""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sb.evaluate.lists import Case, CaseList, read_list
from sb.evaluate.photos import open_pictures
from sb.masks import dilate
from sb.pictures import image_tensor, save_png

SCHEMA = 1
KEY = "key.json"
PAGE = Path(__file__).parent / "study_page"
QUESTION = "Which picture shows what the text asks for, and looks more real?"
SHOWN_PX = 512  # a smaller input is enlarged to about this, so that its outline hides little of it
LINES = 200  # of these beside each other would fill the longer side
Pair = dict[str, Any]  # what the page shows: left, right, input (files) and text


def make_study(
    a: str | Path, b: str | Path, out: str | Path, pairs: int = 100, seed: int = 0, question: str = QUESTION,
    list_file: str | Path | None = None, data: Sequence[str] = (),
) -> None:
    """Write the folder ``out``: ``index.html`` with what it shows, and ``key.json``, which tells the sides.

    a, b: evaluation folders (``pictures/NUMBER.png`` and ``list.jsonl``), or folders of equally named PNGs; those are
    shown without text and input unless they are named by number and come with a list. data: shards of the list's
    photos. Each system is on the left in half of the pairs. ValueError where the two did not paint the same.
    """
    out, a, b = Path(out), Path(a), Path(b)
    if out.exists():
        raise ValueError(f"{out} is there already: choose another folder or remove it")
    of_a, of_b = pictures_of(a), pictures_of(b)
    names = sorted(of_a.keys() & of_b.keys())
    if not 0 < pairs <= len(names):
        raise ValueError(f"{a} and {b} have {len(names)} equally named pictures, too few for {pairs} pairs")
    cases = list_of([a, b], list_file)
    draw = random.Random(seed)
    names = draw.sample(names, pairs)
    a_left = [number % 2 == 0 for number in range(pairs)]
    draw.shuffle(a_left)
    asked = [_case(cases, name) for name in names] if cases else [None] * pairs
    inputs = open_pictures(cases, data) if cases else None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        folder = Path(shutil.copytree(PAGE, Path(aside) / out.name))
        shown: list[Pair] = []
        for number, (name, first, case) in enumerate(zip(names, a_left, asked, strict=True)):
            left, right = (of_a[name], of_b[name]) if first else (of_b[name], of_a[name])
            pair: Pair = {"text": case.text if case else None, "input": None}
            for side, path in (("left", left), ("right", right)):
                pair[side] = f"pictures/{number:03d}-{side}.png"
                save_png(picture_of(image_tensor(path)), folder / pair[side])  # the pixels alone: no name, no date
            if inputs and case:
                pair["input"] = f"pictures/{number:03d}-input.png"
                save_png(outlined(inputs.picture(case), case.mask_pixels()), folder / pair["input"])
            shown.append(pair)
        study = _digest(folder, question, shown)
        page = json.dumps({"study": study, "question": question, "pairs": shown})
        (folder / "pairs.js").write_text(f"const STUDY = {page};\n")
        key = {
            "schema": SCHEMA, "study": study, "a": str(a), "b": str(b), "seed": seed,
            "list": cases.digest if cases else None, "names": names, "a_left": a_left,
        }
        (folder / KEY).write_text(json.dumps(key, indent=1) + "\n")
        folder.rename(out)


def outlined(image: Tensor, mask: Tensor) -> Image.Image:
    """The picture (3, H, W) uint8, enlarged where it is small, with a black and a white line just outside the mask
    (1, H, W)."""
    factor = max(1, round(SHOWN_PX / max(image.shape[1:])))
    large, inside = (whole.repeat_interleave(factor, 1).repeat_interleave(factor, 2) for whole in (image, mask))
    width = max(1, round(max(large.shape[1:]) / LINES))  # px
    black = dilate(inside.float(), width)
    white = dilate(black, width)
    large = torch.where(white > inside, torch.where(black > inside, 0, 255), large)
    return picture_of(large.to(torch.uint8))


def picture_of(pixels: Tensor) -> Image.Image:
    """Of (3, H, W) uint8."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def pictures_of(folder: Path) -> dict[str, Path]:
    """The PNGs of an evaluation, or of a plain folder, by name."""
    place = folder / "pictures" if (folder / "pictures").is_dir() else folder
    found = {path.stem: path for path in place.glob("*.png")}
    if not found:
        raise ValueError(f"{place} holds no PNG pictures: it is neither an evaluation folder nor one of results")
    return found


def list_of(folders: Sequence[Path], list_file: str | Path | None = None) -> CaseList | None:
    """The list that all painted, None where there is none; ValueError where they painted two."""
    own = {path for folder in folders if (path := folder / "list.jsonl").is_file()}
    lists = [read_list(path) for path in ({Path(list_file)} if list_file else set()) | own]
    if len({found.digest for found in lists}) > 1:
        painted = " and ".join(map(str, folders))
        raise ValueError(f"{painted} were not painted for the same list: evaluate both with one list file")
    return lists[0] if lists else None


def _case(cases: CaseList, name: str) -> Case:
    if not (name.isdecimal() and int(name) < len(cases.cases)):
        raise ValueError(f"no case '{name}' in a list of {len(cases.cases)}: results are named by their number in it")
    return cases.cases[int(name)]


def _digest(folder: Path, question: str, shown: Sequence[Pair]) -> str:
    """Of all that a person is shown."""
    digest = hashlib.sha256(json.dumps([question, shown]).encode())
    for path in sorted((folder / "pictures").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
