"""training/fitting.py: rows that are held out; test_fitting.py has the same with real heads."""

import torch

from model import Head
from training.fitting import predict_folds


def test_each_row_is_held_out_once_and_unused_rows_never_fitted():
    torch.manual_seed(0)
    features, labels = torch.rand(24, 2, 5), torch.arange(24) % 3
    folds = torch.arange(24) // 3 % 4
    folds[20:] = -1
    plain = torch.arange(0, 20, 2)
    calls = []

    def fit_on(rows, held_out):
        calls.append((rows.tolist(), held_out.tolist()))
        return Head(5, 4, 3, 3, 0.5)

    result = predict_folds(fit_on, features, labels, folds, plain)
    assert sorted(row for _, held_out in calls for row in held_out) == plain.tolist()
    for rows, held_out in calls:
        fold = folds[held_out[0]]
        assert (folds[held_out] == fold).all()
        assert rows == [row for row in range(20) if folds[row] != fold]
    assert result.probs.shape == (10, 3) and result.is_valid.all()
    torch.testing.assert_close(result.probs.sum(1), torch.ones(10))
