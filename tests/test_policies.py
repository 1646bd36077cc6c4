"""House rules that a machine can see: over the URL map, and over the syntax trees."""

import ast
import inspect
import re
from pathlib import Path
from typing import get_args, get_type_hints

from quart_schema.validation import (
    QUART_SCHEMA_QUERYSTRING_ATTRIBUTE,
    QUART_SCHEMA_REQUEST_ATTRIBUTE,
)

import service
from service.limits.identity import Caller
from service.limits.limiter import UNKNOWN, Limiter
from service.pagination import PageQuery
from service.precedence import COSTLY
from service.users.schemas import GivenPassword
from service.validation import Schema
from tests.conftest import Site

ROOT = Path(service.__file__).parent
# From the ground up: a file imports from those before it, never from those behind.
STOREYS = (
    "__init__", "context", "files", "config_values", "config_cache", "config_limits",
    "config_serve", "config", "logs", "unique", "fields", "additions", "asgi", "column_types",
    "json_rows", "search", "usernames", "cached_models", "models", "validation", "findings",
    "db_errors", "group_commit", "admission", "engines", "alter_table", "migrations", "errors",
    "error_handler", "patience", "precedence", "redis_client", "cache", "front", "lag", "requests",
    "web", "links", "openapi", "db", "security", "guard", "pagination", "listing", "cors",
    "operations", "load_shedding", "http1", "limits", "password_check", "access_log", "figures",
    "metrics", "health", "home", "books", "users", "auth", "admin", "fast_path", "importer",
    "seed", "plausible", "app", "server", "cli", "__main__",
)  # fmt: skip
# What ASGI has in the scope of an HTTP request.
SCOPE = {
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
    "headers", "client", "server", "state", "extensions",
}  # fmt: skip
NO_NAMES = {"asked", "found", "one", "told", "what", "who"}  # they name anything
WITHOUT_BODY = {"/api/auth/logout", "/admin/clear-cache"}


def imports(path: Path) -> set[str]:
    """Name the modules that a file imports, but for those that it needs for types alone."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
            if node.module == "service":
                found |= {f"service.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way() -> None:
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "service" and len(parts) > 1 and parts[1] != "__version__":
                assert parts[1] in STOREYS, module
                assert STOREYS.index(parts[1]) <= STOREYS.index(own), f"{path} imports {module}"


def test_the_context_is_the_one_key_of_the_scope() -> None:
    """The facts about a request are typed, and imports show their readers and writers."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("scope"):
                key = ast.unparse(node.slice).strip("'")
                is_ours = path.name == "context.py" and key == "KEY"
                assert is_ours or key in SCOPE, f"{path}:{node.lineno}: {key}"


def test_the_fast_path_knows_no_resource() -> None:
    """It has no code for any one route: what a route declares decides."""
    resources = {"admin", "auth", "books", "users", "health"}
    for path in (ROOT / "fast_path").glob("*.py"):
        names = {name.split(".")[1] for name in imports(path) if name.startswith("service.")}
        assert not names & resources, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                assert not re.match("/[a-z]", text), f"{path}:{node.lineno}"


def test_the_cache_knows_no_model() -> None:
    for path in (ROOT / "cache").glob("*.py"):
        assert not {name for name in imports(path) if name.startswith("service.models")}, path


def test_every_room_holds_the_same_files() -> None:
    for room in ("auth", "books", "users", "admin"):
        names = {path.name for path in (ROOT / room).glob("*.py")}
        assert names == {"__init__.py", "routes.py", "schemas.py", "service.py"}


