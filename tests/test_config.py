"""Settings: names, values, and problems."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import config
from service.app import create_app
from service.config import (
    CONFIGURATIONS,
    ConfigurationError,
    Development,
    Production,
    Settings,
    load,
)
from tests.conftest import SECRET

GOOD = {
    "SECRET_KEY": SECRET,
    "DATABASE_URL": "postgresql://me:word@db/books",
    "PUBLIC_URL": "https://books.example.org",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without settings, and an empty folder."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("DEV_DATABASE_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def test_development_needs_no_settings() -> None:
    settings = load("development")
    assert settings.database.render_as_string() == "sqlite+aiosqlite:///dev.db"
    assert settings.cors_origins == ("*",)
    assert settings.redis_url is None
    create_app("development")


def test_the_names_of_the_guide_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (GOOD | {"REDIS_URL": "redis://cache/0"}).items():
        monkeypatch.setenv(name, value)
    settings = load("production")
    assert settings.secret_key.get_secret_value() == SECRET
    assert settings.database.host == "db"
    assert settings.redis_url == "redis://cache/0"
    monkeypatch.setenv("DEV_DATABASE_URL", "sqlite:///other.db")
    assert load("development").database.database == "other.db"
    assert load("production").database.host == "db"
    create_app("production")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@h:5/d", "postgresql+asyncpg://u:p@h:5/d"),
        ("postgres://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql+asyncpg://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("sqlite+aiosqlite:////tmp/a.db", "sqlite+aiosqlite:////tmp/a.db"),
    ],
)
def test_plain_database_urls_become_async(given: str, used: str) -> None:
    settings = Development(database_url=given)
    assert settings.database.render_as_string(hide_password=False) == used


def test_the_environment_has_priority_over_the_file_named_env(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"{name}={value}" for name, value in GOOD.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "PASSWORD_WORKERS=7", "FLASK_APP=run.py"]))
    monkeypatch.setenv("PUBLIC_URL", "https://other.example.org/")
    settings = load("production")
    assert settings.password_workers == 7
    assert settings.public_url == "https://other.example.org"
    assert load("testing").password_workers == 2


def test_settings_are_frozen() -> None:
    settings = load("development")
    with pytest.raises(ValidationError):
        settings.redis_url = "redis://elsewhere"  # type: ignore[misc]  # it is frozen


@pytest.mark.parametrize(
    ("change", "reason", "cure"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY is missing", "secrets.token_hex"),
        ({"SECRET_KEY": "dev-secret-key"}, "published default", "secrets.token_hex"),
        ({"SECRET_KEY": "your-secret-key-here"}, "published default", "secrets.token_hex"),
        ({"SECRET_KEY": "short"}, "shorter than 32 bytes", "secrets.token_hex"),
        ({"SECRET_KEY_PREVIOUS": "dev-secret-key"}, "SECRET_KEY_PREVIOUS is", "secrets.token_hex"),
        ({"SECRET_KEY_PREVIOUS": "short"}, "SECRET_KEY_PREVIOUS is shorter", "secrets.token_hex"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is missing", "postgresql://"),
        ({"DATABASE_URL": "sqlite:///a.db"}, "SQLite", "postgresql://"),
        ({"PUBLIC_URL": ""}, "PUBLIC_URL is missing", "https://"),
        ({"TOTAL_WORKERS": "2"}, "TOTAL_WORKERS is more than one", "set REDIS_URL to"),
        ({"CORS_ORIGINS": "*", "CORS_CREDENTIALS": "true"}, "CORS_ORIGINS is *", "exact origins"),
        (
            {"CORS_BLUEPRINT_ORIGINS": '{"books": ["*"]}', "CORS_CREDENTIALS": "true"},
            "CORS_BLUEPRINT_ORIGINS is *",
            "exact origins",
        ),
    ],
)
def test_unsafe_production_settings_are_refused_with_reason_and_cure(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reason: str, cure: str
) -> None:
    for name, value in (GOOD | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        create_app("production")
    (problem,) = caught.value.problems
    assert reason in problem
    assert cure in problem
    assert "\n" not in problem


def test_a_variable_that_disables_the_cache_library_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIOCACHE_DISABLE", "1")
    with pytest.raises(ConfigurationError, match="CACHE_ITEM_SECONDS=0"):
        load("testing").check()


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_app("production")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("DATABASE_URL", "mysql://h/d", "postgresql://"),
        ("DATABASE_URL", "nonsense", "postgresql://"),
        ("PUBLIC_URL", "books.example.org", "http"),
        ("PUBLIC_URL", "https://anna:secret@books.example.org", "without user"),
        ("PUBLIC_URL", "https://books.example.org/?a=1", "without user"),
        ("REDIS_URL", "redis//:x@h", "redis://"),
        ("RATELIMIT_DEFAULT", "often", "10 per minute;100 per hour"),
        ("RATELIMIT_DEFAULT", "10 per minute;", "10 per minute;100 per hour"),
        ("RATELIMIT_LOGIN", "0 per minute", "at least 1"),
        ("RATELIMIT_LOGIN", "1000000001 per minute", "at most 1,000,000,000"),
        ("RATELIMIT_LOGIN", "10 per 40 years", "at most 1,000,000,000"),
        ("TOTAL_WORKERS", "0", "1"),
        ("REDIS_URL", "redis://:pw@h:abc/0", "Port"),
        ("REFRESH_TOKEN_SECONDS", "999999999999", "less than"),
        ("MAX_WAIT_SECONDS", "inf", "less than"),
        ("SPA_FALLBACK_URL", "/app", "http"),
        ("CORS_ORIGINS", "https://a.example/path", "no origin"),
        ("CORS_ORIGINS", "a.example", "no origin"),
        ("CORS_BLUEPRINT_ORIGINS", '{"books": ["a.example"]}', "no origin"),
        ("CORS_BLUEPRINT_ORIGINS", '{"nothing": ["https://a.example"]}', "'books'"),
        ("CORS_BLUEPRINT_ORIGINS", "books", "JSON"),
        ("ISBN_CHECKSUM", "sometimes", "lenient"),
        ("POOL_SIZE", "0", "1"),
        ("POOL_SIZE", "many", "integer"),
        ("LOG_LEVEL", "LOUD", "INFO"),
    ],
)
def test_an_invalid_value_is_reported_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        create_app("production" if name == "DATABASE_URL" else "development")
    problem = next(line for line in caught.value.problems if line.startswith(name))
    assert part in problem
    assert "\n" not in problem


def test_a_file_named_env_that_is_not_utf8_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PUBLIC_URL=http://b\xfccher.example.org\n")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        load("development")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", SECRET)
    monkeypatch.setenv("POOL_SIZE", "many")
    with pytest.raises(ConfigurationError) as caught:
        load("development")
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(Development(secret_key=SECRET, pool_size=1))


def test_there_are_three_configurations() -> None:
    assert CONFIGURATIONS == {
        "development": Development, "production": Production, "testing": config.Testing,
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="staging"):
        create_app("staging")


def test_an_import_of_the_service_starts_no_thread_and_writes_no_file(tmp_path: Path) -> None:
    code = "import service.app, service.cli, threading; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env=os.environ | {"SECRET_KEY": ""}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []


def test_every_setting_is_documented() -> None:
    path = Path(__file__).parent.parent / "docs" / "settings.md"
    page = path.read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name.upper()}`")]
        assert field.description
        assert field.description.replace("|", "\\|") in row
