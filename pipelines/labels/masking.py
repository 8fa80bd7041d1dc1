"""Texts without what the use case wants masked, wherever they are kept: beside examples, feedback and reviews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipelines.labels.settings import LabelSettings


def masks(settings: LabelSettings) -> bool:
    """Whether anything is masked at all."""
    return "mask" in (settings.personal_data, settings.secrets)


def masked_texts(settings: LabelSettings, texts: Sequence[str]) -> list[str]:
    """Each text with secrets and personal data replaced by their kinds, as far as the settings say ``mask``."""
    found = list(texts)
    if not masks(settings):
        return found
    from pipelines.labels.detectors import find_personal_data, find_secrets, mask

    if settings.secrets == "mask":
        found = [mask(text, findings) for text, findings in zip(found, find_secrets(found), strict=True)]
    if settings.personal_data == "mask":
        personal = find_personal_data(found, phone_countries=settings.phone_countries)
        found = [mask(text, findings) for text, findings in zip(found, personal, strict=True)]
    return found


def masked_json(settings: LabelSettings, value: Any) -> Any:
    """``value`` with every string in it masked; names of fields stay."""
    if not masks(settings):
        return value
    texts = list(dict.fromkeys(_strings(value)))
    return _replaced(value, dict(zip(texts, masked_texts(settings, texts), strict=True)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _replaced(value: Any, by: dict[str, str]) -> Any:
    if isinstance(value, str):
        return by[value]
    if isinstance(value, list):
        return [_replaced(inner, by) for inner in value]
    return {name: _replaced(inner, by) for name, inner in value.items()} if isinstance(value, dict) else value
