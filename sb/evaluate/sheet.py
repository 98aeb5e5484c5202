"""A picture of several systems' results on the same requests: a row for each system, a column for each request."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from sb.evaluate.photos import open_pictures
from sb.evaluate.report import FAINT, GAP_PX, INK, PAPER, font
from sb.evaluate.study import list_of, outlined, picture_of, pictures_of
from sb.pictures import image_tensor

CELL_PX, NAME_PX, TEXT_PX = 144, 150, 40
CELL_LETTERS, NAME_LETTERS = 22, 16  # of a line that fits


def sheet(systems: Mapping[str, str | Path], count: int, data: Sequence[str] = ()) -> Image.Image:
    """The first ``count`` requests: what was asked for, with the mask outlined, and below it every system's result.

    systems: a name for each evaluation folder (``list.jsonl``, ``pictures/NUMBER.png``). data: shards of the list's
    photos. ValueError for folders of different lists, or without one, or with fewer results.
    """
    if count < 1:
        raise ValueError(f"a sheet shows at least 1 request, not {count}")
    folders = {name: Path(folder) for name, folder in systems.items()}
    cases = list_of(list(folders.values()))
    if cases is None:
        raise ValueError(f"{', '.join(map(str, folders.values()))}: no list.jsonl; evaluate with --list or --protocol")
    names = [f"{number:06d}" for number in range(count)]
    pictures = {name: pictures_of(folder) for name, folder in folders.items()}
    for name, found in pictures.items():
        if missing := sorted(set(names) - found.keys()):
            raise ValueError(f"{folders[name]} has no result {missing[0]}: ask for fewer requests than {count}")
    paper = Image.new(
        "RGB", (NAME_PX + count * (CELL_PX + GAP_PX), TEXT_PX + (1 + len(folders)) * (CELL_PX + GAP_PX)), PAPER
    )
    draw = ImageDraw.Draw(paper)
    inputs = open_pictures(cases, data)
    for row, name in enumerate(["asked for", *folders]):
        draw.multiline_text((GAP_PX, TEXT_PX + row * (CELL_PX + GAP_PX) + CELL_PX // 2 - 16),
                            _lines(name.replace("_", " "), NAME_LETTERS), INK, font(16))
    for column, name in enumerate(names):
        case = cases.cases[int(name)]
        left = NAME_PX + column * (CELL_PX + GAP_PX)
        draw.multiline_text((left, 2), _lines(case.text, CELL_LETTERS), FAINT, font(13))
        asked = outlined(inputs.picture(case), case.mask_pixels())
        results = [picture_of(image_tensor(pictures[system][name])) for system in folders]
        for row, picture in enumerate([asked, *results]):
            shrinks = max(picture.size) > CELL_PX
            fitted = ImageOps.contain(
                picture, (CELL_PX, CELL_PX), Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
            )
            paper.paste(fitted, (left, TEXT_PX + row * (CELL_PX + GAP_PX)))
    return paper


def _lines(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, letters, max_lines=2, placeholder=" ..."))
