"""Stage data: cells on disk to batches."""
