"""Dagster resources: configuration in, a plain domain object out, no logic.

Concept: https://docs.dagster.io/guides/build/external-resources
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from pipelines.environment import Environment
from pipelines.stores import Stores


class StoresResource(dg.ConfigurableResource[Stores]):
    """Opens the stores of a run.

    Every field is optional: what is not set comes from the environment variable of ``.env.example``, read when the run
    starts. ``dg.EnvVar`` would insist on the variable being set, and these all have defaults; and a URL with a password
    never becomes run configuration that way.
    """

    home: str | None = Field(default=None, description="Folder of the embedded stores; default: FRESHET_HOME.")
    data: str | None = Field(default=None, description="Where relative paths start; default: FRESHET_DATA.")

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Stores]:
        """The stores, closed when the step ends."""
        del context
        stores = Stores(self.environment())
        try:
            yield stores
        finally:
            stores.close()

    def environment(self) -> Environment:
        """The environment, with what is set here in the place of variables."""
        given = {"FRESHET_HOME": self.home, "FRESHET_DATA": self.data}
        return Environment.model_validate({name: value for name, value in given.items() if value is not None})
