"""Administrators who give up their rights at the same time: one of them stays."""

import asyncio
from typing import Any

import httpx
import pytest

from service.admin.service import delete_user, update_rights
from service.http.auth import CurrentUser
from tests.conftest import Site
from tests.factories import Factory, Member
from tests.locks import current_user, until_blocked


async def give_up(client: httpx.AsyncClient, member: Member, method: str) -> httpx.Response:
    """Send the request by which an administrator gives up their own rights."""
    body = {"is_admin": False} if method == "PATCH" else None
    path = f"/admin/users/{member.id}"
    return await client.request(method, path, json=body, headers=member.headers)


async def work_of(db: Any, user: CurrentUser, method: str) -> None:
    """Do within a write what `give_up` requests."""
    if method == "PATCH":
        await update_rights(db, user, user.id, tier=None, is_admin=False)
    else:
        await delete_user(db, user, user.id)


@pytest.mark.parametrize("second_method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("first_method", ["PATCH", "DELETE"])
async def test_of_two_administrators_who_step_down_at_once_one_stays(
    site: Site, client: httpx.AsyncClient, make: Factory, first_method: str, second_method: str
) -> None:
    first, second = await make.admin(), await make.admin()

    async def work(db: Any) -> "asyncio.Task[httpx.Response]":
        """Step down; the other one begins to do so before this write is committed."""
        await work_of(db, current_user(site, first, is_admin=True), first_method)
        request = asyncio.create_task(give_up(client, second, second_method))
        await until_blocked(site, request)
        return request

    response = await (await site.database.write(work))
    assert response.status_code == 409
    remaining = await client.get("/admin/users", headers=second.headers)
    assert remaining.status_code == 200
    assert [user["id"] for user in remaining.json()["items"] if user["is_admin"]] == [second.id]


async def test_an_administrator_steps_down_while_another_one_stays(
    client: httpx.AsyncClient, make: Factory
) -> None:
    first, second, third = await make.admin(), await make.admin(), await make.admin()
    responses = await asyncio.gather(
        give_up(client, first, "PATCH"), give_up(client, second, "DELETE")
    )
    assert [response.status_code for response in responses] == [200, 204]
    assert (await give_up(client, third, "PATCH")).status_code == 409
