"""Responses to thousands of requests by schemathesis fit the OpenAPI document.

`make fuzz` sets FUZZ_CASES: the number of requests of all runs together. Without it each run sends
a few hundred.
"""

import os
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.factories import Factory
from tests.fuzz import fuzz

pytestmark = pytest.mark.no_cover  # other tests cover the same code, and coverage slows it down

DATABASES, ROLES = ("sqlite", "postgresql"), ("nobody", "member", "admin")
RUNS = list(product(DATABASES, ROLES))
CASES = int(os.environ.get("FUZZ_CASES", "0")) // len(RUNS)
# The suite runs each role on one database: a run takes 17 s of CPU time.
SHORT_RUNS = [("sqlite", "nobody"), ("postgresql", "member"), ("sqlite", "admin")]


@pytest.mark.timeout(7_200 if CASES else 120)
@pytest.mark.parametrize(
    ("database_url", "role"), RUNS if CASES else SHORT_RUNS, indirect=["database_url"]
)
async def test_every_response_fits_the_document(
    site: Site, make: Factory, tmp_path: Path, role: str
) -> None:
    cases = runs = 0
    while cases < max(CASES, 1):
        member = await make.member(is_admin=role == "admin")
        await make.book(member, isbn="9780306406157", price=9.5, genre="Science")
        # The bounds of values are the same for every role, so the suite tries them with one role.
        phases = "examples,fuzzing,stateful" + (",coverage" if CASES or role == "member" else "")
        options = (
            "--phases",
            phases,
            "--max-examples",
            *(["400"] if CASES else ["5", "--seed", "4"]),
        )
        outcome = await fuzz(site.url, role, member, tmp_path, *options)
        assert outcome.code == 0, outcome.report
        cases += outcome.cases
        runs += 1
    backend = site.database.url.get_backend_name()
    print(f"{cases} requests by {role} on {backend} in {runs} runs, 0 failures, 0 warnings")
    assert cases > 100
