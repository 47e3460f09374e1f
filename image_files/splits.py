"""A stable division of files among groups, such as train, valid and test, by their content."""

import collections
import itertools
from collections.abc import Mapping, Sequence


def divide(
    digests: Mapping[str, str], shares: Mapping[str, float], groups: Sequence[str]
) -> dict[str, str]:
    """Divide files among groups, such as train, valid and test, by their content.

    A digest is a position from 0 to 1, and a group an interval of that. The position of a file
    alone decides: copies of a file are in one group, and files that are added or removed do not
    move others. There is one exception: a group that would be empty gets the nearest file of the
    first group, or of another one, that has more than one; the first group gets the only file.
    While there is such a group, a file that is added may move up to two others.

    Args:
        digests: in hexadecimal, of the files of one category, by path; "" is at position 0.
        shares: of all groups, which add up to 1; their order is that of the intervals.
        groups: those that are filled. The intervals of all others belong to the first.

    Returns:
        The group of each path.
    """
    ends = dict(zip(shares, itertools.accumulate(shares.values()), strict=True))
    positions = {digest: int(digest[:16] or "0", 16) / 16**16 for digest in digests.values()}
    assigned = {}  # the group of each digest
    for digest, position in positions.items():
        group = next((name for name, end in ends.items() if position < end), groups[-1])
        assigned[digest] = group if group in groups else groups[0]
    for group in (groups[0], *reversed(groups[1:])):
        counts = collections.Counter(assigned.values())
        movable = [digest for digest in sorted(assigned) if counts[assigned[digest]] > 1]
        movable = [digest for digest in movable if assigned[digest] == groups[0]] or movable
        if group == groups[0]:
            movable = movable or sorted(assigned)
        if movable and not counts[group]:
            center = ends[group] - shares[group] / 2
            nearest = min(movable, key=lambda digest: abs(positions[digest] - center))
            assigned[nearest] = group
    return {path: assigned[digest] for path, digest in digests.items()}
