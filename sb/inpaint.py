"""Inpainter: a request in, a finished picture out. Encode, sample with background preservation, decode, paste.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sb import masks, pictures
from sb.conditioning import Canvas, Conditioning
from sb.config import check_keys
from sb.guidance import combine
from sb.schedule import Schedule
from sb.types import Condition, Denoised, Request, Result


@dataclass(frozen=True)
class PaintOptions:
    """How a request is painted; the run file's ``inpaint:`` section, and overridable per call.

    steps: denoising steps. guidance: classifier-free scale, 1 = off. use_predicted: preserve the background by the
    predicted mask, while sampling and in the paste. preserve_from: the fraction of the steps after which the
    predicted mask is trusted (before, the hole is noise and the mask unknowable). threshold: probability from which
    a place counts as object in a coarse mask; from level 1 down to the outline it falls to 0, for there the user's
    mask is the object. dilate_cells, dilate_px: how far the predicted object is grown in latents and in the
    picture. feather_px: width of the paste's fade.
    """

    steps: int = 20
    guidance: float = 4.0
    use_predicted: bool = True
    preserve_from: float = 0.5
    threshold: float = 0.5
    dilate_cells: int = 1
    dilate_px: int = 1
    feather_px: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance < 0 or not 0 <= self.preserve_from <= 1 or not 0 <= self.threshold <= 1:
            raise ValueError(f"inpaint: needs steps >= 1, guidance >= 0, fractions in [0, 1]; got {self}")
        if min(self.dilate_cells, self.dilate_px, self.feather_px) < 0:
            raise ValueError(f"inpaint: dilate_cells, dilate_px and feather_px must be 0 or more; got {self}")


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
        tasks: Sequence[str] = (),
    ):
        """about: what the model folder says of itself. dtype: of the autocast that networks run in. tasks: their names,
        in the order of the denoiser's task rows."""
        self.denoiser, self.vae, self.text = denoiser, vae, text
        self.schedule, self.ladder, self.conditioning, self.sampler = schedule, ladder, conditioning, sampler
        self.options, self.device, self.dtype = options, torch.device(device), dtype
        self.about, self.tasks = about or {}, list(tasks)
        self.grid = int(getattr(denoiser, "grid", 1))  # the latent size must be a multiple of this

    @classmethod
    def load(cls, path: str, device: str = "auto") -> "Inpainter":
        """The Inpainter of a run folder, its ``model`` folder, or one file of a model folder."""
        import importlib  # the loader stands above this module and is bound at call time

        return importlib.import_module("sb.assemble").load_inpainter(path, device)

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

    @torch.no_grad()
    def paint(self, requests: Sequence[Request], **options: Any) -> list[Result]:
        """Results in the order of the requests; those of one picture size share a batch.

        Raises ValueError for a request that does not fit its picture, or an unknown option.
        """
        check_keys("inpaint", options, [field.name for field in fields(PaintOptions)])
        chosen = replace(self.options, **options)
        results: dict[int, Result] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, request in enumerate(requests):
            request.check(self.ladder.num_levels)
            if request.task:
                check_keys("task: this model", [request.task], self.tasks)
            by_size.setdefault(tuple(request.image.shape[1:]), []).append(index)
        for indices in by_size.values():
            for index, result in zip(indices, self._paint([requests[i] for i in indices], chosen), strict=True):
                results[index] = result
        return [results[index] for index in range(len(requests))]

    def _paint(self, requests: list[Request], options: PaintOptions) -> list[Result]:
        clock = _Clock()
        height, width = requests[0].image.shape[1:]
        image = torch.stack([r.image for r in requests]).to(self.device)  # (B, 3, H, W) uint8
        mask = torch.stack([r.mask for r in requests]).to(self.device)
        padded_image, padded_mask = self._pad(image.float()), self._pad(mask.float(), value=0.0)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            canvas = self.conditioning.canvas(
                self.vae.latents, padded_image / 127.5 - 1, padded_mask, self.vae.factor
            )
            denoise = _Denoiser(self, requests, canvas, padded_mask, options)
            clock.lap("encode")
            noise = torch.stack([_noise(r.seed, canvas.clean.shape[1:]) for r in requests]).to(self.device)
            start = self.conditioning.start(canvas, noise)
            latents = self.sampler(denoise, start, self.schedule, steps=options.steps)
            clock.lap("sample")
            picture = self.vae.picture(self.conditioning.finished(latents, canvas)).float()
        decoded = ((picture.clamp(-1, 1) + 1) * 127.5).round()[..., :height, :width]
        predicted = denoise.predicted_pixels()
        if predicted is not None:
            predicted = predicted[..., :height, :width] * mask
        weight = masks.paste_mask(
            mask, predicted if options.use_predicted else None,
            threshold=denoise.threshold, dilate_px=options.dilate_px, feather_px=options.feather_px,
        )
        blend = (image + weight * (decoded - image)).round().clamp(0, 255).to(torch.uint8)
        pixels = torch.where(mask > 0, blend, image).cpu()
        clock.lap("decode")
        return [
            Result(
                pixels[i], decoded[i].to(torch.uint8).cpu(), None if predicted is None else predicted[i].cpu(),
                request.seed, dict(clock.seconds),
            )
            for i, request in enumerate(requests)
        ]

    def _pad(self, x: Tensor, value: float | None = None) -> Tensor:
        """Grow to the grid on the right and below: by repeating the edge, or with a value."""
        step = self.vae.factor * self.grid
        right, below = -x.shape[-1] % step, -x.shape[-2] % step
        if value is None:
            return F.pad(x, (0, right, 0, below), mode="replicate")
        return F.pad(x, (0, right, 0, below), value=value)


