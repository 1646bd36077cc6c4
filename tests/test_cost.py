"""No invalid request costs much more CPU time than a valid request of the same size.

`make fuzz` sets FUZZ_CASES: the approximate number of requests of the search. Then their cost is
also limited in milliseconds. Otherwise it is only compared with the cost of valid requests, which
are sent in turns in the same process; and HEAD and OPTIONS, which have no handlers of their own,
are left out.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from itertools import islice, product
from pathlib import Path
from statistics import median
from string import ascii_letters
from typing import Any

import pytest
import uvloop

from tests.fuzz.cost import metered
from tests.fuzz.good import operations
from tests.fuzz.search import Search
from tests.fuzz.shapes import PLACES, Case, Operation

pytestmark = pytest.mark.no_cover  # tracing multiplies the cost

CASES = int(os.environ.get("FUZZ_CASES", "0"))
EXAMPLES = max(3, CASES // 250)  # for each place of each operation
MAX_CPU_MS = 5.0  # of CPU time for 64 KiB, on an idle machine
MAX_RATIO = 3.0
MAX_BYTES = 8_192
N = 60_000


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """A search that measures an application in this process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        folder: Path = tmp_path_factory.mktemp("cost")
        meter = runner.run(stack.enter_async_context(metered(folder)))
        try:
            search = Search(runner, meter)
            member = runner.run(search.make.member())
            runner.run(search.make.book(member))
            yield search
        finally:
            runner.run(stack.aclose())


@pytest.mark.timeout(7_200 if CASES else 900)
def test_the_most_expensive_request_of_every_operation_is_cheap(search: Search) -> None:
    worst, ratios, excesses = [], [], []
    for operation in operations(search.meter.app):
        if not CASES and operation.method in {"HEAD", "OPTIONS"}:
            continue
        places = [place for place in PLACES if place != "body" or operation.example is not None]
        results = [search.costliest(operation, place, EXAMPLES) for place in places]
        worst += results
        costliest = max(results, key=lambda each: each.per_unit)
        if CASES:  # without the SQL of a valid request, which does not grow with the request
            small = min(search.valid_ms(Case.of(operation), is_warm=False) for _ in range(5))
            excesses.append(search.measure(costliest.case, 10).per_unit - small)
        ratio = search.ratio(costliest.case, 5 if CASES else 3)
        if ratio > MAX_RATIO:
            ratio = search.ratio(costliest.case, 15)  # the first ratio may be noise
        ratios.append((ratio, str(costliest)))
    worst = [search.measure(each.case, 10) for each in worst if each.per_unit > MAX_CPU_MS / 3]
    worst.sort(key=lambda each: each.per_unit, reverse=True)
    print(f"{search.requests} requests, the largest error {search.largest} bytes. The costliest:")
    print(*worst[:10], sep="\n")
    print("Compared with valid requests of their size:")
    print(
        *(f"{ratio:.2f} {result}" for ratio, result in sorted(ratios, reverse=True)[:10]), sep="\n"
    )
    assert search.largest <= MAX_BYTES
    assert max(ratios)[0] <= MAX_RATIO
    assert not CASES or max(excesses) <= MAX_CPU_MS


def body(text: bytes) -> Callable[[Case], None]:
    """Replace a body."""

    def change(case: Case) -> None:
        case.body = text

    return change


def query(text: bytes) -> Callable[[Case], None]:
    """Add a query."""

    def change(case: Case) -> None:
        case.target += b"?" + text

    return change


def path(text: bytes) -> Callable[[Case], None]:
    """Replace the target."""

    def change(case: Case) -> None:
        case.target = text

    return change


def header(name: bytes, value: bytes, number: int = 1) -> Callable[[Case], None]:
    """Add a header, once or many times."""

    def change(case: Case) -> None:
        case.headers += [(name, value)] * number

    return change


def members(number: int, value: bytes) -> bytes:
    """Make an object of unknown members."""
    names = islice(product(ascii_letters, repeat=3), number)
    return b"{%b}" % b",".join(b'"%b":%b' % ("".join(name).encode(), value) for name in names)


