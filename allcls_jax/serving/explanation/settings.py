"""How a map is made: the methods and what each of them needs."""

import dataclasses
import enum
from collections.abc import Sequence

from allcls_jax.errors import InputError
from allcls_jax.models import vgg

NUM_BLOCKS = 5

# Of the picture's side: the patch that hides something is 1/8 wide, moved by half.
_PATCHES = 8


class Method(enum.StrEnum):
    """How a map is made."""

    GRADCAM = "gradcam"  # Selvaraju et al. (2017)
    GRADCAM_PLUS = "gradcam++"  # Chattopadhay et al. (2018)
    INTEGRATED_GRADIENTS = "integrated_gradients"  # Sundararajan et al. (2017)
    OCCLUSION = "occlusion"  # Zeiler & Fergus, "Visualizing and Understanding …" (2014)

    @property
    def signed(self) -> bool:
        """Whether maps also show what speaks against the class explained."""
        return self in (Method.INTEGRATED_GRADIENTS, Method.OCCLUSION)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A method and what it needs; what others need is passed over.

    Attributes:
      method: of the four.
      block: 1 to 5; Grad-CAM and Grad-CAM++ look at its last convolution. None: the
        network's last block, see `in_network`.
      steps: between black and the picture, at which integrated gradients are taken.
      patch: side of the square that occlusion sets to black, pixels of the network's
        input; None: an eighth of the picture's side.
      stride: pixels by which it moves; None: half a patch.
    """

    method: Method = Method.GRADCAM
    block: int | None = None
    steps: int = 64
    patch: int | None = None
    stride: int | None = None

    def in_network(self, layers: Sequence[vgg.Layer]) -> "Settings":
        """Returns the settings with the last of these blocks, if none is named."""
        looks_at_blocks = self.method in (Method.GRADCAM, Method.GRADCAM_PLUS)
        if self.block is not None or not looks_at_blocks:
            return self
        names = [layer.name for layer in layers if isinstance(layer, vgg.Conv)]
        return dataclasses.replace(self, block=vgg.block_of(names[-1]))

    def patch_and_stride(self, size: int) -> tuple[int, int]:
        """Returns both in pixels, of pictures with this side."""
        patch = self.patch or max(1, size // _PATCHES)
        return patch, self.stride or max(1, patch // 2)

    def used(self, size: int) -> dict[str, str | int]:
        """Returns the method and what it needs, of pictures with this side."""
        patch, stride = self.patch_and_stride(size)
        own: dict[Method, dict[str, str | int]] = {
            Method.INTEGRATED_GRADIENTS: {"steps": self.steps, "baseline": "black"},
            Method.OCCLUSION: {"patch": patch, "stride": stride},
        }
        if self.method in own:
            return {"method": str(self.method)} | own[self.method]
        assert self.block is not None, "asked of settings in a network"
        return {"method": str(self.method), "block": self.block}

    def check(self, size: int) -> None:
        """Raises InputError if the settings make no sense for pictures of this side."""
        patch, stride = self.patch_and_stride(size)
        rules = (
            ("block", NUM_BLOCKS if self.block is None else self.block, 1, NUM_BLOCKS),
            ("steps", self.steps, 1, 10_000),
            ("patch", patch if self.patch is None else self.patch, 1, size),
            # A larger stride would leave pixels that no patch ever hides.
            ("stride", stride if self.stride is None else self.stride, 1, patch),
        )
        for name, value, least, most in rules:
            if not least <= value <= most:
                raise InputError(
                    f"--{name}={value}: must be from {least} to {most}; give another"
                )
