"""The document against the service: schemathesis makes the requests that the document allows,
and those that it forbids, and holds the answers to it.
"""

import asyncio
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.factories import Member

ROOT = Path(__file__).parents[2]
# Warnings that end a run as failures do: all but those of what a role is meant to be refused.
WARNINGS = (
    "validation_mismatch",
    "missing_deserializer",
    "unused_openapi_auth",
    "unsupported_regex",
)
SIGNED_IN = ("missing_test_data",)  # nobody cannot add the books that they ask for
ONLY_ADMIN = ("missing_auth",)
CONFIG = """
[warnings]
display = [{warnings}]
fail-on = true
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
    """How a run ended: its exit code, its number of requests, and what it printed."""

    code: int
    cases: int
    report: str


async def fuzz(url: str, role: str, user: Member, folder: Path, *words: str) -> Outcome:
    """Run schemathesis, with more `words` on its command line, against a server.

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
        # checks.py calls them
        *("--checks", "all"),
        *("--exclude-checks", "positive_data_acceptance,negative_data_rejection"),
        *("--generation-database", "none", "--generation-allow-x00", "true", *words),
        cwd=folder,
        # It is not what is measured; and traced by coverage it has been seen to hang, as it
        # compiled the document's paths.
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
    output, _ = await process.communicate()
    report = output.decode(errors="replace")
    counted = re.search(r"(\d+) generated", report)
    return Outcome(process.returncode or 0, int(counted[1]) if counted else 0, report)
