"""`python -m allcls_jax` is the command `allcls`."""

from allcls_jax.serving.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
