"""House rules that a machine can see: over the URL map, and over the syntax trees."""

import ast
import inspect
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from quart_schema.validation import (
    QUART_SCHEMA_QUERYSTRING_ATTRIBUTE,
    QUART_SCHEMA_REQUEST_ATTRIBUTE,
)

import service
from service.http.pagination import PageQuery
from service.http.priority import COSTLY
from service.http.schemas import Schema
from service.limits.identity import Caller
from service.limits.limiter import UNKNOWN, Limiter
from service.users.schemas import GivenPassword
from tests.conftest import Site

ROOT = Path(service.__file__).parent
# From the ground up: a file imports from its own room and from those before it.
ROOMS = (
    "__init__", "files", "ids", "timeouts", "slices", "config_types", "config", "logs", "errors",
    "server.http1", "redis_client", "admission", "models", "cache", "db", "security", "http",
    "limits", "idempotency", "middleware", "openapi", "books", "search", "views", "export",
    "report", "users", "auth", "admin", "system", "fast_path", "importer", "sample_data", "app",
    "server", "cli", "__main__",
)  # fmt: skip
# Libraries, and the only other files that they may import.
LIBRARIES = {"server.http1": set(), "redis_client": {"service.timeouts"}}
# What ASGI has in the scope of an HTTP request.
SCOPE = {
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
    "headers", "client", "server", "state", "extensions",
}  # fmt: skip
NO_NAMES = {"asked", "found", "one", "told", "what", "who"}  # they name anything
NO_CONSTANTS = {"AT_ONCE", "KEPT", "MOST", "ROOM", "SECONDS", "UNDER_WAY"}  # without their noun
WITHOUT_BODY = {"/api/auth/logout", "/admin/clear-cache"}


def imports(path: Path) -> set[str]:
    """Name the modules that a file imports, but for those that it needs for types alone."""
    modules: set[str] = set()
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
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if is_file(name)}
            modules |= submodules if len(submodules) == len(names) else {node.module} | submodules
    return modules


def is_file(module: str) -> bool:
    """Whether a module of `service` is a file or a package."""
    path = ROOT.parent.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_of(path: Path) -> str:
    """Name the module in a file, without `.__init__`."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room_of(module: str) -> str:
    """Name the room of a module."""
    name = module.removeprefix("service").removeprefix(".") or "__init__"
    library = next((room for room in LIBRARIES if f"{name}.".startswith(f"{room}.")), None)
    return library or name.split(".")[0]


def own_imports() -> dict[str, set[str]]:
    """Give the modules of `service` that each of its modules imports."""
    return {
        module_of(path): {name for name in imports(path) if name.split(".")[0] == "service"}
        for path in ROOT.rglob("*.py")
    }


def test_imports_point_one_way() -> None:
    for module, names in own_imports().items():
        room = room_of(module)
        for name in names:
            assert room_of(name) in ROOMS, name
            assert ROOMS.index(room_of(name)) <= ROOMS.index(room), f"{module} imports {name}"


def test_no_file_imports_itself_in_a_circle() -> None:
    try:
        TopologicalSorter(own_imports()).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_libraries_know_nothing_of_octavo() -> None:
    for module, names in own_imports().items():
        if (room := room_of(module)) in LIBRARIES:
            others = {name for name in names if room_of(name) != room}
            assert others <= LIBRARIES[room], module


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
    resources = {
        "admin", "auth", "books", "export", "report", "search", "system", "users", "views",
    }  # fmt: skip
    for path in (ROOT / "fast_path").glob("*.py"):
        names = {name.split(".")[1] for name in imports(path) if name.startswith("service.")}
        assert not names & resources, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                assert not re.match("/[a-z]", text), f"{path}:{node.lineno}"


def test_the_cache_knows_no_model() -> None:
    for path in (ROOT / "cache").glob("*.py"):
        models = {name for name in imports(path) if name.startswith("service.models")}
        assert models <= {"service.models.cached"}, path


def test_every_room_holds_the_same_files() -> None:
    for room in ("auth", "books", "search", "users", "admin"):
        names = {path.name for path in (ROOT / room).glob("*.py")}
        extra = {"bulk.py", "bulk_routes.py", "bulk_schemas.py"} if room == "books" else set()
        assert names == {"__init__.py", "routes.py", "schemas.py", "service.py"} | extra


def test_services_know_no_request_and_routes_no_sql() -> None:
    for path in ROOT.glob("*/service.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "quart"}, path
    for path in ROOT.glob("*/routes.py"):
        assert not {name for name in imports(path) if name.split(".")[0] == "sqlalchemy"}, path


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
    return {name.strip("_") for name in names}


@pytest.mark.parametrize("folder", ["service", "tests", "bench", "loadtest", "alembic"])
def test_names_are_nouns_that_can_be_searched_for(folder: str) -> None:
    for path in (ROOT.parent / folder).rglob("*.py"):
        names = names_bound_in(ast.parse(path.read_text(encoding="utf-8")))
        assert not {name.lower() for name in names} & NO_NAMES, path
        assert not names & NO_CONSTANTS, path


def test_tests_read_no_privates() -> None:
    """But where a line says why: `# private: reason`."""
    for path in (ROOT.parent / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
                is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
                has_reason = "# private: " in lines[(node.end_lineno or node.lineno) - 1]
                assert is_own or has_reason, f"{path}:{node.lineno}: {ast.unparse(node)}"


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
        charges = limiter.charges(rule.endpoint, plan, caller)  # only names that the settings know
        assert all(charge.policies for charge in charges)
    assert {rule for rule in free if not rule.startswith("/docs/")} == {
        "/", "/docs", "/openapi.json", "/health", "/health/live", "/health/ready", "/metrics",
        "/api/rate-limit",
    }  # fmt: skip
    assert own == {
        "books.list_books": ("books.list",),
        "books.get_book": ("books.item",),
        "search.search_books": ("search",),
        "export.export_books": ("data",),
        "report.report": ("report",),
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
        if path.name in {"passwords.py", "password_attempts.py"}:
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
    endpoints = set()
    for rule in site.app.url_map.iter_rules():
        view = site.app.view_functions[rule.endpoint]
        schema, _ = getattr(view, QUART_SCHEMA_REQUEST_ATTRIBUTE, (None, None))
        fields = {} if schema is None else get_type_hints(schema, include_extras=True)
        if any(GivenPassword in (kind, *get_args(kind)) for kind in fields.values()):
            endpoints.add(rule.endpoint)
            assert "password_attempt" in vars(inspect.getmodule(inspect.unwrap(view)))
    assert endpoints == {"auth.login", "users.update_profile"}


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
    lines = [
        f"{file}:{number}"
        for folder in ("service", "tests", "bench", "loadtest")
        for file in (ROOT.parent / folder).rglob("*.py")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if silent.search(line)
    ]
    assert not lines
