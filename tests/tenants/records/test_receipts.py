"""Receipts: what is signed is believed, and nothing else is."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tenants.admin import installation
from tenants.records.receipts import ReceiptError, Said, Signer, find
from tenants.store.store import TenantStore
from tests.tenants.conftest import Run

SECRET = b"the secret of this installation"
SAID = Said("req-1", "2030-01-31T12:00:00Z", "acme", "segformer", 0.7, "9f8e7d", {"pedestrian": 0.9, "Straße": -0.5})


def text_of(receipt: str) -> dict[str, object]:
    payload = receipt.split(".")[1]
    fields: dict[str, object] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return fields


def test_a_receipt_says_what_was_signed_and_names_no_secret() -> None:
    signer = Signer(SECRET)
    receipt = signer.sign(SAID)
    assert signer.verify(receipt) == SAID
    assert receipt.isascii() and text_of(receipt)["tenant"] == "acme"
    assert SECRET.hex() not in receipt and SECRET.decode() not in str(text_of(receipt))


@pytest.mark.parametrize("field", ["request", "time", "tenant", "model", "level", "policy", "focus"])
def test_no_field_can_be_changed(field: str) -> None:
    signer = Signer(SECRET)
    changed = {"level": 1.0, "focus": {}}.get(field, "else")
    other = signer.sign(replace(SAID, **{field: changed})).split(".")[1]
    version, _, code = signer.sign(SAID).split(".")
    with pytest.raises(ReceiptError, match="changed"):
        signer.verify(f"{version}.{other}.{code}")


def test_no_character_can_be_changed() -> None:
    signer = Signer(SECRET)
    receipt = signer.sign(SAID)
    for at, old in enumerate(receipt):
        with pytest.raises(ReceiptError):
            signer.verify(receipt[:at] + ("A" if old != "A" else "B") + receipt[at + 1 :])


def test_another_secrets_receipt_is_told_from_a_forged_one() -> None:
    other = Signer(b"the secret of before the rotation")
    with pytest.raises(ReceiptError, match=rf"another secret \(id '{other.key}'.*before the secret was changed"):
        Signer(SECRET).verify(other.sign(SAID))


@pytest.mark.parametrize(
    "text",
    ["", "v1", "v1.", "v1..", "x.y.z", "v2.YQ.YQ", "v1.YQ.YQ", "v1.W10.YQ", "v1.é.YQ", "v1.e30.YQ", "v1.a.b.c",
     f"v1.{base64.urlsafe_b64encode(b'[' * 3000).decode()}.YQ", "v1." + "A" * 2**17 + ".YQ"],
)  # fmt: skip
def test_what_is_no_receipt_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ReceiptError) as refused:
        Signer(SECRET).verify(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_a_lone_surrogate_in_a_focus_is_signed_all_the_same() -> None:
    signer = Signer(SECRET)
    assert signer.verify(signer.sign(replace(SAID, focus={"\ud800": 0.5}))).focus == {"?": 0.5}


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Signer(b"short")


def test_receipts_are_found_bare_and_in_saved_headers() -> None:
    assert find("v1.a.b\n\n v1.c.d \n") == [(1, "v1.a.b"), (3, "v1.c.d")]
    saved = "HTTP/1.1 200 OK\r\nX-Receipt: v1.a.b\r\nx-utility: 0.7\r\n\r\n{}\nHTTP/1.1 200 OK\n< x-receipt: v1.c.d\n"
    assert find(saved) == [(2, "v1.a.b"), (7, "v1.c.d")]
    assert find("HTTP/1.1 503 x\nretry-after: 1\n") == [] == find("\n")


async def test_the_command_verifies_by_the_stores_secret(tenants: Run, store: TenantStore, tmp_path: Path) -> None:
    await installation.create_secrets(store)
    receipt = Signer((await installation.receipt_secret(store)).encode()).sign(SAID)
    (tmp_path / "saved").write_text(f"HTTP/1.1 200 OK\nx-receipt: {receipt}\n\n[]")
    said = await tenants("verify", str(tmp_path / "saved"))
    assert "genuine, line 2: request req-1 of acme" in said and "at level 0.7, focus pedestrian=0.9" in said
    (row,) = json.loads(await tenants("verify", str(tmp_path / "saved"), "--json"))
    assert row["genuine"] and row["focus"]["Straße"] == -0.5


async def test_the_command_names_what_does_not_verify_and_why(
    invoke: Run, store: TenantStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await installation.create_secrets(store)
    monkeypatch.setenv("AIM_RECEIPT_SECRET", SECRET.decode())
    good, strange = Signer(SECRET).sign(SAID), Signer(b"another installation").sign(SAID)
    (tmp_path / "list").write_text(f"{good}\n{good[:-6]}AAAAAA\n{strange}\nnonsense\n")
    result = await invoke("verify", str(tmp_path / "list"))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split(",")[0] for line in lines] == ["genuine", *["NOT genuine"] * 3]
    assert "forged" in lines[1] and "another installation" in lines[2] and "not a receipt" in lines[3]
    (tmp_path / "old").write_bytes(b"another installation\n")
    (tmp_path / "list").write_text(strange)
    older = await invoke("verify", str(tmp_path / "list"), "--secret-file", str(tmp_path / "old"))
    assert older.exit_code == 0


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), ("", "holds no receipt"), ("HTTP/1.1 200 OK\n", "holds no receipt")]
)
async def test_a_file_without_receipts_is_said_in_one_line(
    invoke: Run, tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    result = await invoke("verify", str(tmp_path / "file"))
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
