"""Metrics for Prometheus at /metrics, aggregated over all workers of a service."""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from quart import Blueprint, Quart, Response, current_app, request
from quart_rate_limiter import rate_exempt

from service import __version__
from service.cache import Cache
from service.config import Settings
from service.db.database import Database
from service.errors import ResourceNotFoundError
from service.http.context import context_of
from service.http.documentation import document_errors, document_status
from service.http.priority import never_shed
from service.http.responses import respond
from service.idempotency import OUTCOMES as KEY_OUTCOMES
from service.idempotency import IdempotentWrites
from service.limits import Limiter
from service.middleware.load_shedding import LoadShedding
from service.middleware.loop_lag import LoopLag
from service.middleware.request_edge import RequestEdge
from service.security import Passwords, bearer
from service.system import metrics_files
from service.views.counter import ViewCounter

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOOK_SECONDS = 0.5  # between two updates of the counters and gauges

metrics_bp = Blueprint("metrics", __name__)


class Metrics:
    """The metrics of one process."""

    def __init__(self, app: Quart) -> None:
        self.registry = CollectorRegistry()
        self._app = app
        self._has_warned = False
        self._requests = Histogram(
            "octavo_request_seconds",
            "Duration of requests, in seconds",
            ("method", "route", "status"),
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], Any] = {}
        self._counters: dict[tuple[str, str], tuple[Any, float]] = {}
        for name, about in COUNTERS.items():
            labels = ("outcome",) if name in OUTCOMES else ()
            counter = Counter(name, about, labels, registry=self.registry)
            for outcome in OUTCOMES.get(name, ("",)):
                child = counter.labels(outcome) if outcome else counter
                self._counters[name, outcome] = (child, 0.0)
        self._gauges = {
            name: Gauge(name, about, multiprocess_mode=mode, registry=self.registry)
            for name, (mode, about) in GAUGES.items()
        }
        build = Gauge(
            "octavo_build_info",
            "Version of Octavo",
            ("version",),
            multiprocess_mode="livemax",
            registry=self.registry,
        )
        build.labels(__version__).set(1)

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Record a completed request."""
        method = scope["method"]
        key = (method, context_of(scope).route, status)
        child = self._children.get(key)
        if child is None:
            if method not in METHODS:
                key = ("other", *key[1:])
            child = self._children[key] = self._requests.labels(*key)
        child.observe(seconds)

    def check_files(self) -> None:
        """Copy the numbers of other modules. Warn once if other workers cannot read them."""
        extensions = self._app.extensions
        cache: Cache = extensions["cache"]
        database: Database = extensions["database"]
        limiter: Limiter = extensions["limiter"]
        passwords: Passwords = extensions["passwords"]
        idempotency: IdempotentWrites = extensions["idempotency"]
        edge: RequestEdge = extensions["request_edge"]
        lag: LoopLag = extensions["loop_lag"]
        load_shedding: LoadShedding = extensions["load_shedding"]
        views: ViewCounter = extensions["view_counter"]
        counted = asdict(cache.counters)
        totals: dict[tuple[str, str], float] = {
            **{("octavo_cache_reads", read): counted.pop(name) for read, name in READS.items()},
            **{(f"octavo_cache_{name}", ""): number for name, number in counted.items()},
            ("octavo_limit_decisions", "admitted"): limiter.admitted,
            ("octavo_limit_decisions", "refused"): limiter.refused,
            ("octavo_limit_decisions_without_redis", ""): limiter.limit_store.decided_locally,
            **{("octavo_idempotency", name): n for name, n in idempotency.counts.items()},
            ("octavo_shed", ""): load_shedding.queue.refused,
            ("octavo_pool_waits", ""): database.waits.number,
            ("octavo_pool_wait_seconds", ""): database.waits.seconds,
            ("octavo_views", "written"): views.written,
            ("octavo_views", "lost"): views.lost,
        }  # fmt: skip
        for key, number in totals.items():
            counter, before = self._counters[key]
            counter.inc(number - before)
            self._counters[key] = (counter, number)
        if metrics_files.failures and not self._has_warned:
            self._has_warned = True
            text = "Metrics are of this process alone until it is replaced (%s)"
            self._app.logger.warning(text, metrics_files.failures[0].strerror)
        now = {
            "octavo_requests_in_flight": edge.in_flight,
            "octavo_requests_waiting": load_shedding.queue.waiting,
            "octavo_event_loop_lag_seconds": lag.worst(),
            "octavo_pool_in_use": database.in_use,
            "octavo_pool_waiting": database.waits.waiting,
            "octavo_cache_on": cache.lease.lease() is not None,
            "octavo_password_jobs": passwords.pending,
            "octavo_workers": 1,
            "octavo_metrics_alone": bool(metrics_files.failures),
        }
        for name, number in now.items():
            self._gauges[name].set(number)

    async def text(self) -> bytes:
        """Return the metrics of all workers in Prometheus' text format.

        If only this process is covered, the first line is a comment with the reason.
        """
        self.check_files()
        return await asyncio.to_thread(self._text)

    def _text(self) -> bytes:
        problem = metrics_files.failures[0].strerror if metrics_files.failures else None
        if problem is None and (folder := os.environ.get(metrics_files.FOLDER)):
            registry = CollectorRegistry()
            try:
                multiprocess.MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]  # it has no types
                return generate_latest(registry)
            except (OSError, ValueError):  # the folder, or a file in it, was deleted
                problem = "the folder of all cannot be read"
        note = f"# Of process {os.getpid()} alone ({problem})\n" if problem else ""
        return note.encode() + generate_latest(self.registry)


COUNTERS = {
    "octavo_cache_reads": "Reads through the cache, by outcome",
    "octavo_cache_fills": "Entries that readers wrote to the cache",
    "octavo_cache_marks": "Writes that marked the entries they change",
    "octavo_cache_epoch_changes": "Number of times that the cache was turned off or on",
    "octavo_cache_breaker_openings": "Number of times that the circuit breaker of Redis opened",
    "octavo_cache_stale": "Sampled hits older than an earlier response: must stay 0",
    "octavo_limit_decisions": "Requests that the rate limits admitted or refused",
    "octavo_limit_decisions_without_redis": "Decisions of a worker alone, without Redis",
    "octavo_idempotency": "Requests with an Idempotency-Key, by outcome",
    "octavo_shed": "Requests that were refused because they had waited too long",
    "octavo_pool_waits": "Reads and writes that waited for a database connection",
    "octavo_pool_wait_seconds": "Total time of these waits",
    "octavo_views": "Views of books that were written to the database, or lost",
}
READS = {"hit": "hits", "miss": "misses", "bypass": "bypasses"}
OUTCOMES = {
    "octavo_cache_reads": tuple(READS),
    "octavo_limit_decisions": ("admitted", "refused"),
    "octavo_idempotency": KEY_OUTCOMES,
    "octavo_views": ("written", "lost"),
}
GAUGES: dict[str, tuple[Any, str]] = {
    "octavo_requests_in_flight": ("livesum", "Requests in flight"),
    "octavo_requests_waiting": ("livesum", "Requests in the admission queue"),
    "octavo_event_loop_lag_seconds": ("livemax", "Highest lag of any event loop in a second"),
    "octavo_pool_in_use": ("livesum", "Database connections in use"),
    "octavo_pool_waiting": ("livesum", "Reads and writes that wait for a database connection"),
    "octavo_cache_on": ("livemin", "1 if every worker uses the cache, else 0"),
    "octavo_password_jobs": ("livesum", "Password hashes that run or wait"),
    "octavo_workers": ("livesum", "Number of worker processes"),
    "octavo_metrics_alone": ("livesum", "Processes whose metrics the others cannot read"),
}


@metrics_bp.get("/metrics")
@document_status(200, media="text/plain")
@document_errors(404)
@rate_exempt
@never_shed
async def metrics() -> Response:
    """Return the metrics of this service in Prometheus' text format.

    If METRICS_TOKEN is set, it is required as a bearer token. Without it, production returns 404.
    """
    settings: Settings = current_app.extensions["settings"]
    expected = settings.metrics_token
    if expected is not None:
        given = bearer(request.headers.get("Authorization", ""))
        is_known = secrets.compare_digest(given.encode(), expected.get_secret_value().encode())
    else:
        is_known = settings.env != "production"
    if not is_known:
        raise ResourceNotFoundError
    process_metrics: Metrics = current_app.extensions["metrics"]
    return respond(await process_metrics.text(), content_type=CONTENT_TYPE_LATEST)


def init_app(app: Quart, settings: Settings) -> None:
    """Register `/metrics`, observe every request, and update the other metrics every 0.5 s."""
    app.register_blueprint(metrics_bp)
    process_metrics = app.extensions["metrics"] = Metrics(app)
    app.extensions.setdefault("observers", []).append(process_metrics.observe)

    async def observe() -> None:
        while True:
            process_metrics.check_files()
            await asyncio.sleep(LOOK_SECONDS)

    @app.while_serving
    async def lifespan() -> AsyncGenerator[None, None]:
        looking = asyncio.create_task(observe())
        yield
        looking.cancel()
