"""What a network's weights expect of its input; travels with the weights."""

import dataclasses
import json
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from allcls_jax.data import stain
from allcls_jax.errors import InputError


@dataclasses.dataclass(frozen=True, slots=True)
class Preprocessing:
    """`(image[channel order] - mean) * scale`, for uint8 RGB images.

    Before that each cell is stained as a standard cell is, where `normalise_stain` says
    so: a run's configuration decides that, never a file of pretrained weights.
    """

    channel_order: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]  # grey levels 0 to 255, in channel order
    scale: tuple[float, float, float]  # per grey level, in channel order
    # Not in its text, so that features kept before there was this field are found.
    normalise_stain: bool = dataclasses.field(default=False, repr=False)

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Returns network input.

        Args:
          images: (n, height, width, 3) RGB grey levels, uint8 or float32.

        Returns:
          The same shape in float32.
        """
        values = jnp.asarray(self.seen(images), jnp.float32)
        if self.channel_order == "bgr":
            values = values[..., ::-1]
        return (values - jnp.asarray(self.mean)) * jnp.asarray(self.scale)

    def seen(self, images: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        """Returns the pictures that the network sees: RGB, grey levels 0 to 255.

        Args:
          images: as for a call; they stay as they are unless cells are normalised.
        """
        return stain.normalise(images) if self.normalise_stain else images

    def to_json(self) -> str:
        """Returns one line of JSON, as kept in safetensors metadata."""
        return json.dumps(dataclasses.asdict(self))


# Keras' "caffe" mode, for the VGG weights of its Applications.
CAFFE = Preprocessing("bgr", (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))

# torchvision's and timm's: scaled to 0…1, then standardised by ImageNet's statistics.
TORCH = Preprocessing(
    "rgb",
    (255 * 0.485, 255 * 0.456, 255 * 0.406),
    (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
)


def preprocessing_from_json(text: str) -> Preprocessing:
    """Returns what `Preprocessing.to_json` wrote.

    Raises:
      InputError: if the text is something else.
    """
    try:
        fields = json.loads(text)
        order = fields["channel_order"]
        mean, scale = (
            tuple(float(v) for v in fields[name]) for name in ("mean", "scale")
        )
        if order not in ("rgb", "bgr") or len(mean) != 3 or len(scale) != 3:
            raise ValueError(
                "channel_order must be rgb or bgr; mean, scale have 3 values"
            )
        # Files from before there was this field have none.
        normalise_stain = fields.get("normalise_stain", False)
        if not isinstance(normalise_stain, bool):
            raise ValueError("normalise_stain must be true or false")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"preprocessing = {text!r}: not understood ({error}); write the file again "
            "with allcls convert"
        ) from error
    return Preprocessing(order, mean, scale, normalise_stain)
