"""The code location: every use case below ``pipelines/usecases``, and the resources that they share.

Loading does no I/O beyond reading the YAML files, and imports none of the libraries that do the work.
"""

from pathlib import Path

import dagster as dg

from resources.stores import StoresResource


def build_definitions(*, stores: StoresResource | None = None) -> dg.Definitions:
    """The definitions, with other stores where a test wants them."""
    use_cases = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(use_cases, dg.Definitions(resources={"stores": stores or StoresResource()}))


@dg.definitions
def defs() -> dg.Definitions:
    """What `dagster` and `dg` load."""
    return build_definitions()
