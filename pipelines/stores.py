"""The stores that a use case works on, opened when first used."""

from __future__ import annotations

from functools import cached_property

import sqlalchemy as sa

from pipelines.catalog import open_catalog
from pipelines.corpus.index import VectorIndex, open_index
from pipelines.environment import Environment


class Stores:
    """Catalog and vector index of one environment."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @cached_property
    def catalog(self) -> sa.Engine:
        """The SQL catalog, created if there is none."""
        return open_catalog(self.environment.catalog_url)

    @cached_property
    def index(self) -> VectorIndex:
        """The vector index: embedded, or a server."""
        return open_index(self.environment)

    def close(self) -> None:
        """Give back connections; the next use opens them anew."""
        if "catalog" in self.__dict__:
            self.catalog.dispose()
            del self.__dict__["catalog"]
        self.__dict__.pop("index", None)
