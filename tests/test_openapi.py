"""The OpenAPI document: valid, complete, and served from memory.

conftest compares every response of every test with it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from quart import Quart, Response, request

from service.app import create_app
from service.openapi.document import Document
from service.openapi.pages import document
from tests.conformance import Watched, templated, violations
from tests.conftest import Site, settings_for, visiting
from tests.factories import Factory
from tests.test_cli import octavo

METHODS = {"get", "head", "post", "put", "patch", "delete"}


@pytest.fixture
def schema() -> dict[str, Any]:
    """The document of an application with default settings."""
    app = create_app("testing")
    return document(app).schema()


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give each path, method and operation."""
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def values(schema: dict[str, Any], parameter: dict[str, Any]) -> list[Any]:
    """Give the values of a parameter in the document: its examples or enumerated values."""
    given = parameter["schema"]
    if "$ref" in given:
        given = schema["components"]["schemas"][given["$ref"].rpartition("/")[2]]
    if "example" in parameter:
        return [parameter["example"]]
    return list(given.get("examples") or given["enum"])


def test_the_document_is_valid(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(schema).iter_errors()) == []


async def test_the_document_describes_exactly_the_url_map(
    site: Site, schema: dict[str, Any]
) -> None:
    mapped = {
        (templated(rule.rule), method.lower())
        for rule in site.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
    }
    described = {(path, method) for path, method, _ in operations(schema)}
    assert {pair for pair in described if pair[1] != "head"} == mapped
    for path, method in described:
        if method == "head":
            assert (path, "get") in described


def test_every_operation_has_an_id_a_summary_tags_and_responses(schema: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in schema["tags"]}
    for path, method, operation in operations(schema):
        assert method in METHODS
        assert operation["summary"].endswith("."), path
        assert set(operation["tags"]) <= tags, path
        assert {status[0] for status in operation["responses"]} >= {"2", "4", "5"}, path
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                assert link["operationId"] in names


def test_every_model_and_parameter_has_an_example_or_enumerated_values(
    schema: dict[str, Any],
) -> None:
    for path, _, operation in operations(schema):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = content["schema"]["$ref"].rpartition("/")[2]
            assert schema["components"]["schemas"][name]["examples"], name
        for parameter in operation["parameters"]:
            assert values(schema, parameter), f"{path} {parameter['name']}"


async def test_the_examples_work(
    client: httpx.AsyncClient, make: Factory, schema: dict[str, Any]
) -> None:
    models = schema["components"]["schemas"]

    def example(name: str) -> Any:
        return models[name]["examples"][0]

    registered = await client.post("/api/auth/register", json=example("Registration"))
    assert registered.status_code == 201
    pair = await client.post("/api/auth/login", json=example("Credentials"))
    assert pair.status_code == 200
    headers = {"Authorization": f"Bearer {pair.json()['token']}"}
    refresh = await client.post("/api/auth/refresh", json=example("Refresh"))
    assert refresh.status_code == 401, "well-formed, but unknown"
    added = await client.post("/api/books", json=example("BookCreate"), headers=headers)
    assert added.status_code == 201
    book_id, user_id = str(added.json()["id"]), str(registered.json()["id"])
    book = f"/api/books/{book_id}"
    for method in ("PUT", "PATCH"):
        changed = await client.request(method, book, json=example("BookUpdate"), headers=headers)
        assert changed.status_code == 200
        assert changed.json() | example("BookUpdate") == changed.json()
    profile = await client.patch("/api/profile", json=example("ProfileUpdate"), headers=headers)
    assert profile.status_code == 200
    admin = await make.admin()
    rights = await client.patch(
        f"/admin/users/{registered.json()['id']}",
        json=example("RightsUpdate"),
        headers=admin.headers,
    )
    assert rights.status_code == 200
    tried = set()
    for path, method, operation in operations(schema):
        required = {
            parameter["name"]: values(schema, parameter)[0]
            for parameter in operation["parameters"]
            if parameter["in"] == "query" and parameter.get("required")
        }
        for parameter in operation["parameters"]:
            if parameter["in"] == "query" and method == "get":
                for value in values(schema, parameter):
                    response = await client.get(
                        path.replace("{user_id}", user_id).replace("{book_id}", book_id),
                        params={**required, parameter["name"]: value},
                        headers=admin.headers,
                    )
                    assert response.status_code == 200, response.text
                    tried.add(parameter["name"])
    assert len(tried) == 16


def test_every_error_has_an_example_with_its_title(schema: dict[str, Any]) -> None:
    for name, response in schema["components"]["responses"].items():
        example = response["content"]["application/problem+json"]["example"]
        assert list(example)[:4] == ["type", "title", "status", "detail"], name
        assert response["description"] == example["title"]


