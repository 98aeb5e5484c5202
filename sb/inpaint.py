"""Inpainter: a request in, a finished picture out. Frame, encode, sample with background preservation, decode, paste.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sb import masks, pictures
from sb.colour import ColourMatch
from sb.conditioning import Conditioning
from sb.config import check_keys
from sb.denoising import Denoiser, PaintOptions, begins_filled
from sb.frame import Frame, frame_of
from sb.preview import Decode, Progress, Watch, linear_decode
from sb.registry import build, call
from sb.schedule import Schedule
from sb.types import Request, Result

SAMPLE = 64  # numbers of a tensor that a fingerprint looks at


class Inpainter:
    """Paints requests with the parts of one model. Pixels outside a request's mask come back bit for bit."""

    def __init__(
        self,
        denoiser: nn.Module,
        vae: Any,
        text: Any,
        schedule: Schedule,
        ladder: masks.Ladder,
        conditioning: Conditioning,
        sampler: Callable[..., Tensor],
        options: PaintOptions = PaintOptions(),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        about: dict[str, Any] | None = None,
        tasks: Mapping[str, bool] | None = None,
        native_px: int | None = None,
        preview: Decode | None = None,
    ):
        """about: what the model folder says of itself. dtype: of the autocast that networks run in. tasks: those that
        the denoiser is told of, in the order of its rows, and whether they paint an object. native_px: the side of the
        pictures that it was trained on; in larger ones a part is painted. preview: a quick decoder of the same latents,
        for pictures on the way."""
        self.denoiser, self.vae, self.text = denoiser, vae, text
        self.schedule, self.ladder, self.conditioning, self.sampler = schedule, ladder, conditioning, sampler
        self.options, self.device, self.dtype = options, torch.device(device), dtype
        self.about, self.tasks, self.native_px, self.preview = about or {}, dict(tasks or {}), native_px, preview
        self.grid = int(getattr(denoiser, "grid", 1))  # the latent size must be a multiple of this

    @classmethod
    def load(
        cls, path: str, device: str = "auto", dtype: str | None = None, compiled: bool = False,
        preview: str | None = None,
    ) -> "Inpainter":
        """The Inpainter of a MODEL, as ``sb.assemble.load_inpainter`` describes it."""
        import importlib  # the loader stands above this module and is bound at call time

        return importlib.import_module("sb.assemble").load_inpainter(path, device, dtype, compiled, preview)

    def __call__(
        self,
        image: Any,
        mask: Any,
        text: str,
        precision: float | str = 1.0,
        seed: int = 0,
        negative: str = "",
        task: str = "",
        **options: Any,
    ) -> Result:
        """Paint ``text`` into ``mask`` of ``image`` (PIL pictures, paths or arrays; white or 1 = generate)."""
        level = masks.level_of(precision, self.ladder.num_levels)
        image, mask = pictures.image_tensor(image), pictures.mask_tensor(mask)
        return self.paint([Request(image, mask, text, level, seed, negative, task)], **options)[0]

    def frame(self, mask: Tensor, **options: Any) -> Frame:
        """The part of a picture that the model is shown for a mask (1, H, W); requests that it sees at one ``size`` can
        share a batch."""
        chosen = replace(self.options, **options)
        return frame_of(mask, self.native_px, chosen.context, chosen.max_zoom)

    def fingerprint(self) -> str:
        """A digest of the networks: a sample of every tensor, which tells any two trained models apart."""
        digest = hashlib.sha256()
        for part in (self.denoiser, self.vae, self.text):
            for name, value in part.state_dict().items():
                sample = value.detach().flatten()[:SAMPLE].float().cpu()
                digest.update(f"{name} {tuple(value.shape)}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def paint(self, requests: Sequence[Request], watch: Watch | None = None, **options: Any) -> list[Result]:
        """Results in the order of the requests; those that the model sees at one size share a batch.

        watch: called with a ``Progress`` before every step of every batch; what it raises ends the painting.
        Raises ValueError for a request that does not fit its picture, or an unknown or impossible option.
        """
        check_keys("inpaint", options, [field.name for field in fields(PaintOptions)])
        chosen: PaintOptions = call("inpaint", PaintOptions, {**vars(self.options), **options})
        match = build("colour_match", {"name": chosen.colour_match})
        own = next(iter(self.tasks), "")  # "" is the model's first task
        requests = [replace(request, task=request.task or own) for request in requests]
        results: dict[int, Result] = {}
        frames: list[Frame] = []
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, request in enumerate(requests):
            request.check(self.ladder.num_levels)
            if request.task:
                check_keys("task: this model", [request.task], self.tasks)
            frames.append(self.frame(request.mask, **options))
            by_size.setdefault(frames[-1].size, []).append(index)
        for indices in by_size.values():
            picked, placed = [requests[i] for i in indices], [frames[i] for i in indices]
            for index, result in zip(indices, self._paint(picked, placed, chosen, match, watch, indices), strict=True):
                results[index] = result
        return [results[index] for index in range(len(requests))]

    def _paint(
        self, requests: list[Request], frames: list[Frame], options: PaintOptions, match: ColourMatch,
        watch: Watch | None, places: Any,
    ) -> list[Result]:
        clock = _Clock()
        height, width = frames[0].size
        pairs = list(zip(requests, frames, strict=True))
        shown, marked = [f.shown(r.image) for r, f in pairs], [f.shown_mask(r.mask) for r, f in pairs]
        fill = build("fill", {"name": options.fill})
        filled = [i for i, request in enumerate(requests) if begins_filled(request, self.tasks, options)]
        for i in filled:
            shown[i] = fill(shown[i], marked[i])
        image = torch.stack(shown).to(self.device)  # (B, 3, h, w) uint8
        mask = torch.stack(marked).to(self.device)
        padded_mask = self._pad(mask.float(), value=0.0)
        padded = self._pad(image.float()) / 127.5 - 1
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            fitted = watch is not None and self.preview is None  # a preview's matrix, on the picture's own latents
            whole = fitted or bool(filled)  # a fill stands in the picture's own latents
            make = self.conditioning.canvas if whole else self.conditioning.canvas_to_paint
            canvas = make(self.vae.latents, padded, padded_mask, self.vae.factor)
            denoise = Denoiser(
                self.denoiser, self.text, self.schedule, self.conditioning, requests, self.tasks, canvas, options
            )
            if watch is not None:
                decode = self.preview or linear_decode(canvas.clean, padded)
                denoise.watch = partial(self._tell, watch, places, pairs, decode, options.steps)
            clock.lap("encode")
            noise = torch.stack([_noise(r.seed, canvas.clean.shape[1:]) for r in requests]).to(self.device)
            start = self.conditioning.start(canvas, noise)
            latents = self.sampler(denoise, start, self.schedule, steps=options.steps)
            clock.lap("sample")
            picture = self.vae.picture(self.conditioning.finished(latents, canvas)).float()
        decoded = _levels(picture)[..., :height, :width].cpu()
        predicted = denoise.predicted_pixels(self.vae.factor)
        seen = [None] * len(pairs) if predicted is None else list(predicted[..., :height, :width].float().cpu())
        threshold = denoise.threshold.cpu()
        results = [
            self._finished(*pairs[i], decoded[i], seen[i], float(threshold[i]), options, match)
            for i in range(len(pairs))
        ]
        clock.lap("decode")
        for result in results:
            result.seconds.update(clock.seconds)
        return results

    def _finished(
        self, request: Request, frame: Frame, decoded: Tensor, predicted: Tensor | None, threshold: float,
        options: PaintOptions, match: ColourMatch,
    ) -> Result:
        """What the model made of a frame, pasted into the request's picture at the picture's own resolution."""
        picture, mask = frame.cut(request.image).float(), frame.cut(request.mask)
        decoded = frame.unscaled(decoded).clamp(0, 255)
        feather_px = options.feather_px
        if not self.tasks.get(request.task, True):
            predicted, feather_px = None, 0  # a fade would leave the rim of what is erased
        if predicted is not None:
            predicted = frame.unscaled(predicted).clamp(0, 1) * mask
        weight = masks.paste_mask(
            mask[None], predicted[None] if options.use_predicted and predicted is not None else None,
            threshold=threshold, dilate_px=options.dilate_px, feather_px=feather_px,
        )[0]
        matched = match(decoded, picture, (weight > 0).float())
        blend = (picture + weight * (matched - picture)).round().clamp(0, 255)
        pixels = torch.where(mask > 0, blend, picture).to(torch.uint8)
        return Result(
            frame.put_back(pixels, request.image), frame.put_back(decoded.round().to(torch.uint8), request.image),
            None if predicted is None else frame.put_back(predicted, torch.zeros(request.mask.shape)), request.seed,
        )

    @staticmethod
    def _tell(
        watch: Watch, places: Sequence[int], pairs: Sequence[tuple[Request, Frame]], decode: Decode, steps: int,
        step: int, x0: Tensor | None,
    ) -> None:
        def draw() -> list[Tensor]:
            if x0 is None:
                return [request.image for request, _ in pairs]
            drawn = []
            for (request, frame), seen in zip(pairs, _levels(decode(x0).float()).cpu(), strict=True):
                part = frame.unscaled(seen[:, : frame.size[0], : frame.size[1]]).clamp(0, 255).round().to(torch.uint8)
                mask = frame.cut(request.mask)
                drawn.append(frame.put_back(torch.where(mask > 0, part, frame.cut(request.image)), request.image))
            return drawn

        watch(Progress(places, step, steps, draw))

    def _pad(self, x: Tensor, value: float | None = None) -> Tensor:
        """Grow to the grid on the right and below: by repeating the edge, or with a value."""
        step = self.vae.factor * self.grid
        right, below = -x.shape[-1] % step, -x.shape[-2] % step
        if value is None:
            return F.pad(x, (0, right, 0, below), mode="replicate")
        return F.pad(x, (0, right, 0, below), value=value)


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _levels(picture: Tensor) -> Tensor:
    """[-1, 1] -> whole grey levels, floats."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round()


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    """A request's own noise (C, h, w), the same whatever it is batched with."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
