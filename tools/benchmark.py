"""Measures the package beside its peers: `benchmark.py --out FILE.json`."""

from allcls_jax.experiments.benchmark.command import main

if __name__ == "__main__":
    raise SystemExit(main())
