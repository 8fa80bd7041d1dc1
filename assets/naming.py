"""What every asset of a use case has in common: its key, its group, and who answers for it."""

from typing import TypedDict

from pipelines.declaration import Declaration


class Named(TypedDict):
    """Arguments of ``dg.asset`` that say which asset it is."""

    key: list[str]
    group_name: str
    owners: list[str] | None


def named(declaration: Declaration, name: str) -> Named:
    """For the asset ``<use case>/<name>``."""
    return {
        "key": [declaration.name, name],
        "group_name": declaration.name,
        "owners": [declaration.owner] if declaration.owner else None,
    }
