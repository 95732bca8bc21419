"""The playground in a real browser: pictures and text at two levels, and keys that stay in the tab."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from deployments.config import REPOSITORY
from tests.deployments.gateway.api.site.conftest import SAYS, TEXT, Site, filled, violations

SEGMENTER, CLASSIFIER = "segformer-b0-camvid", "resnet18-cifar10"


async def enter(page: Any, site: Site, model: str) -> None:
    await page.goto(site.url)
    await page.fill("#key", site.key)
    await page.press("#key", "Enter")
    await page.wait_for_selector("#work", state="visible")
    await page.select_option("#model", model)


async def ask(page: Any) -> None:
    await page.click("#go")
    await filled(page, "#difference")


async def receipt(page: Any, side: int) -> dict[str, str]:
    cells = await page.locator(".side").nth(side).locator(".receipt > *").all_text_contents()
    return dict(zip(cells[::2], cells[1::2], strict=True))


async def test_masks_at_two_levels_with_focus(page: Any, site: Site) -> None:
    await enter(page, site, SEGMENTER)
    await page.click("#samples button")
    await page.wait_for_selector("#chosen", state="visible")
    other = page.locator(".side").nth(1)
    await other.locator(".focus summary").click()
    await other.locator(".focus-name").fill("pedestrian")
    await other.locator(".focus-name").press("Enter")
    await ask(page)
    first, second = await receipt(page, 0), await receipt(page, 1)
    assert (first["level"], second["level"]) == ("1", "0.7")
    assert second["focus"] == "pedestrian=0.9" and "focus" not in first
    legend = await page.locator("#legend li").all_text_contents()
    assert {"road", "building"} <= set(legend)
    assert "%" in await page.locator("#difference").text_content()
    code = await page.locator("#code").text_content()
    assert "utility=0.7" in code and "pedestrian" in code and site.key not in code
    assert await violations(page) == []


async def test_a_picture_is_dropped_and_one_that_is_none_is_said(page: Any, site: Site) -> None:
    await enter(page, site, CLASSIFIER)
    data = base64.b64encode((REPOSITORY / "examples" / "ship.jpg").read_bytes()).decode()
    drop = """([data, name]) => {
      const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], name));
      document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
    }"""
    await page.evaluate(drop, [base64.b64encode(b"no picture").decode(), "notes.txt"])
    assert "notes.txt" in await filled(page, "#said")
    await page.evaluate(drop, [data, "ship.jpg"])
    await page.wait_for_selector("#chosen", state="visible")
    await ask(page)
    rows = page.locator(".side").nth(0).locator(".answer tr")
    assert "ship" in await rows.nth(0).text_content()
    assert await page.locator(".side").nth(1).locator(".answer tr").count() == 1  # below 1.0 one label is disclosed


async def test_text_streams_on_both_sides_and_what_differs_is_marked(page: Any, site: Site) -> None:
    await enter(page, site, TEXT)
    await ask(page)
    assert await page.locator(".side").nth(0).locator(".answer").text_content() == SAYS[1.0]
    assert await page.locator(".side").nth(1).locator(".answer").text_content() == SAYS[0.7]
    assert await page.locator("mark").all_text_contents() == ["green", "likes", "light."]
    assert await violations(page) == []


async def test_an_edit_shows_in_the_next_answer_and_what_a_key_may_not_is_said(page: Any, site: Site) -> None:
    await enter(page, site, TEXT)
    await site.admin.set_tenant("acme", {"utility": "0.7"})
    await ask(page)
    assert (await receipt(page, 0))["level"] == "0.7"
    await site.admin.set_tenant("acme", {"lower_utility": "no", "utility": "1.0"})
    await page.click("#go")
    assert "utility" in await filled(page, ".answer.wrong")
    assert await page.locator(".answer.wrong").count() == 1


async def test_the_key_stays_in_the_tab_and_goes_when_it_is_told_to(page: Any, site: Site) -> None:
    await enter(page, site, TEXT)
    assert site.key not in page.url
    assert await page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
    await page.reload()
    await page.wait_for_selector("#work", state="visible")
    await page.click("#sign-out")
    await page.wait_for_selector("#sign-in", state="visible")
    assert await page.evaluate("sessionStorage.length") == 0
    await page.fill("#key", "sk-acme-wrong")
    await page.press("#key", "Enter")
    assert "not valid" in await filled(page, "#sign-in-said")


@pytest.mark.parametrize("width", [390, 1280])
async def test_nothing_is_wider_than_the_window(page: Any, site: Site, width: int) -> None:
    await page.set_viewport_size({"width": width, "height": 800})
    await enter(page, site, SEGMENTER)
    await page.click("#samples button")
    await page.wait_for_selector("#chosen", state="visible")
    await ask(page)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
