"""Checkpoints of the world, recognised from themselves: what they are, and their tensors by network.

Read: our own model folders; diffusers folders, whole or of one part; CompVis and runwayml single files, with their
average or their raw weights; stand-alone autoencoders; tiny autoencoders as a pair of files.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sb import config as run_files
from sb.formats import describe, names, own
from sb.formats.part import Part, raise_for
from sb.models.weights import read_header, read_state
from sb.registry import filled

EXTRAS_FILE = "smartbrush.safetensors"  # in a diffusers folder: what its parts have no place for
ABOUT_FILE = "smartbrush.json"  # in a diffusers folder: the run file's sections
ABOUT_KEY = "sb.config"  # the same in a single file's header
BESIDE = "sb."  # the same as EXTRAS_FILE in a single file, as a prefix
_EXTRAS = re.compile(  # what single files hold beside their networks
    r"(model_ema\..*|betas|alphas_.*|sqrt_.*|log_one_minus_.*|posterior_.*|logvar|scale_factor|lvlb_weights"
    r"|.*\.loss\..*|loss\..*|.*position_ids|cond_stage_model\.(model\.)?logit_scale|.*\.attn_mask"
    r"|cond_stage_model\.transformer\.text_projection\.weight)"
)
_VAE_ALONE = re.compile(r"(encoder|decoder|quant_conv|post_quant_conv)\.")
ACCEPTED = (
    "a run or model folder of ours, a diffusers folder, a Stable Diffusion .safetensors or .ckpt file, a VAE, or a "
    "folder with a tiny autoencoder's encoder and decoder files"
)


@dataclass
class Source:
    """An opened checkpoint.

    kind: what it was recognised as. config: the run file's sections that describe it, as far as it tells. parts: the
    networks in it, by ``vae``, ``text``, ``unet``. extras: entries that no network needs, by name. about: what a model
    folder of ours says of its training.
    """

    path: Path
    kind: str
    config: dict[str, Any]
    parts: dict[str, Part]
    extras: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Part:
        """One network; ValueError where the checkpoint has none."""
        if name not in self.parts:
            raise ValueError(f"{self.path} holds no {name}, only {' and '.join(self.parts)}")
        return self.parts[name]

    def sections(self) -> dict[str, Any]:
        """``config`` and, from ``configs/model/published.yaml``, what else it takes to paint.

        Raises ValueError for an SD2 single file that nobody told what it predicts.
        """
        if self.config.get("schedule", {}).get("prediction", "") is None:
            raise ValueError(
                f"{self.path} is an SD2 file and does not say what it predicts: convert_weights.py --to sb with "
                "--prediction v (768 px) or eps (512 px) makes a model that does"
            )
        return {**run_files.plain(run_files.load(run_files.CONFIGS / "model" / "published.yaml")), **self.config}

    def states(self, own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The tensors of several networks for modules with these state dicts; all that does not fit is one error."""
        raise_for([self.part(name) for name in own], list(own.values()))
        return {name: self.part(name).state(state) for name, state in own.items()}


def open_source(path: str | Path, weights: str = "ema", prediction: str | None = None) -> Source:
    """Recognise and open a published checkpoint; no tensor is copied yet.

    weights: ``ema`` or ``raw``, where a file holds both. prediction: ``eps`` or ``v``, which SD2's single files do not
    say. Raises ValueError for what is not recognised, or cannot be read without running code of its own.
    """
    path = Path(path)
    if weights not in ("ema", "raw") or prediction not in (None, "eps", "v"):
        raise ValueError(f"weights must be ema or raw, prediction eps or v; not {weights} and {prediction}")
    try:
        source = _recognised(path, weights, prediction)
    except (KeyError, IndexError, TypeError, AttributeError) as error:  # a config or file that lacks what its kind has
        raise ValueError(f"{path} is not whole: {type(error).__name__} {error}") from None
    run_files.import_plugins(source.config.get("plugins") or ())
    for section in ("vae", "text", "denoiser"):
        if section in source.config:  # where its training started from is no part of what it is
            spec = source.config[section]
            source.config[section] = {k: v for k, v in spec.items() if k not in ("weights", "pretrained")}
    told = source.config.get("schedule", {}).get("prediction")
    if prediction and told != prediction:
        raise ValueError(f"{path} says that it predicts {told}: leave out the prediction {prediction}")
    return source


