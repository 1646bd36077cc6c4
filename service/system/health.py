"""Report health: `/health` for monitors; `/health/live`, `/health/ready` for load balancers."""

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

from service import __version__
from service.config import Settings
from service.db import migrations
from service.db.database import Database
from service.http.additions import Additions
from service.http.documentation import document_status
from service.http.priority import constant, never_shed
from service.http.responses import respond, to_bytes
from service.timeouts import cancel_and_wait

CHECK_TIMEOUT_SECONDS = 1.0  # the longest time that a request waits for a check
SHARED_SECONDS = 1.0  # time for which requests share the outcome of a check

ALIVE = b'{"status":"alive"}'

health_bp = Blueprint("health", __name__, url_prefix="/health")

Check = Callable[[], Awaitable[object]]


class Outcome(BaseModel):
    """The result of a check of a dependency."""

    status: Literal["ok", "failed", "timeout"]
    latency_ms: float


class HealthReport(BaseModel):
    """The state of a process and its dependencies. `error` is present if it is unhealthy.

    revision: the git revision, if known. workers: number of serving processes, this one included.
    fast_path: whether requests may bypass Quart's request cycle, and the reasons if not.
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
    """The process runs."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The process accepts requests."""

    status: Literal["ready"]


class NotReady(BaseModel):
    """The process does not accept requests yet, or no longer accepts them."""

    status: Literal["not ready"]
    reasons: list[str]


class Health:
    """The state of this process, and checks of its dependencies."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.serving = False
        self.begun = time.monotonic()
        self.revision = settings.revision
        self._database = database
        self._redis: Redis | None = None
        self._checks: dict[str, Check] = {"database": self._check_database}
        if settings.redis_url is not None:
            self._redis = Redis.from_url(settings.redis_url)
            self._checks["redis"] = self._redis.ping
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._known: dict[str, tuple[float, Outcome]] = {}  # check -> (time, outcome)
        self._behind = {None, *migrations.older()}

    async def open(self) -> None:
        """Read the revision of the code from git, if it is not configured."""
        if self.revision is None:
            self.revision = await asyncio.to_thread(_git_revision)

    async def check(self) -> dict[str, Outcome]:
        """Check all dependencies concurrently. Return the outcomes by name."""
        outcomes = await asyncio.gather(*(self._outcome(name) for name in self._checks))
        return dict(zip(self._checks, outcomes, strict=True))

    async def reasons_not_ready(self) -> list[str]:
        """Return why this process should get no requests; an empty list if it is ready."""
        if not self.serving:
            return ["starting or draining"]
        if (await self._outcome("database")).status != "ok":
            return ["database unavailable"]
        if (await self._outcome("revision")).status != "ok":
            return ["migrations are behind: run octavo migrate"]
        return []

    async def close(self) -> None:
        """Cancel running checks, and close the connection to Redis."""
        for task in self._running.values():
            await cancel_and_wait(task)
        if self._redis is not None:
            await self._redis.aclose()

    async def _outcome(self, name: str) -> Outcome:
        """Return the outcome of a check; run the check if the last is older than SHARED_SECONDS."""
        checked_at, known = self._known.get(name, (-SHARED_SECONDS, None))
        if known is not None and time.monotonic() - checked_at < SHARED_SECONDS:
            return known
        # A check that hangs keeps running in the background. The next request waits for the same
        # task, so that at most one connection of each kind hangs.
        task = self._running.get(name)
        if task is None or task.done():
            task = self._running[name] = asyncio.create_task(self._run(name))
        done, _ = await asyncio.wait({task}, timeout=CHECK_TIMEOUT_SECONDS)
        outcome = (
            task.result()
            if done
            else Outcome(status="timeout", latency_ms=CHECK_TIMEOUT_SECONDS * 1000)
        )
        self._known[name] = (time.monotonic(), outcome)
        return outcome

    async def _run(self, name: str) -> Outcome:
        check, begun = self._checks.get(name, self._check_revision), time.perf_counter()
        status: Literal["ok", "failed"] = "ok"
        try:
            await check()
        except Exception:
            status = "failed"
        return Outcome(status=status, latency_ms=round((time.perf_counter() - begun) * 1000, 2))

    async def _check_database(self) -> None:
        async with self._database.session() as db:
            await db.execute(text("SELECT 1"))

    async def _check_revision(self) -> None:
        async with self._database.session() as db:
            # A revision that this code does not know is newer: a deployment is in progress.
            if await migrations.current(db) in self._behind:
                raise RuntimeError("the database is behind this code")


def _git_revision() -> str | None:
    """Return the git revision of this checkout; None if this is not a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parents[2]
    command = [git, "-C", str(here), "rev-parse", "--show-toplevel", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (no input)
    top, _, revision = result.stdout.strip().partition("\n")
    return revision if revision and Path(top) == here else None


@health_bp.get("")
@document_status(200, HealthReport)
@document_status(500, HealthReport)
@rate_exempt
@never_shed
async def health() -> Response:
    """Report the state of this process: healthy, degraded, or unhealthy (500)."""
    state = of_app()
    checks = await state.check()
    down = {name for name, outcome in checks.items() if outcome.status != "ok"}
    unhealthy = "database" in down
    report: dict[str, Any] = {
        "status": "unhealthy" if unhealthy else "degraded" if down else "healthy",
        "database": "disconnected" if unhealthy else "connected",
        "timestamp": datetime.now(UTC),
        "version": __version__,
        "checks": {name: outcome.model_dump() for name, outcome in checks.items()},
        "revision": state.revision,
        "uptime_seconds": int(time.monotonic() - state.begun),
        "workers": current_app.extensions.get("workers", 1),
        "fast_path": _fast_path(current_app.extensions["settings"].fast_path),
    }
    if unhealthy:
        report["error"] = "database unavailable"
    return respond(to_bytes(report), 500 if unhealthy else 200)


def _fast_path(is_wanted: bool) -> str:
    additions: Additions = current_app.extensions["additions"]
    if not is_wanted:
        return "off (FAST_PATH=false)"
    return f"off ({', '.join(additions.names)})" if additions.exist else "on"


@health_bp.get("/live")
@document_status(200, Alive)
@rate_exempt
@never_shed
@constant(ALIVE)
async def live() -> Response:
    """Respond as long as the process runs, without any check."""
    return respond(ALIVE)


@health_bp.get("/ready")
@document_status(200, Ready)
@document_status(503, NotReady)
@rate_exempt
@never_shed
async def ready() -> Response:
    """Report whether this process accepts requests: 503 with the reasons if not."""
    reasons = await of_app().reasons_not_ready()
    if reasons:
        return respond(to_bytes({"status": "not ready", "reasons": reasons}), 503)
    return respond(b'{"status":"ready"}')


def of_app() -> Health:
    """Return the health of the current application."""
    state: Health = current_app.extensions["health"]
    return state


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
