"""Parse JSON bodies and query strings strictly, with limits on their size and nesting."""

import json
import re
from decimal import Decimal, InvalidOperation
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from service.models.types import INT64

MAX_PARAMETERS = 50  # of a query string
MAX_QUERY = 8_192  # bytes of a query string; the longest cursor with all filters escaped has 6,000
MAX_ESCAPES = 2_048  # percent signs of a query string: Python code decodes each
MAX_VALUES = 2_000  # of a body: Python code parses each number
MAX_NESTED = 1_000  # arrays and objects of a body: Python code checks each
MAX_DEPTH = 32  # of nested arrays and objects
MAX_DIGITS = 64  # of a number: more than any column holds, and fast to parse
ID = re.compile("0|[1-9][0-9]{0,18}")  # no leading zeros: each id has one spelling
INTEGER = re.compile("-?[0-9]{1,19}")
DECIMAL = re.compile(r"-?[0-9]{1,64}(\.[0-9]{1,64})?([eE][+-]?[0-9]{1,3})?")


class BodyLimits(NamedTuple):
    """The limits of a JSON body. setting: the setting that holds the maximum number of bytes.

    values: maximum number of values. nested: maximum number of arrays and objects.
    """

    setting: str
    values: int = MAX_VALUES
    nested: int = MAX_NESTED


ORDINARY = BodyLimits("max_body_bytes")
BULK = BodyLimits("max_bulk_body_bytes", values=5_000)  # 500 items with ten members


def count_values(body: bytes, limits: BodyLimits) -> tuple[int, int]:
    """Return the number of values, and the number of arrays and objects, in a body.

    Punctuation within strings is counted too, unless a number then exceeds its limit. The number of
    quotation marks bounds the cost of the exact count.
    """
    values, nested = _count(body)
    if values <= limits.values and nested <= limits.nested:
        return values, nested
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 4 * limits.values:  # a name and a string for each value
        return values, nested
    return _count(b"".join(body.split(b'"')[::2]))


def _count(body: bytes) -> tuple[int, int]:
    return body.count(b",") + 1, body.count(b"[") + body.count(b"{")


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a JSON object (RFC 8259). Raises ValueError with the reason.

    Numbers with a fraction or an exponent become Decimal. Refused: encodings other than UTF-8,
    duplicate keys, NaN, Infinity, NUL, lone surrogates, integers beyond 64 bits, numbers out of
    range, nesting deeper than MAX_DEPTH.
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
    if b"\\u" in body or body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_values(value, MAX_DEPTH)  # only an escape can stand for NUL or a surrogate
    return value


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Parse a query string into pairs. Raises ValueError with the reason, also for invalid UTF-8.

    Werkzeug would replace invalid UTF-8 by U+FFFD.
    """
    if len(query) > MAX_QUERY or query.count(b"%") > MAX_ESCAPES:
        raise ValueError("The query is too long")
    try:
        pairs = parse_qsl(
            query.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS
        )
    except ValueError:
        raise ValueError("The query is not UTF-8, or too long") from None
    if any(is_unstorable(part) for pair in pairs for part in pair):
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


def _check_values(value: dict[str, Any] | list[Any], depth: int) -> None:
    if depth == 0:
        raise ValueError("The body is nested too deeply")
    for part in chain(value, value.values()) if isinstance(value, dict) else value:
        if isinstance(part, str):
            if is_unstorable(part):
                raise ValueError("The body holds a NUL character or a lone surrogate")
        elif isinstance(part, dict | list):
            _check_values(part, depth - 1)


def is_unstorable(text: str) -> bool:
    """Whether a text holds NUL or a lone surrogate. No database can store these."""
    if "\x00" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


_JSON = json.JSONDecoder(
    object_pairs_hook=_no_duplicates,
    parse_constant=_refuse_constant,
    parse_int=_integer,
    parse_float=_decimal,
)
