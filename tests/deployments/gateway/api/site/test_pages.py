"""What is served of the pages, without a browser."""

from __future__ import annotations

import re

import pytest

from deployments.gateway.api.site.pages import FILES
from tests.deployments.gateway_support import Running


async def test_pages_run_only_what_is_theirs(running: Running) -> None:
    front = await running.client.get("/")
    assert front.is_redirect and front.headers["location"] == "playground"
    page = await running.client.get("/playground")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for name in re.findall(r'"pages/([^"]+)"', page.text):
        file = await running.client.get(f"/pages/{name}")
        assert file.status_code == 200, name


async def test_the_console_is_there_only_with_administration_over_http(running: Running) -> None:
    assert (await running.client.get("/console")).status_code == 404


@pytest.mark.parametrize("name", ["../pages.py", "%2e%2e/pages.py", "vendor", "none.js", "..%2fpages.py", "a\x00b"])
async def test_nothing_else_is_read(running: Running, name: str) -> None:
    answer = await running.client.get(f"/pages/{name.replace(chr(0), '%00')}")
    assert answer.status_code == 404 and "error" in answer.json()


def test_no_page_names_another_host_or_holds_script_of_its_own() -> None:
    for path in (*FILES.glob("*.html"), *FILES.glob("*.js"), *FILES.glob("console/*.js"), *FILES.glob("*.css")):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=\"|<style|style=\"", text), path
