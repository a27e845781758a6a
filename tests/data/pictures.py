"""Pictures of drawn cells whose mask is known, and their encoding."""

import io

import numpy as np
from PIL import Image

SIDE = 450


def encode(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """The whole file; Pillow takes the options."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def cell_mask(side: int = SIDE) -> np.ndarray:
    """An off-centre ellipse with a hole in it, true inside."""
    y, x = np.mgrid[:side, :side] / side
    ellipse = ((y - 0.52) / 0.28) ** 2 + ((x - 0.47) / 0.22) ** 2 < 1
    return ellipse & ~((y - 0.45) ** 2 + (x - 0.5) ** 2 < 0.03**2)


def cell_image(side: int = SIDE, *, level: float = 90, seed: int = 0) -> np.ndarray:
    """A purple cell with smooth stain on exact black; its mask is `cell_mask`."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.random((12, 12)).astype(np.float32))
    stain = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    colour = np.array([0.85, 0.35, 1.0]) * level
    cell = (0.75 + 0.4 * stain)[..., None] * colour * cell_mask(side)[..., None]
    return np.clip(cell, 0, 255).round().astype(np.uint8)


def random_pixels(seed: int = 0, shape: tuple[int, ...] = (7, 5, 3)) -> np.ndarray:
    """Grey levels without any structure."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
