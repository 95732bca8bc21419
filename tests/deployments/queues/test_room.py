"""Room: nobody has more than is bounded, nobody has all of it, and who comes finds some."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.queues.room import Room

TAKEN = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40), st.booleans()), max_size=80)


@given(taken=TAKEN, items=st.integers(2, 20), size=st.integers(10, 200))
def test_what_is_held_is_bounded_and_a_flow_alone_has_half(
    taken: list[tuple[str, int, bool]], items: int, size: int
) -> None:
    room, held = Room(items, size), list[tuple[str, int]]()
    for flow, amount, gives in taken:
        if gives and held:
            back, had = held.pop()
            room.take(back, -1, -had)
        if room.may(flow):
            assert len(held) < items and sum(had for _, had in held) < size, "there was room"
            room.take(flow, 1, amount)
            held.append((flow, amount))
        own = [had for name, had in held if name == flow]
        assert len(own) <= items // 2 + items % 2
        if not own and sum(had for _, had in held) < size and len(held) < items:
            assert room.may(flow)
    assert room.size == sum(had for _, had in held)
    for flow, amount in held:
        room.take(flow, -1, -amount)
    assert room.size == 0 and not room._held and room.may("e")
