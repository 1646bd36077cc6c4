"""Define the base of input schemas, the types of their fields, and the guide's error messages."""

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from quart_schema import conversion

from service.errors import Messages
from service.http.parsing import DECIMAL, INTEGER
from service.models.types import INT64

MAX_MEMBERS = 100  # of an object: pydantic creates an error for each unknown member

# quart-schema creates a TypeAdapter for each request, which costs as much as the validation.
vars(conversion)["TypeAdapter"] = lru_cache(TypeAdapter)


class Schema(BaseModel):
    """Base of input models. Refuses unknown fields, strips blanks, and converts no types."""

    model_config = ConfigDict(
        extra="forbid", strict=True, str_strip_whitespace=True, frozen=True, from_attributes=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_members(cls, data: Any) -> Any:
        """Refuse an object with more than MAX_MEMBERS members before its fields are validated."""
        if isinstance(data, dict) and len(data) > MAX_MEMBERS:
            raise ValueError(f"Holds {len(data)} fields: {MAX_MEMBERS} are the most.")
        return data


def query_integer(value: Any) -> Any:
    """Convert the text of a query parameter to an integer, for a validator of pydantic."""
    if isinstance(value, str):
        if not INTEGER.fullmatch(value) or abs(int(value)) > INT64:
            raise ValueError("Not a valid integer.")
        return int(value)
    return value


def _query_decimal(value: Any) -> Any:
    if isinstance(value, str):
        if not DECIMAL.fullmatch(value):
            raise ValueError("Not a valid number.")
        return Decimal(value)
    return value


def _query_flag(value: Any) -> Any:
    if isinstance(value, str):
        if value not in {"0", "1"}:
            raise ValueError("Must be 0 or 1.")
        return value == "1"
    return value


def _query_boolean(value: Any) -> Any:
    if isinstance(value, str):
        if value not in {"true", "false"}:
            raise ValueError("Must be true or false.")
        return value == "true"
    return value


def not_blank(value: str) -> str:
    """Return a text. Raises ValueError if it has only blanks, control and format characters."""
    if all(unicodedata.category(character)[0] in "CZ" for character in value):
        raise ValueError("Field may not be blank.")
    return value


def rfc3339(value: datetime) -> str:
    """Return an instant as RFC 3339 in UTC, with microseconds."""
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


# RFC 3339 in UTC, always with microseconds, so that sorting as text sorts by time.
Instant = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Int64 = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
QueryInteger = Annotated[int, Field(ge=-INT64, le=INT64), BeforeValidator(query_integer)]
QueryCount = Annotated[int, Field(ge=1, le=INT64), BeforeValidator(query_integer)]
QueryDecimal = Annotated[
    Decimal, BeforeValidator(_query_decimal), WithJsonSchema({"type": "number"})
]
QueryFlag = Annotated[
    bool, BeforeValidator(_query_flag), WithJsonSchema({"type": "integer", "enum": [0, 1]})
]

QueryBoolean = Annotated[
    bool, BeforeValidator(_query_boolean), WithJsonSchema({"type": "boolean", "examples": [True]})
]


def messages(error: Exception | None) -> Messages:
    """Return pydantic's errors as the guide's messages, by field. Other errors give none."""
    sentences: Messages = {}
    if isinstance(error, ValidationError):
        for item in error.errors(include_url=False):
            field = ".".join(str(part) for part in item["loc"]) or "_schema"
            sentences.setdefault(field, []).append(_sentence(item))
    return sentences


SENTENCES = {
    "missing": "Missing data for required field.",
    "extra_forbidden": "Unknown field.",
    "string_type": "Not a valid string.",
    "int_type": "Not a valid integer.",
    "bool_type": "Not a valid boolean.",
    "list_type": "Not a valid list.",
    "model_attributes_type": "Not a valid object.",
    "is_instance_of": "Not a valid number.",  # prices are Decimal
    "decimal_max_places": "Must have at most {decimal_places} decimal places.",
    "string_too_short": "Shorter than minimum length {min_length}.",
    "string_too_long": "Longer than maximum length {max_length}.",
    "too_short": "Shorter than minimum length {min_length}.",
    "too_long": "Longer than maximum length {max_length}.",
    "greater_than_equal": "Must be greater than or equal to {ge}.",
    "less_than_equal": "Must be less than or equal to {le}.",
    "literal_error": "Must be one of: {expected}.",
}


def _sentence(item: Mapping[str, Any]) -> str:
    kind = item["type"]
    if item["input"] is None and kind != "missing":
        return "Field may not be null."
    if kind in SENTENCES:
        sentence = SENTENCES[kind].format(**item.get("ctx", {}))
        if "Decimal" in sentence:  # pydantic formats bounds by repr
            return re.sub(r"Decimal\('(.*?)'\)", r"\1", sentence)
        return sentence
    message: str = item["msg"]
    if message.startswith("value is not a valid email address"):
        return "Not a valid email address."
    return message.removeprefix("Value error, ")
