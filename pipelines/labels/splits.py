"""Which rows training never sees: decided by a hash of the row's group, so that a group is never split."""

from __future__ import annotations

import hashlib

from pipelines.errors import ConfigError
from pipelines.labels.examples import Split


def check_shares(held_out_share: float, validation_share: float) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        ConfigError: together they are 1 or more.
    """
    if held_out_share + validation_share >= 1:
        raise ConfigError(
            f"evaluation.held_out_share {held_out_share} and labels.validation_share {validation_share} leave nothing "
            "to train on; together they must be below 1"
        )


def split_of(group: str, *, held_out_share: float, validation_share: float) -> Split:
    """Test, validation or train, by where the SHA-256 of ``group`` falls between 0 and 1.

    Intake asks once for each group and keeps the answer: later shares apply to new groups only.
    """
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if place < held_out_share:
        return "test"
    return "validation" if place < held_out_share + validation_share else "train"
