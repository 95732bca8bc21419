"""The console in a real browser: tenants, keys, levels and the audit trail, by role."""

from __future__ import annotations

from typing import Any

from tests.deployments.gateway.api.site.conftest import TEXT, Site, filled, violations


async def enter(page: Any, site: Site, key: str, part: str = "tenants") -> None:
    await page.goto(f"{site.url}/console#{part}")
    await page.fill("#key", key)
    await page.press("#key", "Enter")
    await page.wait_for_selector("#part h1")


async def test_a_tenant_is_made_changed_and_given_a_key_that_is_revoked(page: Any, site: Site) -> None:
    await enter(page, site, site.owner)
    await page.fill("[aria-label='Id of a new tenant']", "blue")
    await page.click("#part form button")
    await page.wait_for_selector("#part .fields")
    await page.fill("input[name=name]", "Bäckerei Blau")
    await page.select_option("[aria-label='Another field']", "utility")
    await page.fill("input[name=utility]", "0.8")
    await page.click("#part form:has(.fields) button[type=submit]")
    assert "Saved" in await filled(page, "#said")
    record = await site.admin.found("tenant:blue")
    assert (record.raw[b"name"].decode(), record.raw[b"utility"]) == ("Bäckerei Blau", b"0.8")
    await page.fill("[aria-label='Label of a new key']", "shop")
    await page.click("text=Create a key")
    await page.wait_for_selector(".once code")
    secret = await page.locator(".once code").text_content()
    assert secret.startswith("sk-blue-")
    page.on("dialog", lambda dialog: dialog.accept())
    await page.click("text=Revoke")
    await page.wait_for_selector("text=revoked")
    assert not await page.locator(".once").count()  # it is shown once


async def test_somebody_elses_change_is_not_overwritten(page: Any, site: Site) -> None:
    await enter(page, site, site.owner, "tenants/acme")
    await page.wait_for_selector("#part .fields")
    await site.admin.set_tenant("acme", {"rpm": "7"})
    await page.fill("input[name=name]", "Mine")
    await page.click("#part form:has(.fields) button[type=submit]")
    assert "Somebody else" in await filled(page, "#said")
    assert (await site.admin.found("tenant:acme")).raw[b"name"] != b"Mine"


async def test_a_viewer_is_told_what_it_may_not(page: Any, site: Site) -> None:
    await enter(page, site, site.viewer, "tiers/gold")
    await page.wait_for_selector("#part .fields")
    await page.fill("input[name=utility]", "0.5")
    await page.click("#part form button[type=submit]")
    assert "viewer" in await filled(page, "#said")


async def test_every_part_is_shown_and_is_accessible(page: Any, site: Site) -> None:
    await enter(page, site, site.owner)
    for part, shows in (
        ("tenants", "Straßen"), ("tiers", "gold"), ("models", TEXT), ("audit", "tenant create"), ("health", "sound"),
    ):  # fmt: skip
        await site.report()
        await page.click(f"#parts a[href='#{part}']")
        await page.locator("#part", has_text=shows).wait_for()
        assert await violations(page) == [], part
    await site.report()
    await page.click("#parts a[href='#models']")
    await page.wait_for_selector("svg.levels circle.point")
    assert "0.7098" in await page.locator("#part").text_content()


async def test_an_admin_key_is_wanted(page: Any, site: Site) -> None:
    await page.goto(f"{site.url}/console")
    await page.fill("#key", site.key)
    await page.press("#key", "Enter")
    assert "not valid" in await filled(page, "#sign-in-said")
    assert await page.evaluate("sessionStorage.length") == 0
