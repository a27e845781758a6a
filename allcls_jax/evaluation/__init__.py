"""Stage evaluation: probabilities to numbers."""
