"""A package of its own, so that another distribution's stray top-level ``tests`` does not take the name."""
