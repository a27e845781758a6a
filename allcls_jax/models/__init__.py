"""Stage models: batches to logits."""