def many(value: bytes, size: int = N) -> bytes:
    """Make a body whose e-mail address is a list, of `size` bytes."""
    values = b",".join([value] * (size // (len(value) + 1)))
    return b'{"email":[%b],"password":"x"}' % values


def address(text: str) -> Callable[[Case], None]:
    """Make the body of a sign-in."""
    return body(b'{"email":"%b","password":"x"}' % text.encode())


LOGIN, REGISTER, REFRESH = (f"POST /api/auth/{name}" for name in ("login", "register", "refresh"))
CHANGE = "DELETE /api/books/{book_id}"
LIST, LIVE, DOCS = "GET /api/books", "GET /health/live", "GET /docs"
# An operation, the change of its request, and the ordinary mistake to compare with. Without a
# mistake it is compared with a valid request.
EXPENSIVE: dict[str, tuple[Any, ...]] = {
    "unknown members on login": (LOGIN, body(members(8_187, b"0"))),
    "unknown members on register": (REGISTER, body(members(8_187, b"0"))),
    "unknown members on refresh": (REFRESH, body(members(8_187, b"0"))),
    "unknown members, as many as are read": (REFRESH, body(members(1_999, b'""'))),
    "integers": (LOGIN, body(many(b"0")), body(b"{}")),
    "fractions": (LOGIN, body(many(b"1.1")), body(b"{}")),
    "exponents": (REGISTER, body(many(b"1e9")), body(b"{}")),
    "objects": (REGISTER, body(many(b'{"":0}')), body(b"{}")),
    "arrays": (LOGIN, body(many(b"[]")), body(b"{}")),
    "escapes in strings": (REFRESH, body(many(b'"\\n"')), body(b"{}")),
    "an address that folds": (LOGIN, address("\u0958" * 990), address("a" * 990)),
    "a new address that folds": (
        REGISTER, body(b'{"email":"%b@b.de"}' % ("\u0958" * 2_000).encode()), body(b"{}")),
    "percent signs": (LIST, query(b"%" * N)),
    "escapes": (LIST, query(b"q=" + b"%C3%A9" * (N // 6))),
    "hyphens in an ISBN": (LIST, query(b"isbn=" + b"-" * N)),
    "long names of parameters": (
        LIST, query(b"&".join(b"%d" % n + b"k" * 1_000 for n in range(49)))),
    "escapes in a path": (LIVE, path(b"/health/" + b"%ff" * (N // 3))),
    "slashes in a path": (LIVE, path(b"/a" * (N // 2))),
    "a list of tags": (DOCS, header(b"If-None-Match", b", " * (N // 2))),
    "tags": (DOCS, header(b"If-None-Match", b'"a", ' * (N // 5))),
    "empty elements in a condition": (CHANGE, header(b"If-Match", b", " * (N // 2) + b"x")),
    "tags in a condition": (CHANGE, header(b"If-Match", b'"a", ' * (N // 5) + b"x")),
    "blanks in a condition": (CHANGE, header(b"If-None-Match", b'"a"' + b" " * N + b"x")),
    "blanks in a coding": (LIVE, header(b"Transfer-Encoding", b"a" + b" " * N + b"b, chunked")),
    "a length that is none": (LIVE, header(b"Content-Length", b", " * (N // 2)),
                              header(b"Content-Length", b",")),
    "headers": (LIVE, header(b"a", b"", 12_000)),
    "options of a connection": (LIVE, header(b"Connection", b"," * N)),
    "a long host": (LIST, path(b"http://" + b"00." * (N // 3) + b"/api/books")),
}  # fmt: skip


@pytest.mark.parametrize("shape", EXPENSIVE)
def test_a_shape_that_was_expensive_costs_no_more_than_an_ordinary_request(
    search: Search, shape: str
) -> None:
    label, change, *mistakes = EXPENSIVE[shape]
    operation: Operation = next(
        each for each in operations(search.meter.app) if each.label == label
    )
    case = Case.of(operation)
    if operation.is_secured:
        token = search.run(search.make.admin()).token
        case.headers.append((b"Authorization", b"Bearer " + token.encode()))
    change(case)
    ordinary = Case.of(operation) if mistakes else None
    for mistake in mistakes:
        mistake(ordinary)
    cost = search.measure(case, 1).cost
    assert len(cost.head) + len(cost.body) <= MAX_BYTES
    ratio = search.ratio(case, 5, ordinary)
    if ratio > MAX_RATIO:
        ratio = search.ratio(case, 25, ordinary)
    print(f"{cost.status} in {cost.ms:.2f} ms, {ratio:.2f} times an ordinary request")
    assert ratio <= MAX_RATIO


def test_a_head_in_single_bytes_costs_in_proportion_to_its_length(search: Search) -> None:
    """The parser does not search the whole head again for each byte."""

    def cost(size: int) -> float:
        request = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-A: "
        request += b"a" * size + b"\r\n\r\n"
        return search.run(search.meter.send(request, segment=1)).ms

    ratios = [cost(60_000) / cost(10_000) for _ in range(5)]
    assert median(ratios) < 12, "six times as many bytes; with a search from the beginning, 20"
