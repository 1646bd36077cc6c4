"""The OpenAPI document against the service, by schemathesis.

schemathesis sends requests that the document allows and requests that it forbids. It compares the
responses with the document.
"""

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.factories import Member

ROOT = Path(__file__).parents[2]
# Warnings that fail a run: all but those about requests that a role may not send.
WARNINGS = (
    "validation_mismatch",
    "missing_deserializer",
    "unused_openapi_auth",
    "unsupported_regex",
)
SIGNED_IN = ("missing_test_data",)  # without signing in no book can be added
ONLY_ADMIN = ("missing_auth",)
CONFIG = """
[warnings]
display = [{warnings}]
fail-on = true

# Most random texts hold no word to search for, and atomic requests name books that do not exist.
[[operations]]
include-name = ["GET /api/search", "PATCH /api/books/bulk", "DELETE /api/books/bulk"]
warnings = false
"""
NOBODY = """
[auth]
auto-signup = false
"""
SIGN_IN = """
[auth.dynamic.openapi.bearer]
path = "/api/auth/login"
payload = {{ email = "{email}", password = "{password}" }}
extract_selector = "/token"
"""


@dataclass(frozen=True)
class Outcome:
    """The result of a run. code: exit code. cases: number of requests. report: its output."""

    code: int
    cases: int
    report: str


async def fuzz(url: str, role: str, user: Member, folder: Path, *options: str) -> Outcome:
    """Run schemathesis against a server, with more `options`.

    role: `nobody`, `member` or `admin`; the last two sign in as `user`.
    """
    names = {
        "nobody": WARNINGS,
        "member": (*WARNINGS, *SIGNED_IN),
        "admin": (*WARNINGS, *SIGNED_IN, *ONLY_ADMIN),
    }[role]
    config = CONFIG.format(warnings=", ".join(f'"{name}"' for name in names))
    config += (
        NOBODY if role == "nobody" else SIGN_IN.format(email=user.email, password=user.password)
    )
    file = folder / "schemathesis.toml"
    file.write_text(config)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("--config-file", file, "run", f"{url}/openapi.json", "--no-color"),
        # checks.py calls these two
        *("--checks", "all"),
        *("--exclude-checks", "positive_data_acceptance,negative_data_rejection"),
        *("--generation-database", "none", "--generation-allow-x00", "true", *options),
        cwd=folder,
        # schemathesis is not measured. Traced by coverage it hung while it compiled the paths.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        | {
            "SCHEMATHESIS_HOOKS": "tests.fuzz.checks",
            "PYTHONPATH": str(ROOT),
            "FUZZ_USER": str(user.id),
            "FUZZ_EMAIL": user.email,
            "FUZZ_PASSWORD": user.password,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    report = output.decode(errors="replace")
    counted = re.search(r"(\d+) generated", report)
    return Outcome(process.returncode or 0, int(counted[1]) if counted else 0, report)
