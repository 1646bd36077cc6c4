"""Build the OpenAPI 3.1 document: the output of quart-schema, with additions.

The additions are errors, response headers, conditional requests, references and bounds of ids.
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
    PreconditionFailedError,
    PreconditionRequiredError,
    Problem,
    RateLimitedError,
    ResourceNotFoundError,
    ServiceUnavailableError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
    problem,
)
from service.http.documentation import ERRORS, STATUSES, DocumentedStatus
from service.http.error_handler import as_api_error
from service.http.preconditions import CONDITIONAL, PATTERN
from service.http.priority import NEVER_SHED
from service.http.requests import IdConverter, body_limits
from service.http.responses import AUTHENTICATED_PREFIXES
from service.idempotency import KeyReusedError
from service.models.types import INT64
from service.openapi.headers import EVERYWHERE, HEADERS, LIMITED, STRICT_TRANSPORT

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
PROBLEM = {"$ref": f"{SCHEMAS}Problem"}
NAMED = {"type", "anyOf", "enum", "const"}  # an object with `title` and one of these is a schema

EXAMPLES: dict[int, tuple[APIError, tuple[str, ...]]] = {
    400: (InvalidInputError({"title": ["Missing data for required field."]}), ()),
    401: (UnauthorizedError("Token is missing"), ("WWW-Authenticate",)),
    403: (ForbiddenError(), ()),
    404: (ResourceNotFoundError("Book with id 7 not found"), ("Cache-Status",)),
    408: (as_api_error(RequestTimeout()), ()),
    409: (ConflictError(), ()),
    412: (PreconditionFailedError("33a64df551425fcc55e4d42a"), ("ETag",)),
    413: (as_api_error(RequestEntityTooLarge()), ()),
    415: (UnsupportedMediaTypeError(), ()),
    422: (KeyReusedError(), ()),
    428: (PreconditionRequiredError(), ()),
    429: (RateLimitedError("10 per 1 minute", 42), ("Retry-After",)),
    500: (InternalError(), ()),
    503: (ServiceUnavailableError(), ("Retry-After",)),
}  # fmt: skip
ABSENT = ("Link", "X-Total-Count")  # not sent with 304
CONDITION = {
    "name": "If-None-Match",
    "in": "header",
    "description": "known ETags, or `*`: the response is 304 if one matches the current ETag",
    "schema": {"type": "string", "examples": ["*"]},
}

# The preconditions of a write. An ETag of a sparse representation (`fields`) never matches.
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "description": "ETags of the whole resource, or `*`: the response is 412 if none matches the "
    "current ETag",
    "schema": {"type": "string", "pattern": PATTERN, "examples": ["*"]},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "ETags, or `*`: the response is 412 if one matches the current ETag",
    "schema": {"type": "string", "pattern": PATTERN, "examples": ['"33a64df551425fcc55e4d42a"']},
}


class Document(OpenAPIProvider):
    """Builds the document of an application, once."""

    @cached_property
    def as_bytes(self) -> bytes:
        """The document as served: compact JSON."""
        return json.dumps(self.schema(), ensure_ascii=False, separators=(",", ":")).encode()

    def schema(self) -> Json:
        """Build the document in a stable order."""
        schema = super().schema()
        components = schema["components"]
        components["schemas"]["Problem"] = Problem.model_json_schema(mode="serialization")
        components["headers"] = {
            name: header for name, header in HEADERS.items() if self._is_sent(name)
        }
        components["responses"] = {_name(status): self._error(status) for status in EXAMPLES}
        schema["paths"] = dict(sorted(schema["paths"].items()))
        models = components["schemas"]  # the `title` of a model is its public name
        names = {name: models[name].get("title", name) for name in sorted(models)}
        components["schemas"] = {title: models[name] for name, title in names.items()}
        refs = {f"{SCHEMAS}{name}": f"{SCHEMAS}{title}" for name, title in names.items()}
        finished: Json = _finished(schema, refs)
        return finished

    def build_paths(self, rule: Rule) -> tuple[Json, Json]:
        """Complete the operations that quart-schema builds from a rule, and add HEAD."""
        paths, components = super().build_paths(rule)
        view = self._app.view_functions[rule.endpoint]
        for path, operations in paths.items():
            # The methods of a rule are a set, whose order differs between processes.
            completed = {
                method: self._complete(deepcopy(operation), rule, view)
                for method, operation in sorted(operations.items())
            }
            if "get" in completed:
                completed["head"] = _without_body(completed["get"])
            paths[path] = completed
        return paths, components

    def _complete(self, operation: Json, rule: Rule, view: Any) -> Json:
        blueprint = rule.endpoint.partition(".")[0]
        operation["tags"] = [blueprint]
        if "requestBody" in operation:
            size = getattr(self._app.extensions["settings"], body_limits(view).setting)
            operation["requestBody"]["description"] = f"at most {size} bytes"
        if not operation.get("description"):
            operation.pop("description", None)
        built: dict[int, Json] = operation.pop("responses")
        responses: dict[int, Json] = {}
        limited = () if getattr(view, EXEMPT, False) else LIMITED
        declarations: tuple[DocumentedStatus, ...] = getattr(view, STATUSES, ())
        for declared in reversed(declarations):  # from the top decorator down
            status, headers = declared.status, (*declared.headers, *limited)
            complete = replace(declared, headers=headers)
            if status in responses:
                _add_representation(responses[status], self._response(complete, {}))
                continue
            responses[status] = self._response(complete, built.get(status, {}))
            if status == 200 and "ETag" in headers and "GET" in (rule.methods or ()):
                operation["parameters"].append(CONDITION)
                kept = (name for name in headers if name not in ABSENT)
                responses[304] = self._response(DocumentedStatus(304, (*kept,)), {})
        if hasattr(view, CONDITIONAL):
            required = {"required": self._app.extensions["settings"].require_if_match}
            operation["parameters"] += [IF_MATCH | required, IF_NONE_MATCH]
        own = getattr(view, ERRORS, set()) | ({401, 429} if limited else set())
        own |= (
            {401} if rule.rule.startswith(AUTHENTICATED_PREFIXES) else set()
        )  # every token is checked
        own |= set() if hasattr(view, NEVER_SHED) else {503}
        for status in self._errors(operation, own):
            if status in responses:  # this status is either a health report or an error
                content = responses[status].setdefault("content", {})
                content[MIMETYPE] = {"schema": PROBLEM}
            else:
                responses[status] = {"$ref": f"#/components/responses/{_name(status)}"}
        operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
        return operation

    def _errors(self, operation: Json, declared: set[int]) -> set[int]:
        """Return the declared error statuses, and those that the operation implies."""
        statuses = declared | {400, 413, 500}
        if "requestBody" in operation:
            statuses |= {408, 415}
        if any(parameter["in"] == "path" for parameter in operation["parameters"]):
            statuses |= {404}
        return statuses

    def _response(self, declared: DocumentedStatus, built: Json) -> Json:
        headers = [name for name in (*declared.headers, *EVERYWHERE) if self._is_sent(name)]
        response: Json = {
            "description": HTTPStatus(declared.status).phrase,
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        }
        if "content" in built:
            response["content"] = {declared.media: built["content"]["application/json"]}
        elif declared.media != "application/json":
            response["content"] = {declared.media: {"schema": {"type": "string"}}}
        if declared.links:
            response["links"] = {
                name: {"operationId": name, "parameters": dict(parameters)}
                for name, parameters in declared.links.items()
            }
        return response

    def _error(self, status: int) -> Json:
        example, headers = EXAMPLES[status]
        body = json.loads(problem(example)) | {"request_id": "16cc45bad9654c3683b14760bb465cc3"}
        response = self._response(DocumentedStatus(status, (*headers, *LIMITED)), {})
        return response | {"content": {MIMETYPE: {"schema": PROBLEM, "example": body}}}

    def _is_sent(self, header: str) -> bool:
        settings = self._app.extensions["settings"]
        return header != STRICT_TRANSPORT or settings.is_https

    def build_path_parameter(self, name: str, converter: BaseConverter) -> Json:
        """Add the bounds of ids, and sort enums, so that all workers serve the same bytes."""
        parameter = super().build_path_parameter(name, converter)
        if "enum" in parameter["schema"]:
            parameter["schema"]["enum"].sort()
        if isinstance(converter, IdConverter):
            parameter["schema"] |= {"format": "int64", "minimum": 0, "maximum": INT64}
            parameter["example"] = 1
        return parameter

    def build_querystring_parameters(self, model: type[Model]) -> tuple[list[Json], Json]:
        """Remove null from the types: a query string cannot express null. Mark what is required."""
        parameters, definitions = super().build_querystring_parameters(model)
        fields: Any = getattr(model, "model_fields", {})
        for parameter in parameters:
            if (field := fields.get(parameter["name"])) is not None and field.is_required():
                parameter["required"] = True
            schema = parameter["schema"]
            kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
            parameter["schema"] = schema | (kinds[0] if kinds else {})
        return parameters, definitions

    def build_request_body(self, model: type[Model], source: DataSource) -> tuple[Json, Json]:
        """Replace the schema by a reference to the model, and mark the body as required."""
        body, definitions = super().build_request_body(model, source)
        _refer(model, body, definitions)
        return body | {"required": True}, definitions

    def build_response_object(
        self, model: type[Model], headers_model: type[Model] | None
    ) -> tuple[Json, Json]:
        """Replace the schema by a reference to the model."""
        response, definitions = super().build_response_object(model, headers_model)
        _refer(model, response, definitions)
        return response, definitions

    def operation_id(self, method: str, path: str, func: Any) -> str:
        """Use the function's name. PUT gets a prefix: it shares its function with PATCH."""
        return f"put_{func.__name__}" if method == "PUT" else str(func.__name__)


def _add_representation(response: Json, other: Json) -> None:
    """Add another media type to a response. A header that only one of them has is optional."""
    response["content"] |= other["content"]
    both = response["headers"] | other["headers"]
    for name in response["headers"].keys() ^ other["headers"].keys():
        both[name] = HEADERS[name] | {"required": False}
    response["headers"] = both


def _refer(model: Any, holder: Json, definitions: Json) -> None:
    """Move a model's schema to the definitions, and put a reference in its place."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        for content in holder["content"].values():
            definitions[model.__name__] = content["schema"]
            content["schema"] = {"$ref": f"{SCHEMAS}{model.__name__}"}


def _without_body(operation: Json) -> Json:
    """Make the HEAD operation from a GET operation."""
    head = deepcopy(operation)
    head["operationId"] = f"head_{operation['operationId']}"
    for response in head["responses"].values():
        response.pop("content", None)
        response.pop("links", None)
    return head


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "")


def _finished(value: Any, names: dict[str, str]) -> Any:
    """Rename references by `names`. Remove defaults of null, and titles of fields."""
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
