"""support.sampling: a random order that has equally many samples of each label."""

import torch

from support.sampling import balanced_order, balanced_size


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
