"""Stage training: logits to parameters."""
