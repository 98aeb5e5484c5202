"""A student that paints in a few steps: consistency distillation of a guided teacher (arXiv 2310.04378).

Legend: B batch, C latent channels, h w latent cells.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sb.conditioning import Canvas
from sb.guidance import combine
from sb.models.smartbrush import Draws, SmartBrush
from sb.registry import register
from sb.types import Batch, Condition, Denoised


@register("system", "distilled")
class DistilledSmartBrush(SmartBrush):
    """SmartBrush whose denoiser learns to name, from anywhere on the teacher's way to a picture, where it ends.

    The teacher goes one DDIM step, guided, from x_t towards less noise; what the student itself, without gradient,
    answers there is what it should have answered at x_t. At the clean end the teacher's answer is the target. So the
    student needs no guidance, and few steps. teacher: the frozen denoiser. guidance: its classifier-free scale, up to
    the fraction guidance_until of its steps, which the student takes over. solver_steps: its steps from noise to
    picture.
    """

    def __init__(
        self, *, teacher: nn.Module, guidance: float = 3.0, guidance_until: float = 1.0, solver_steps: int = 50,
        **parts: Any,
    ):
        super().__init__(**parts)
        if guidance <= 0 or not 0 <= guidance_until <= 1:
            raise ValueError(
                f"system: needs guidance above 0 and guidance_until in [0, 1], not {guidance} and {guidance_until}"
            )
        if parts.get("train_text"):
            raise ValueError("system: a distilled model keeps its teacher's text tower; set system.train_text=false")
        self.guidance, self.guidance_until = guidance, guidance_until
        self.times = torch.tensor(self.schedule.walk(solver_steps))  # (solver_steps + 1,), the last is -1
        self._outside["teacher"] = teacher.eval().requires_grad_(False)

    def draw(self, pixels: Tensor, generator: torch.Generator, text_dropout: float) -> Draws:
        """Times from which the teacher steps only."""
        draws = super().draw(pixels, generator, text_dropout)
        self.times = self.times.to(draws.t.device)
        place = draws.t * (len(self.times) - 1) // len(self.schedule)  # as even over the batch as t
        return draws._replace(t=self.times[place])

    @torch.no_grad()
    def target(self, batch: Batch, canvas: Canvas, draws: Draws, x_t: Tensor, cond: Condition) -> Tensor:
        """The student's own answer one step of the teacher's further on, as a prediction at x_t (B, C, h, w)."""
        t = draws.t
        place = (self.times == t[:, None]).int().argmax(1)
        after = self.times[place + 1]
        guided = place < self.guidance_until * (len(self.times) - 1)
        x0 = self._taught(batch, canvas, x_t, t, cond, guided)
        x_after = self.schedule.mix(x0, self.schedule.eps_of(x_t, x0, t), after)
        x_after = self.conditioning.entering(x_after, canvas)
        shown = self.conditioning.network_input(x_after, canvas)
        prediction, _ = self.denoiser(shown, after.clamp(min=0), cond)
        own = self.schedule.x0_of(x_after, prediction, after.clamp(min=0))
        end = torch.where(after.view(-1, 1, 1, 1) < 0, x0, own)
        return self.schedule.target(end, self.schedule.eps_of(x_t, end, t), t)

    def _taught(
        self, batch: Batch, canvas: Canvas, x_t: Tensor, t: Tensor, cond: Condition, guided: Tensor
    ) -> Tensor:
        """The teacher's x0 at x_t, guided where ``guided`` (B,) says so."""
        nothing = self.told(batch, torch.ones_like(t, dtype=torch.bool))
        pooled = None if cond.pooled is None or nothing.pooled is None else torch.cat([cond.pooled, nothing.pooled])
        both = Condition(
            torch.cat([cond.tokens, nothing.tokens]), pooled, cond.level.repeat(2),
            None if cond.task is None else cond.task.repeat(2),
        )
        shown = self.conditioning.network_input(x_t, canvas)
        prediction, _ = self._placed()["teacher"](torch.cat([shown, shown]), torch.cat([t, t]), both)
        told, untold = (Denoised(self.schedule.x0_of(x_t, part, t), None) for part in prediction.chunk(2))
        x0 = torch.where(guided.view(-1, 1, 1, 1), combine(told, untold, self.guidance).x0, told.x0)
        return self.conditioning.put_back(x0, canvas, canvas.hole)

    def flops(self, image_size: int, pictures: bool, texts: bool) -> int:
        """Three forwards more: the teacher's two and one of the student without gradient."""
        return super().flops(image_size, pictures, texts) + super().flops(image_size, False, False)
