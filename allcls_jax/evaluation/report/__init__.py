"""One page, a model card and the CLAIM checklist, from what a run has left."""
