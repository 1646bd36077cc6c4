"""The front page."""

import re
from pathlib import Path

import httpx

from tests.conftest import Site, settings_for, visiting


async def test_the_front_page_has_working_links_and_a_working_command(
    client: httpx.AsyncClient, site: Site, folder: Path
) -> None:
    response = await client.get("/")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    links = re.findall(r'<a href="([^"]+)"', response.text)
    assert "/api/books" in links
    for link in links:
        assert (await client.get(link)).status_code == 200, link
    assert not re.search(r'src=|@import|href="//|href="http', response.text), (
        "no resources of other hosts"
    )
    assert "<script>" not in (await client.get("/", headers={"Host": "<script>"})).text
    (command,) = re.findall(r"curl -s '([^']+)'", response.text)
    assert (await client.get(command)).json()["total"] == 0
    public = settings_for(site.another_url, folder, public_url="HTTPS://books.example.org/v1/")
    async with visiting(public) as below:
        response = await below.get("/")
        assert response.headers["Strict-Transport-Security"], "a scheme in capitals counts as well"
        assert 'href="/v1/api/books"' in response.text
