"""Names of users: characters that are refused, and names that count as the same."""

import asyncio
import sys
import unicodedata
from pathlib import Path

import httpx
import pytest
from alembic import command
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from service.db import migrations
from service.db.database import Database
from service.models import fold
from service.security.usernames import IGNORABLE, check_name, name_key, scripts_of
from tests.conftest import fresh_database, settings_for
from tests.factories import PASSWORD

HIDDEN = [
    "\u3164", "\u115f", "\u1160", "\uffa0", "\u2800", "\ufe0f", "\U000e0100", "\u034f", "\u2028",
    "\u2029", "\u200b", "\u200d", "\u00ad", "\u061c", "\u17b4", "\u180b", "\u202e", "\u2060",
    "\ufeff", "\U000e0041", "\x00", "\x1f", "\x85", "\u00a0", "\u2003", "\u3000", "\u1680",
    "\ue000", "\ufdd0", "\U00016fe4", "\U0001d159",
]  # fmt: skip
SAME = [
    "anna", "ANNA", "\uff41\uff4e\uff4e\uff41", "\uff21nna", "\U0001d41a\U0001d427na",
    "\u24d0nna", "\u1d43nna",
]  # fmt: skip
MIXED = [
    "\u0430nna", "ann\u03b1", "\u0430\u03bd\u03bd\u03b1", "\u00b5torrent", "\u13aanna",
    "\U0001d41a\u043d\u043d\u0430", "\u0561nna", "\uae40\u3072\u3089", "abc\u0627",
]  # fmt: skip
GOOD = [
    "Anna", "anna_b-2", "O'Brien", "Jos\u00e9 Mar\u00eda", "Stra\u00dfe", "\u0141ukasz",
    "\u0410\u043d\u043d\u0430", "\u0395\u03bb\u03ad\u03bd\u03b7", "\u5c71\u7530\u592a\u90ce",
    "\u3072\u3089\u30ab\u30ca\u6f22", "Tokyo\u6771\u4eac\u30bf\u30ef\u30fc", "\uae40\ucca0\uc218",
    "Seoul\uc11c\uc6b8\u97d3", "\u4e2d\u3105abc", "\u0627\u0644\u0639\u0631\u0628\u0663",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u05d0\u05d1\u05d2 7", "12345", "nice \U0001f389",
]  # fmt: skip


def account(username: str, number: int) -> dict[str, str]:
    """Give the body of a registration."""
    return {"username": username, "email": f"n{number}@example.org", "password": PASSWORD}


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda c: f"U+{ord(c):04X}")
async def test_an_invisible_character_is_refused(client: httpx.AsyncClient, hidden: str) -> None:
    response = await client.post("/api/auth/register", json=account(f"ro{hidden}ot", 1))
    assert response.status_code == 400
    if hidden != "\x00":  # the whole body is refused
        sentence = "Must not hold control or invisible characters."
        assert response.json()["messages"] == {"username": [sentence]}


@pytest.mark.parametrize("mixed", MIXED)
async def test_letters_of_several_scripts_are_refused(
    client: httpx.AsyncClient, mixed: str
) -> None:
    response = await client.post("/api/auth/register", json=account(mixed, 1))
    assert response.status_code == 400
    sentence = "Must not mix letters of different scripts."
    assert response.json()["messages"] == {"username": [sentence]}


async def test_names_of_a_single_script_are_accepted_as_given(client: httpx.AsyncClient) -> None:
    for number, name in enumerate(GOOD):
        response = await client.post("/api/auth/register", json=account(name, number))
        assert response.status_code == 201, (name, response.text)
        assert response.json()["username"] == unicodedata.normalize("NFC", name), "as given"


@pytest.mark.parametrize("name", SAME[1:])
async def test_compatible_forms_count_as_the_same_name(
    client: httpx.AsyncClient, name: str
) -> None:
    assert (await client.post("/api/auth/register", json=account("anna", 1))).status_code == 201
    response = await client.post("/api/auth/register", json=account(name, 2))
    assert response.status_code == 400
    assert response.json()["messages"] == {"username": ["Username already exists"]}
    other = await client.post("/api/auth/register", json=account("somebody", 3))
    assert other.status_code == 201
    body = {"email": "n3@example.org", "password": PASSWORD}
    token = (await client.post("/api/auth/login", json=body)).json()["token"]
    response = await client.patch(
        "/api/profile", json={"username": name}, headers={"Authorization": token}
    )
    assert response.status_code == 400, "not by an update either"


