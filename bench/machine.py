"""The machine and the versions of a measurement."""

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
    """Return the date, the machine, the interpreter and all versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "interpreter": f"{platform.python_implementation()} {platform.python_version()}",
        "servers": f"PostgreSQL {postgresql}, {redis}, {_wrk()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return model[1] if model else platform.machine()


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _wrk() -> str:
    result = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)  # noqa: S607  (from PATH)
    release = re.search(r"wrk (?:debian/)?(\S+)", result.stdout + result.stderr)
    return f"wrk {release[1]}" if release else sys.exit("wrk -v prints no version")
