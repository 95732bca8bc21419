"""A batch's file in lines, however it comes in pieces."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway.batches.lines import Answer, Line, parsed, result, split, unanswered

LINE = Line(3, "mine", "/v1/completions", b"{}")


async def _pieces(data: bytes, sizes: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


@given(st.lists(st.sampled_from([b"", b"a", b"bc" * 20, b" ", b"\xff"])), st.lists(st.integers(0, 30)))
async def test_lines_have_the_numbers_that_they_have_in_the_file(lines: list[bytes], sizes: list[int]) -> None:
    found = [pair async for some in split(_pieces(b"\n".join(lines), sizes)) for pair in some]
    assert found == [(at, line) for at, line in enumerate(lines, 1) if line.strip()]


async def test_a_line_of_output_is_one_line_whatever_the_answer() -> None:
    answers = [
        Answer(200, {"content-type": "application/json", "x-receipt": "r"}, b'{"a": "\\n"}'),
        Answer(502, {"content-type": "text/html"}, b"<html>\n\xff</html>"),
        Answer(200, {"content-type": "application/json"}, b'{\n"a": 1}'),
    ]
    for answer in answers:
        line = result("batch_1", LINE, "r-3", answer)
        assert b"\n" not in line
        read = json.loads(line)
        assert (read["custom_id"], read["error"], read["id"]) == ("mine", None, "batch_req_1_3")
        assert read["response"]["status_code"] == answer.status
    assert json.loads(unanswered("batch_1", LINE, "c", "m"))["error"] == {"code": "c", "message": "m"}


async def test_deep_nesting_is_a_fault_of_its_line() -> None:
    (fault,) = await parsed([(1, b"[" * 100_000)], "/v1/completions")
    assert not isinstance(fault, Line) and fault.code == "invalid_json_line"
