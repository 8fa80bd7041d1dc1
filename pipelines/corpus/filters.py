"""What a question may ask of metadata, and what an access rule asks of it: conditions for the index."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from math import isfinite
from typing import Any

from pipelines.corpus.index import Condition, Range
from pipelines.corpus.settings import FieldType
from pipelines.corpus.sources.base import moment
from pipelines.errors import ConfigError

BUILT_IN: Mapping[str, FieldType] = {"source": "keyword", "document_id": "keyword"}
"""Fields of every document; a declared one of the same name comes first."""

EVERYBODY = "*"

Filters = Mapping[str, Any]
"""By field: a value, a list of values (any of them), or bounds such as ``{"gte": 3, "lt": 5}``."""

_BOUNDS = ("gte", "gt", "lte", "lt")
_OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt"}
_FILTER = re.compile(r"^\s*([A-Za-z_]\w*)\s*(>=|<=|=|>|<)\s*(.*?)\s*$", re.DOTALL)
_MEANT = {
    "keyword": "text",
    "integer": "a whole number",
    "float": "a number",
    "boolean": "true or false",
    "datetime": "a date or date-time (ISO 8601)",
}
_DATE = re.compile(r"^\d{4}-\d{2}-\d{2}$")


def conditions_of(filters: Filters, declared: Mapping[str, FieldType]) -> tuple[Condition, ...]:
    """All conditions that ``filters`` set, values typed as ``declared``.

    A date alone is a whole day in UTC: equal to it is within it, and up to it includes it.

    Raises:
        ConfigError: a field that is not declared, a value of another type, or bounds where there is no order.
    """
    kinds = {**BUILT_IN, **declared}
    found = []
    for name, asked in filters.items():
        if name not in kinds:
            raise ConfigError(
                f"filter {name!r} is no field that documents have; there are {', '.join(sorted(kinds))}. More are "
                "declared in retrieval.metadata"
            )
        found.append(_condition(name, kinds[name], f"metadata.{name}" if name in declared else name, asked))
    return tuple(found)


def _condition(name: str, kind: FieldType, path: str, asked: Any) -> Condition:
    if isinstance(asked, Mapping):
        if kind in ("keyword", "boolean") or not asked or not asked.keys() <= set(_BOUNDS):
            allowed = (
                f"bounds {', '.join(_BOUNDS)}" if kind not in ("keyword", "boolean") else "a value or a list of them"
            )
            raise ConfigError(f"filter {name!r} ({kind}) is {asked!r}: give {allowed}")
        return Condition(path, ranges=(_range({bound: _typed(name, kind, value) for bound, value in asked.items()}),))
    values = list(asked) if isinstance(asked, list | tuple | set | frozenset) else [asked]
    if not values:
        raise ConfigError(f"filter {name!r} has an empty list, which nothing matches: leave it out, or name a value")
    typed = [_typed(name, kind, value) for value in values]
    if kind in ("float", "datetime"):
        return Condition(path, ranges=tuple(_range({"gte": value, "lte": value}) for value in typed))
    return Condition(path, any_of=tuple(typed))


def _range(bounds: Mapping[str, Any]) -> Range:
    given: dict[str, Any] = {}
    for bound, value in bounds.items():
        if isinstance(value, datetime) or not isinstance(value, date):
            given[bound] = value
            continue
        start = datetime.combine(value, time(), UTC)
        match bound:  # a whole day
            case "gte" | "lt":
                given[bound] = start
            case "lte":
                given["lt"] = start + timedelta(days=1)
            case "gt":
                given["gte"] = start + timedelta(days=1)
    return Range(**given)


def _typed(name: str, kind: FieldType, value: Any) -> Any:
    try:
        return _read(kind, value)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"filter {name!r} is {value!r:.80}, which is not {_MEANT[kind]}") from error


def _read(kind: FieldType, value: Any) -> Any:
    match kind, value:
        case "keyword", str():
            return value
        case "boolean", bool():
            return value
        case "boolean", str() if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        case "integer", int() if not isinstance(value, bool):
            return value
        case "integer", str():
            return int(value)
        case "float", int() | float() | str() if not isinstance(value, bool) and isfinite(float(value)):
            return float(value)
        case "datetime", datetime():
            return moment(value)
        case "datetime", date():
            return value
        case "datetime", str():
            text = value.strip()
            return date.fromisoformat(text) if _DATE.match(text) else moment(text)
    raise ValueError(value)


def parsed_filters(texts: Sequence[str]) -> dict[str, Any]:
    """``["product=pump", "product=tank", "year>=2025"]`` as filters: equal values of a field are alternatives.

    Raises:
        ConfigError: a text is none, or a field has both values and bounds.
    """
    found: dict[str, Any] = {}
    for text in texts:
        match = _FILTER.match(text)
        if match is None:
            raise ConfigError(f"filter {text!r} is not like field=value, field>=value, field>value, field<=value or <")
        name, operator, value = match.groups()
        bound = _OPERATORS.get(operator)
        asked = found.setdefault(name, {} if bound else [])
        if isinstance(asked, dict) != bool(bound) or (bound and bound in asked):
            raise ConfigError(
                f"filter {text!r} contradicts an earlier one on {name!r}: give values, or one bound a side"
            )
        if bound:
            asked[bound] = value
        else:
            asked.append(value)
    return found


def may_read(access: Sequence[str], principals: Sequence[str]) -> bool:
    """Whether a document that names ``access`` is for one of ``principals``; without any, nothing is."""
    return bool(principals) and not set(access).isdisjoint((EVERYBODY, *principals))


def readable_by(principals: Sequence[str]) -> Condition:
    """``may_read`` for the index, where there are principals."""
    return Condition("access", any_of=(EVERYBODY, *principals))
