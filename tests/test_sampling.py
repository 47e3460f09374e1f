"""support.sampling: a random order that has equally many samples of each label."""

import pytest
import torch

from support.sampling import (
    balanced_order,
    balanced_size,
    divide,
    divide_into_folds,
    in_several_folds,
)


def test_labels_of_any_size_come_equally_often():
    torch.manual_seed(0)
    labels = torch.tensor([2] * 3 + [0] * 40 + [2] * 2 + [5] * 15)  # label 1, 3 and 4 have none
    order = balanced_order(labels)
    assert len(order) == balanced_size(labels) == 60
    assert torch.bincount(labels[order]).tolist() == [20, 0, 20, 0, 0, 20]
    counts = torch.bincount(order, minlength=60)
    assert counts[labels == 2].tolist() == [4] * 5  # all of them, equally often
    assert counts[labels == 0].max() == 1
    assert set(counts[labels == 5].tolist()) == {1, 2}
    assert (labels[order[:20]] == labels[order[0]]).float().mean() < 0.8  # mixed
    assert not torch.equal(order, balanced_order(labels))


def test_equally_frequent_labels_come_once():
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    assert sorted(balanced_order(labels).tolist()) == list(range(12))
    assert balanced_order(labels).tolist() != list(range(12))
    assert balanced_size(labels) == 12


def test_the_size_is_rounded_up():
    assert balanced_size(torch.tensor([0, 0, 4, 7])) == 6
    assert balanced_size(torch.tensor([3])) == 1


def test_the_order_follows_from_the_global_generator():
    labels = torch.tensor([0] * 5 + [1] * 9)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(balanced_order(labels).tolist())
    assert orders[0] == orders[1] != orders[2]


SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
SPLITS = list(SHARES)


def digest_at(position: float) -> str:
    return f"{int(position * 16**16):016x}"


def divided(positions: list[float], groups=SPLITS) -> dict[str, list[float]]:
    digests = {str(position): digest_at(position) for position in positions}
    parts = divide(list(digests), digests, SHARES, groups)
    return {group: [float(path) for path in paths] for group, paths in parts.items()}


def test_the_content_alone_decides_the_group():
    expected = {"train": [0.0, 0.5, 0.79], "valid": [0.8, 0.89], "test": [0.91, 0.999]}
    assert divided([0.0, 0.5, 0.79, 0.8, 0.89, 0.91, 0.999]) == expected
    assert divided([0.5, 0.85, 0.95], ["train", "test"]) == {"train": [0.5, 0.85], "test": [0.95]}
    copies = divide(["a", "b"], {"a": digest_at(0.95), "b": digest_at(0.95)}, SHARES, SPLITS)
    assert copies == {"train": ["a", "b"], "valid": [], "test": []}  # the only content


@pytest.mark.parametrize("seed", range(50))
def test_three_images_are_enough_for_three_groups(seed):
    positions = torch.rand(3 + seed % 9, generator=torch.Generator().manual_seed(seed)).tolist()
    parts = divided(positions)
    assert all(parts.values())
    assert sorted(sum(parts.values(), [])) == sorted(positions)
    # As stable as promised: one more image moves none, unless an image stands in for a group.
    natural = {"train": (0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1)}
    stand_ins = [
        p for group, (low, high) in natural.items() for p in parts[group] if not low <= p < high
    ]
    for extra in torch.rand(20, generator=torch.Generator().manual_seed(seed + 1000)).tolist():
        again = divided([*positions, extra])
        moved = [p for group in SPLITS for p in parts[group] if p not in again[group]]
        assert len(moved) <= (2 if stand_ins else 0)


def test_files_without_digest_and_too_few_files_are_divided_as_well():
    assert divide(["a"], {}, SHARES, SPLITS) == {"train": ["a"], "valid": [], "test": []}
    assert divided([0.95]) == {"train": [0.95], "valid": [], "test": []}
    assert divided([0.95, 0.85]) == {"train": [0.85], "valid": [], "test": [0.95]}
    assert sum(map(len, divided([0.3, 0.4]).values())) == 2
    assert divide([], {}, SHARES, SPLITS) == {"train": [], "valid": [], "test": []}


# ---------------------------------------------------------------- folds


def test_folds_have_equally_many_of_each_label_and_keep_groups_together():
    labels = torch.arange(170) % 17
    groups = torch.arange(170)
    groups[[17, 34, 51]] = 0  # with the first one, all of one label
    folds = divide_into_folds(labels, groups, 5, seed=0)
    assert len(folds[[0, 17, 34, 51]].unique()) == 1
    for label in range(1, 17):
        assert folds[labels == label].bincount(minlength=5).tolist() == [2] * 5
    assert folds.bincount(minlength=5).min() > 30


def test_folds_follow_from_the_seed():
    labels, groups = torch.arange(60) % 4, torch.arange(60)
    same = [divide_into_folds(labels, groups, 5, seed=3) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], divide_into_folds(labels, groups, 5, seed=4))


def test_few_samples_are_in_different_folds():
    folds = divide_into_folds(torch.tensor([0, 0, 1]), torch.arange(3), 5, seed=0)
    assert len(folds.unique()) == 3


def test_a_label_is_in_several_folds_or_in_one():
    labels, folds = torch.tensor([3, 0, 0, 3, 1, 0]), torch.tensor([2, 2, 2, 0, 1, 2])
    assert in_several_folds(labels, folds).tolist() == [True, False, False, True, False, False]