async def test_the_document_is_served_from_memory(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any]
) -> None:
    def never(self: Any) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(Document, "schema", never)
    response = await client.get("/openapi.json")
    assert response.json() == schema
    again = await client.get("/openapi.json", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_the_document_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Otherwise each worker would have its own ETag of the document."""
    documents = {(await octavo(tmp_path, "openapi", PYTHONHASHSEED=seed))[1] for seed in "123"}
    assert len(documents) == 1


async def test_a_command_prints_the_document(tmp_path: Path, schema: dict[str, Any]) -> None:
    code, out, _ = await octavo(tmp_path, "openapi")
    assert (code, json.loads(out)) == (0, schema)
    code, out, _ = await octavo(tmp_path, "openapi", PUBLIC_URL="https://books.example.org/v1")
    assert json.loads(out)["servers"] == [{"url": "https://books.example.org/v1"}]
    assert "Strict-Transport-Security" in json.loads(out)["components"]["headers"]


async def test_the_document_reveals_no_paths_and_no_code(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert not re.search(r"service\.|/home/|\.py\b|Traceback|SELECT ", text)


async def test_responses_that_do_not_fit_the_document_are_reported(
    site: Site, folder: Path
) -> None:
    def lying(app: Quart) -> None:
        @app.after_request
        async def lie(response: Response) -> Response:
            response.headers["X-Secret"] = "1"
            response.headers.pop("ETag", None)
            if request.path == "/api/books/7":
                response.status_code = 410
            if request.path == "/api/books/8":
                response.content_type = "application/problem+json-seq"
            if request.path == "/api/books/9":
                response.set_data((await response.get_data(as_text=False)).replace(b"404", b"400"))
            if request.method == "PUT":
                response.headers.pop("Allow")
            if request.path == "/nowhere":
                response.status_code = 200
            return response

        @app.get("/api/hidden")
        async def hidden() -> Response:
            """Return an undocumented response."""
            return Response('{"a": 1}', content_type="application/json")

        app.asgi_app = Watched(app)  # type: ignore[method-assign]  # Quart's way in

    settings = settings_for(site.another_url, folder, fast_path=False)  # a hook lies
    async with visiting(settings, lying) as client:
        for path in ("/api/books", *map("/api/books/{}".format, (7, 8, 9)), "/api/hidden"):
            await client.get(path)
        await client.get("/nowhere")
        await client.put("/api/books")
    reported = "\n".join(violations)
    violations.clear()
    assert "GET /api/books: 200: x-secret is not described" in reported
    assert "GET /api/books: 200: no ETag" in reported
    assert "GET /api/books/7: 410: not in the document" in reported
    assert "GET /api/books: 200: another Cache-Control" in reported
    assert "GET /api/books/8: 404: application/problem+json-seq is not described" in reported
    assert "GET /api/books/9: 404: status or id of the body differ" in reported
    assert "GET /api/hidden: 200: not in the document" in reported
    assert "GET /nowhere: 200: not in the document" in reported
    assert "PUT /api/books: 405: no Allow" in reported


async def test_security_headers_are_on_every_response(site: Site, folder: Path) -> None:
    always = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    async with httpx.AsyncClient(base_url=site.url, timeout=60) as client:
        for path in ("/api/books", "/nowhere", "/health", "/", "/docs", "/api/books?page=0"):
            response = await client.get(path)
            assert response.headers.items() >= {k.lower(): v for k, v in always.items()}.items()
            assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
            assert "unsafe" not in response.headers["Content-Security-Policy"]
            assert "Strict-Transport-Security" not in response.headers
        page = await client.get("/docs")
        assert "connect-src 'self';" in page.headers["Content-Security-Policy"]
        kept = await client.get("/docs", headers={"If-None-Match": page.headers["ETag"]})
        assert kept.status_code == 304
        for name in ("Content-Security-Policy", "Cache-Control", "Vary", "ETag"):
            assert kept.headers[name] == page.headers[name]
    public = "https://books.example.org/v1"
    url = site.another_url
    async with visiting(settings_for(url, folder, public_url=public)) as client:
        response = await client.get("/nowhere")
        assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
        docs = (await client.get("/docs")).headers["Content-Security-Policy"]
        assert "connect-src 'self' https://books.example.org;" in docs
    async with visiting(settings_for(url, folder, public_url="http://books.example.org")) as client:
        assert "Strict-Transport-Security" not in (await client.get("/")).headers
