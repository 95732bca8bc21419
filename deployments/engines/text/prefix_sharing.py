"""Pages of a prompt's beginning shared within a tenant, and never across: their hashes are salted by the tenant."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

_WORDS = 4
_HEX = 8
_LARGEST = 2**31 - 1


def salted_id(flow: str, alone: bool = False) -> str:
    """A new request's id, which carries its tenant's salt; or one of its own, with which it shares no pages at all."""
    own = uuid.uuid4().hex
    salt = own if alone else flow
    return hashlib.blake2b(salt.encode(), digest_size=_WORDS * _HEX // 2).hexdigest() + own


def salt_pages(cache: Any) -> None:
    """Make a paged cache hash a request's pages under the salt in its id.

    Transformers shares pages between all requests by an unsalted hash of their tokens: how soon an answer begins would
    tell a tenant what others have asked. The salt goes over the first tokens, and every later page's hash hangs on the
    first one's.
    """
    match = cache.search_prefix_match
    cache.search_prefix_match = lambda request_id, prompt: match(request_id, _salted(request_id, prompt))
    for allocator in cache.cache_allocators.values():
        _salt_marks(allocator)


def _salt_marks(allocator: Any) -> None:
    mark = allocator.mark_complete_blocks
    allocator.mark_complete_blocks = lambda request_id, tokens, new: mark(request_id, _salted(request_id, tokens), new)


def _salted(request_id: str, tokens: list[int]) -> list[int]:
    # 31 bits a token: transformers hashes tokens as signed 32-bit numbers.
    words = [int(request_id[at : at + _HEX], 16) & _LARGEST for at in range(0, _WORDS * _HEX, _HEX)]
    return [token ^ word for token, word in zip(tokens, words, strict=False)] + tokens[_WORDS:]


def make_room(cache: Any, pages: int) -> None:
    """Give up pages that are kept for sharing alone, the longest unused first, until so many are free.

    Transformers would keep them all until its scheduler fails, and then give up every one, or a running request.
    """
    for allocator in cache.cache_allocators.values():
        pool, ledger = cache.pool, allocator.ledger
        free = pool.num_free_sectors * allocator.blocks_per_sector + pool.count_free_blocks(allocator.index)
        while free < pages and ledger.cached_blocks:
            page = next(iter(ledger.cached_blocks))
            del ledger.cached_blocks[page]
            ledger.hash_to_block.pop(ledger.block_to_hash.pop(page))
            pool.free_blocks(allocator.index, [page])
            free += 1
