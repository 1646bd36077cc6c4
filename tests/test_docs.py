"""The form of pages in docs/, and the page to try out the API: in Chromium, on a phone."""

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Locator, Page, async_playwright

from tests.conftest import Site
from tests.factories import PASSWORD

DOCS = Path(__file__).parents[1] / "docs"
MOST_LINES, MOST_WIDTH = 5, 100  # of a decision
PHONE = {"width": 390, "height": 844}
ALONE = (  # no sandbox where root runs the tests; and nobody is asked about anything
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
ACCOUNT = {"username": "anna", "email": "anna@example.org", "password": PASSWORD}
CREDENTIALS = {"email": "anna@example.org", "password": PASSWORD}
BOOK = {"title": "Octavo", "author": "Anna", "price": 9.95}


def test_decisions_are_short() -> None:
    text = (DOCS / "decisions.md").read_text(encoding="utf-8")
    _, *decisions = re.split(r"^### ", text, flags=re.MULTILINE)
    assert decisions
    for decision in decisions:
        title, *body = decision.partition("\n## ")[0].splitlines()
        lines = [line for line in body if line.strip()]
        assert 1 <= len(lines) <= MOST_LINES, title
        assert max(map(len, lines)) <= MOST_WIDTH, title


def test_the_glossary_is_sorted() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^- \*\*(.+?)\*\*: ", text, flags=re.MULTILINE)
    assert terms
    assert len(terms) == len(re.findall(r"^- ", text, flags=re.MULTILINE)), "each line has a term"
    assert terms == sorted(set(terms), key=str.casefold)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A phone's browser, without a network but to 127.0.0.1."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("there is no Chromium here (Debian: apt install chromium)")
    async with async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=browser, args=list(ALONE))
        yield await chromium.new_page(viewport=PHONE)  # type: ignore[arg-type]  # two numbers
        await chromium.close()


async def execute(page: Page, operation: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Open an operation, fill in its body, send it; give the status and the body of its answer."""
    block: Locator = page.locator(f"#operations-{operation}")
    await block.locator(".opblock-summary-control").click()
    await block.locator("textarea.body-param__text").fill(json.dumps(body))
    await block.locator("button.execute").click()
    answer = block.locator(".live-responses-table")
    status = await answer.locator("tbody .response-col_status").first.inner_text()
    text = await answer.locator("tbody .microlight, tbody .highlight-code code").first.inner_text()
    return status.strip(), json.loads(text)


async def test_somebody_signs_in_and_adds_a_book(site: Site, page: Page) -> None:
    told: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    await page.goto(f"{site.url}/docs")

    status, user = await execute(page, "auth-register", ACCOUNT)
    assert (status, user["username"]) == ("201", "anna")
    status, tokens = await execute(page, "auth-login", CREDENTIALS)
    assert status == "200"

    await page.locator(".scheme-container button.authorize").click()
    dialog = page.locator(".dialog-ux")
    await dialog.locator("input").fill(tokens["token"])
    await dialog.locator("button.authorize").click()
    await dialog.locator("button.btn-done").click()

    status, book = await execute(page, "books-create_book", BOOK)
    assert status == "201"
    assert book | BOOK | {"user_id": user["id"]} == book

    assert told == [], "neither errors nor anything that the policy forbids"
    assert asked == {urlsplit(site.url).netloc}, "nothing from elsewhere"
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"], "nothing sticks out on a phone"


async def test_the_front_page_has_its_style(site: Site, page: Page) -> None:
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    await page.goto(site.url)
    assert told == []
    assert "Georgia" in await page.evaluate("getComputedStyle(document.body).fontFamily")
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    await page.click("text=/docs")
    await page.wait_for_selector(".opblock")
