"""Logs: files and lines, the request id in each line, and no secrets."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart, current_app, request

from service import logs
from service.app import create_app
from service.config import ConfigurationError
from service.errors import ServiceUnavailableError
from tests.conftest import Site, serving, settings_for, visiting
from tests.factories import PASSWORD, Factory
from tests.http_client import TIMEOUT

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+: .* \[in /.+\.py:\d+\] \[[A-Za-z0-9._-]+\]"
)


def add_routes(app: Quart) -> None:
    """Add a route that logs its request body, and a route that fails."""

    @app.post("/say")
    async def log_body() -> str:
        current_app.logger.warning("heard %s", await request.get_data(as_text=True))
        return ""

    @app.get("/fail")
    async def fail() -> str:
        raise RuntimeError("on purpose")


async def test_the_log_file_has_the_format_of_the_guide(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    log_dir = tmp_path / "deep" / "logs"
    settings = settings_for(site.another_url, folder, log_dir=log_dir)
    async with visiting(settings, add_routes) as client:
        await client.post("/say", content="hello", headers={"X-Request-ID": "request-7"})
    lines = (log_dir / "app.log").read_text(encoding="utf-8").splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert re.search(r" INFO: Application startup \[in ", lines[0])
    (logged,) = [line for line in lines if "heard" in line]
    assert " WARNING: heard hello [in " in logged
    assert logged.endswith("[request-7]")
    handler = logs.destinations(settings)["app.log"]
    with closing(handler):
        assert isinstance(handler, RotatingFileHandler)
        assert (handler.maxBytes, handler.backupCount) == (10_240_000, 10)


async def test_a_client_cannot_forge_a_log_line(site: Site, folder: Path, tmp_path: Path) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, add_routes) as client:
        await client.post("/say", content="a\r\n2026-01-01 00:00:00,000 INFO: forged\x1b[31m\x9b")
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert all(LINE.fullmatch(line) for line in text.splitlines())
    assert r"a\x0d\x0a2026" in text
    assert "\x1b" not in text
    assert "\x9b" not in text


async def test_an_error_is_logged_with_its_traceback_and_request(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, add_routes) as client:
        response = await client.get("/fail")
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert text.count("RuntimeError: on purpose") == 1
    assert "Traceback (most recent call last)" in text
    assert response.json()["request_id"] in text


async def test_logs_are_json_lines_on_stderr(
    site: Site, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(site.another_url, folder, log_json=True, log_dir=None)
    async with visiting(settings, add_routes) as client:
        await client.post("/say", content="hello", headers={"X-Request-ID": "request-8"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert lines[0] | {"level": "INFO", "message": "Application startup"} == lines[0]
    (logged,) = [line for line in lines if line["message"] == "heard hello"]
    assert logged | {"level": "WARNING", "request_id": "request-8"} == logged
    assert set(logged) >= {"time", "pathname", "lineno"}


async def test_development_writes_no_log_file(folder: Path, tmp_path: Path) -> None:
    program = """
import asyncio
from service.app import create_app
async def main():
    async with create_app("development").test_app():
        pass
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, check=True),
        [sys.executable, "-c", program],
    )
    assert "INFO: Application startup [in " in done.stderr
    assert not (tmp_path / "logs").exists()


async def test_a_log_folder_that_cannot_be_written_is_named(site: Site, folder: Path) -> None:
    blocked = folder / "a-file"
    blocked.write_text("")
    settings = settings_for(site.another_url, folder, log_dir=blocked / "logs")
    with pytest.raises(
        ConfigurationError, match=r"LOG_DIR .* cannot be written .* none for no file"
    ):
        create_app(settings)


