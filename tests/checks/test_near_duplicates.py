"""checks.near_duplicates: vectors that nearly coincide, among many that have much in common."""

import pytest
import torch

from checks import near_duplicates
from checks.near_duplicates import Pairs, connect, embed, find_pairs


def features_of(count: int, size: int = 300, seed: int = 0) -> torch.Tensor:
    """Make features that vary more in some directions than in others, as those of images do."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, size, generator=generator) / torch.arange(1, size + 1) ** 0.5
    return values @ torch.randn(size, size, generator=generator) + 50


def copies_of(values: torch.Tensor, noise: float = 0.3) -> torch.Tensor:
    """Make features of slightly changed copies."""
    return values + noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize("count", [12, 200])
def test_copies_are_found_and_no_others(count):
    values = features_of(count)
    copies = copies_of(values[: count // 6])
    vectors = embed(lambda: torch.cat([values, copies]).split(50))
    pairs = find_pairs(vectors)
    assert as_set(pairs) == {(row, count + row) for row in range(count // 6)}
    assert (pairs.distance.diff() >= 0).all() and 0 < pairs.distance[0] < 0.8


def test_the_same_features_have_distance_0_and_different_ones_about_1_4():
    values = features_of(300)
    vectors = embed(lambda: [torch.cat([values, values[:1]])])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(301), atol=1e-5)
    pairs = find_pairs(vectors, limit=2.1)
    assert as_set(Pairs(*(column[:1] for column in pairs))) == {(0, 300)}
    assert pairs.distance[0] < 0.001
    assert 1.2 < pairs.distance.median() < 1.5


def test_the_batches_do_not_matter():
    values = features_of(150)
    whole, parts = embed(lambda: [values]), embed(lambda: values.split(7))
    # Not the vectors: the directions of equal variance are arbitrary.
    torch.testing.assert_close(whole @ whole.T, parts @ parts.T, rtol=0, atol=1e-3)


def test_a_feature_that_never_varies_changes_nothing():
    values = features_of(60)
    constant = torch.cat([values, torch.full((60, 3), 7.0)], 1)
    vectors, others = (embed(lambda v=v: [v]) for v in (values, constant))
    assert others.isfinite().all()
    torch.testing.assert_close(vectors @ vectors.T, others @ others.T, rtol=0, atol=1e-3)


def test_images_that_are_all_equal_are_no_error():
    vectors = embed(lambda: [torch.ones(4, 8)])
    assert vectors.isfinite().all() and as_set(find_pairs(vectors)) == set()


@pytest.mark.parametrize(("rows", "columns"), [(7, 5), (13, 60), (100, 100)])
def test_blocks_of_any_size_give_the_pairs_of_all_distances(monkeypatch, rows, columns):
    monkeypatch.setattr(near_duplicates, "MAX_NEIGHBORS", 1000)
    monkeypatch.setattr(near_duplicates, "ROWS", rows)
    monkeypatch.setattr(near_duplicates, "COLUMNS", columns)
    values = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    vectors = torch.nn.functional.normalize(values, dim=1)
    is_near = torch.cdist(vectors, vectors) < 0.2
    expected = is_near.triu(1).nonzero().tolist()
    assert as_set(find_pairs(vectors, limit=0.2)) == set(map(tuple, expected))
    expected = is_near[:20, 20:].nonzero().tolist()
    assert as_set(find_pairs(vectors[20:], vectors[:20], limit=0.2)) == set(map(tuple, expected))
    assert as_set(find_pairs(vectors[:0])) == set()


def test_of_many_neighbors_the_nearest_ones_are_returned(monkeypatch):
    monkeypatch.setattr(near_duplicates, "MAX_NEIGHBORS", 3)
    monkeypatch.setattr(near_duplicates, "COLUMNS", 4)
    angles = torch.arange(10) / 100
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    pairs = find_pairs(vectors)
    assert as_set(pairs) == {(j, i) for i in range(10) for j in range(max(0, i - 3), i)}


def test_pairs_that_share_an_image_are_one_group():
    pairs = Pairs(torch.tensor([4, 0, 2, 1]), torch.tensor([5, 3, 5, 4]), torch.zeros(4))
    assert connect(pairs, 7).tolist() == [0, 1, 1, 0, 1, 1, 2]
