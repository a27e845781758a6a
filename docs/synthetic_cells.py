"""Draws the README's picture of synthetic cells: `python docs/synthetic_cells.py`."""

from pathlib import Path

import numpy as np

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms

COLUMNS, SIDE = 8, 150

config = SyntheticConfig()
first_hem = config.num_images // 2
rows = []
for start in (0, first_hem):
    step = first_hem // COLUMNS
    cells = [synthetic.draw(config, start + i * step) for i in range(COLUMNS)]
    cut = [transforms.centre_square(cell, 300) for cell in cells]
    rows.append(np.hstack([transforms.resize(cell, SIDE) for cell in cut]))
picture = Path(__file__).with_suffix(".png")
picture.write_bytes(transforms.encode_png(np.vstack(rows), level=9))
