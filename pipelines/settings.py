"""The base of everything that a use case's YAML can say."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, described, and strict about unknown fields, so that a typing error is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
