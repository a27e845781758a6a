"""Packs a set of cell images once: `prepare_data.py SOURCE --out DIR`."""

from allcls_jax.data.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