def _recognised(path: Path, weights: str, prediction: str | None) -> Source:
    folder = own.find_folder(path)
    if folder is not None:
        raw = weights == "raw" or path.name == "unet.raw.safetensors"
        return Source(path, "model folder", *own.read_folder(folder, raw))
    if not path.exists():
        raise ValueError(f"no checkpoint at {path}")
    if path.is_file():
        folder = own.find_folder(path.parent.parent) if path.suffix == ".ckpt" else None
        if folder is not None:
            return Source(path, "training checkpoint", *own.read_checkpoint(path, folder, weights == "raw"))
        if path.suffix == ".ckpt" and (path.parent.parent / "versions.json").is_file():
            raise ValueError(f"{path}: its run has no model folder yet; resume it up to its next save")
        return _single_file(path, weights, prediction)
    if (path / "model_index.json").is_file():
        return _diffusers(path)
    if (path / "config.json").is_file():
        return _diffusers_part(path)
    if path.is_dir():
        pairs = _pairs(path)
        if len(pairs) > 1:
            several = ", ".join(encoder.name for encoder, _ in pairs)
            raise ValueError(f"{path} holds several autoencoders ({several}): keep one pair")
        if pairs:
            return _pair(path, *pairs[0])
    raise ValueError(f"{path} is no checkpoint that is known here: expected {ACCEPTED}")


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Files of one name but for ``encoder`` and ``decoder``; of two suffixes the safe one."""
    pairs: dict[str, tuple[Path, Path]] = {}
    for suffix in (".pt", ".pth", ".safetensors"):
        for encoder in sorted(folder.glob(f"*encoder*{suffix}")):
            decoder = encoder.with_name(encoder.name.replace("encoder", "decoder"))
            if decoder.is_file():
                pairs[encoder.stem] = encoder, decoder
    return list(pairs.values())


def _pair(path: Path, encoder: Path, decoder: Path) -> Source:
    halves = {"encoder": read_state(encoder), "decoder": read_state(decoder)}
    tensors = {f"{half}:{name}": value for half, state in halves.items() for name, value in state.items()}
    spec = describe.tiny_of_shapes(_shapes(halves["encoder"]))
    part = Part(tensors, names.sequences, f"{encoder} and {decoder.name}")
    return Source(path, "tiny autoencoder", {"vae": spec}, {"vae": part})


def _diffusers_part(path: Path) -> Source:
    config = _json(path / "config.json")
    if config.get("_class_name") == "UNet2DConditionModel":
        return Source(path, "diffusers unet", _unet_config(config, path), {"unet": _folder_part(path, names.plain())})
    if "architectures" in config:
        raise ValueError(f"{path} is one part of a model, {config['architectures']}: give the folder around it")
    part = _vae_part(path)
    part.padded = (path / ABOUT_FILE).is_file()
    about = _json(path / ABOUT_FILE) if part.padded else {"vae": describe.vae_of_config(config, str(path))}
    return Source(path, "diffusers vae", about, {"vae": part}, about=about.pop("meta", {}))


def _diffusers(path: Path) -> Source:
    """A pipeline folder; ours have a file with the run file's sections and one with what had no place."""
    text_config, tensors = _json(path / "text_encoder" / "config.json"), _folder_tensors(path / "text_encoder")
    tensors = {name: value for name, value in tensors.items() if not name.endswith("position_ids")}
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    beside = read_state(path / EXTRAS_FILE) if (path / EXTRAS_FILE).is_file() else {}
    tensors |= {name: value for name, value in beside.items() if name.startswith(BESIDE)}
    layers = int(text_config["num_hidden_layers"])
    parts = {
        "vae": _vae_part(path / "vae"), "unet": _folder_part(path / "unet", names.plain()),
        "text": Part(tensors, with_beside(names.hugging_face_clip(prefix, layers)), str(path / "text_encoder")),
    }
    if (path / ABOUT_FILE).is_file():
        parts["vae"].padded = True
        config = _json(path / ABOUT_FILE)
        return Source(path, "diffusers folder of ours", config, parts, about=config.pop("meta", {}))
    schedule = describe.schedule_of_config(_json(path / "scheduler" / "scheduler_config.json"), f"{path}/scheduler")
    unet, vae = (_json(path / name / "config.json") for name in ("unet", "vae"))
    config = {
        **_unet_config(unet, path / "unet"), "schedule": schedule, "image_size": describe.image_size(unet, vae),
        "vae": describe.vae_of_config(vae, f"{path}/vae"),
        "text": describe.text_of_config(text_config, _pad(path, text_config), f"{path}/text_encoder"),
    }
    return Source(path, "diffusers folder", config, parts)


