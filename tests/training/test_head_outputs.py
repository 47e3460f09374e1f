"""training/head_outputs.py: a head's outputs do not depend on how rows are divided into batches."""

import pytest
import torch
from conftest import detector_of

from model import Head
from training.head_outputs import (
    compute_logits,
    compute_outputs,
    fit_detector_on,
    hidden_and_logits,
)


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Head(6, 8, 3, 3, dropout=0.5).train()  # dropout has to be off


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_outputs_are_those_of_each_row(head, batch_size):
    features, rows = torch.rand(30, 4, 6), torch.arange(20).flip(0)
    detector = detector_of(8)
    logits, scores = compute_outputs(head, detector, features, rows, batch_size)
    with torch.no_grad():
        expected_hidden, expected = head.eval().image_outputs(features[rows])
        measured = detector.scores(expected_hidden, expected)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(scores, measured)
    assert torch.equal(compute_logits(head, features, rows, batch_size), logits)
    assert compute_outputs(head, None, features, rows, batch_size)[1].isnan().all()
    hidden = torch.cat([hidden for hidden, _ in hidden_and_logits(head, features, rows, 7)])
    torch.testing.assert_close(hidden, expected_hidden)


def test_a_detector_is_fitted_on_the_rows_that_are_named(head):
    features, labels = torch.rand(30, 4, 6), torch.arange(30) % 3
    rows = torch.arange(0, 24)
    detector = fit_detector_on(head, features, labels, rows)
    same = fit_detector_on(head, features[:24].clone(), labels[:24], rows)
    other = fit_detector_on(head, features, labels, torch.arange(6, 30))
    assert torch.equal(detector.means, same.means)
    assert not torch.equal(detector.means, other.means)
    assert fit_detector_on(head, features[:3], labels[:3], torch.arange(3)) is None
