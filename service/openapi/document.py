"""The document (OpenAPI 3.1). quart-schema reads the routes; this makes it complete.

What it adds: errors, headers of answers, conditional requests, references, bounds of ids.
"""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from quart_rate_limiter import QUART_RATE_LIMITER_EXEMPT_ATTRIBUTE as EXEMPT
from quart_schema.openapi import OpenAPIProvider
from quart_schema.typing import Model
from quart_schema.validation import DataSource
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout
from werkzeug.routing import Rule
from werkzeug.routing.converters import BaseConverter

from service.errors import (
    MIMETYPE,
    APIError,
    ConflictError,
    ForbiddenError,
    InternalError,
    InvalidInputError,
    Problem,
    RateLimitedError,
    ResourceNotFoundError,
    ServiceUnavailableError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    as_api_error,
    problem,
)
from service.openapi.answers import ANSWERS, ERRORS, Answer
from service.openapi.headers import EVERYWHERE, HEADERS, LIMITED, STRICT_TRANSPORT
from service.precedence import NEVER_SHED
from service.requests import IdConverter
from service.validation import INT64
from service.web import PERSONAL

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
PROBLEM = {"$ref": f"{SCHEMAS}Problem"}
NAMED = {"type", "anyOf", "enum", "const"}  # one of them makes an object with a title a schema

EXAMPLES: dict[int, tuple[APIError, tuple[str, ...]]] = {
    400: (InvalidInputError({"title": ["Missing data for required field."]}), ()),
    401: (UnauthorizedError("Token is missing"), ("WWW-Authenticate",)),
    403: (ForbiddenError(), ()),
    404: (ResourceNotFoundError("Book with id 7 not found"), ("Cache-Status",)),
    408: (as_api_error(RequestTimeout()), ()),
    409: (ConflictError(), ()),
    413: (as_api_error(RequestEntityTooLarge()), ()),
    415: (UnsupportedMediaTypeError(), ()),
    429: (RateLimitedError("10 per 1 minute", 42), ("Retry-After",)),
    500: (InternalError(), ()),
    503: (ServiceUnavailableError(), ("Retry-After",)),
}  # fmt: skip
ABSENT = ("Link", "X-Total-Count")  # of a 304
CONDITION = {
    "name": "If-None-Match",
    "in": "header",
    "description": "the ETag that one has, or several, or `*`: then 304 if nothing changed",
    "schema": {"type": "string", "examples": ["*"]},
}


