"""Stage serving: a trained model in a user's hands."""
