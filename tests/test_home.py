"""The front page."""

import re
from pathlib import Path

import httpx

from tests.conftest import Site, settings_for, visiting


async def test_the_front_page_says_what_runs_here(
    client: httpx.AsyncClient, site: Site, folder: Path
) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    links = re.findall(r'<a href="([^"]+)"', answer.text)
    assert "/api/books" in links
    for link in links:
        assert (await client.get(link)).status_code == 200, link
    assert not re.search(r'src=|@import|href="//|href="http', answer.text), "nothing from elsewhere"
    assert "<script>" not in (await client.get("/", headers={"Host": "<script>"})).text
    (command,) = re.findall(r"curl -s '([^']+)'", answer.text)
    assert (await client.get(command)).json()["total"] == 0
    public = settings_for(site.another_url, folder, public_url="HTTPS://books.example.org/v1/")
    async with visiting(public) as below:
        answer = await below.get("/")
        assert answer.headers["Strict-Transport-Security"], "capitals are https, too"
        assert 'href="/v1/api/books"' in answer.text
