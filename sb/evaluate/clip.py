"""A CLIP model that scores pictures against texts, from files.

Legend: B pictures or texts, H W pixels, D width of the shared embedding.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image


class ClipTower(nn.Module):
    """Both halves of an OpenCLIP model with its own resizing, normalising and tokenising.

    model: an architecture's name (``ViT-B-32``) with ``weights``, its file; or a folder as OpenCLIP saves it, with
    ``open_clip_config.json`` and the weights. ValueError for an unknown one and for weights that do not fit.
    """

    def __init__(self, model: str, weights: str | None = None):
        super().__init__()
        folder = Path(model).is_dir()
        if folder == (weights is not None):
            what = "is a folder and brings" if folder else "is a name and needs"
            raise ValueError(f"clip: '{model}' {what} its weights")
        if weights and not Path(weights).is_file():
            raise ValueError(f"clip: no weights at {weights}")
        name = f"local-dir:{model}" if folder else model
        try:
            self.model = open_clip.create_model(name, weights, require_pretrained=True, pretrained_text=False)
            self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # a broken or foreign file fails in any way there is
            why = (str(error).splitlines() or ["cut off"])[0][:200]
            raise ValueError(f"clip: {weights or 'its own weights'} and {model} do not make a model: {why}") from None
        self._preprocess = PreprocessCfg(**self.model.visual.preprocess_cfg)
        self._transform = image_transform_v2(self._preprocess, is_train=False)

    @property
    def preprocess_settings(self) -> dict[str, Any]:
        """How pictures are resized and normalised, as JSON holds it."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self._preprocess).items()}

    @property
    def side_px(self) -> int:
        """Side of the square that the image half looks at."""
        return int(max(self._preprocess.input_size[1:]))

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 -> (B, D), not normalised."""
        ready = torch.stack([self._transform(to_pil_image(image.cpu())) for image in images])
        return self.model.encode_image(ready.to(images.device))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to (B, D) on the CPU, not normalised."""
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenizer(list(texts)).to(device)).float().cpu()
