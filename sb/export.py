"""What a run leaves in ``run_dir/model``: a model that paints by itself, and a LoRA run's adapter beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sb import provenance
from sb.card import write_card
from sb.formats.own import write_folder
from sb.models.lora import ADAPTER_FILE, Adapter
from sb.models.weights import write_state

Weights = Mapping[str, Tensor]


def exporter(
    cfg: Mapping[str, Any], system: Any, training_data: Sequence[Mapping[str, Any]], adapter: Adapter | None = None
) -> Callable[[Path, Mapping[str, Weights]], None]:
    """Writes a self-contained model folder of a system: averaged weights where given, frozen parts as they are.

    cfg: the run file, whose sections go with the model. training_data: its sources and what is known of them, for
    ``meta.json`` and the card. adapter: what was added to the denoiser; the networks are written with it merged, under
    the names and sections of a model without one, and A and B in diffusers' file beside them. ``meta.json`` then says
    what they adapt, and ``also`` what was trained that the adapter's file lacks.
    """
    written: set[str] = set()  # a frozen part does not change, so once in a process is enough

    def export(folder: Path, weights: Mapping[str, Weights]) -> None:
        raw = weights["raw"]
        averaged = weights.get("ema", raw)
        sections = {**cfg, "vae": {**cfg["vae"], "scale": system.vae.scale, "shift": system.vae.shift}}
        about = {
            "name": cfg["name"], "images_seen": system.images_seen, "licence": cfg.get("licence"),
            "training_data": training_data, "versions": provenance.versions(),
        }
        if "denoiser" not in cfg:
            write_folder(folder, {"vae": _part(averaged, "vae.")}, sections, about)
            write_card(folder)
            return
        about.update(ladder=cfg["ladder"], prediction=system.schedule.prediction, tasks=system.tasks)
        text = _part(averaged, "text_tower.")
        frozen = {"vae": system.vae.state_dict()} | ({} if text else {"text": system.text.state_dict()})
        unet = {"unet": _part(averaged, "denoiser."), "unet.raw": _part(raw, "denoiser.")}
        if adapter is not None:
            about["adapter"] = {
                "rank": adapter.rank, "alpha": adapter.alpha, "of": cfg["denoiser"]["weights"],
                "also": [*adapter.also, *(["text"] if text else [])],
            }
            sections["lora"] = None
            write_state(adapter.tensors(unet["unet"]), folder / ADAPTER_FILE, adapter.header())
            unet = {name: adapter.merged(state) for name, state in unet.items()}
        states = {
            **unet, **({"text": text} if text else {}),
            **{name: state for name, state in frozen.items() if name not in written},
        }
        written.update(frozen)
        write_folder(folder, states, sections, about)
        write_card(folder)

    return export


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
