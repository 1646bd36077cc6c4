"""The rights and limits that every operation declares are enforced, also of an added operation."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from quart import Quart

from tests.conformance import Watched
from tests.conftest import RATES, Site, serving, settings_for
from tests.examples.added import Reviews
from tests.factories import Factory, Member
from tests.fuzz.declared import Declared, Requests, declarations
from tests.test_matrix import expired

LIMIT, BEYOND = 7, 8


@pytest.fixture
async def extended(site: Site, folder: Path) -> AsyncIterator[Site]:
    """An application with small limits, to which reviews were added."""

    def prepare(app: Quart) -> None:
        app.register_blueprint(reviews.blueprint)
        app.asgi_app = Watched(app)  # type: ignore[method-assign]  # Quart's way in
        app.extensions["additions"].accept()

    rates = dict.fromkeys(RATES, f"{LIMIT} per hour")
    rates["ratelimit_login_failures"] = "1000 per hour"  # the limit of an account
    settings = settings_for(site.another_url, folder, trusted_proxy_hops=1, **rates)
    with Reviews.added() as reviews:
        async with serving(settings, prepare) as served:
            await reviews.create_table(served.database)
            try:
                yield served
            finally:
                await reviews.drop_table(served.database)


class Caller:
    """Sends requests to an application, each time from a new address."""

    def __init__(self, site: Site, client: httpx.AsyncClient, member: Member) -> None:
        self._client = client
        self._addresses = 0
        self._requests = Requests(random.Random(1), site.app)
        self._requests.member = member

    async def send(
        self, declared: Declared, number: int, headers: dict[str, str]
    ) -> list[httpx.Response]:
        """Send `number` equal, valid requests of an operation at once, from a new address."""
        self._addresses += 1
        address = f"172.16.{self._addresses // 256}.{self._addresses % 256}"
        path = re.sub("{.*?}", "999999", declared.path)
        body = None if declared.example is None else self._requests.good(declared)
        return await asyncio.gather(
            *(
                self._client.request(
                    declared.method,
                    path,
                    json=body,
                    headers={"X-Forwarded-For": address, **headers},
                )
                for _ in range(number)
            )
        )


@pytest.fixture
async def caller(extended: Site) -> AsyncIterator[Caller]:
    """A caller of that application."""
    most = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=extended.url, limits=most, timeout=60) as client:
        yield Caller(extended, client, await Factory(extended.app).member())


@pytest.mark.one_database  # the limits are in memory
async def test_every_operation_admits_exactly_its_limit(extended: Site, caller: Caller) -> None:
    make = Factory(extended.app)
    for declared in declarations(extended.app):
        for headers in ({}, (await make.member()).headers):
            if headers and declared.method != "GET":
                continue  # a change may end the token; then the address counts
            (first,) = await caller.send(declared, 1, headers)
            if "RateLimit-Limit" not in first.headers:
                assert declared.endpoint == "limits.rate_limits", (
                    "the operation that shows limits has none"
                )
                continue
            limit = int(first.headers["RateLimit-Limit"])
            responses = await caller.send(declared, limit + BEYOND, headers or {})
            statuses = Counter(response.status_code for response in responses)
            spent = 1 if headers else 0  # the address is new each time
            assert statuses.pop(429) == BEYOND + spent, (declared.endpoint, statuses)
            assert sum(statuses.values()) == limit - spent
            assert max(statuses) < 500


async def test_every_operation_enforces_its_declared_rights(extended: Site, caller: Caller) -> None:
    make = Factory(extended.app)
    for declared in declarations(extended.app):
        gone, member, admin = await make.member(), await make.member(), await make.admin()
        async with httpx.AsyncClient(base_url=extended.url, timeout=60) as client:
            path = f"/admin/users/{gone.id}"
            assert (await client.delete(path, headers=admin.headers)).status_code == 204
        senders: dict[str, Any] = {
            "anonymous": {},
            "expired": expired(member),
            "gone": gone.headers,
            "member": member.headers,
            "admin": admin.headers,
        }
        statuses = {}
        for name, headers in senders.items():
            (response,) = await caller.send(declared, 1, headers)
            statuses[name] = response.status_code
        assert statuses["expired"] == statuses["gone"] == 401, declared.endpoint
        is_public = {"/api/auth/refresh", "/api/auth/login"} & {declared.path}
        if not is_public:  # these refuse the credentials in the body
            assert (statuses["anonymous"] == 401) is declared.is_secured, declared.endpoint
            assert statuses["member"] != 401
            assert statuses["admin"] not in {401, 403}
        assert (statuses["member"] == 403) is declared.path.startswith("/admin/")
