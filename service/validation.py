"""Parse and validate input: strict JSON and queries, base schema, the guide's error messages."""

import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl

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

MAX_PARAMETERS = 50  # of a query
MAX_QUERY = 8_192  # bytes; the longest cursor with every filter escaped has 6,000
MAX_ESCAPES = 2_048  # percent signs of a query: each is decoded in Python
MAX_VALUES = 2_000  # of a body: each number is parsed in Python
MAX_NESTED = 1_000  # arrays and objects of a body: each is checked in Python
MAX_MEMBERS = 100  # of an object: pydantic makes an error for each unknown member
MAX_DEPTH = 32  # of nested arrays and objects
MAX_DIGITS = 64  # of a number: more than any column holds, and fast to parse
INT64 = 2**63 - 1
FORBIDDEN = re.compile("[\x00\ud800-\udfff]")  # databases cannot store NUL or lone surrogates
ID = re.compile("0|[1-9][0-9]{0,18}")  # each id has a single spelling
INTEGER = re.compile("-?[0-9]{1,19}")
DECIMAL = re.compile(r"-?[0-9]{1,64}(\.[0-9]{1,64})?([eE][+-]?[0-9]{1,3})?")

# quart-schema makes an adapter for each request, which costs as much as the validation itself.
vars(conversion)["TypeAdapter"] = lru_cache(TypeAdapter)

Messages = dict[str, list[str]]


class Schema(BaseModel):
    """Base of input models: refuses unknown fields, strips strings, coerces no values."""

    model_config = ConfigDict(
        extra="forbid", strict=True, str_strip_whitespace=True, frozen=True, from_attributes=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_members(cls, data: Any) -> Any:
        """Refuse an object with far more members than fields as a whole, to save time."""
        if isinstance(data, dict) and len(data) > MAX_MEMBERS:
            raise ValueError(f"Holds {len(data)} fields: {MAX_MEMBERS} are the most.")
        return data


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object (RFC 8259). Raises ValueError with the reason.

    Numbers with a fraction become Decimal. Refused: other encodings than UTF-8, duplicate keys,
    NaN and Infinity, NUL and lone surrogates, numbers out of range, deep nesting.
    """
    try:
        value = _JSON.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("The body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"The body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("The body is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("The body must be a JSON object")
    if b"\\" in body or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _look_through(value, MAX_DEPTH)  # JSON can express NUL and surrogates only by escapes
    return value


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Parse the parameters of a query. Raises ValueError with the reason.

    Werkzeug would replace invalid UTF-8 by U+FFFD instead.
    """
    if len(query) > MAX_QUERY or query.count(b"%") > MAX_ESCAPES:
        raise ValueError("The query is too long")
    try:
        pairs = parse_qsl(
            query.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError:
        raise ValueError("The query is not UTF-8, or too long") from None
    if any(FORBIDDEN.search(part) for pair in pairs for part in pair):
        raise ValueError("The query holds a NUL character")
    return pairs


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("The body repeats a key")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= MAX_DIGITS else INT64 + 1
    if abs(value) > INT64:
        raise ValueError("The body holds an integer beyond 64 bits")
    return value


def _decimal(digits: str) -> Decimal:
    try:
        value = Decimal(digits[: MAX_DIGITS + 1])
    except InvalidOperation:
        value = Decimal("Infinity")
    if len(digits) > MAX_DIGITS or abs(value.adjusted()) > MAX_DIGITS or not value.is_finite():
        raise ValueError("The body holds a number out of range")
    return value


def _look_through(value: Any, depth: int) -> None:
    if isinstance(value, str):
        if FORBIDDEN.search(value):
            raise ValueError("The body holds a NUL character or a lone surrogate")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError("The body is nested too deeply")
        for item in value.items() if isinstance(value, dict) else value:
            for part in item if isinstance(item, tuple) else (item,):
                _look_through(part, depth - 1)


_JSON = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_constant=_refuse_constant,
    parse_int=_integer,
    parse_float=_decimal,
)


def _query_integer(value: Any) -> Any:
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


def not_blank(value: str) -> str:
    """Refuse text without visible characters: only blanks, control and format characters."""
    if all(unicodedata.category(character)[0] in "CZ" for character in value):
        raise ValueError("Field may not be blank.")
    return value


def _rfc3339(value: datetime) -> str:
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    return value.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


# Always with six decimals of a second, so that instants also sort as text.
Instant = Annotated[
    datetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
Int64 = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
QueryInteger = Annotated[int, Field(ge=-INT64, le=INT64), BeforeValidator(_query_integer)]
QueryCount = Annotated[int, Field(ge=1, le=INT64), BeforeValidator(_query_integer)]
QueryDecimal = Annotated[
    Decimal, BeforeValidator(_query_decimal), WithJsonSchema({"type": "number"})
]
QueryFlag = Annotated[
    bool, BeforeValidator(_query_flag), WithJsonSchema({"type": "integer", "enum": [0, 1]})
]


def messages(error: Exception | None) -> Messages:
    """Return pydantic's errors as the guide's sentences, by field."""
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
    "is_instance_of": "Not a valid number.",  # prices are Decimal
    "decimal_max_places": "Must have at most {decimal_places} decimal places.",
    "string_too_short": "Shorter than minimum length {min_length}.",
    "string_too_long": "Longer than maximum length {max_length}.",
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
        return re.sub(r"Decimal\('(.*?)'\)", r"\1", sentence)  # pydantic shows bounds by repr
    message: str = item["msg"]
    if message.startswith("value is not a valid email address"):
        return "Not a valid email address."
    return message.removeprefix("Value error, ")
