"""Documents from changing sources, kept in step with a vector index."""
