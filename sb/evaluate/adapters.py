"""Systems that an evaluation asks: our own models, diffusers' pipelines, text-to-image models, finished pictures.

Legend: B requests, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sb.conditioning import PlainConditioning
from sb.config import check_keys
from sb.data.write import fingerprint_of
from sb.denoising import PaintOptions
from sb.evaluate.painting import by_shape
from sb.inpaint import Inpainter
from sb.launch import find_device
from sb.models.weights import digest
from sb.pictures import image_tensor
from sb.registry import call, register
from sb.types import Request, Result

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EXTENSIONS = ("png", "jpg", "jpeg", "webp")
Options = Mapping[str, Any] | None


class Adapter(Protocol):
    """What an evaluation needs of a system. num_levels: the level that stands for a box, on which a request's counts.
    varies: whether another seed gives another picture.

    Whatever an adapter paints may depend on the request and its seed alone, not on when or in which process.
    """

    name: str
    num_levels: int
    varies: bool

    def describe(self) -> dict[str, Any]:
        """What tells this system from others, as JSON holds it: a started evaluation goes on with an equal one only."""

    def paint(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[Result]:
        """Results in the order of the requests; numbers: the requests' places in their list."""


@register("adapter", "own")
class Own:
    """A run or model folder of ours, or a published checkpoint that ``Inpainter.load`` reads. options: of painting."""

    name, varies = "own", True

    def __init__(self, system: str, options: Options = None, device: str = "auto", dtype: str | None = None):
        self.painter = Inpainter.load(system, device, dtype)
        self.painter.options = call("inpaint", PaintOptions, {**vars(self.painter.options), **(options or {})})
        self.system, self.num_levels = system, self.painter.ladder.num_levels

    def describe(self) -> dict[str, Any]:
        """With the networks' fingerprint and all that painting was told."""
        return {
            "name": self.name, "system": Path(self.system).name, "weights": self.painter.fingerprint(),
            "images_seen": self.painter.about.get("images_seen"), "options": vars(self.painter.options),
            "dtype": str(self.painter.dtype).removeprefix("torch."),
        }

    def paint(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[Result]:
        """By the Inpainter."""
        return self.painter.paint(requests)


@register("adapter", "blended")
class Blended(Own):
    """A text-to-image model that inpaints by having the background put back at every step, as Blended Latent Diffusion
    (arXiv 2206.02779) does; ValueError for a model that was trained to inpaint."""

    name = "blended"

    def __init__(self, system: str, options: Options = None, device: str = "auto", dtype: str | None = None):
        super().__init__(system, options, device, dtype)
        if not isinstance(self.painter.conditioning, PlainConditioning):
            raise ValueError(
                f"{system} is trained to inpaint: adapter 'blended' takes a text-to-image model; use 'own'"
            )


@dataclass(frozen=True)
class PipelineOptions:
    """How a pipeline is called. paste: put the request's own pixels back outside the mask, as our models do."""

    steps: int = 50
    guidance: float = 7.5
    paste: bool = True


@register("adapter", "diffusers")
class Pipeline:
    """A folder that diffusers' ``AutoPipelineForInpainting`` opens, such as Stable Diffusion's nine-channel model.

    Pictures are padded to the cells of its VAE. A pipeline knows no level, and what it paints has no predicted mask.
    """

    name, num_levels, varies = "diffusers", 1, True

    def __init__(self, system: str, options: Options = None, device: str = "auto", dtype: str | None = None):
        self.options: PipelineOptions = call("diffusers", PipelineOptions, options)
        if not (Path(system) / "model_index.json").is_file():
            raise ValueError(f"{system} is no folder of a diffusers pipeline: it has no model_index.json")
        if dtype is not None:
            check_keys("diffusers: dtype", [dtype], DTYPES)
        try:
            import diffusers
        except ImportError:
            raise ValueError("adapter 'diffusers' needs the package: pip install -e '.[diffusers]'") from None
        where = find_device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.system, self.dtype = system, dtype or "fp32"
        self.version = diffusers.__version__
        self.pipe = diffusers.AutoPipelineForInpainting.from_pretrained(
            system, dtype=DTYPES[self.dtype], local_files_only=True
        ).to(where)
        self.pipe.set_progress_bar_config(disable=True)
        if getattr(self.pipe, "safety_checker", None) is not None:
            self.pipe.safety_checker = None  # it would answer some requests with a black picture

    def describe(self) -> dict[str, Any]:
        """With a checksum of every network."""
        networks = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        return {
            "name": self.name, "system": Path(self.system).name, "class": type(self.pipe).__name__,
            "weights": {name: digest(part.state_dict()) for name, part in sorted(networks.items())},
            "sampler": {"class": type(self.pipe.scheduler).__name__, **self.pipe.scheduler.config},
            "options": vars(self.options), "dtype": self.dtype, "diffusers": self.version,
        }

    def paint(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[Result]:
        """Requests of one size together, each with a generator of its own."""
        results: dict[int, Result] = {}
        for places in by_shape(requests, lambda request: request.image.shape):
            results.update(zip(places, self._paint([requests[place] for place in places]), strict=True))
        return [results[place] for place in range(len(requests))]

    def _paint(self, requests: Sequence[Request]) -> list[Result]:
        image, mask = (torch.stack([getattr(r, name) for r in requests]).float() for name in ("image", "mask"))
        height, width = image.shape[-2:]
        cell = self.pipe.vae_scale_factor
        beyond = (0, -width % cell, 0, -height % cell)
        shown = F.pad(image / 255, beyond, mode="replicate")
        with torch.no_grad():
            painted: Tensor = self.pipe(
                prompt=[r.text for r in requests], image=shown, mask_image=F.pad(mask, beyond),
                height=shown.shape[-2], width=shown.shape[-1], num_inference_steps=self.options.steps,
                guidance_scale=self.options.guidance, output_type="pt",
                generator=[torch.Generator().manual_seed(r.seed) for r in requests],
            ).images
        decoded = (painted.float().cpu()[..., :height, :width] * 255).round().clamp(0, 255).to(torch.uint8)
        pixels = torch.where(mask > 0, decoded, image.to(torch.uint8)) if self.options.paste else decoded
        return [Result(pixels[i], decoded[i], None, r.seed) for i, r in enumerate(requests)]


@register("adapter", "pictures")
class Pictures:
    """A folder of finished pictures, each called after its request's place in the list: ``000000.png``, ..."""

    name, num_levels, varies = "pictures", 1, False

    def __init__(self, system: str, options: Options = None):
        check_keys("adapter 'pictures'", options or {}, ())
        if not Path(system).is_dir():
            raise ValueError(f"no folder of pictures at {system}")
        self.folder = Path(system)

    def describe(self) -> dict[str, Any]:
        """With a fingerprint of the files' names and sizes."""
        files = sorted((path.name, path.stat().st_size) for path in self.folder.iterdir() if path.is_file())
        return {"name": self.name, "system": self.folder.name, "files": fingerprint_of(files)}

    def paint(self, requests: Sequence[Request], numbers: Sequence[int]) -> list[Result]:
        """The pictures as they are; ValueError where one is missing or of another size than its request."""
        return [self._result(request, number) for request, number in zip(requests, numbers, strict=True)]

    def _result(self, request: Request, number: int) -> Result:
        places = [self.folder / f"{picture_name(number)}.{extension}" for extension in EXTENSIONS]
        place = next((place for place in places if place.is_file()), None)
        if place is None:
            raise ValueError(f"{self.folder} holds no {places[0].name} (or {', '.join(EXTENSIONS[1:])}): every request "
                             "of the list needs its picture")
        pixels = image_tensor(place)
        if pixels.shape != request.image.shape:
            found, asked = (f"{shape[2]}x{shape[1]}" for shape in (pixels.shape, request.image.shape))
            raise ValueError(f"{place} is {found} px and its request {asked} px: paint at the size that the list gives")
        return Result(pixels, pixels, None, request.seed)


def picture_name(number: int) -> str:
    """What a request's picture is called, by its place in the list."""
    return f"{number:06d}"