def with_beside(layout: names.Layout) -> names.Layout:
    """A text tower's layout that keeps what it has no place for under our own names behind ``BESIDE``."""
    def of(name: str) -> names.Piece:
        piece = layout(name)
        return piece if piece.names else names.Piece((f"{BESIDE}text.{name}",))

    return of


def _unet_config(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ValueError(f"{where} has a class embedding but no {ABOUT_FILE} beside it to say what it means")
    spec = describe.unet_of_config(config, str(where))
    return _of_channels(spec, int(config["in_channels"]), int(config["out_channels"]), str(where))


def _of_channels(spec: dict[str, Any], inside: int, outside: int, where: str) -> dict[str, Any]:
    """The sections of a network without level and mask head, told from its channels."""
    kinds = {outside: "plain", 2 * outside + 1: "nine_channel"}
    if inside not in kinds:
        raise ValueError(f"{where}: {inside} channels in and {outside} out are neither text-to-image nor inpainting")
    return {
        "denoiser": {**spec, "with_level": False, "with_mask_head": False},
        "conditioning": {"name": kinds[inside], "mask_channels": 1},
    }


def _pad(path: Path, text_config: Mapping[str, Any]) -> str:
    """What fills the context after a text's end: SD1's tokenizer repeats the end token, SD2's puts id 0."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        place = path / "tokenizer" / name
        token = _json(place).get("pad_token") if place.is_file() else None
        if token:
            return "eos" if (token if isinstance(token, str) else token["content"]) == "<|endoftext|>" else "zero"
    return "eos" if text_config["hidden_act"] == "quick_gelu" else "zero"


def _vae_part(folder: Path) -> Part:
    part = _folder_part(folder, names.plain())
    if any(".query." in name for name in part.tensors):
        part.layout = names.old_diffusers_vae
    return part


def _folder_part(folder: Path, layout: names.Layout) -> Part:
    return Part(_folder_tensors(folder), layout, str(folder))


def _folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a diffusers or transformers part: one file, a set listed by an index, or an fp16 variant."""
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
        for variant in ("", ".fp16"):
            for suffix in (".safetensors", ".bin"):
                index = folder / f"{stem}{suffix}.index{variant}.json"
                if index.is_file():
                    shards = sorted(set(_json(index)["weight_map"].values()))
                    return {name: value for shard in shards for name, value in read_state(folder / shard).items()}
                if (folder / f"{stem}{variant}{suffix}").is_file():
                    return read_state(folder / f"{stem}{variant}{suffix}")
    raise ValueError(f"no weights in {folder}: expected diffusion_pytorch_model or model .safetensors or .bin")


def _single_file(path: Path, weights: str, prediction: str | None) -> Source:
    state = read_state(path)
    about = read_header(path).get(ABOUT_KEY)
    groups: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "text": {}}
    extras, strangers = [], []
    alone = not any(name.startswith("model.diffusion_model.") for name in state)
    for name, value in state.items():
        if name.startswith(f"{BESIDE}text."):
            groups["text"][name] = value
        elif _EXTRAS.fullmatch(name):
            extras.append(name)
        elif name.startswith("model.diffusion_model."):
            groups["unet"][name] = value
        elif name.startswith("first_stage_model.") or alone and _VAE_ALONE.match(name):
            groups["vae"][name] = value
        elif name.startswith("cond_stage_model."):
            groups["text"][name] = value
        else:
            strangers.append(name)
    if not groups["unet"] and not groups["vae"]:
        raise ValueError(f"{path} is no checkpoint that is known here: expected {ACCEPTED}")
    if strangers:
        raise ValueError(f"{path} does not fit this model; {len(strangers)} unexpected: {', '.join(strangers[:20])}")
    config = json.loads(about) if about else {}
    meta = config.pop("meta", {})
    parts: dict[str, Part] = {}
    readers: dict[str, Callable[..., Any]] = {"unet": _unet_of_file, "vae": _vae_of_file, "text": _text_of_file}
    for name, tensors in groups.items():
        if tensors:
            found, parts[name] = readers[name](tensors, config, str(path))
            if not about:
                config.update(found)
    if not about and "unet" in parts:
        config["schedule"] = {
            "name": "scaled_linear", **describe.BETAS, "zero_terminal_snr": False,
            "prediction": prediction or (None if config["denoiser"]["linear_projection"] else "eps"),
        }
    counters = ("model_ema.decay", "model_ema.num_updates")  # pruned files keep these two and nothing else of it
    averages = {n: value for n, value in state.items() if n.startswith("model_ema.") and n not in counters}
    if weights == "ema" and averages and "unet" in parts:
        extras = [name for name in extras if name not in averages] + list(parts["unet"].tensors)
        parts["unet"] = Part(averages, names.averaged(parts["unet"].layout), str(path))
    return Source(path, "single file of ours" if about else "single file", config, parts, extras, meta)


