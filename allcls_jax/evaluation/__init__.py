"""Stage evaluation: probabilities to numbers."""

DISCLAIMER = "Research use only. Not a medical device."
