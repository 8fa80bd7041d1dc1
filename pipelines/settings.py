"""The base of everything that a use case's YAML can say."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Settings(BaseModel):
    """Frozen, described, and strict about unknown fields, so that a typing error is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema that `dg check yaml` uses, where optional fields too say what is wrong with a value."""
        schema = handler(core_schema)
        for field in handler.resolve_ref_schema(schema).get("properties", {}).values():
            match field.get("anyOf"):
                case [meant, {"type": "null"} as null]:
                    del field["anyOf"]
                    field.update({"if": null, "then": {}, "else": meant})
        return schema


class ByField:
    """Gives a union discriminated by a field a schema whose errors name what is wrong.

    A plain ``oneOf`` only says that the value fits none of the alternatives; ``if``/``then`` checks the one meant.
    """

    def __init__(self, name: str, default: str | None = None) -> None:
        self._name = name
        self._default = default

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The union's schema, rewritten."""
        schema = handler(core_schema)
        kinds: dict[str, str] = schema["discriminator"]["mapping"]
        return {
            "type": "object",
            "required": [] if self._default else [self._name],
            "properties": {self._name: {"enum": sorted(kinds)}},
            "allOf": [
                {
                    "if": {
                        "properties": {self._name: {"const": kind}},
                        "required": [] if kind == self._default else [self._name],
                    },
                    "then": {"$ref": reference},
                }
                for kind, reference in sorted(kinds.items())
            ],
        }


_VERBATIM = ("s3", "s3a", "gs", "gcs", "file", "local", "memory")  # '?' and '#' are letters of a name there


def without_credentials(url: str) -> str:
    """A path or URL as it may be shown: without user, password and query."""
    if len(links := re.split(r"::(?=[a-z0-9+]+://)", url)) > 1:  # an archive inside of another place
        return "::".join(map(without_credentials, links))
    scheme, found, _ = url.partition("://")
    if not found:
        return url
    if scheme not in _VERBATIM:
        url = re.split(r"[?#]", url, maxsplit=1)[0] if scheme.startswith("http") else url.partition("?")[0]
    # A password in a database URL may hold slashes and at-signs; in a web address the path may.
    return re.sub(r"(?<=://)[^/]*@" if "http" in scheme else r"(?<=://)[^/@:]*(?::.*)?@", "", url)
