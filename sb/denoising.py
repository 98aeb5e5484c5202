"""``denoise(x, t)`` for a sampler: guidance, the predicted mask and the clean background hide inside it.

Legend: B batch, C latent channels, k mask channels, h w latent cells, H W pixels, f pixels per cell side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sb import masks
from sb.conditioning import Canvas, Conditioning
from sb.guidance import combine
from sb.schedule import Schedule
from sb.types import Condition, Denoised, Request


@dataclass(frozen=True)
class PaintOptions:
    """How a request is painted; the run file's ``inpaint:`` section, and overridable per call.

    steps: denoising steps. guidance: classifier-free scale, 1 = off; guidance_from, guidance_until: the fractions of
    the steps between which it is on (arXiv 2404.07724), for a step without costs half. use_predicted: preserve the
    background by the predicted mask, while sampling and in the paste. preserve_from: the fraction of the steps after
    which the predicted mask is trusted (before, the hole is noise and the mask unknowable). threshold: probability
    from which a place counts as object in a coarse mask; from level 1 down to the outline it falls to 0, for there the
    user's mask is the object. dilate_cells, dilate_px: how far the predicted object is grown in latents and in the
    picture. feather_px: width of the paste's fade. colour_match: a registered matcher, which takes the decoder's shift
    of colours back (sb/colour.py). fill: a registered guess at what an object hides that is removed (a request without
    words, by a task without an object); fill_until: the fraction of the steps until which x0 is that guess and not the
    network's answer (sb/fill.py). context, max_zoom: in a picture larger than the model's own, the side of the part
    that is painted, in sides of the mask, and how much that part may be enlarged.
    """

    steps: int = 20
    guidance: float = 4.0
    guidance_from: float = 0.0
    guidance_until: float = 1.0
    use_predicted: bool = True
    preserve_from: float = 0.5
    threshold: float = 0.5
    dilate_cells: int = 1
    dilate_px: int = 1
    feather_px: int = 1
    colour_match: str = "none"
    fill: str = "none"
    fill_until: float = 0.5
    context: float = 2.0
    max_zoom: float = 4.0

    def __post_init__(self) -> None:
        fractions = (
            self.guidance_from, self.guidance_until, self.preserve_from, self.threshold, self.fill_until,
        )
        if not all(math.isfinite(number) for number in (self.guidance, self.context, self.max_zoom)):
            raise ValueError(f"inpaint: guidance, context and max_zoom must be finite; got {self}")
        if self.steps < 1 or self.guidance < 0 or not all(0 <= fraction <= 1 for fraction in fractions):
            raise ValueError(f"inpaint: needs steps >= 1, guidance >= 0, fractions in [0, 1]; got {self}")
        if self.guidance_from > self.guidance_until:
            raise ValueError(f"inpaint: guidance_from must not lie behind guidance_until; got {self}")
        if min(self.dilate_cells, self.dilate_px, self.feather_px) < 0:
            raise ValueError(f"inpaint: dilate_cells, dilate_px and feather_px must be 0 or more; got {self}")
        if self.context < 1 or self.max_zoom < 1:
            raise ValueError(f"inpaint: context and max_zoom must be 1 or more; got {self}")

    def calls(self, fraction: float) -> float:
        """A fraction of the steps, in steps; .28 of 25 are 7."""
        return round(fraction * self.steps, 6)


def begins_filled(request: Request, tasks: Mapping[str, bool], options: PaintOptions) -> bool:
    """Whether a request begins from a fill: one without words, by a task without an object."""
    return options.fill != "none" and not request.text and not tasks.get(request.task, True)


class Denoiser:
    """``denoise(x, t)`` for the requests of one batch: clean background in, guidance, predicted mask, clean background
    out. ``watch`` is called before every step with the steps done and the last x0, None before the first.
    """

    def __init__(
        self,
        network: nn.Module,
        text: Any,
        schedule: Schedule,
        conditioning: Conditioning,
        requests: Sequence[Request],
        tasks: Mapping[str, bool],
        canvas: Canvas,
        options: PaintOptions,
    ):
        self.network, self.schedule, self.conditioning = network, schedule, conditioning
        self.canvas, self.options = canvas, options
        self.watch: Callable[[int, Tensor | None], None] = lambda done, x0: None
        self.calls = 0
        self.x0: Tensor | None = None
        self.predicted: Tensor | None = None  # (B, k, h, w), the running mask of the object
        level = torch.tensor([r.level for r in requests], device=canvas.clean.device)
        self.threshold = options.threshold * level.clamp(max=1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        rows = [list(tasks).index(r.task) if r.task else 0 for r in requests]
        task = torch.tensor(rows, device=canvas.clean.device)
        without = [not tasks.get(r.task, True) for r in requests]
        self.no_object = torch.tensor(without, device=canvas.clean.device).view(-1, 1, 1, 1)
        filled = [begins_filled(r, tasks, options) for r in requests]
        self.filled = torch.tensor(filled, device=canvas.clean.device).view(-1, 1, 1, 1)
        guided = options.guidance != 1.0  # equal words too: a request must come out alike alone and in a batch
        features = text.encode([r.text for r in requests] + [r.negative for r in requests if guided])
        self.both = Condition(
            features.tokens, features.pooled, level.repeat(1 + guided), task.repeat(1 + guided)
        )
        count = len(requests)
        pooled = None if features.pooled is None else features.pooled[:count]
        self.cond = Condition(features.tokens[:count], pooled, level, task)

    def __call__(self, x: Tensor, t: Tensor) -> Denoised:
        canvas, options = self.canvas, self.options
        self.watch(self.calls, self.x0)
        first, last = options.calls(options.guidance_from), options.calls(options.guidance_until)
        guided = options.guidance != 1.0 and first <= self.calls < last
        x = self.conditioning.entering(x, canvas)
        shown = self.conditioning.network_input(x, canvas)
        if guided:
            prediction, logits = self.network(torch.cat([shown, shown]), torch.cat([t, t]), self.both)
        else:
            prediction, logits = self.network(shown, t, self.cond)
        count = len(x)
        answers = [
            Denoised(
                self.schedule.x0_of(x, prediction[part], t), None if logits is None else logits[part].float()
            )
            for part in (slice(0, count), slice(count, None))[: 1 + guided]
        ]
        answer = combine(answers[0], answers[-1], options.guidance) if guided else answers[0]
        region = canvas.hole
        if answer.mask_logits is not None:
            self.predicted = answer.mask_logits.sigmoid()
            if options.use_predicted and self.calls >= options.calls(options.preserve_from):
                region = region * torch.where(self.no_object, 1.0, self._object_cells(self.predicted))
        guess = self.filled & (self.calls < options.calls(options.fill_until))
        self.calls += 1
        self.x0 = self.conditioning.put_back(torch.where(guess, canvas.clean, answer.x0), canvas, region)
        return Denoised(self.x0, answer.mask_logits)

    def predicted_pixels(self, factor: int) -> Tensor | None:
        """The last predicted mask at image resolution (B, 1, H, W), or None without a head."""
        return None if self.predicted is None else masks.head_to_pixels(self.predicted, factor)

    def _object_cells(self, predicted: Tensor) -> Tensor:
        cells = (masks.head_to_cells(predicted) >= self.threshold).float()
        return masks.dilate(cells, self.options.dilate_cells)
