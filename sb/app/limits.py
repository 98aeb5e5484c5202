"""How much one request, and all of them together, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """max_bytes: of a request's body. max_pixels, max_side: of a picture. max_text: characters. steps, variations: of
    one request. queue: requests that wait; the next is turned away. batch: pictures painted together. seconds: from a
    request's arrival to its answer.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 24_000_000
    max_side: int = 12_000
    max_text: int = 1_000
    steps: int = 100
    variations: int = 8
    queue: int = 32
    batch: int = 8
    seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"limits: {name} must be more than 0, not {value}")
