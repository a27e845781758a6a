"""What the variations of training images are called, in the order they are applied.

`augmentation` computes them; reports and pictures tell of them in these words.
"""

import dataclasses
from collections.abc import Iterator, Mapping


@dataclasses.dataclass(frozen=True, slots=True)
class Variation:
    """One field of `AugmentConfig`.

    Attributes:
      words: what is done, with the strength in braces.
      visible: a strength at which a person sees it.
      percent: whether the strength is told in per cent.
    """

    words: str
    visible: float
    percent: bool = True

    def told(self, strength: float) -> str:
        """Returns the words with a strength and its unit."""
        shown = f"{100 * strength:g}%" if self.percent else f"{strength:g}"
        return self.words.format(shown)


VARIATIONS = {
    "dihedral": Variation("each showing one of 8 flips and quarter turns", True),
    "rotation": Variation("rotation by up to {} degrees", 45.0, percent=False),
    "scale": Variation("zoom by up to {}", 0.2),
    "shift": Variation("shift by up to {} of the side", 0.1),
    "blur": Variation("blur of up to {} pixels", 2.0, percent=False),
    "stain": Variation("haematoxylin and eosin by up to {}", 0.3),
    "brightness": Variation("brightness by up to {}", 0.2),
    "jpeg": Variation(
        "JPEG's steps up to {} times those of quality 50", 2.0, percent=False
    ),
    "mask": Variation("a black square of up to {} of the side", 0.3),
}


def tell(strengths: Mapping[str, float]) -> Iterator[str]:
    """Yields the words of each variation whose strength is not 0.

    Args:
      strengths: by the names of `AugmentConfig`; one that is missing is 0.
    """
    for name, variation in VARIATIONS.items():
        if strength := strengths.get(name, 0):
            yield variation.told(strength)
