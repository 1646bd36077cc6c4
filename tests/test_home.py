"""The front page."""

import re

import httpx


async def test_the_front_page_says_what_runs_here(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    links = re.findall(r'<a href="([^"]+)"', answer.text)
    assert "api/books" in links
    for link in links:
        assert (await client.get(link)).status_code == 200, link
    assert not re.search(r'src=|@import|href="//|href="http', answer.text), "nothing from elsewhere"
    assert "<script>" not in (await client.get("/", headers={"Host": "<script>"})).text
    (command,) = re.findall(r"curl -s '([^']+)'", answer.text)
    assert (await client.get(command)).json()["total"] == 0
