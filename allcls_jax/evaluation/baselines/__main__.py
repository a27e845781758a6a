"""The command `python -m allcls_jax.evaluation.baselines`."""

from allcls_jax.evaluation.baselines.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
