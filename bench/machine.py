"""Where it was measured, and with what."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "quart", "hypercorn", "uvloop", "sqlalchemy", "asyncpg", "redis", "hiredis", "pydantic",
    "flask", "flask-limiter", "flask-caching", "gunicorn", "psycopg2-binary", "psycopg",
    "fastapi", "slowapi", "litestar", "msgspec", "orjson", "uvicorn", "httptools", "granian",
)  # fmt: skip


def describe(postgresql: str, redis: str) -> dict[str, str]:
    """Give the date, the machine, the interpreter and every version."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "servers": f"PostgreSQL {postgresql}, {redis}, {_wrk()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _wrk() -> str:
    told = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)  # noqa: S607  (found by PATH)
    found = re.search(r"wrk (?:debian/)?(\S+)", told.stdout + told.stderr)
    return f"wrk {found[1]}" if found else sys.exit("wrk does not say its version")
