"""A model in other systems' files, each run before it is left."""
