"""Health: `/health` for people and monitors, `/health/live` and `/health/ready` for balancers."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import SkipJsonSchema
from quart import Blueprint, Quart, Response, current_app
from quart_rate_limiter import rate_exempt
from redis.asyncio import Redis
from sqlalchemy import text

from service import __version__, migrations
from service.additions import Additions
from service.config import Settings
from service.db import Database
from service.openapi.answers import answers
from service.patience import end
from service.precedence import constant, never_shed
from service.web import respond, to_bytes

TIMEOUT = 1.0  # seconds that a check may take, whatever its dependency does
SHARED_SECONDS = 1.0  # that an outcome is told to whoever asks

ALIVE = b'{"status":"alive"}'

health_bp = Blueprint("health", __name__, url_prefix="/health")

Check = Callable[[], Awaitable[object]]


class Outcome(BaseModel):
    """How a dependency answered."""

    status: Literal["ok", "failed", "timeout"]
    latency_ms: float


class HealthReport(BaseModel):
    """How a process and its dependencies are. `error` is there if it is unhealthy.

    revision: of git, if it is known. workers: how many processes serve beside this one, with it.
    fast_path: whether requests may go past Quart's cycle, and what keeps them from it.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    database: Literal["connected", "disconnected"]
    timestamp: datetime
    version: str
    checks: dict[str, Outcome]
    revision: str | None
    uptime_seconds: int
    workers: int
    fast_path: str
    error: str | SkipJsonSchema[None] = None


class Alive(BaseModel):
    """A process that runs."""

    status: Literal["alive"]


class Ready(BaseModel):
    """A process that wants requests."""

    status: Literal["ready"]


class NotReady(BaseModel):
    """A process that wants none yet, or any more."""

    status: Literal["not ready"]
    reasons: list[str]


class Health:
    """What this process knows of itself and of what it depends on."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.serving = False
        self.begun = time.monotonic()
        self.revision = settings.revision
        self._database = database
        self._redis: Redis | None = None
        self._checks: dict[str, Check] = {"database": self._ask_database}
        if settings.redis_url is not None:
            self._redis = Redis.from_url(settings.redis_url)
            self._checks["redis"] = self._redis.ping
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._known: dict[str, tuple[float, Outcome]] = {}  # when, and what
        self._behind = {None, *migrations.older()}

    async def open(self) -> None:
        """Find out what this is."""
        if self.revision is None:
            self.revision = await asyncio.to_thread(_git_revision)

    async def check(self) -> dict[str, Outcome]:
        """Check every dependency at once."""
        outcomes = await asyncio.gather(*(self._outcome(name) for name in self._checks))
        return dict(zip(self._checks, outcomes, strict=True))

    async def reasons_not_ready(self) -> list[str]:
        """Say why no requests should be sent here; nothing if they may."""
        if not self.serving:
            return ["starting or draining"]
        if (await self._outcome("database")).status != "ok":
            return ["database unavailable"]
        if (await self._outcome("revision")).status != "ok":
            return ["migrations are behind: run octavo migrate"]
        return []

    async def close(self) -> None:
        """Give up checks under way, and Redis."""
        for task in self._running.values():
            await end(task)
        if self._redis is not None:
            await self._redis.aclose()

    async def _outcome(self, name: str) -> Outcome:
        """Give what is known for less than a second, or what a check says, which all share."""
        when, known = self._known.get(name, (-SHARED_SECONDS, None))
        if known is not None and time.monotonic() - when < SHARED_SECONDS:
            return known
        # A check that hangs is left behind, not waited for; the next one joins it, so that no
        # more than one connection of a kind ever hangs.
        task = self._running.get(name)
        if task is None or task.done():
            task = self._running[name] = asyncio.create_task(self._ask(name))
        done, _ = await asyncio.wait({task}, timeout=TIMEOUT)
        outcome = task.result() if done else Outcome(status="timeout", latency_ms=TIMEOUT * 1000)
        self._known[name] = (time.monotonic(), outcome)
        return outcome

    async def _ask(self, name: str) -> Outcome:
        check, begun = self._checks.get(name, self._ask_revision), time.perf_counter()
        status: Literal["ok", "failed"] = "ok"
        try:
            await check()
        except Exception:
            status = "failed"
        return Outcome(status=status, latency_ms=round((time.perf_counter() - begun) * 1000, 2))

    async def _ask_database(self) -> None:
        async with self._database.session() as db:
            await db.execute(text("SELECT 1"))

    async def _ask_revision(self) -> None:
        async with self._database.session() as db:
            # A revision that this code does not know is newer: others are being rolled out.
            if await migrations.current(db) in self._behind:
                raise RuntimeError("the database is behind this code")


def _git_revision() -> str | None:
    """Ask git which revision this is, if it is a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent.parent
    asked = [git, "-C", str(here), "rev-parse", "--show-toplevel", "HEAD"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603  (no input)
    top, _, revision = told.stdout.strip().partition("\n")
    return revision if revision and Path(top) == here else None


@health_bp.get("")
@answers(200, HealthReport)
@answers(500, HealthReport)
@rate_exempt
@never_shed
async def health() -> Response:
    """Tell how this process and its dependencies are: healthy, degraded, or unhealthy (500)."""
    found = of_app()
    checks = await found.check()
    down = {name for name, outcome in checks.items() if outcome.status != "ok"}
    unhealthy = "database" in down
    answer: dict[str, Any] = {
        "status": "unhealthy" if unhealthy else "degraded" if down else "healthy",
        "database": "disconnected" if unhealthy else "connected",
        "timestamp": datetime.now(UTC),
        "version": __version__,
        "checks": {name: outcome.model_dump() for name, outcome in checks.items()},
        "revision": found.revision,
        "uptime_seconds": int(time.monotonic() - found.begun),
        "workers": current_app.extensions.get("workers", 1),
        "fast_path": _fast_path(current_app.extensions["settings"].fast_path),
    }
    if unhealthy:
        answer["error"] = "database unavailable"
    return respond(to_bytes(answer), 500 if unhealthy else 200)


def _fast_path(is_wanted: bool) -> str:
    additions: Additions = current_app.extensions["additions"]
    if not is_wanted:
        return "off (FAST_PATH=false)"
    return f"off ({', '.join(additions.names)})" if additions.are_there else "on"


@health_bp.get("/live")
@answers(200, Alive)
@rate_exempt
@never_shed
@constant(ALIVE)
async def live() -> Response:
    """Answer as long as the process runs; touch nothing."""
    return respond(ALIVE)


@health_bp.get("/ready")
@answers(200, Ready)
@answers(503, NotReady)
@rate_exempt
@never_shed
async def ready() -> Response:
    """Tell whether requests should be sent here: 503 with the reasons if not."""
    reasons = await of_app().reasons_not_ready()
    if reasons:
        return respond(to_bytes({"status": "not ready", "reasons": reasons}), 503)
    return respond(b'{"status":"ready"}')


def of_app() -> Health:
    """Give the health of the current application."""
    found: Health = current_app.extensions["health"]
    return found


def init_app(app: Quart, settings: Settings) -> None:
    """Register the health pages."""
    app.register_blueprint(health_bp)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        state = app.extensions["health"] = Health(app.extensions["database"], settings)
        await state.open()
        state.serving = True
        for reason in await state.reasons_not_ready():
            app.logger.warning("Not ready: %s", reason)
        yield
        state.serving = False
        await state.close()
