from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.queues.fair_queue import FairQueue, FlowBound
from policies.errors import Unavailable


def drain(queue: FairQueue[str], count: int) -> list[str]:
    items = [queue.pop() for _ in range(count)]
    return [item for item in items if item is not None]


def test_items_of_one_flow_leave_in_order() -> None:
    queue = FairQueue[str](bound=10)
    for name in "abc":
        queue.push("flow", 1.0, 5.0, name)
    assert (len(queue), drain(queue, 4), len(queue)) == (3, ["a", "b", "c"], 0)


def test_a_flood_does_not_delay_another_flow() -> None:
    queue = FairQueue[str](bound=100)
    for _ in range(100):
        queue.push("flood", 1.0, 10.0, "flood")
    drain(queue, 10)
    queue.push("quiet", 1.0, 10.0, "quiet")
    assert "quiet" in drain(queue, 2)


def test_shares_of_cost_follow_the_weights() -> None:
    queue = FairQueue[str](bound=2000)
    for _ in range(2000):
        queue.push("heavy", 3.0, 20.0, "heavy")
        queue.push("light", 1.0, 5.0, "light")
    served = Counter(drain(queue, 1400))
    assert served["heavy"] * 20.0 / (served["light"] * 5.0) == pytest.approx(3.0, rel=0.05)


def test_an_idle_flow_keeps_no_credit() -> None:
    queue = FairQueue[str](bound=200)
    queue.push("a", 1.0, 1.0, "a")
    for _ in range(100):
        queue.push("b", 1.0, 1.0, "b")
    drain(queue, 80)
    for _ in range(50):
        queue.push("a", 1.0, 1.0, "a")
    assert Counter(drain(queue, 20))["a"] == 10


def test_a_flow_that_was_just_served_keeps_its_debt() -> None:
    queue = FairQueue[str](bound=200)
    for _ in range(20):
        queue.push("many", 1.0, 1.0, "many")
    queue.push("one", 1.0, 10.0, "one")
    order = drain(queue, 2)
    queue.push("one", 1.0, 10.0, "one")
    assert "one" in order
    assert drain(queue, 8) == ["many"] * 8


def test_a_full_flow_is_refused_and_others_are_not() -> None:
    queue = FairQueue[str](bound=2)
    queue.push("a", 1.0, 1.0, "1")
    queue.push("a", 1.0, 1.0, "2")
    with pytest.raises(Unavailable) as refusal:
        queue.push("a", 1.0, 1.0, "3")
    assert refusal.value.retry_after == 1
    queue.push("b", 1.0, 1.0, "4")
    assert len(queue) == 3


def test_a_discarded_item_is_not_released_nor_charged() -> None:
    queue = FairQueue[object](bound=5)
    items = [object() for _ in range(3)]
    first = queue.push("a", 1.0, 100.0, items[0])
    queue.push("a", 1.0, 1.0, items[1])
    queue.push("b", 1.0, 1.0, items[2])
    assert queue.discard(first) and not queue.discard(first)
    assert [queue.pop(), queue.pop(), queue.pop()] == [items[1], items[2], None]


@pytest.mark.parametrize(("weight", "cost"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_weight_and_cost_must_be_positive(weight: float, cost: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        FairQueue[str](bound=1).push("a", weight, cost, "x")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0.1, 100.0), st.floats(0.1, 1000.0)), max_size=60))
def test_everything_pushed_is_released_once(pushes: list[tuple[str, float, float]]) -> None:
    queue = FairQueue[int](bound=60)
    for number, (flow, weight, cost) in enumerate(pushes):
        queue.push(flow, weight, cost, number)
        assert queue.peek() is not None
    assert sorted(queue.pop() or 0 for _ in range(len(pushes))) == list(range(len(pushes)))
    assert queue.pop() is None and len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "leave"]), st.integers(0, 5), st.floats(0.1, 100.0))))
def test_what_leaves_in_any_order_leaves_the_rest_in_theirs(steps: list[tuple[str, int, float]]) -> None:
    queue, waiting = FairQueue[int](bound=1000), dict[int, int]()
    for at, (step, which, cost) in enumerate(steps):
        if step == "push":
            waiting[at] = queue.push(f"flow {which}", 1.0, cost, at)
        elif step == "pop":
            item = queue.pop()
            assert (item is None) == (not waiting)
            waiting.pop(-1 if item is None else item, None)
        elif waiting:
            item = sorted(waiting)[which % len(waiting)]
            assert queue.discard(waiting.pop(item))
        assert len(queue) == len(waiting)
    assert sorted(queue.pop() or 0 for _ in range(len(waiting))) == sorted(waiting)
    assert queue.pop() is None and not queue._flows


def test_a_flow_that_may_not_go_now_keeps_its_turn() -> None:
    queue: FairQueue[str] = FairQueue(9)
    for flow in "abc":
        for number in range(2):
            queue.push(flow, 1.0, 1.0, f"{flow}{number}")
    assert [queue.pop(may=lambda flow: flow == "c") for _ in range(3)] == ["c0", "c1", None]
    assert [queue.pop() for _ in range(4)] == ["a0", "b0", "a1", "b1"] and queue.pop() is None


def test_what_one_flow_has_under_way_is_bounded_in_requests_and_bytes() -> None:
    bound = FlowBound(3, 100)
    with bound.hold("a", 500), bound.hold("b", 60), bound.hold("b", 40):
        for flow, size in (("a", 1), ("b", 1)):
            with pytest.raises(Unavailable), bound.hold(flow, size):
                raise AssertionError
        with bound.hold("b", 0), pytest.raises(Unavailable), bound.hold("b", 0):
            raise AssertionError
    assert not bound._held
