"""Converts VGG weights to safetensors: `convert_weights.py SOURCE --out FILE`."""

from allcls_jax.models.convert import main

if __name__ == "__main__":
    raise SystemExit(main())
