"""A client that openapi-python-client generates from the OpenAPI document."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from service.app import create_app
from service.openapi.pages import document
from tests.conftest import Site
from tests.factories import PASSWORD

NAME = "octavo_client"
TIMEOUT = httpx.Timeout(60)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The generated client, on the path of imports."""
    folder = tmp_path_factory.mktemp("client")
    app = create_app("testing")
    (folder / "openapi.json").write_text(json.dumps(document(app).schema()))
    (folder / "config.yml").write_text("post_hooks: []\n")
    done = subprocess.run(
        [
            Path(sys.executable).with_name("openapi-python-client"),
            *("generate", "--path", "openapi.json", "--config", "config.yml"),
            *("--meta", "none", "--output-path", NAME, "--fail-on-warning"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]


def part(name: str) -> ModuleType:
    """Import a module of the client."""
    return importlib.import_module(f"{NAME}.{name}")


@pytest.mark.usefixtures("generated")
async def test_a_generated_client_registers_creates_lists_and_reads_errors(site: Site) -> None:
    models, api = part("models"), "api"
    client = part("client")
    async with client.Client(base_url=site.url, timeout=TIMEOUT) as anybody:
        user = await part(f"{api}.auth.register").asyncio(
            client=anybody,
            body=models.Registration("anna", "anna@example.org", PASSWORD),
        )
        assert (user.username, user.tier) == ("anna", models.Tier.FREE)
        pair = await part(f"{api}.auth.login").asyncio(
            client=anybody, body=models.Credentials("anna@example.org", PASSWORD)
        )
        assert pair.token_type == "Bearer"
    async with (
        client.Client(base_url=site.url, timeout=TIMEOUT) as anybody,
        client.AuthenticatedClient(base_url=site.url, token=pair.token, timeout=TIMEOUT) as member,
    ):
        create, listing = part(f"{api}.books.create_book"), part(f"{api}.books.list_books")
        for number in range(5):
            genre = models.Genre.SCIENCE if number % 2 else None
            draft = models.BookCreate(f"Book {number}", "Anna", genre=genre, price=9.95)
            book = await create.asyncio(client=member, body=draft)
            assert (book.user_id, book.price, book.genre) == (user.id, 9.95, genre)

        page = await listing.asyncio(client=anybody, per_page=2)
        assert (page.total, [item.title for item in page.items]) == (5, ["Book 4", "Book 3"])
        assert page.links.next_.endswith("page=2")
        science = await listing.asyncio(client=anybody, genre=models.Genre.SCIENCE)
        assert science.total == 2
        titles, cursor = [], part("types").UNSET
        while True:
            some = await listing.asyncio(client=anybody, limit=2, cursor=cursor)
            titles += [item.title for item in some.items]
            if not some.has_more:
                break
            cursor = str(some.next_cursor)
        assert titles == [f"Book {number}" for number in range(5)]

        change = part(f"{api}.books.update_book")
        freed = await change.asyncio(book.id, client=member, body=models.BookUpdate(price=None))
        assert (freed.price, freed.title) == (None, "Book 4")

        problem = await create.asyncio(client=member, body=models.BookCreate("", "Anna", price=-1))
        assert isinstance(problem, models.Problem)
        assert problem.messages["title"] == ["Shorter than minimum length 1."]
        refused = await create.asyncio_detailed(client=anybody, body=draft)
        assert (refused.status_code, refused.parsed.error) == (401, "Token is missing")
        missing = await part(f"{api}.books.get_book").asyncio(7_000_000, client=anybody)
        assert missing.message == "Book with id 7000000 not found"
        delete = await part(f"{api}.books.delete_book").asyncio_detailed(book.id, client=member)
        assert delete.status_code == 204
