"""Near-duplicates: images whose features nearly coincide, such as re-encoded or resized copies.

    features (N, D) -> embed -> vectors (N, D) -> find_pairs -> pairs, with distances

What all images of a data set have in common, such as petals, is not what makes two of them copies.
So the directions in which the features vary most count less: each of the first 64 as much as the
64th. The distance of two images is 0 if they are the same and about 1.4 if they are unrelated.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from training.sampling import mean_and_std

LIMIT = 0.8  # of a near-duplicate's distance; docs/results.md has what it finds
EQUALIZED = 64  # directions, or a quarter of the images: fewer images have fewer in common
ROWS, COLUMNS = 2048, 8192  # vectors that are compared at a time
MAX_NEIGHBORS = 20  # pairs of an image with others before it; the nearest ones

Batches = Callable[[], Iterable[torch.Tensor]]


class Pairs(NamedTuple):
    """Pairs of images, the nearest first.

    Attributes:
        first, second: (P,) int64, indices of images.
        distance: (P,) float32.
    """

    first: torch.Tensor
    second: torch.Tensor
    distance: torch.Tensor


def embed(batches: Batches) -> torch.Tensor:
    """Return a vector of length 1 for each image, (N, D) float32.

    Args:
        batches: returns the features (B, D) float32 of all N images; it is called three times, so
            that they need not all be in memory.
    """
    mean, std = mean_and_std(batches())
    std = std.clamp(min=1e-3)  # a feature that never varies stays finite
    count = 0
    products = torch.zeros(len(mean), len(mean)).double()
    for batch in batches():
        values = (batch - mean) / std
        products += values.T @ values
        count += len(batch)
    variances, directions = torch.linalg.eigh((products / count).float())
    last = min(EQUALIZED, max(1, count // 4), len(variances))
    scale = variances.clamp(min=max(variances[-last].item(), 1e-6)).sqrt()
    projection = directions / scale
    vectors = torch.empty(count, len(mean))
    start = 0
    for batch in batches():
        values = ((batch - mean) / std) @ projection
        vectors[start : start + len(batch)] = values / values.norm(dim=1, keepdim=True).clamp(1e-12)
        start += len(batch)
    return vectors


def find_pairs(
    vectors: torch.Tensor, others: torch.Tensor | None = None, limit: float = LIMIT
) -> Pairs:
    """Return all pairs of vectors (N, D) of `embed` whose distance is below `limit`.

    The time grows with N * N (100,000 vectors take a minute), the memory does not.

    Args:
        others: (M, D), which are the first of each pair; by default, those before the second one.

    Returns:
        At most MAX_NEIGHBORS of each second one.
    """
    blocks = [torch.empty(3, 0).double()]  # of pairs: first, second, similarity
    for row in range(0, len(vectors), ROWS):
        rows = vectors[row : row + ROWS]
        candidates = vectors[: row + len(rows)] if others is None else others
        near = []
        for column in range(0, len(candidates), COLUMNS):
            similarity = rows @ candidates[column : column + COLUMNS].T  # (ROWS, COLUMNS)
            if others is None:
                similarity = similarity.tril(row - column - 1)  # those before the row
            i, j = (similarity > 1 - limit**2 / 2).nonzero(as_tuple=True)
            pairs = [(column + j).double(), (row + i).double(), similarity[i, j].double()]
            near.append(_nearest(torch.stack(pairs)))
        blocks.append(_nearest(torch.cat(near, 1)))
    first, second, similarity = torch.cat(blocks, 1)
    order = similarity.argsort(descending=True, stable=True)
    distance = (2 - 2 * similarity[order]).clamp(min=0).sqrt().float()
    return Pairs(first[order].long(), second[order].long(), distance)


def _nearest(near: torch.Tensor) -> torch.Tensor:
    """Return the pairs (3, P) with the highest similarity: MAX_NEIGHBORS of each second one."""
    near = near[:, near[2].argsort(descending=True, stable=True)]
    near = near[:, near[1].argsort(stable=True)]
    _, counts = near[1].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return near[:, torch.arange(near.shape[1]) - starts < MAX_NEIGHBORS]


def connect(pairs: Pairs, count: int) -> torch.Tensor:
    """Return the number of each image's group (count,) int64; pairs are in one group."""
    from scipy.sparse import coo_array  # here, because few commands need it
    from scipy.sparse.csgraph import connected_components

    # With 64-bit indices, scipy 1.11 prints an error and returns groups of single images.
    indices = (pairs.first.int(), pairs.second.int())
    graph = coo_array((torch.ones(len(pairs.first)), indices), shape=(count, count))
    _, groups = connected_components(graph, directed=False)
    return torch.from_numpy(groups).long()
