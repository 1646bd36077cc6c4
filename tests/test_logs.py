"""Logs: the guide's file, one line per record, the request in each, and nothing secret."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
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

DEADLINE = 30  # seconds
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+: .* \[in /.+\.py:\d+\] \[[A-Za-z0-9._-]+\]"
)


def talkative(app: Quart) -> None:
    """Add a route that logs what it is told."""

    @app.post("/say")
    async def say() -> str:
        current_app.logger.warning("heard %s", await request.get_data(as_text=True))
        return ""

    @app.get("/fail")
    async def fail() -> str:
        raise RuntimeError("on purpose")


async def test_the_guides_file(site: Site, folder: Path, tmp_path: Path) -> None:
    log_dir = tmp_path / "deep" / "logs"
    settings = settings_for(site.another_url, folder, log_dir=log_dir)
    async with visiting(settings, talkative) as client:
        await client.post("/say", content="hello", headers={"X-Request-ID": "request-7"})
    lines = (log_dir / "app.log").read_text(encoding="utf-8").splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert re.search(r" INFO: Application startup \[in ", lines[0])
    (said,) = [line for line in lines if "heard" in line]
    assert " WARNING: heard hello [in " in said
    assert said.endswith("[request-7]")
    handler = logs.destinations(settings)["app.log"]
    assert isinstance(handler, RotatingFileHandler)
    assert (handler.maxBytes, handler.backupCount) == (10_240_000, 10)
    handler.close()


async def test_what_a_client_sends_cannot_begin_a_line(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path)
    async with visiting(settings, talkative) as client:
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
    async with visiting(settings, talkative) as client:
        answer = await client.get("/fail")
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert text.count("RuntimeError: on purpose") == 1
    assert "Traceback (most recent call last)" in text
    assert answer.json()["request_id"] in text


async def test_json_lines_on_stderr(
    site: Site, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(site.another_url, folder, log_json=True, log_dir=None)
    async with visiting(settings, talkative) as client:
        await client.post("/say", content="hello", headers={"X-Request-ID": "request-8"})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert lines[0] | {"level": "INFO", "message": "Application startup"} == lines[0]
    (said,) = [line for line in lines if line["message"] == "heard hello"]
    assert said | {"level": "WARNING", "request_id": "request-8"} == said
    assert set(said) >= {"time", "pathname", "lineno"}


async def test_development_writes_no_file(folder: Path, tmp_path: Path) -> None:
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


async def test_a_folder_that_cannot_be_written_is_named(site: Site, folder: Path) -> None:
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
    async with visiting(settings, talkative) as client:
        await client.post("/api/auth/register", json=account)
        await client.post("/api/auth/register", json=account)
        await client.post("/api/auth/register", json=account | {"username": 7})
        for password in (PASSWORD, PASSWORD + " not"):
            credentials = {"email": account["email"], "password": password}
            answer = await client.post("/api/auth/login", json=credentials)
            if answer.status_code == 200:
                pair = answer.json()
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


async def test_logging_does_not_wait_for_its_file(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    waited: list[bool] = []

    class Slow(logs.Stderr):
        def write(self, lines: Sequence[str]) -> None:
            waited.append(release.wait(DEADLINE))

    slow = Slow(logging.Formatter())
    monkeypatch.setattr(logs, "destinations", lambda settings: {"slow": slow})
    async with visiting(settings_for(site.another_url, folder), talkative) as client:
        for _ in range(3):
            assert (await client.post("/say", content="x")).status_code == 200
        assert waited == [], "the first record is still being written"
        release.set()
    assert waited
    assert all(waited)


def test_two_applications_have_two_loggers(folder: Path) -> None:
    one, other = (create_app(settings_for("sqlite:///:memory:", folder)) for _ in range(2))
    assert one.logger is not other.logger
    assert "service" not in logging.Logger.manager.loggerDict


async def test_the_log_of_a_site_begins_with_its_start(
    client: httpx.AsyncClient, site: Site, make: Factory
) -> None:
    settings: Any = site.app.extensions["settings"]
    first = (settings.log_dir / "app.log").read_text(encoding="utf-8").splitlines()[0]
    assert "Application startup" in first


async def test_each_request_has_a_line(
    site: Site, folder: Path, tmp_path: Path, make: Factory
) -> None:
    owner = await make.member()
    book = await make.book(owner)
    changed = {"log_dir": tmp_path, "ratelimit_login": "1 per hour"}
    async with visiting(settings_for(site.another_url, folder, **changed)) as client:
        for _ in range(2):
            await client.get(f"/api/books/{book.id}", headers={"X-Request-ID": "one"})
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


async def test_of_what_went_well_there_is_a_sample(
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


async def test_refused_requests_do_not_roll_the_log_over(
    site: Site, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of lines for them, a count of the others, and all lines of what is not."""
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
        async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
            body = {"email": "a@example.org", "password": "x"}
            statuses = [(await client.post("/api/auth/login", json=body)).status_code]
            for _ in range(200):
                statuses.append((await client.post("/api/auth/login", json=body)).status_code)
                statuses.append((await client.get("/unavailable")).status_code)
            for _ in range(20):
                assert (await client.get("/nowhere")).status_code == 404
            (refusals,) = filters
            refusals._until = 0.0  # the next window begins
            assert (await client.get("/nowhere")).status_code == 404
    assert (statuses.count(429), statuses.count(503)) == (200, 200)
    text = (tmp_path / "app.log").read_text(encoding="utf-8")
    assert text.count("GET unknown 404") == 21
    refused = [line for line in text.splitlines() if re.search(r" (429|503) | Unavailable", line)]
    assert len(refused) == logs.REFUSAL_LINES
    left_out = 200 + 2 * 200 - len(refused)  # of each 503 the cause has a line, too
    assert f"WARNING: {left_out} more lines about refused requests (429, 503) were left out" in text


@pytest.mark.parametrize(("hops", "warnings"), [(0, 1), (1, 0)])
async def test_a_proxy_that_is_not_counted_is_told_of_once(
    site: Site, folder: Path, tmp_path: Path, hops: int, warnings: int
) -> None:
    settings = settings_for(site.another_url, folder, log_dir=tmp_path, trusted_proxy_hops=hops)
    async with visiting(settings) as client:
        await client.get("/health/live")
        path = tmp_path / "app.log"
        for n in range(5):
            await client.get("/api/books", headers={"X-Forwarded-For": f"192.0.2.{n}"})
    assert path.read_text(encoding="utf-8").count("TRUSTED_PROXY_HOPS is 0") == warnings


def test_lines_are_gathered_until_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write of many lines costs as much as a write of a single one."""
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
        assert is_written.wait(DEADLINE)
        assert writes == [[*(f"line {n}" for n in range(100)), "a warning"]]
        logger.info("the last one")
    assert writes[1:] == [["the last one"]]
