"""The ASGI front: the answer of last resort, and what passes through untouched."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart

from tests.conftest import Site, settings_for, visiting
from tests.test_web import is_problem


def failing(when: str) -> Any:
    """Make an inner application that fails before or within its answer."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        if when == "within":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("outside of everything")

    return inner


def replace_inner(when: str) -> Any:
    """Put a failing application behind the front, once it serves."""

    def prepare(app: Quart) -> None:
        front: Any = app.asgi_app
        whole, broken = front._inner, failing(when)

        async def inner(scope: Any, receive: Any, send: Any) -> None:
            await (broken if scope["type"] == "http" else whole)(scope, receive, send)

        front._inner = inner

    return prepare


async def test_when_all_else_fails_there_is_still_an_answer(
    site: Site, folder: Path, tmp_path: Path
) -> None:
    settings = settings_for(site.database_url, folder, log_dir=tmp_path)
    async with visiting(settings, replace_inner("before")) as client:
        answer = await client.get("/api/books")
        is_problem(answer, 500, "Internal Server Error")
        assert answer.json()["message"] == "An unexpected error occurred"
    assert "outside of everything" in (tmp_path / "app.log").read_text(encoding="utf-8")


async def test_half_an_answer_does_not_look_whole(site: Site, folder: Path) -> None:
    settings = settings_for(site.database_url, folder)
    async with visiting(settings, replace_inner("within")) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/books")


async def test_debugging_by_the_environment_shows_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUART_DEBUG", "1")
    monkeypatch.setenv("FLASK_DEBUG", "1")

    def faulty(app: Quart) -> None:
        @app.get("/api/defect")
        async def defect() -> str:
            raise RuntimeError("a secret")

    async with visiting(settings_for(site.database_url, folder), faulty) as client:
        answer = await client.get("/api/defect")
        is_problem(answer, 500, "Internal Server Error")
        assert "secret" not in answer.text
