"""Stage evaluation: probabilities to numbers."""

from allcls_jax.command_line import DISCLAIMER

__all__ = ["DISCLAIMER"]
