"""Stage experiments: a whole run."""
