"""The service keeps what its document says: thousands of requests by schemathesis.

`make fuzz` sets FUZZ_CASES: how many requests all runs together make, instead of a few hundred
each.
"""

import os
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.factories import Factory
from tests.fuzz import fuzz

pytestmark = pytest.mark.no_cover  # what it runs, others cover, and it is far faster without

RUNS = 6  # three roles, two databases
CASES = int(os.environ.get("FUZZ_CASES", "0")) // RUNS


@pytest.mark.timeout(7_200 if CASES else 120)
@pytest.mark.parametrize("role", ["nobody", "member", "admin"])
async def test_every_answer_keeps_to_the_document(
    site: Site, make: Factory, tmp_path: Path, role: str
) -> None:
    cases = runs = 0
    while cases < max(CASES, 1):
        member = await make.member(is_admin=role == "admin")
        await make.book(member, isbn="9780306406157", price=9.5, genre="Science")
        # The suite takes the edges of every value from one role alone: they are the same for all.
        phases = "examples,fuzzing,stateful" + (",coverage" if CASES or role == "member" else "")
        words = (
            "--phases",
            phases,
            "--max-examples",
            *(["400"] if CASES else ["5", "--seed", "4"]),
        )
        outcome = await fuzz(site.url, role, member, tmp_path, *words)
        assert outcome.code == 0, outcome.report
        cases += outcome.cases
        runs += 1
    backend = site.database.url.get_backend_name()
    print(f"{cases} requests by {role} on {backend} in {runs} runs, 0 failures, 0 warnings")
    assert cases > 100
