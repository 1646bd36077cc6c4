"""Validation of requests: query parameters, body, and ids in the path."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from quart_schema.validation import QUART_SCHEMA_QUERYSTRING_ATTRIBUTE
from werkzeug.datastructures import ImmutableMultiDict, MultiDict
from werkzeug.exceptions import NotFound, RequestEntityTooLarge
from werkzeug.routing import IntegerConverter
from werkzeug.utils import cached_property

from service import asgi
from service.admission import OVERLOADED
from service.context import context_of
from service.errors import (
    APIError,
    InvalidInputError,
    ServiceUnavailableError,
    UnsupportedMediaTypeError,
)
from service.fields import parse_headers
from service.validation import (
    ID,
    INT64,
    MAX_NESTED,
    MAX_VALUES,
    parse_json,
    parse_query,
)

JSON_TYPE = re.compile(r"application/(json|[a-z0-9.+-]+\+json)")


class Request(asgi.Request):
    """A request with strict parsing and a size cap."""

    @cached_property
    def args(self) -> MultiDict[str, str]:
        """The query parameters. Raises APIError."""
        try:
            return ImmutableMultiDict(parse_query(self.query_string))
        except ValueError as error:
            raise APIError(str(error)) from None

    async def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """Return the body as a dict. Raises 400, 413 or 415 as an APIError or HTTP error."""
        return await read_json(self.scope, self.read_body)

    async def read_body(self) -> bytes:
        """Return the body. Waits for an incomplete body up to BODY_TIMEOUT."""
        data = await (self.body if asgi.is_complete(self.scope) else self.get_data())
        return cast(bytes, data)


async def read_json(scope: Any, read_body: Callable[[], Awaitable[bytes]]) -> dict[str, Any]:
    """Read the body of a request, a JSON object. Raises 400, 413, 415 or 503."""
    fields = parse_headers(scope["headers"])
    media = fields.media[0].decode("latin-1") if fields.media else ""
    if not JSON_TYPE.fullmatch(media.partition(";")[0].strip().lower()):
        raise UnsupportedMediaTypeError
    if fields.is_special and _content_coding(scope) != b"identity":
        raise UnsupportedMediaTypeError("Send the body without a content coding")
    data, context = await read_body(), context_of(scope)
    if context.is_too_large:
        raise RequestEntityTooLarge
    if context.is_shed:
        raise ServiceUnavailableError(OVERLOADED)
    if context.is_cut_short:
        raise APIError("The body ends too early")
    if data.count(b"[") + data.count(b"{") > MAX_NESTED:
        raise APIError("The body is nested too deeply or too often")
    if (number := data.count(b",") + 1) > MAX_VALUES:  # commas within strings are counted too
        many = f"Holds {number} values: {MAX_VALUES} are the most."
        raise InvalidInputError({"_schema": [many]})
    try:
        return parse_json(data)
    except ValueError as error:
        raise APIError(str(error)) from None


def _content_coding(scope: Any) -> bytes:
    headers = scope["headers"]
    coding: bytes = next((v for name, v in headers if name == b"content-encoding"), b"identity")
    return coding.lower()


def check_names(names: Sequence[str], view: Any) -> None:
    """Raise InvalidInputError for parameters that are repeated or unknown to the view."""
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InvalidInputError({name: ["Given more than once."] for name in repeated})
    if names and not hasattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE):
        raise InvalidInputError({name: ["Unknown field."] for name in names})


class IdConverter(IntegerConverter):
    """A row's id in a path: only the canonical form, and only values that a column can hold."""

    regex = ID.pattern

    def to_python(self, value: str) -> int:
        number = int(value)
        if number > INT64:
            raise NotFound  # with ValidationError, PUT would get 405
        return number
