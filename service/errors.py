"""Errors: the APIError family, one renderer, one shape (`application/problem+json`).

Services raise; nobody else writes an error body. Exceptions' texts, SQL and paths go to the log.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from service.logs import request_id

ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
MIMETYPE = "application/problem+json"
SENTENCE = "The request holds fields that are not valid"
MOST_FIELDS = 20
MOST_NAME = 64  # characters of a field's name, which a client may have made up
ROOM = 3_500  # bytes as JSON: an answer holds findings twice, and has at most 8 KiB


Messages = dict[str, list[str]]  # sentences by field


def limit_messages(messages: Messages) -> tuple[Messages, str]:
    """Give the first findings, their names cut, and a sentence that counts the rest."""
    kept: Messages = {}
    room = ROOM
    for name, sentences in islice(messages.items(), MOST_FIELDS):
        short = name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}…"
        room -= len(json.dumps({short: sentences}))  # ASCII, which is never shorter than UTF-8
        if room < 0:
            break
        kept[short] = sentences
    rest = len(messages) - len(kept)
    return kept, SENTENCE + (f"; {rest} more are not listed" if rest else "")


class Problem(BaseModel):
    """What every error says (RFC 9457; `error` and `message` are the guide's)."""

    type: str
    title: str = Field(description="the status in words")
    status: int
    detail: str = Field(description="the same as `message`")
    error: str = Field(description="the kind of error: what a program may rely on")
    message: str = Field(description="a sentence for people")
    messages: Messages | SkipJsonSchema[None] = Field(
        None, description="sentences by field, of a 400: the first 20, names cut to 64 characters"
    )
    errors: Messages | SkipJsonSchema[None] = Field(None, description="the same as `messages`")
    retry_after: int | SkipJsonSchema[None] = Field(
        None, description="seconds until it succeeds, of a 429"
    )
    request_id: str = Field(description="as in X-Request-ID: names the request in the log")


class APIError(Exception):
    """An answer that is an error.

    `error` is its name, `message` a sentence for the client, `payload` what else the body holds.
    """

    status_code = 400
    error = "Bad Request"
    message = "The request could not be understood"

    def __init__(
        self,
        message: str | None = None,
        status_code: int | None = None,
        payload: Mapping[str, Any] | None = None,
        *,
        error: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message or self.message
        self.status_code = status_code or self.status_code
        self.payload = payload or {}
        self.error = error or self.error
        self.headers = headers or {}


class InvalidInputError(APIError):
    """Fields of a body or query do not fit: sentences by field; of many, the first."""

    error = "Validation Error"

    def __init__(self, messages: Messages) -> None:
        kept, message = limit_messages(messages)
        super().__init__(message, payload={"messages": kept, "errors": kept})


class UnauthorizedError(APIError):
    """Nobody has been recognised. `error` says why, as clients of the guide expect it."""

    status_code = 401
    error = "Invalid or expired token"
    message = "Sign in to get a valid token"

    def __init__(self, error: str | None = None, message: str | None = None) -> None:
        super().__init__(message, error=error, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(APIError):
    """Recognised, and not allowed."""

    status_code = 403
    error = "Forbidden"
    message = "You are not allowed to do this"


class ResourceNotFoundError(APIError):
    """There is no such row."""

    status_code = 404
    error = "Not Found"
    message = "The requested resource was not found"


class ConflictError(APIError):
    """The present state does not allow it."""

    status_code = 409
    error = "Conflict"
    message = "The request conflicts with the present state"


class UnsupportedMediaTypeError(APIError):
    """The body is not JSON."""

    status_code = 415
    error = "Unsupported Media Type"
    message = "Send the body as application/json"


class RateLimitedError(APIError):
    """More than a limit allows. `message` is the limit, as `10 per 1 minute`."""

    status_code = 429
    error = "Rate limit exceeded"

    def __init__(self, message: str, retry_after: int) -> None:
        headers = {"Retry-After": str(retry_after)}
        super().__init__(message, payload={"retry_after": retry_after}, headers=headers)


class InternalError(APIError):
    """A defect of ours."""

    status_code = 500
    error = "Internal Server Error"
    message = "An unexpected error occurred"


class ServiceUnavailableError(APIError):
    """A dependency is down, or there is more work than we can take. Retry after 1 s."""

    status_code = 503
    error = "Service Unavailable"
    message = "The service cannot answer at the moment"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


def problem(error: APIError) -> bytes:
    """Render an error's body: RFC 9457, with the guide's `error` and `message`."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "detail": error.message,
        "error": error.error,
        "message": error.message,
        **error.payload,
        "request_id": request_id.get(),
    }
    return ENCODER.encode(body).encode()
