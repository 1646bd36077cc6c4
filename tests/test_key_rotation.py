"""The secret key is replaced: cursors and tokens stay valid during the rotation and after it."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from service.errors import InvalidInputError
from service.http.pagination import Cursors
from service.models import User
from service.security import InvalidTokenError, Tokens
from tests.conftest import SECRET, Site, serving, settings_for

OLD, NEW, OTHER = (
    SECRET,
    "the next secret, long enough as well",
    "a secret that has never signed anything",
)
PURPOSE = ["books", "title", {}]
STAGES: dict[str, dict[str, object]] = {
    "before": {"secret_key": OLD},
    "during": {"secret_key": NEW, "secret_key_previous": OLD},
    "after": {"secret_key": NEW},
    "elsewhere": {"secret_key": OTHER},
}
# The stage that signs, the stage that verifies, and whether the signature is accepted.
CASES = [
    ("before", "during", True),
    ("before", "after", False),
    ("during", "during", True),
    ("during", "after", True),
    ("during", "before", False),
    ("during", "elsewhere", False),
    ("after", "during", True),
]


@pytest.fixture
def settings_of(tmp_path: Any) -> Any:
    """Settings of each stage of a rotation."""
    return lambda stage: settings_for("sqlite:///:memory:", tmp_path, **STAGES[stage])


@pytest.mark.parametrize(("signing", "verifying", "is_accepted"), CASES)
def test_a_cursor_in_a_rotation(
    settings_of: Any, signing: str, verifying: str, is_accepted: bool
) -> None:
    cursor = Cursors(settings_of(signing)).write(PURPOSE, "Dune", 7)
    cursors = Cursors(settings_of(verifying))
    if is_accepted:
        assert cursors.read(cursor, PURPOSE) == ("Dune", 7)
        return
    with pytest.raises(InvalidInputError):
        cursors.read(cursor, PURPOSE)


@pytest.mark.parametrize(("signing", "verifying", "is_accepted"), CASES)
def test_a_token_in_a_rotation(
    settings_of: Any, signing: str, verifying: str, is_accepted: bool
) -> None:
    user = User(id=7, username="reader", tier="free", token_version=3, created_at=datetime.now(UTC))
    token, jti = Tokens(settings_of(signing)).issue(user)
    tokens = Tokens(settings_of(verifying))
    if is_accepted:
        claims = tokens.read(token)
        assert (claims.user_id, claims.jti, claims.ver) == (7, jti, 3)
        return
    with pytest.raises(InvalidTokenError):
        tokens.read(token)


@pytest.mark.parametrize("sort", ["title", "-price", "published_year"])
async def test_a_list_in_progress_survives_the_end_of_a_rotation(
    site: Site, make: Any, folder: Any, sort: str
) -> None:
    titles = ["A", "B", "C", "D"]
    for n, title in enumerate(titles):
        await make.book(title=title, price=float(len(titles) - n), published_year=1900 + n)
    query: str | None = f"sort={sort}&limit=1"
    listed = []
    for stage in ("before", "during", "during", "after"):
        settings = settings_for(site.another_url, folder, **STAGES[stage])
        async with (
            serving(settings) as served,
            httpx.AsyncClient(base_url=served.url, timeout=60) as client,
        ):
            response = await client.get(f"/api/books?{query}")
        assert response.status_code == 200, stage
        page = response.json()
        listed += [item["title"] for item in page["items"]]
        query = f"sort={sort}&limit=1&cursor={page.get('next_cursor')}"
    assert listed == titles
