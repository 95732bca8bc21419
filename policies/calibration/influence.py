"""How far one tenant's inputs move a level that is solved on them: what leaving it out changes for the others.

Agreement at a level's position is a mean over answers. With a share w of them a tenant's, whose answers agree with a_i
where the others' agree with a_rest, the others get w (a_rest - a_i) more than all together do, which is what was sold:
so far has that tenant moved the level for them (a deletion diagnostic, as Belsley, Kuh and Welsch, 1980).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policies.audit import WITHIN, Tally

ERRORS = 1.0
"""Standard errors of the others' agreement that a tenant may move them by, beyond 0.02. With a fifth of the answers a
tenant like the others does so by 0.4 of one (standard deviation). No error of its own counts: few inputs that gave many
answers, or odd ones, would buy it room."""


@dataclass(frozen=True)
class Influence:
    """What one tenant does to one level.

    Attributes:
        tenant: whose rows were left out.
        level: sold.
        moved: agreement of the others' answers less that of all.
        bound: how much that may be.
    """

    tenant: int
    level: float
    moved: float
    bound: float

    @property
    def beyond(self) -> float:
        """By how much it is too far; at most 0 where it is not."""
        return abs(self.moved) - self.bound


def influences(tallies: Mapping[float, Mapping[int, Tally]]) -> list[Influence]:
    """The influence of every tenant on every level; of a single tenant none, since nobody else is there.

    The bound is 0.02 and one standard error of the others' agreement, clustered by input.

    Args:
        tallies: by level and tenant, the answers of the rows that the levels were solved on, at the level's position.
    """
    found = []
    for level, own in tallies.items():
        whole = sum(own.values(), Tally())
        for tenant, tally in own.items():
            rest = whole - tally
            if rest.answers:
                found.append(Influence(tenant, level, rest.level - whole.level, WITHIN + ERRORS * rest.error))
    return found


def worst(tallies: Mapping[float, Mapping[int, Tally]]) -> Influence | None:
    """The one that is furthest beyond its bound; None where all are within."""
    beyond = [influence for influence in influences(tallies) if influence.beyond > 0.0]
    return max(beyond, key=lambda influence: influence.beyond, default=None)
