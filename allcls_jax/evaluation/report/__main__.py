"""The command `python -m allcls_jax.evaluation.report`."""

from allcls_jax.evaluation.report.write import main

if __name__ == "__main__":
    raise SystemExit(main())
