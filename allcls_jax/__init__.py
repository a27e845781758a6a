"""ALL or HEM: a leukemic cell classifier in JAX, honest about the patient.

Research use only. Not a medical device.
"""

__version__ = "0.1.0"

DISCLAIMER = "Research use only. Not a medical device."