class _Denoiser:
    """``denoise(x, t)`` for a sampler: clean background in, guidance, predicted mask, clean background out."""

    def __init__(
        self, parts: Inpainter, requests: Sequence[Request], canvas: Canvas, mask: Tensor, options: PaintOptions
    ):
        self.parts, self.canvas, self.options = parts, canvas, options
        self.mask = mask  # (B, 1, H, W) on the grid
        self.calls = 0
        self.predicted: Tensor | None = None  # (B, k, h, w), the running mask of the object
        level = torch.tensor([r.level for r in requests], device=canvas.clean.device)
        self.threshold = options.threshold * level.clamp(max=1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        rows = [parts.tasks.index(r.task) if r.task else 0 for r in requests]
        task = torch.tensor(rows, device=canvas.clean.device)
        texts = [r.text for r in requests]
        self.guided = options.guidance != 1.0
        if self.guided:
            texts += [r.negative for r in requests]
            level, task = level.repeat(2), task.repeat(2)
        features = parts.text.encode(texts)
        self.cond = Condition(features.tokens, features.pooled, level, task)

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        parts, canvas = self.parts, self.canvas
        x = parts.conditioning.entering(x, canvas)
        network_input = parts.conditioning.network_input(x, canvas)
        if self.guided:
            network_input = torch.cat([network_input, network_input])
            t = torch.cat([t, t])
        prediction, logits = parts.denoiser(network_input, t, self.cond)
        count = len(x)
        both = [
            Denoised(
                parts.schedule.x0_of(x, prediction[part], t[:count]), None if logits is None else logits[part].float()
            )
            for part in (slice(0, count), slice(count, None))[: 1 + self.guided]
        ]
        answer = combine(both[0], both[-1], self.options.guidance) if self.guided else both[0]
        region = canvas.hole
        if answer.mask_logits is not None:
            self.predicted = answer.mask_logits.sigmoid()
            if self.options.use_predicted and self.calls >= self.options.preserve_from * self.options.steps:
                region = region * self._object_cells(self.predicted)
        self.calls += 1
        return Denoised(parts.conditioning.put_back(answer.x0, canvas, region), answer.mask_logits)

    def predicted_pixels(self) -> Tensor | None:
        """The last predicted mask at image resolution (B, 1, H, W), or None without a head."""
        if self.predicted is None:
            return None
        return masks.head_to_pixels(self.predicted, self.parts.vae.factor)

    def _object_cells(self, predicted: Tensor) -> Tensor:
        cells = (masks.head_to_cells(predicted) >= self.threshold).float()
        return masks.dilate(cells, self.options.dilate_cells)


class _Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def _noise(seed: int, shape: Sequence[int]) -> Tensor:
    """A request's own noise (C, h, w), the same whatever it is batched with."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))
