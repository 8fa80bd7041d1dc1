"""Moved to ``pipelines.labels.reading``."""

from pipelines.labels.reading import Reading as Reading, read_examples as read_examples
