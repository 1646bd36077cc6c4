"""The base class of clients: sign-in, requests, and the check of responses."""

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

from loadtest.demand import Query
from loadtest.retry_after import RetryAfterTracker, limit_of, retry_after
from loadtest.shared_state import JSON, SharedState

TRIES = 20  # of a request that must succeed before a client can start


class Client(FastHttpUser):
    """A user with an account, which sends one request at a time."""

    abstract = True
    patient = True  # sends no request before the time of Retry-After
    network_timeout = connection_timeout = 10.0
    token = ""

    @property
    def shared(self) -> SharedState:
        """The state that all clients share."""
        shared: SharedState = self.environment.octavo
        return shared

    def on_start(self) -> None:
        """Create an account, set its tier, sign in."""
        shared = self.shared
        number = next(shared.numbers)
        self.chance = Random(f"client {shared.seed} {number}")
        self.tracker = RetryAfterTracker(shared.retry_after, allow_503=shared.allow_503)
        name = f"load-{shared.name}-{number}"
        account = {"email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}
        user = self._send_until("POST", "/api/auth/register", {"username": name, **account}, 201)
        if shared.profile.tier != user["tier"]:
            self.token, tier = shared.admin, {"tier": shared.profile.tier}
            self._send_until("PATCH", "/admin/users/{id}", tier, 200, user["id"])
        self.token = ""
        self.token = self._send_until("POST", "/api/auth/login", account, 200)["token"]
        self.id: int = user["id"]
        shared.user_ids.append(self.id)

    def wait_time(self) -> float:
        """Return the seconds until the next request."""
        return self.chance.uniform(*self.shared.profile.pause)

    def _send_until(self, method: str, route: str, body: Any, status: int, row_id: int = 0) -> Any:
        limit = limit_of(method, route)
        for _ in range(TRIES):
            response = self.send(method, route, row_id, body=body, expected=(status,))
            if response is not None and response.status_code == status:
                return response.json()
            seconds = response is not None and retry_after(response.headers)
            gevent.sleep(seconds or self.tracker.wait(limit, monotonic()) or 1)
        raise StopUser

    def send(
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
        """Send a request; locust counts it under its route, and 304, 429 and 503 separately.

        tag: ETag that the client has. check: returns the failure of an expected response, or None.
        Returns the response; None if the client must wait for a rate limit, and sent nothing.
        """
        limit = limit_of(method, route)
        if self.patient and self.tracker.wait(limit, monotonic()):
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
        ) as response:
            status = response.status_code
            if status in expected or (status == 304 and tag is not None):
                self.tracker.admitted(limit, begun)
                failure = check(response) if check else None
            else:
                seen = (limit, status, response.headers, begun, monotonic())
                failure = self.tracker.unexpected(*seen)
            if status in {304, 429, 503} and status not in expected:
                response.request_meta["name"] += f": {status}"
            response.failure(failure) if failure else response.success()
        return response


def body_of(response: Any) -> Any:
    """Return the JSON of a response; None if there is none, or the request failed."""
    if response is None or not 200 <= response.status_code < 300:
        return None
    with suppress(ValueError):
        return json.loads(response.content)
    return None
