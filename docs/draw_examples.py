"""Draws what the tour needs: `python docs/draw_examples.py DIR`.

DIR gets `cells/`, 24 synthetic cells of 12 synthetic patients, and `field.png`, a
synthetic microscope field.
"""

import sys
from pathlib import Path

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.synthetic_fields import FieldSettings, draw


def main(out: Path) -> None:
    """Writes the pictures."""
    (out / "cells").mkdir(parents=True, exist_ok=True)
    # Other patients than those that a model is trained on.
    for cell in synthetic.cells(
        SyntheticConfig(num_images=24, num_patients=12, seed=7)
    ):
        (out / "cells" / f"{cell.image_id}.png").write_bytes(cell.source.read())
    (out / "field.png").write_bytes(
        transforms.encode_png(draw(FieldSettings(), seed=100).picture)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
