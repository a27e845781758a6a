"""Simple classifiers, fitted and tested on the very splits of a run."""
