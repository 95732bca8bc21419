from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers.generation.continuous_batching.cache_allocators.cache_allocator import BlockLedger, compute_block_hash

from deployments.engines.text.prefix_sharing import make_room, salt_pages, salted_id

PAGE = 8
PROMPT = list(range(100, 100 + 3 * PAGE))


class Pages:
    """A cache that hashes pages as transformers' does, and remembers whose it has seen."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.cache_allocators = {"full": self}

    def hashes(self, tokens: list[int]) -> list[int]:
        hashes: list[Any] = [None]
        for at in range(0, len(tokens), PAGE):
            hashes.append(compute_block_hash(hashes[-1], tokens[at : at + PAGE]))
        return hashes[1:]

    def search_prefix_match(self, request_id: str, prompt: list[int]) -> int:
        return sum(page in self.known for page in self.hashes(prompt))

    def mark_complete_blocks(self, request_id: str, tokens: list[int], new: int) -> None:
        self.known.update(self.hashes(tokens))


def test_a_tenant_finds_its_own_pages_and_no_others() -> None:
    cache: Any = Pages()
    salt_pages(cache)
    cache.mark_complete_blocks(salted_id("a"), PROMPT, 3)
    assert cache.search_prefix_match(salted_id("a"), PROMPT) == 3
    assert cache.search_prefix_match(salted_id("a"), PROMPT[:PAGE] + PROMPT[:PAGE]) == 1
    assert cache.search_prefix_match(salted_id("b"), PROMPT) == 0


def test_ids_differ_and_short_prompts_are_left_whole() -> None:
    assert salted_id("a") != salted_id("a") and salted_id("a")[:32] == salted_id("a")[:32] != salted_id("b")[:32]
    cache: Any = Pages()
    salt_pages(cache)
    assert cache.search_prefix_match(salted_id("a"), [1, 2]) == 0


def test_room_is_made_from_the_longest_unused_pages_and_no_more_than_needed() -> None:
    ledger = BlockLedger()
    for page in range(4):
        ledger.register_new_hash(page, page + 1000)
        ledger.release(page)
    ledger.acquire(2)
    freed: list[int] = []
    pool = SimpleNamespace(
        num_free_sectors=1, count_free_blocks=lambda index: 1, free_blocks=lambda index, pages: freed.extend(pages)
    )
    allocator = SimpleNamespace(index=0, ledger=ledger, blocks_per_sector=2)
    cache = SimpleNamespace(pool=pool, cache_allocators={"full": allocator})
    make_room(cache, 3)
    assert freed == []
    make_room(cache, 5)
    assert freed == [0, 1] and set(ledger.cached_blocks) == {3}
    make_room(cache, 50)
    assert freed == [0, 1, 3] and set(ledger.hash_to_block) == {1002}
