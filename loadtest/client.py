"""One client: how they sign in, how they ask, and what they make of the answer."""

import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from random import Random
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import gevent
from locust import FastHttpUser
from locust.exception import StopUser

from loadtest.crowd import JSON, Crowd
from loadtest.demand import Query
from loadtest.promises import Promises, limit_of, retry_after

TRIES = 20  # at what has to succeed before a client can begin


class Client(FastHttpUser):
    """Somebody with an account, who asks one thing after the other."""

    abstract = True
    patient = True  # does not ask again before the time that a 429 named
    network_timeout = connection_timeout = 10.0
    token = ""

    @property
    def crowd(self) -> Crowd:
        """What all clients have in common."""
        crowd: Crowd = self.environment.octavo
        return crowd

    def on_start(self) -> None:
        """Make an account, get its tier, sign in."""
        crowd = self.crowd
        number = next(crowd.numbers)
        self.chance = Random(f"client {crowd.seed} {number}")
        self.promises = Promises(crowd.promises, allow_503=crowd.allow_503)
        name = f"load-{crowd.name}-{number}"
        account = {"email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}
        user = self._insist("POST", "/api/auth/register", {"username": name, **account}, 201)
        if crowd.profile.tier != user["tier"]:
            self.token, tier = crowd.admin, {"tier": crowd.profile.tier}
            self._insist("PATCH", "/admin/users/{id}", tier, 200, user["id"])
        self.token = ""
        self.token = self._insist("POST", "/api/auth/login", account, 200)["token"]
        self.id: int = user["id"]
        crowd.user_ids.append(self.id)

    def wait_time(self) -> float:
        """Give the seconds until the next thing."""
        return self.chance.uniform(*self.crowd.profile.pause)

    def _insist(self, method: str, route: str, body: Any, status: int, row_id: int = 0) -> Any:
        limit = limit_of(method, route)
        for _ in range(TRIES):
            answer = self.ask(method, route, row_id, body=body, expected=(status,))
            if answer is not None and answer.status_code == status:
                return answer.json()
            seconds = answer is not None and retry_after(answer.headers)
            gevent.sleep(seconds or self.promises.wait(limit, monotonic()) or 1)
        raise StopUser

    def ask(
        self,
        method: str,
        route: str,
        row_id: int = 0,
        *,
        query: Query | None = None,
        body: Any = None,
        tag: str | None = None,
        expected: tuple[int, ...] = (200,),
        note: str = "",
        check: Callable[[Any], str | None] | None = None,
    ) -> Any:
        """Ask, and have it counted under its route; 304, 429 and 503 apart from the rest.

        tag: of what one has already. check: says what is wrong with an expected answer. Gives the
        answer; None if one had to wait for a limit, and did not ask.
        """
        limit = limit_of(method, route)
        if self.patient and self.promises.wait(limit, monotonic()):
            return None
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if tag is not None:
            headers["If-None-Match" if method == "GET" else "If-Match"] = tag
        if body is not None:
            headers |= JSON
        path = route.format(id=row_id) + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        begun = monotonic()
        with self.client.request(
            method, path, name=route + note, data=data, headers=headers, catch_response=True
        ) as answer:
            status = answer.status_code
            if status in expected or (status == 304 and tag is not None):
                self.promises.admitted(limit, begun)
                wrong = check(answer) if check else None
            else:
                seen = (limit, status, answer.headers, begun, monotonic())
                wrong = self.promises.unexpected(*seen)
            if status in {304, 429, 503} and status not in expected:
                answer.request_meta["name"] += f": {status}"
            answer.failure(wrong) if wrong else answer.success()
        return answer


def body_of(answer: Any) -> Any:
    """Give the JSON of an answer; None if there is none, or it was refused."""
    if answer is None or not 200 <= answer.status_code < 300:
        return None
    with suppress(ValueError):
        return json.loads(answer.content)
    return None