def test_services_know_no_request_and_routes_no_sql() -> None:
    for path in ROOT.glob("*/service.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "quart"}, path
    for path in ROOT.glob("*/routes.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "sqlalchemy"}, path


def test_no_file_grows_past_a_sitting() -> None:
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def names_bound_in(tree: ast.AST) -> set[str]:
    """Give the names of variables, parameters, attributes, functions and classes of a file."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                names.add(name)
            case _:
                pass
    return {name.strip("_").lower() for name in names}


def test_names_are_nouns_that_can_be_searched_for() -> None:
    for path in ROOT.rglob("*.py"):
        names = names_bound_in(ast.parse(path.read_text(encoding="utf-8")))
        assert not names & NO_NAMES, path


def test_migrations_change_tables_by_alter_table() -> None:
    """Alembic's own operation drops the triggers of a table on SQLite, without an error."""
    for path in (ROOT.parent / "alembic" / "versions").glob("*.py"):
        assert "batch_alter_table" not in path.read_text(encoding="utf-8"), path


async def test_every_list_is_bounded(site: Site) -> None:
    lists = {
        rule.rule: site.app.view_functions[rule.endpoint]
        for rule in site.app.url_map.iter_rules()
        if rule.endpoint.rpartition(".")[2].startswith("list_")
    }
    assert set(lists) == {"/api/books", "/api/users/<id:user_id>/books", "/admin/users"}
    for rule, view in lists.items():
        query = getattr(view, QUART_SCHEMA_QUERYSTRING_ATTRIBUTE)
        assert issubclass(query, PageQuery), rule
        assert hasattr(view, COSTLY), "lists are turned away first"


async def test_every_route_has_a_limit_or_is_exempt(site: Site) -> None:
    limiter: Limiter = site.app.extensions["limiter"]
    caller = Caller("user:1", "address:127.0.0.1", "free")
    free, own = set(), {}
    for rule in site.app.url_map.iter_rules():
        plan = limiter.plan(site.app, rule.endpoint)
        if not plan.names:
            free.add(rule.rule)
        elif plan != UNKNOWN:
            own[rule.endpoint] = plan.names
        claims = limiter.claims(rule.endpoint, plan, caller)  # only names that the settings know
        assert all(claim.policies for claim in claims)
    assert {rule for rule in free if not rule.startswith("/docs/")} == {
        "/", "/docs", "/openapi.json", "/health", "/health/live", "/health/ready", "/metrics",
        "/api/rate-limit",
    }  # fmt: skip
    assert own == {
        "books.list_books": ("books.list",),
        "books.get_book": ("books.item",),
        "auth.login": ("login",),
        "auth.register": ("register",),
    }


async def test_every_body_is_a_strict_schema(site: Site) -> None:
    for rule in site.app.url_map.iter_rules():
        view = site.app.view_functions[rule.endpoint]
        if (rule.methods or set()) & {"POST", "PUT", "PATCH"} and rule.rule not in WITHOUT_BODY:
            schema, _ = getattr(view, QUART_SCHEMA_REQUEST_ATTRIBUTE)
            assert issubclass(schema, Schema), rule
            assert schema.model_config["extra"] == "forbid"
            assert schema.model_config["strict"] is True


def test_passwords_are_verified_where_wrong_ones_count() -> None:
    """`verify` is called on what `password_attempt` gives, and on nothing else."""
    verified = 0
    for path in ROOT.rglob("*.py"):
        if path.name in {"security.py", "password_check.py"}:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        attempts = {
            ast.unparse(item.optional_vars)
            for node in ast.walk(tree)
            if isinstance(node, ast.AsyncWith)
            for item in node.items
            if item.optional_vars and ast.unparse(item.context_expr).startswith("password_attempt(")
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "verify":
                assert ast.unparse(node.value) in attempts, f"{path}:{node.lineno}"
                verified += 1
    assert verified >= 2


async def test_every_password_that_is_asked_for_is_verified(site: Site) -> None:
    """A route whose body holds a password that is no new one makes an attempt with it."""
    found = set()
    for rule in site.app.url_map.iter_rules():
        view = site.app.view_functions[rule.endpoint]
        schema, _ = getattr(view, QUART_SCHEMA_REQUEST_ATTRIBUTE, (None, None))
        fields = {} if schema is None else get_type_hints(schema, include_extras=True)
        if any(GivenPassword in (kind, *get_args(kind)) for kind in fields.values()):
            found.add(rule.endpoint)
            assert "password_attempt" in vars(inspect.getmodule(inspect.unwrap(view)))
    assert found == {"auth.login", "users.update_profile"}


def test_what_is_public_is_described() -> None:
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in [tree, *ast.walk(tree)]:
            if isinstance(node, ast.Module):
                assert ast.get_docstring(node), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert node.name.startswith("_") or ast.get_docstring(node), f"{path} {node.name}"


def test_every_exception_to_a_rule_has_its_reason() -> None:
    silent = re.compile(r"# (noqa(?!: [A-Z]+\d+  \(.)|type: ignore(?!\[[a-z, -]+\]  # .))")
    found = [
        f"{file}:{number}"
        for folder in ("service", "tests", "bench", "loadtest")
        for file in (ROOT.parent / folder).rglob("*.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if silent.search(line)
    ]
    assert not found
