"""The state that all clients of a run share, and its preparation before they start."""

import json
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from random import Random
from time import monotonic, process_time
from typing import Any

from locust.contrib.fasthttp import FastHttpSession
from locust.event import EventHook

from loadtest.demand import Filters, Zipf
from loadtest.profiles import PROFILES, Profile

JSON = {"Content-Type": "application/json"}
SAMPLES, SAMPLED = 5, 100  # requests to the catalogue, and books that each of them returns


@dataclass
class SharedState:
    """The state that all clients of a run share."""

    profile: Profile
    seed: int
    allow_503: bool
    admin: str  # a token
    popular: Zipf
    filters: Filters
    begun: float = field(default_factory=monotonic)
    cpu: float = field(
        default_factory=process_time
    )  # seconds of CPU that locust had used before the run
    name: str = field(default_factory=lambda: secrets.token_hex(3))
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    user_ids: list[int] = field(default_factory=list)
    curated: list[int] = field(default_factory=list)  # ids of books that all curators change
    retry_after: Counter[str] = field(default_factory=Counter)


def prepare(host: str, options: Any) -> SharedState:
    """Sample the catalogue, and sign in as the administrator. This is not measured."""
    session = FastHttpSession(host, EventHook(), None)
    profile = PROFILES[options.profile]

    def send(method: str, path: str, token: str = "", **body: Any) -> Any:
        headers = JSON | ({"Authorization": f"Bearer {token}"} if token else {})
        data = json.dumps(body) if body else None
        response: Any = session.request(method, path, headers=headers, data=data)
        if not 200 <= response.status_code < 300:
            raise SystemExit(f"{method} {path} has status {response.status_code}: {response.text}")
        return response.json()

    def sign_in() -> str:
        account = {"email": options.admin_email, "password": options.admin_password}
        token: str = send("POST", "/api/auth/login", **account)["token"]
        return token

    token = sign_in()
    if profile.tier != "free":  # otherwise the limit allows only 50 changes of a tier an hour
        admin_id = send("GET", "/api/profile", token)["id"]
        send("PATCH", f"/admin/users/{admin_id}", token, tier=profile.tier)
        token = sign_in()
    chance = Random(options.seed)
    books = []
    for _ in range(SAMPLES):
        start = chance.randrange(max(1, options.books - SAMPLED))
        books += send("GET", f"/api/books?limit={SAMPLED}&cursor={start}", token)["items"]
    return SharedState(
        profile,
        options.seed,
        options.allow_503,
        token,
        Zipf(options.books, options.seed),
        Filters(books),
    )
