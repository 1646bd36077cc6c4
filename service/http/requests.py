"""Validation of requests: query parameters, body, and ids in the path."""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from quart import Quart, Response, request
from quart_schema.validation import QUART_SCHEMA_QUERYSTRING_ATTRIBUTE
from werkzeug.datastructures import ImmutableMultiDict, MultiDict
from werkzeug.exceptions import NotFound, RequestEntityTooLarge
from werkzeug.routing import IntegerConverter
from werkzeug.utils import cached_property

from service.admission import OVERLOADED
from service.config import Settings
from service.errors import (
    APIError,
    InvalidInputError,
    ServiceUnavailableError,
    UnsupportedMediaTypeError,
)
from service.http import quart_app
from service.http.context import context_of
from service.http.headers import parse_headers
from service.http.parsing import (
    ID,
    ORDINARY,
    BodyLimits,
    count_values,
    parse_json,
    parse_query,
)
from service.http.responses import vary_of
from service.models.types import INT64

BODY_LIMITS = "_octavo_body_limits"  # attribute of a view: its BodyLimits
JSON_TYPE = re.compile(r"application/(json|[a-z0-9.+-]+\+json)")


class Request(quart_app.Request):
    """A Quart request with strict parsers and a maximum body size."""

    @cached_property
    def args(self) -> MultiDict[str, str]:
        """The query parameters. Raises APIError (400)."""
        try:
            return ImmutableMultiDict(parse_query(self.query_string))
        except ValueError as error:
            raise APIError(str(error)) from None

    async def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """Return the body, a JSON object. Raises as `read_json`. The parameters have no effect."""
        return await read_json(self.scope, self.read_body)

    async def read_body(self) -> bytes:
        """Return the body. Raises RequestTimeout (408) if it is incomplete after BODY_TIMEOUT."""
        data = await (self.body if quart_app.is_complete(self.scope) else self.get_data())
        return cast(bytes, data)


async def read_json(
    scope: Any, read_body: Callable[[], Awaitable[bytes]], limits: BodyLimits = ORDINARY
) -> dict[str, Any]:
    """Read the body of a request, a JSON object.

    Raises APIError (400), RequestEntityTooLarge (413), UnsupportedMediaTypeError (415),
    ServiceUnavailableError (503), or the error of `read_body` (408).
    """
    fields = parse_headers(scope["headers"])
    media = fields.content_types[0].decode("latin-1") if fields.content_types else ""
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
    values, nested = count_values(data, limits)
    if nested > limits.nested:
        raise APIError("The body is nested too deeply or too often")
    if values > limits.values:
        many = f"Holds {values} values: {limits.values} are the most."
        raise InvalidInputError({"_schema": [many]})
    try:
        return parse_json(data)
    except ValueError as error:
        raise APIError(str(error)) from None


def body_limits(view: Any) -> BodyLimits:
    """Return the limits of the bodies that a view accepts."""
    limits: BodyLimits = getattr(view, BODY_LIMITS, ORDINARY)
    return limits


def max_body_bytes(app: Quart, settings: Settings, scope: Any) -> int:
    """Return the maximum size of the body of a request, after the limit middleware matched it."""
    matched = context_of(scope).matched
    view = None if matched is None else app.view_functions[matched[0].endpoint]
    size: int = getattr(settings, body_limits(view).setting)
    return size


def _content_coding(scope: Any) -> bytes:
    headers = scope["headers"]
    coding: bytes = next((v for name, v in headers if name == b"content-encoding"), b"identity")
    return coding.lower()


def check_names(names: Sequence[str], view: Any) -> None:
    """Raise InvalidInputError for repeated parameters, or if the view has no parameters at all."""
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InvalidInputError({name: ["Given more than once."] for name in repeated})
    if names and not hasattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE):
        raise InvalidInputError({name: ["Unknown field."] for name in names})


class IdConverter(IntegerConverter):
    """A row's id in a path, from 0 to the largest 64-bit integer, without leading zeros."""

    regex = ID.pattern

    def to_python(self, value: str) -> int:
        number = int(value)
        if number > INT64:
            raise NotFound  # ValidationError would give PUT a 405
        return number


def init_app(app: Quart, settings: Settings) -> None:
    """Configure the validation of requests, and the default headers of responses."""
    app.extensions["settings"] = settings
    app.request_class = Request
    # The request edge applies the maximum of the route.
    app.config["MAX_CONTENT_LENGTH"] = max(settings.max_body_bytes, settings.max_bulk_body_bytes)
    app.config["BODY_TIMEOUT"] = 10  # seconds; then 408
    app.url_map.converters["id"] = IdConverter
    app.url_map.merge_slashes = False  # one spelling of each path

    @app.before_request
    async def refuse() -> None:
        """Refuse a body that is too large, and invalid, repeated or unknown parameters."""
        if context_of(request.scope).error is not None:
            return  # the request is refused already
        if (request.content_length or 0) > max_body_bytes(app, settings, request.scope):
            raise RequestEntityTooLarge
        if not request.query_string or request.url_rule is None or request.method == "OPTIONS":
            return
        names = [name for name, _ in request.args.items(multi=True)]
        check_names(names, app.view_functions[request.url_rule.endpoint])

    @app.after_request
    async def mark(response: Response) -> Response:
        """Set Vary, and `Cache-Control: no-store` unless the view has set this header."""
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["Vary"] = vary_of(request.scope)
        return response
