"""What a run is asked to paint while it trains: its own validation samples."""

from typing import Any

from sb.data.module import ShardData
from sb.data.pipeline import FixedStream, ShardLoader
from sb.inpaint import Inpainter
from sb.types import Request


def val_requests(data: ShardData, painter: Inpainter, system: Any, each: int = 4) -> dict[str, list[Request]]:
    """The first validation samples of every task as requests: their own mask, level and text, over their picture (of
    latent shards, as the VAE decodes it)."""
    if not data.val_spec:
        return {}
    samples = data.samples("val")
    count = min(data.val_images, sum(order.num_samples for order in samples.orders))
    requests: dict[str, list[Request]] = {name: [] for name in data.task_names}
    for batch in ShardLoader(FixedStream(samples, count, 16), lambda: 0):
        mask = painter.ladder(batch.outline, batch.level)
        for i, task in enumerate(batch.task.tolist()):
            name = data.task_names[task]
            wanted, told = requests[name], name if name in painter.tasks else ""
            if len(wanted) < each:
                level = float(batch.level[i])
                image = system.pictures(batch, [i])[0]
                wanted.append(Request(image, mask[i], batch.text[i], level, seed=len(wanted), task=told))
        if all(len(found) == each for found in requests.values()):
            break
    return {name: found for name, found in requests.items() if found}
