"""Draws what the tour needs: `python docs/draw_examples.py DIR`.

DIR gets `cells/CLASS/PATIENT/`, 24 synthetic cells of 12 synthetic patients and one of
them once more under another patient's name, and `field.png`, a synthetic microscope
field.
"""

import sys
from pathlib import Path

from allcls_jax.config import SyntheticConfig
from allcls_jax.data import synthetic, transforms
from allcls_jax.data.cells import ALL, CellFile
from allcls_jax.data.synthetic_fields import FieldSettings, draw


def main(out: Path) -> None:
    """Writes the pictures."""
    # Other patients than those that a model is trained on.
    drawn = synthetic.cells(SyntheticConfig(num_images=24, num_patients=12, seed=7))
    for cell in drawn:
        kind = "ALL" if cell.label == ALL else "HEM"
        _write(out / "cells" / kind / cell.patient / f"{cell.image_id}.png", cell)
    _write(out / "cells" / "ALL" / "2" / "again.png", drawn[0])
    field = draw(FieldSettings(), seed=100).picture
    (out / "field.png").write_bytes(transforms.encode_png(field))


def _write(path: Path, cell: CellFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cell.source.read())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
