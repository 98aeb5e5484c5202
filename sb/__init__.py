"""sb: SmartBrush, text- and shape-guided object inpainting with latent diffusion."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``from sb import Inpainter`` without making ``import sb`` load torch."""
    if name == "Inpainter":
        from sb.inpaint import Inpainter

        return Inpainter
    raise AttributeError(f"module 'sb' has no attribute '{name}'")
