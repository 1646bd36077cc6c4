"""The form of pages in docs/, and the page to try the API out, in Chromium on a phone."""

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
MAX_LINES, MAX_WIDTH = 5, 100  # of a decision
TIMEOUT_MS = 60_000
PHONE = {"width": 390, "height": 844}
ALONE = (  # no sandbox, which root cannot have, and no requests of the browser itself
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
        assert 1 <= len(lines) <= MAX_LINES, title
        assert max(map(len, lines)) <= MAX_WIDTH, title


def test_the_glossary_is_sorted() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^- \*\*(.+?)\*\*: ", text, flags=re.MULTILINE)
    assert terms
    assert len(terms) == len(re.findall(r"^- ", text, flags=re.MULTILINE)), "each line has a term"
    assert terms == sorted(set(terms), key=str.casefold)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a phone's browser."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("there is no Chromium here (Debian: apt install chromium)")
    async with async_playwright() as driver:
        chromium = await driver.chromium.launch(executable_path=browser, args=list(ALONE))
        try:
            new = await chromium.new_page(viewport=PHONE)  # type: ignore[arg-type]  # two numbers
            new.set_default_timeout(TIMEOUT_MS)
            yield new
        finally:
            await chromium.close()


async def execute(page: Page, operation: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Open an operation, fill in a body, and send it. Give status and body of the response."""
    block: Locator = page.locator(f"#operations-{operation}")
    await block.locator(".opblock-summary-control").click()
    await block.locator("textarea.body-param__text").fill(json.dumps(body))
    await block.locator("button.execute").click()
    response = block.locator(".live-responses-table")
    status = await response.locator("tbody .response-col_status").first.inner_text()
    text = await response.locator(
        "tbody .microlight, tbody .highlight-code code"
    ).first.inner_text()
    return status.strip(), json.loads(text)


async def test_a_user_signs_in_and_adds_a_book(site: Site, page: Page) -> None:
    messages: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
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

    assert messages == [], "neither errors nor violations of the policy"
    assert hosts == {urlsplit(site.url).netloc}, "no requests to other hosts"
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"], "no horizontal scrolling on a phone"


async def test_the_front_page_has_its_styles(site: Site, page: Page) -> None:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    await page.goto(site.url)
    assert messages == []
    assert "Georgia" in await page.evaluate("getComputedStyle(document.body).fontFamily")
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    await page.click("text=/docs")
    await page.wait_for_selector(".opblock")
