"""Roles of KV heads: who attends like another head, and who attends alike at all times."""

from collections.abc import Sequence
from dataclasses import dataclass

ANCHOR, VOLATILE, PIVOT, SATELLITE = "anchor", "volatile", "pivot", "satellite"
ROLES = (ANCHOR, VOLATILE, PIVOT, SATELLITE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Of every KV head of the managed layers, by layer and head."""

    role_LG: list[list[str]]
    satellites_LG: list[list[list[int]]]  # of a pivot; of the others none
    stability_LG: list[list[float]]

    @classmethod
    def of(
        cls,
        stability_LG: list[list[float]],
        similarity_LGG: Sequence[list[list[float]]],
        similar: float,
        stable: float,
    ) -> "Roles":
        """Stars of similar heads; the heads outside are anchors where they are stable."""
        roles, satellites = [], []
        for stability_G, similarity_GG in zip(stability_LG, similarity_LGG, strict=True):
            found = stars(similarity_GG, similar)
            role_G = [ANCHOR if value >= stable else VOLATILE for value in stability_G]
            for pivot, leaves in found.items():
                role_G[pivot] = PIVOT
                for leaf in leaves:
                    role_G[leaf] = SATELLITE
            roles.append(role_G)
            satellites.append([found.get(head, []) for head in range(len(role_G))])
        return cls(role_LG=roles, satellites_LG=satellites, stability_LG=stability_LG)

    def full(self, i: int, head: int) -> bool:
        """Whether a head of the ``i``-th managed layer attends everything (paper)."""
        return self.role_LG[i][head] in (PIVOT, VOLATILE)

    def counts(self) -> dict[str, int]:
        """Heads of each role."""
        found = [role for layer in self.role_LG for role in layer]
        return {role: found.count(role) for role in ROLES}


def stars(similarity_GG: list[list[float]], similar: float) -> dict[int, list[int]]:
    """Pivot -> its satellites. The head with most free similar heads is the next pivot.

    Of several such heads the first one is.
    """
    free, found = set(range(len(similarity_GG))), {}
    while free:
        near = {
            a: [b for b in sorted(free) if b != a and similarity_GG[a][b] >= similar]
            for a in sorted(free)
        }
        pivot = max(near, key=lambda head: len(near[head]))  # the first of equals
        if not near[pivot]:
            break
        found[pivot] = near[pivot]
        free -= {pivot, *near[pivot]}
    return found
