"""How long a step of the text engine may become by the prompts of those who are not next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deployments.engines.text.token_shares import TokenShares

SHARE = 1 / 4
"""Of the time of steps without guests, what guests may add to steps: a host's answer takes that much longer."""
COMPANY_S = 10.0
"""After another flow was last here, it is likely to come again."""


@dataclass(frozen=True)
class StepSizes:
    """Tokens of a step.

    Attributes:
        alone: where one flow is there.
        company: most, where others are or were there a moment ago: they wait for the step under way.
        guests: of prompts in steps of other flows.
    """

    alone: int
    company: int
    guests: int


class Guests:
    """Decides how many tokens a step has.

    A step that only decodes is short, and each token of a prompt in it makes it longer for all that are in it. So
    beside a flow that decodes, or that is the first to read, the prompts of others are guests: read in small parts, and
    only as long as they take no more than their share of the time. Who has been served a step's worth less than all
    hosts is no guest, nor is who comes anew, for a step's worth of its prompt: a short question waits behind nobody.

    Args:
        sizes: of steps.
        clock: seconds.
    """

    def __init__(self, sizes: StepSizes, clock: Callable[[], float] = time.monotonic) -> None:
        self._sizes, self._clock = sizes, clock
        self._hosts_s = self._guests_s = self._usual_s = 0.0
        self._step: tuple[float, bool] | None = None
        self._seen: dict[str, float] = {}
        self._welcomed: dict[str, int] = {}

    def budget(self, chosen: Sequence[tuple[str, bool, int]], shares: TokenShares, tokens: int) -> int:
        """Tokens of the next step, at most `tokens`.

        Args:
            chosen: (flow, whether it decodes, tokens that it would take) in the order in which they are taken up.
            shares: who has been served what.
        """
        now = self._clock()
        self._account(now)
        self._seen |= {flow: now for flow, _, _ in chosen}
        self._seen = {flow: at for flow, at in self._seen.items() if now - at < COMPANY_S}
        self._welcomed = {flow: tokens for flow, tokens in self._welcomed.items() if flow in self._seen}
        size = self._sizes.company if len(self._seen) > 1 else self._sizes.alone
        tokens = min(tokens, max(size, 2 * len(chosen)))
        hosted = self._hosted(chosen, shares)
        if hosted is None:
            return tokens
        may = self._guests_s <= SHARE * self._hosts_s
        self._step = now, may
        return min(tokens, hosted + self._sizes.guests * may)

    def _hosted(self, chosen: Sequence[tuple[str, bool, int]], shares: TokenShares) -> int | None:
        """Tokens of those that are no guests; None where nobody is one."""
        hosts = {flow for flow, decodes, _ in chosen if decodes}
        taken = sum(tokens for _, decodes, tokens in chosen if decodes)
        for flow, decodes, tokens in chosen:
            if decodes:
                continue
            if hosts - {flow} and not shares.behind(flow, hosts - {flow}, self._sizes.company):
                welcome = self._sizes.company - self._welcomed.get(flow, 0)
                self._welcomed[flow] = self._sizes.company - max(0, welcome - tokens)
                if tokens > welcome:
                    return taken + welcome
            hosts.add(flow)
            taken += tokens
        return None

    def _account(self, now: float) -> None:
        """The step before took so long: hosts' time, or as far as it was longer than theirs guests'."""
        if self._step is None:
            self._hosts_s = self._guests_s = 0.0
            return
        (began, guests), self._step = self._step, None
        took = now - began
        if not guests:
            self._usual_s, self._hosts_s = took, self._hosts_s + took
        else:
            usual = min(took, self._usual_s)
            self._hosts_s, self._guests_s = self._hosts_s + usual, self._guests_s + took - usual
