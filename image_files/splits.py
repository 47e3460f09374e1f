"""A stable division of files among groups, such as train, valid and test, by their content."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence


def divide(
    paths: Sequence[str],
    digests: Mapping[str, str],
    shares: Mapping[str, float],
    groups: Sequence[str],
) -> dict[str, list[str]]:
    """Divide files among groups, such as train, valid and test, by their content.

    A digest is a position from 0 to 1, and a group an interval of that. The position of a file
    alone decides: copies of a file are in one group, and files that are added or removed do not
    move others. There is one exception: a group that would be empty gets the nearest file of the
    first group, or of another one, that has more than one; the first group gets the only file.
    While there is such a group, a file that is added may move up to two others.

    Args:
        paths: of one category.
        digests: in hexadecimal, by path; files without one are at position 0.
        shares: of all groups, which add up to 1; their order is that of the intervals.
        groups: those that are filled. The intervals of all others belong to the first.

    Returns:
        The paths of each of `groups`, in their order.
    """
    ends = dict(zip(shares, itertools.accumulate(shares.values()), strict=True))
    positions = {
        digest: int(digest[:16] or "0", 16) / 16**16
        for digest in (digests.get(path, "") for path in paths)
    }

    def group_at(position: float) -> str:
        group = next((name for name, end in ends.items() if position < end), groups[-1])
        return group if group in groups else groups[0]

    assigned = {digest: group_at(position) for digest, position in positions.items()}
    for group in (groups[0], *reversed(groups[1:])):
        counts = collections.Counter(assigned.values())
        movable = [digest for digest in sorted(assigned) if counts[assigned[digest]] > 1]
        movable = [d for d in movable if assigned[d] == groups[0]] or movable
        if group == groups[0]:
            movable = movable or sorted(assigned)
        if movable and not counts[group]:
            center = ends[group] - shares[group] / 2
            nearest = min(movable, key=lambda digest: abs(positions[digest] - center))
            assigned[nearest] = group
    divided: dict[str, list[str]] = {group: [] for group in groups}
    for path in paths:
        divided[assigned[digests.get(path, "")]].append(path)
    return divided
