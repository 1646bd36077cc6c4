"""API errors: exceptions with an HTTP status, and their body (`application/problem+json`).

Services raise these exceptions. Only `problem` builds the body of an error response. The texts of
other exceptions, SQL and paths go to the log, never to the client.
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
MAX_FIELDS = 20
MAX_FIELD_NAME = 64  # characters of a field's name, which may come from the client
MAX_MESSAGES_BYTES = 3_500  # as JSON: a body of at most 8 KiB contains the messages twice


Messages = dict[str, list[str]]  # error messages by field


def limit_messages(messages: Messages) -> tuple[Messages, str]:
    """Return the first messages, and a sentence with the number of omitted fields."""
    kept: Messages = {}
    room = MAX_MESSAGES_BYTES
    for name, sentences in islice(messages.items(), MAX_FIELDS):
        short = short_name(name)
        room -= len(json.dumps({short: sentences}))  # ASCII, which is never shorter than UTF-8
        if room < 0:
            break
        kept[short] = sentences
    rest = len(messages) - len(kept)
    return kept, SENTENCE + (f"; {rest} more are not listed" if rest else "")


def short_name(name: str) -> str:
    """Return a name of at most MAX_FIELD_NAME characters, as it may come from the client."""
    return name if len(name) <= MAX_FIELD_NAME else f"{name[:MAX_FIELD_NAME]}…"


class Problem(BaseModel):
    """The body of an error response (RFC 9457). `error` and `message` are the guide's."""

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
    """An error response, raised as an exception.

    error: the kind of error, for programs. message: for people. payload: more members of the body.
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
    """400: fields of the body or query are invalid. Contains the first messages, by field."""

    error = "Validation Error"

    def __init__(self, messages: Messages) -> None:
        kept, message = limit_messages(messages)
        super().__init__(message, payload={"messages": kept, "errors": kept})


class UnauthorizedError(APIError):
    """401: no valid token or password. `error` is the reason, which the guide's clients read."""

    status_code = 401
    error = "Invalid or expired token"
    message = "Sign in to get a valid token"

    def __init__(self, error: str | None = None, message: str | None = None) -> None:
        super().__init__(message, error=error, headers={"WWW-Authenticate": "Bearer"})


class ForbiddenError(APIError):
    """403: the authenticated user lacks the right."""

    status_code = 403
    error = "Forbidden"
    message = "You are not allowed to do this"


class ResourceNotFoundError(APIError):
    """404: the row does not exist."""

    status_code = 404
    error = "Not Found"
    message = "The requested resource was not found"


class ConflictError(APIError):
    """409: the current state of the data does not allow the request."""

    status_code = 409
    error = "Conflict"
    message = "The request conflicts with the present state"


class PreconditionFailedError(APIError):
    """412: If-Match or If-None-Match does not allow the write. tag: the present ETag, unquoted."""

    status_code = 412
    error = "Precondition Failed"
    message = "If-Match does not match the present ETag: read the resource again"

    def __init__(self, tag: str, message: str | None = None) -> None:
        super().__init__(message, headers={"ETag": f'"{tag}"'})


class PreconditionRequiredError(APIError):
    """428: the write needs If-Match (RFC 6585, section 3)."""

    status_code = 428
    error = "Precondition Required"
    message = "Send If-Match with the ETag of the resource"


class UnsupportedMediaTypeError(APIError):
    """415: the Content-Type is not JSON, or the body has a content coding."""

    status_code = 415
    error = "Unsupported Media Type"
    message = "Send the body as application/json"


class RateLimitedError(APIError):
    """429: a limit is exceeded. message: such as `10 per 1 minute`. retry_after: seconds."""

    status_code = 429
    error = "Rate limit exceeded"

    def __init__(self, message: str, retry_after: int) -> None:
        headers = {"Retry-After": str(retry_after)}
        super().__init__(message, payload={"retry_after": retry_after}, headers=headers)


class InternalError(APIError):
    """500: a defect of Octavo."""

    status_code = 500
    error = "Internal Server Error"
    message = "An unexpected error occurred"


class ServiceUnavailableError(APIError):
    """503: a dependency is down, or the server is overloaded. `Retry-After` is 1 s."""

    status_code = 503
    error = "Service Unavailable"
    message = "The service cannot answer at the moment"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Retry-After": "1"})


def problem(error: APIError) -> bytes:
    """Return the body of an error as JSON: RFC 9457, with the guide's `error` and `message`."""
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
