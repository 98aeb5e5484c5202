"""A plugin: SmartBrush whose noise follows from the samples' keys, so that ranks and batches cannot change it, and an
objective that goes wrong."""

import zlib

from sb.losses import DenoisingObjective
from sb.models.smartbrush import Draws, SmartBrush
from sb.registry import register


@register("system", "keyed_noise")
class KeyedNoise(SmartBrush):
    def step(self, batch, draws):
        each = [
            self.draw(outline[None], self.generator(zlib.crc32(key.encode()), self.images_seen // 8), 0.1)
            for outline, key in zip(batch.outline, batch.key, strict=True)
        ]
        return super().step(batch, Draws.joined(each))


@register("objective", "breaks")
class Breaks(DenoisingObjective):
    """A loss that is not finite from the third step of two batches on."""

    calls = 0

    def __call__(self, *arguments):
        losses = super().__call__(*arguments)
        self.calls += 1
        return losses if self.calls < 5 else losses._replace(loss=losses.loss * float("nan"))
