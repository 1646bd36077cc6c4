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
OTHER_KINDS = {304, 412, 429, 503}  # statuses that locust counts as another kind of request
REPEATED = " repeated"  # a note: the same request again, with its Idempotency-Key


class Client(FastHttpUser):
    """A user with an account, which sends one request at a time."""

    abstract = True
    patient = True  # sends no request before the time of Retry-After
    is_admin = False
    network_timeout = connection_timeout = 10.0
    token = ""

    @property
    def shared(self) -> SharedState:
        """The state that all clients share."""
        shared: SharedState = self.environment.octavo
        return shared

    def on_start(self) -> None:
        """Create an account, set its tier and its rights, sign in."""
        shared = self.shared
        number = next(shared.numbers)
        self.chance = Random(f"client {shared.seed} {number}")
        self.tracker = RetryAfterTracker(shared.retry_after, allow_503=shared.allow_503)
        name = f"load-{shared.name}-{number}"
        account = {"email": f"{name}@example.org", "password": secrets.token_urlsafe(12)}
        user = self._send_until("POST", "/api/auth/register", {"username": name, **account}, 201)
        rights: dict[str, Any] = {"is_admin": True} if self.is_admin else {}
        if shared.profile.tier != user["tier"]:
            rights["tier"] = shared.profile.tier
        if rights:
            self.token = shared.admin
            self._send_until("PATCH", "/admin/users/{id}", rights, 200, user["id"])
        self.token = ""
        self.token = self._send_until("POST", "/api/auth/login", account, 200)["token"]
        self.id: int = user["id"]
        shared.user_ids.append(self.id)

    def wait_time(self) -> float:
        """Return the seconds until the next request."""
        return self.chance.uniform(*self.shared.profile.pause)

    def new_key(self) -> str:
        """Return an Idempotency-Key that no other request has."""
        return f"{self.shared.name}-{self.id}-{self.chance.getrandbits(64):x}"

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
        key: str | None = None,
        expected: tuple[int, ...] = (200,),
        note: str = "",
        check: Callable[[Any], str | None] | None = None,
    ) -> Any:
        """Send a request; locust counts it under its route, and each of OTHER_KINDS separately.

        tag: ETag that the client has. key: Idempotency-Key. check: returns the failure of an
        expected response, or None.
        Returns the response; None if the client must wait for a rate limit, and sent nothing.
        """
        limit = limit_of(method, route)
        if self.patient and self.tracker.wait(limit, monotonic()):
            return None
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if tag is not None:
            headers["If-None-Match" if method == "GET" else "If-Match"] = tag
        if key is not None:
            headers["Idempotency-Key"] = key
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
            if status in OTHER_KINDS:
                response.request_meta["name"] += f": {status}"
            response.failure(failure) if failure else response.success()
        return response


def is_replay(first: Any) -> Callable[[Any], str | None]:
    """Return the check that a response repeats the first response."""

    def check(response: Any) -> str | None:
        if response.headers.get("Idempotency-Replayed") != "true":
            return "a repeated request was not recognised"
        return None if response.content == first.content else "differs from the first response"

    return check


def body_of(response: Any) -> Any:
    """Return the JSON of a response; None if there is none, or the request failed."""
    if response is None or not 200 <= response.status_code < 300:
        return None
    with suppress(ValueError):
        return json.loads(response.content)
    return None
