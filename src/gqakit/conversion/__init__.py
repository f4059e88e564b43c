"""A plan carried out on a checkpoint, and checked."""