def test_several_blanks_count_as_a_single_blank() -> None:
    assert name_key("anna  b") == name_key(" Anna b") == "anna b"


def test_the_tables_of_scripts_agree_with_the_names_of_characters() -> None:
    """In Python the name of a letter begins with its script. The tables have another source."""
    words = {
        "LATIN": "Latn", "CYRILLIC": "Cyrl", "GREEK": "Grek", "ARMENIAN": "Armn", "HEBREW": "Hebr",
        "ARABIC": "Arab", "DEVANAGARI": "Deva", "THAI": "Thai", "HANGUL": "Hang",
        "HIRAGANA": "Hira", "BOPOMOFO": "Bopo", "CJK": "Hani", "CHEROKEE": "Cher",
        "GEORGIAN": "Geor", "COPTIC": "Copt",
    }  # fmt: skip
    seen = dict.fromkeys(words, 0)
    for point in range(sys.maxunicode + 1):
        character = chr(point)
        name = unicodedata.name(character, "")
        word = name.partition(" ")[0]
        if word in words and unicodedata.category(character) in {"Lu", "Ll", "Lo"}:
            assert words[word] in scripts_of(character) or scripts_of(character) == {"*"}, name
            seen[word] += scripts_of(character) != {"*"}
        if unicodedata.category(character) == "Cf" and name.startswith("TAG "):
            assert character in IGNORABLE
    assert all(number > 30 for number in seen.values()), seen


@given(st.text(max_size=50))
def test_the_key_of_a_key_is_the_same_key(name: str) -> None:
    key = name_key(name)
    assert name_key(key) == key
    if fold(name) == fold(name.upper()):
        assert name_key(name.upper()) == key, "the key ignores case"


@given(st.text(max_size=50))
def test_an_accepted_name_has_no_invisible_characters(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert not IGNORABLE & set(name)
    assert not {unicodedata.category(c) for c in name} & {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}


OLD = [
    "Bea",
    "\uff41\uff4e\uff4e\uff41",
    "anna",
    "ANN\uff21",
    "ro\u3164ot",
    "root",
    "\u3164" * 3,
    "\u2800" * 3,
]


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
async def test_the_migration_of_keys_keeps_every_account(
    backend: str,
    request: pytest.FixtureRequest,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fresh_database(backend, request, folder) as url:
        settings = settings_for(url, folder)
        config = migrations.configuration(settings.database)

        async def keys(*revisions: str) -> dict[str, str]:
            for number in revisions:
                step = command.downgrade if number == "0003" else command.upgrade
                await asyncio.to_thread(step, config, number)
            database = Database(settings)
            await database.open()
            async with database.session() as db:
                rows = await db.execute(text("SELECT username, username_key FROM users"))
                keys = {row.username: row.username_key for row in rows}
            await database.close()
            return keys

        await asyncio.to_thread(command.upgrade, config, "0003")
        database = Database(settings)
        await database.open()
        async with database.writer.begin() as connection:
            for number, name in enumerate(OLD):
                await connection.execute(
                    text(
                        "INSERT INTO users (username, username_key, email, email_key, "
                        "password_hash) VALUES (:name, :key, :email, :email_key, '')"
                    ),
                    {
                        "name": name,
                        "key": fold(name),
                        "email": f"n{number}@example.org",
                        "email_key": f"n{number}@example.org",
                    },
                )
        await database.close()
        before = await keys()
        assert len(before) == len(OLD)
        after = await keys("0004")
        assert set(after) == set(OLD), "every name is kept"
        assert after == {
            "Bea": "bea",
            OLD[1]: "anna",
            "anna": "anna\x1f3",
            OLD[3]: "anna\x1f4",
            OLD[4]: "root",
            "root": "root\x1f6",
            OLD[6]: "",
            OLD[7]: "\x1f8",
        }, "the older account has the key"
        assert "The names of the users 2 and 3 have become the same" in caplog.text
        assert await keys("0003") == before
        assert await keys("head") == after
