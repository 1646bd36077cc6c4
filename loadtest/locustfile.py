"""The locust file. `make loadtest` starts it; it also runs alone:

    OCTAVO_ADMIN_PASSWORD=... locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 \\
        --profile service-tier --books 10000

Fill the catalogue with `octavo seed-db --books N` before.
"""

from pathlib import Path
from time import monotonic, process_time
from typing import Any

import gevent
from locust import events

from loadtest.curator import Curator
from loadtest.editor import Editor
from loadtest.mirror import Mirror
from loadtest.profiles import PROFILES
from loadtest.readers import Browser, ImpatientBrowser, ReturningClient, Searcher
from loadtest.shared_state import prepare
from loadtest.supplier import Supplier
from loadtest.verdict import Figures, Measured

__all__ = [
    "Browser",
    "Curator",
    "Editor",
    "ImpatientBrowser",
    "Mirror",
    "ReturningClient",
    "Searcher",
    "Supplier",
]  # locust reads them from this module
PROGRESS_SECONDS = 5


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add the options of the command line."""
    group = parser.add_argument_group("Octavo", "--profile: " + ", ".join(PROFILES))
    group.add_argument("--books", type=int, default=10_000, help="Number of books in the catalogue")
    group.add_argument("--seed", type=int, default=1, help="Seed of all random choices")
    group.add_argument("--allow-503", action="store_true", help="Do not count a 503 as a failure")
    group.add_argument(
        "--admin-email", default="admin@example.org", help="Administrator that sets the tiers"
    )
    parser.add_argument("--admin-password", env_var="OCTAVO_ADMIN_PASSWORD", is_secret=True)
    group.add_argument("--figures", type=Path, help="File for the measured figures, as JSON")


@events.test_start.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Prepare the state that the clients share, and start the progress output."""
    options = environment.parsed_options
    if options.profile not in PROFILES:
        raise SystemExit(
            f"Unknown --profile {options.profile}. Choose one of {', '.join(PROFILES)}"
        )
    environment.octavo = prepare(environment.host, options)
    gevent.spawn(_print_progress, environment)


def _print_progress(environment: Any) -> None:
    while True:
        gevent.sleep(PROGRESS_SECONDS)
        seconds = monotonic() - environment.octavo.begun
        total, users = environment.stats.total, environment.runner.user_count
        print(
            f"  {seconds:4.0f} s  {users} users  {total.current_rps:.0f} requests/s  "
            f"{total.num_failures} failed",
            flush=True,
        )


@events.quitting.add_listener
def end(environment: Any, **_: Any) -> None:
    """Write the measured figures to a file."""
    target: Path | None = environment.parsed_options.figures
    if target is None or not hasattr(environment, "octavo"):
        return
    shared = environment.octavo
    seconds = monotonic() - shared.begun
    failures: dict[str, dict[str, int]] = {}
    for error in environment.stats.errors.values():
        kinds = failures.setdefault(f"{error.method} {error.name}", {})
        kinds[str(error.error)] = kinds.get(str(error.error), 0) + error.occurrences
    requests = {
        (name := f"{entry.method} {entry.name}"): Measured(
            requests=entry.num_requests,
            p95_ms=entry.get_response_time_percentile(0.95),
            p99_ms=entry.get_response_time_percentile(0.99),
            failures=failures.get(name, {}),
        )
        for entry in environment.stats.entries.values()
    }
    Figures(
        seconds=seconds,
        users=environment.runner.target_user_count,
        core=(process_time() - shared.cpu) / seconds,
        requests=requests,
        retry_after=dict(shared.retry_after),
    ).save(target)
