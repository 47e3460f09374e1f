"""training.sampling: a random order that has equally many samples of each label."""

import torch

from training.sampling import balanced_order, balanced_size, divide_into_folds, in_several_folds


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
    assert balanced_size(torch.tensor([0, 0, 4, 7])) == 6  # rounded up


def test_the_order_follows_from_the_global_generator():
    labels = torch.tensor([0] * 5 + [1] * 9)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(balanced_order(labels).tolist())
    assert orders[0] == orders[1] != orders[2]


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
