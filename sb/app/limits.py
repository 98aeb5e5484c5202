"""How much one request, and all of them together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body; a PNG of max_pixels must fit, for a result is sent back to paint on. max_pixels,
    max_side: of a picture. max_text: characters. steps, variations: of one request. queue: requests that arrive, wait,
    are painted or sent; the next is turned away. batch: pictures painted together, and so no more variations than this.
    arrival: seconds for a request's body. seconds: from its first byte to its answer, and again for sending that.
    preview_px: longer side of the pictures on the way. preview_seconds: between two of them.
    """

    max_bytes: int = 100_000_000
    max_pixels: int = 24_000_000
    max_side: int = 12_000
    max_text: int = 1_000
    steps: int = 100
    variations: int = 8
    queue: int = 32
    batch: int = 8
    arrival: float = 60.0
    seconds: float = 300.0
    preview_px: int = 768
    preview_seconds: float = 0.2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"limits: {name} must be more than 0, not {value}")