class Document(OpenAPIProvider):
    """Builds the document of an application, once."""

    @cached_property
    def as_bytes(self) -> bytes:
        """The document, as it is served."""
        return json.dumps(self.schema(), ensure_ascii=False, separators=(",", ":")).encode()

    def schema(self) -> Json:
        """Build the document, in an order that stays."""
        schema = super().schema()
        components = schema["components"]
        components["schemas"]["Problem"] = Problem.model_json_schema(mode="serialization")
        components["headers"] = {
            name: header for name, header in HEADERS.items() if self._is_sent(name)
        }
        components["responses"] = {_name(status): self._error(status) for status in EXAMPLES}
        schema["paths"] = dict(sorted(schema["paths"].items()))
        models = components["schemas"]  # a title is the wire's word for a model
        names = {name: models[name].get("title", name) for name in sorted(models)}
        components["schemas"] = {title: models[name] for name, title in names.items()}
        refs = {f"{SCHEMAS}{name}": f"{SCHEMAS}{title}" for name, title in names.items()}
        finished: Json = _finished(schema, refs)
        return finished

    def build_paths(self, rule: Rule) -> tuple[Json, Json]:
        """Complete what quart-schema makes of a rule."""
        paths, components = super().build_paths(rule)
        view = self._app.view_functions[rule.endpoint]
        for operations in paths.values():
            for method, operation in sorted(operations.items()):
                operations[method] = self._complete(deepcopy(operation), rule, view)
            if "get" in operations:
                operations["head"] = _without_body(operations["get"])
        return paths, components

    def _complete(self, operation: Json, rule: Rule, view: Any) -> Json:
        blueprint = rule.endpoint.partition(".")[0]
        operation["tags"] = [blueprint]
        if not operation.get("description"):
            operation.pop("description", None)
        said: dict[int, Json] = operation.pop("responses")
        answers: tuple[Answer, ...] = getattr(view, ANSWERS, ())
        responses: dict[int, Json] = {}
        limited = () if getattr(view, EXEMPT, False) else LIMITED
        for answer in answers:
            told = replace(answer, headers=(*answer.headers, *limited))
            responses[answer.status] = self._answer(told, said.get(answer.status, {}))
            if answer.status == 200 and "ETag" in answer.headers and "GET" in (rule.methods or ()):
                operation["parameters"].append(CONDITION)
                kept = (name for name in told.headers if name not in ABSENT)
                responses[304] = self._answer(Answer(304, (*kept,)), {})
        own = getattr(view, ERRORS, set()) | ({401, 429} if limited else set())
        own |= {401} if rule.rule.startswith(PERSONAL) else set()  # every token is checked
        own |= set() if hasattr(view, NEVER_SHED) else {503}
        for status in self._errors(operation, own):
            if status in responses:  # a health report, or else an error
                responses[status]["content"] |= {MIMETYPE: {"schema": PROBLEM}}
            else:
                responses[status] = {"$ref": f"#/components/responses/{_name(status)}"}
        operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
        return operation

    def _errors(self, operation: Json, said: set[int]) -> set[int]:
        """Give the errors that follow from what stands on a route."""
        found = said | {400, 413, 500}
        if "requestBody" in operation:
            found |= {408, 415}
        if any(parameter["in"] == "path" for parameter in operation["parameters"]):
            found |= {404}
        return found

    def _answer(self, answer: Answer, built: Json) -> Json:
        headers = [name for name in (*answer.headers, *EVERYWHERE) if self._is_sent(name)]
        response: Json = {
            "description": HTTPStatus(answer.status).phrase,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        }
        if "content" in built:
            response["content"] = {answer.media: built["content"]["application/json"]}
        elif answer.media != "application/json":
            response["content"] = {answer.media: {"schema": {"type": "string"}}}
        if answer.links:
            response["links"] = {
                name: {"operationId": name, "parameters": dict(parameters)}
                for name, parameters in answer.links.items()
            }
        return response

    def _error(self, status: int) -> Json:
        example, headers = EXAMPLES[status]
        body = json.loads(problem(example)) | {"request_id": "16cc45bad9654c3683b14760bb465cc3"}
        response = self._answer(Answer(status, (*headers, *LIMITED)), {})
        return response | {"content": {MIMETYPE: {"schema": PROBLEM, "example": body}}}

    def _is_sent(self, header: str) -> bool:
        settings = self._app.extensions["settings"]
        return header != STRICT_TRANSPORT or settings.is_https

    def build_path_parameter(self, name: str, converter: BaseConverter) -> Json:
        """Give an id its bounds, and words an order: every worker serves the same bytes."""
        parameter = super().build_path_parameter(name, converter)
        if "enum" in parameter["schema"]:
            parameter["schema"]["enum"].sort()
        if isinstance(converter, IdConverter):
            parameter["schema"] |= {"format": "int64", "minimum": 0, "maximum": INT64}
            parameter["example"] = 1
        return parameter

    def build_querystring_parameters(self, model: type[Model]) -> tuple[list[Json], Json]:
        """Leave out null, which no query can say."""
        parameters, definitions = super().build_querystring_parameters(model)
        for parameter in parameters:
            schema = parameter["schema"]
            kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
            parameter["schema"] = schema | (kinds[0] if kinds else {})
        return parameters, definitions

    def build_request_body(self, model: type[Model], source: DataSource) -> tuple[Json, Json]:
        """Refer to the model; a body that is described is required."""
        body, definitions = super().build_request_body(model, source)
        _refer(model, body, definitions)
        return body | {"required": True}, definitions

    def build_response_object(
        self, model: type[Model], headers_model: type[Model] | None
    ) -> tuple[Json, Json]:
        """Refer to the model."""
        response, definitions = super().build_response_object(model, headers_model)
        _refer(model, response, definitions)
        return response, definitions

    def operation_id(self, method: str, path: str, func: Any) -> str:
        """Name an operation as its function; the second method of one says which it is."""
        return f"put_{func.__name__}" if method == "PUT" else str(func.__name__)


def _refer(model: Any, holder: Json, definitions: Json) -> None:
    """Put a model's schema among the definitions, and a reference in its place."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        for content in holder["content"].values():
            definitions[model.__name__] = content["schema"]
            content["schema"] = {"$ref": f"{SCHEMAS}{model.__name__}"}


def _without_body(operation: Json) -> Json:
    """Make HEAD of GET."""
    head = deepcopy(operation)
    head["operationId"] = f"head_{operation['operationId']}"
    for response in head["responses"].values():
        response.pop("content", None)
        response.pop("links", None)
    return head


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def _finished(value: Any, names: dict[str, str]) -> Any:
    """Refer to models by their wire names; drop defaults of null, and titles of fields."""
    if isinstance(value, list):
        return [_finished(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    finished = {}
    for key, item in value.items():
        if key == "$ref":
            finished[key] = names.get(item, item)
        elif key in {"example", "examples"}:
            finished[key] = item
        elif (key, item) != ("default", None) and not _is_title(key, item, value):
            finished[key] = _finished(item, names)
    return finished


def _is_title(key: str, item: Any, schema: Json) -> bool:
    return key == "title" and isinstance(item, str) and not NAMED.isdisjoint(schema)