def _unet_of_file(tensors: dict[str, Tensor], config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Part]:
    prefix = "model.diffusion_model."
    found: dict[str, Any] = {}
    if "denoiser" not in config:
        shapes = _shapes(tensors, prefix)
        ends = shapes.get("input_blocks.0.0.weight", (0, 4)), shapes.get("out.2.weight", (4,))
        found = _of_channels(describe.unet_of_shapes(shapes, where), ends[0][1], ends[1][0], where)
    spec = filled("denoiser", config.get("denoiser") or found["denoiser"])
    return found, Part(tensors, names.compvis_unet(spec["blocks"], spec["attention"], prefix), where)


def _vae_of_file(tensors: dict[str, Tensor], config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Part]:
    prefix = "first_stage_model." if any(name.startswith("first_stage_model.") for name in tensors) else ""
    if config.get("vae", {}).get("name") == "tiny":
        return {}, Part(tensors, names.plain(prefix), where)
    shapes = _shapes(tensors, prefix)
    if any(name.startswith("encoder.layers.") for name in shapes):
        spec = describe.tiny_of_shapes(_shapes(tensors, f"{prefix}encoder.layers."))
        return {"vae": spec}, Part(tensors, names.plain(prefix), where)
    diffusers = any(".down_blocks." in f".{name}" for name in shapes)
    spec = config.get("vae") or describe.vae_of_shapes(_as_compvis(shapes) if diffusers else shapes, where)
    layout = names.plain(prefix) if diffusers else names.compvis_vae(len(filled("vae", spec)["multipliers"]), prefix)
    return {"vae": spec}, Part(tensors, layout, where)


def _as_compvis(shapes: describe.Shapes) -> describe.Shapes:
    """The entries of a lone diffusers VAE under the names that ``vae_of_shapes`` reads."""
    renamed = {re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name): s for name, s in shapes.items()}
    return {re.sub(r"mid_block\.attentions\.0", "mid.attn_1", name): s for name, s in renamed.items()}


def _text_of_file(tensors: dict[str, Tensor], config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Part]:
    open_clip = any(name.startswith("cond_stage_model.model.") for name in tensors)
    if open_clip:
        prefix = "cond_stage_model.model."
    else:
        inner = any(name.startswith("cond_stage_model.transformer.text_model.") for name in tensors)
        prefix = "cond_stage_model.transformer." + ("text_model." if inner else "")
    spec = config.get("text") or describe.text_of_shapes(_shapes(tensors, prefix), open_clip)
    layout = names.open_clip_text(prefix) if open_clip else names.hugging_face_clip(prefix, 10**6)
    return {"text": spec}, Part(tensors, with_beside(layout), where)


def _shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {n.removeprefix(prefix): tuple(v.shape) for n, v in tensors.items() if n.startswith(prefix)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in {path.parent}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no mapping")
    return content
