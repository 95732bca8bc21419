"""Live rows: which are kept of whose traffic, and for how long."""

from __future__ import annotations

import threading

import torch

from deployments.engines.live import Kept, LiveRows


def test_a_reservoir_is_bounded_and_a_row_keeps_its_group() -> None:
    live = LiveRows(100)
    for start in range(0, 5000, 50):
        numbers = torch.arange(start, start + 50)
        rows = torch.stack([numbers / 8, numbers % 64], dim=1)  # no two of them the same in 16 bits
        live.add(rows, numbers.tolist())
    kept = live.kept()
    assert len(live) == 100 == len(kept.rows) and live.taken == 5000
    assert torch.equal(kept.rows[:, 0].float() * 8, kept.groups.float().div(1).half().float())
    # Age is exponential with a mean of one capacity, so nothing of the first half is left.
    assert kept.groups.min() > 2500 and kept.groups.max() >= 4900
    assert 50 < (5000 - kept.groups.float()).mean() < 200


def fill(live: LiveRows, flow: str, count: int, first: int = 0) -> None:
    """Rows of one tenant, each an input of its own."""
    numbers = range(first, first + count)
    live.add(torch.tensor([[float(n // 64), float(n % 64)] for n in numbers]), list(numbers), flows=[flow] * count)


def test_a_tenant_that_floods_pushes_out_its_own_rows_alone() -> None:
    live = LiveRows(100)
    for number in range(9):
        fill(live, f"t{number}", 8, 10 * number)
    fill(live, "flood", 3000, 1000)
    owners, counts = live.kept().owners.unique(return_counts=True)
    assert sorted(counts.tolist()) == [8] * 9 + [28] and len(live) == 100
    fill(live, "late", 40, 90_000)
    counts = live.kept().owners.unique(return_counts=True)[1]
    assert sorted(counts.tolist()) == [8] * 9 + [14, 14], "who has most gives way, until they are even"


def test_more_tenants_than_rows_are_all_alike() -> None:
    live = LiveRows(300)
    for number in range(2000):
        fill(live, f"t{number}", 2, 2 * number)
    kept = live.kept()
    assert len(kept.rows) == 300 and kept.owners.unique(return_counts=True)[1].max() <= 2
    assert kept.groups.min() < 3000 < kept.groups.max()


def test_rows_older_than_a_day_give_way_first() -> None:
    now = 0.0
    live = LiveRows(100, clock=lambda: now)
    fill(live, "gone", 20)
    live.kept()
    now = 80_000.0
    fill(live, "here", 80, 100)
    live.kept()
    now = 90_000.0
    fill(live, "here", 19, 200)
    kept = live.kept()
    assert (kept.groups < 20).sum() == 1 and (kept.groups >= 100).sum() == 99, "a tenant's own rows did not give way"


def test_whose_rows_they_are_is_told_apart_and_not_told() -> None:
    first, second = LiveRows(10), LiveRows(10)
    for live in (first, second):
        fill(live, "acme", 3)
        fill(live, "beta", 2, 10)
    owners = first.kept().owners
    assert len(owners[:3].unique()) == 1 == len(owners[3:].unique()) and owners[0] != owners[3]
    assert owners[0] != second.kept().owners[0], "the same in another process, so that a name could be looked up"


def test_rows_that_no_refit_is_solved_on_are_all_that_is_kept_where_refits_are_off() -> None:
    live = LiveRows(100, held_out=True)
    fill(live, "acme", 60)
    kept = live.kept()
    assert len(kept.rows) == 30 and not len(kept.solved().rows) and len(kept.held_out().rows) == 30


def test_no_tenant_is_more_than_a_fifth_of_what_is_capped() -> None:
    chance = torch.Generator().manual_seed(1)
    for _ in range(60):
        counts = torch.randint(1, 40, (int(torch.randint(1, 12, (), generator=chance)),), generator=chance)
        owners = torch.arange(len(counts)).repeat_interleave(counts)
        kept = Kept(owners[:, None].float(), torch.arange(len(owners)), torch.zeros_like(owners), owners)
        capped = kept.capped()
        left = capped.owners.unique(return_counts=True)[1]
        # The largest cap, by trying all of them.
        best = max(c for c in range(41) if int(counts.clamp(max=c).sum()) >= 5 * c)
        assert len(capped.rows) == int(counts.clamp(max=best).sum())
        assert not len(left) or 5 * int(left.max()) <= len(capped.rows)
        assert torch.equal(capped.rows[:, 0].long(), capped.owners) and (len(counts) >= 5) == (len(capped.rows) > 0)
        assert kept.fair(1).inputs == (capped.inputs or kept.inputs)


def test_an_input_that_is_repeated_is_kept_once() -> None:
    live = LiveRows(100)
    for _ in range(30):
        live.add(torch.arange(20.0)[:, None], list(range(20)))
    assert len(live) == 20 == live.inputs


def test_a_reservoir_keeps_rows_in_16_bits() -> None:
    live = LiveRows(64)
    live.add(torch.arange(4.0)[:, None], [0] * 4)
    assert len(live) == 4 and live.kept().rows.dtype is torch.float16
    brain = LiveRows(4)
    brain.add(torch.tensor([[1e6], [2e6]], dtype=torch.bfloat16).expand(2, 8), [0, 1])
    assert brain.kept().rows.dtype is torch.bfloat16 and brain.kept().rows.isfinite().all()
    assert len(LiveRows(4).kept().rows) == 0 == LiveRows(4).inputs


def tiles(first: int, count: int, height: int) -> torch.Tensor:
    return torch.arange(float(first), first + count)[:, None, None, None].expand(count, 8, height, 8)


def test_a_first_map_smaller_than_a_tile_keeps_no_later_one_out() -> None:
    live = LiveRows(64)
    live.add(tiles(0, 6, 5), [0] * 6)
    assert live.kept().rows.shape == (6, 8, 5, 8)
    with torch.inference_mode():
        live.add(tiles(6, 6, 8), [1] * 6)
    kept = live.kept()
    assert kept.rows.shape == (6, 8, 8, 8) and set(kept.groups.tolist()) == {1} and live.inputs == 1
    for group in range(2, 40):
        live.add(tiles(6 * group, 6, 5 if group == 20 else 8), [group] * 6)
    kept = live.kept()
    assert len(live) == 64 >= len(kept.rows) >= 58 and 20 not in kept.groups
    assert torch.equal(kept.rows[:, 0, 0, 0].float() // 6, kept.groups.float())


def test_a_map_of_another_shape_does_not_take_the_place_of_the_usual_ones() -> None:
    live = LiveRows(64)
    live.add(tiles(0, 12, 8), [0] * 6 + [1] * 6)
    live.add(tiles(0, 6, 9), [2] * 6)
    assert live.kept().rows.shape == (12, 8, 8, 8) and live.inputs == 2


def test_a_reservoir_is_safe_from_several_threads() -> None:
    live = LiveRows(200)

    def work(group: int) -> None:
        for turn in range(50):
            rows = torch.tensor([[group, turn, number] for number in range(4)], dtype=torch.float32)
            live.add(rows, [group] * 4)
            kept = live.kept()
            assert torch.equal(kept.rows[:, 0].long(), kept.groups)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert live.taken == 800 and set(live.kept().groups.tolist()) <= {1, 2, 3, 4}