async def test_no_secret_is_logged(site: Site, folder: Path, tmp_path: Path) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path, log_level="DEBUG")
    account = {"username": "Anna", "email": "anna@example.org", "password": PASSWORD}
    secrets: list[str] = [PASSWORD, settings.secret_key.get_secret_value()]
    async with visiting(settings, add_routes) as client:
        await client.post("/api/auth/register", json=account)
        await client.post("/api/auth/register", json=account)
        await client.post("/api/auth/register", json=account | {"username": 7})
        for password in (PASSWORD, PASSWORD + " not"):
            credentials = {"email": account["email"], "password": password}
            response = await client.post("/api/auth/login", json=credentials)
            if response.status_code == 200:
                pair = response.json()
        secrets += [pair["token"], pair["refresh_token"]]
        headers = {"Authorization": f"Bearer {pair['token']}"}
        await client.get("/fail", headers=headers)
        await client.post("/api/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        await client.post("/api/auth/refresh", json={"refresh_token": pair["refresh_token"]})
        await client.get("/api/profile", headers=headers)
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert "on purpose" in text
    for secret in secrets:
        assert secret not in text


async def test_logging_does_not_wait_for_its_destination(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    waited: list[bool] = []

    class Slow(logs.Stderr):
        def write(self, lines: Sequence[str]) -> None:
            waited.append(release.wait(TIMEOUT))

    slow = Slow(logging.Formatter())
    monkeypatch.setattr(logs, "destinations", lambda settings: {"slow": slow})
    async with visiting(settings_for(site.another_url, folder), add_routes) as client:
        try:
            for _ in range(3):
                assert (await client.post("/say", content="x")).status_code == 200
            assert waited == [], "the first record is still being written"
        finally:
            release.set()
    assert waited
    assert all(waited)


def test_two_applications_have_two_loggers(folder: Path) -> None:
    first, second = (create_app(settings_for("sqlite:///:memory:", folder)) for _ in range(2))
    assert first.logger is not second.logger
    assert "service" not in logging.Logger.manager.loggerDict


async def test_the_first_log_line_is_the_startup(
    client: httpx.AsyncClient, site: Site, make: Factory
) -> None:
    settings: Any = site.app.extensions["settings"]
    first = (settings.log_dir / "app.log").read_text(encoding="utf-8").splitlines()[0]
    assert "Application startup" in first


async def test_each_request_has_a_log_line(
    site: Site, folder: Path, tmp_path: Path, make: Factory
) -> None:
    owner = await make.member()
    book = await make.book(owner)
    changed = {"log_dir": tmp_path, "ratelimit_login": "1 per hour"}
    async with visiting(settings_for(site.another_url, folder, **changed)) as client:
        for _ in range(2):
            await client.get(f"/api/books/{book.id}", headers={"X-Request-ID": "request-9"})
        await client.patch(f"/api/books/{book.id}", json={"price": 1}, headers=owner.headers)
        await client.get("/nowhere")
        for _ in range(2):
            await client.post("/api/auth/login", json={"email": "a@example.org", "password": "x"})
    lines = [
        re.sub(r"\d+\.\d ms", "... ms", line.partition("INFO: ")[2].partition(" [in ")[0])
        for line in (tmp_path / "app.log").read_text(encoding="utf-8").splitlines()
    ]
    item = "/api/books/<id:book_id>"
    assert [line for line in lines if " ms " in line] == [
        f"GET {item} 200 ... ms user=- cache=miss limit=admitted",
        f"GET {item} 200 ... ms user=- cache=hit limit=admitted",
        f"PATCH {item} 200 ... ms user={owner.id} cache=- limit=admitted",
        "GET unknown 404 ... ms user=- cache=- limit=admitted",
        "POST /api/auth/login 401 ... ms user=- cache=- limit=admitted",
        "POST /api/auth/login 429 ... ms user=- cache=- limit=refused",
    ]


async def test_successful_requests_are_sampled_and_errors_are_not(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    changed = {"log_dir": tmp_path, "access_log_sample": 0.2}
    async with visiting(settings_for(site.another_url, folder, **changed)) as client:
        for _ in range(200):
            await client.get("/health/live")
        for _ in range(5):
            await client.get("/api/books/9")
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert 10 < text.count("GET /health/live 200") < 90
    assert text.count("GET /api/books/<id:book_id> 404") == 5


async def test_log_lines_of_refused_requests_are_bounded(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines over the limit are counted. Other requests keep all of their lines."""
    monkeypatch.setattr(logs, "REFUSAL_SECONDS", 3_600.0)
    changed = {"log_dir": tmp_path, "ratelimit_login": "1 per hour"}

    def unavailable(app: Quart) -> None:
        @app.get("/unavailable")
        async def unavailable() -> str:
            raise ServiceUnavailableError

    settings = settings_for(site.another_url, folder, **changed)
    filters: list[Any] = []
    async with serving(settings, unavailable) as served:
        filters += served.app.logger.filters
        async with httpx.AsyncClient(base_url=served.url, timeout=TIMEOUT) as client:
            body = {"email": "a@example.org", "password": "x"}
            statuses = [(await client.post("/api/auth/login", json=body)).status_code]
            for _ in range(200):
                statuses.append((await client.post("/api/auth/login", json=body)).status_code)
                statuses.append((await client.get("/unavailable")).status_code)
            for _ in range(20):
                assert (await client.get("/nowhere")).status_code == 404
            (refusals,) = filters
            refusals._until = 0.0  # private: starts the next window, an hour early
            assert (await client.get("/nowhere")).status_code == 404
    assert (statuses.count(429), statuses.count(503)) == (200, 200)
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert text.count("GET unknown 404") == 21
    refused = [line for line in text.splitlines() if re.search(r" (429|503) | Unavailable", line)]
    assert len(refused) == logs.REFUSAL_LINES
    left_out = 200 + 2 * 200 - len(refused)  # the cause of each 503 has a line as well
    assert f"WARNING: {left_out} more lines about refused requests (429, 503) were left out" in text


@pytest.mark.parametrize(("hops", "warnings"), [(0, 1), (1, 0)])
async def test_a_proxy_without_trusted_hops_is_warned_of_once(
    site: Site, folder: Path, tmp_path: Path, hops: int, warnings: int
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path, trusted_proxy_hops=hops)
    async with visiting(settings) as client:
        await client.get("/health/live")
        path = tmp_path / "app.log"
        for n in range(5):
            await client.get("/api/books", headers={"X-Forwarded-For": f"192.0.2.{n}"})
    assert path.read_text(encoding="utf-8").count("TRUSTED_PROXY_HOPS is 0") == warnings


def test_lines_are_written_together_until_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of many lines costs as much as a write of 1 line."""
    monkeypatch.setattr(logs, "GATHER_SECONDS", 3_600.0)
    is_written, writes = threading.Event(), list[list[str]]()

    class Recorded(logs.Stderr):
        def write(self, lines: Sequence[str]) -> None:
            writes.append(list(lines))
            is_written.set()

    logger = logging.Logger("test")
    with logs.written(logger, {"recorded": Recorded(logging.Formatter())}):
        for n in range(100):
            logger.info("line %d", n)
        assert writes == []
        logger.warning("a warning")
        assert is_written.wait(TIMEOUT)
        assert writes == [[*(f"line {n}" for n in range(100)), "a warning"]]
        logger.info("the last line")
    assert writes[1:] == [["the last line"]]
