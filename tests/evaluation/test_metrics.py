"""evaluation.metrics: accuracy, calibration and figures of each category, by hand."""

import math
import warnings

import numpy as np
import pytest
import torch

from evaluation.calibration import (
    CALIBRATION_BINS,
    PRIOR_TEMPERATURE,
    TEMPERATURES,
    calibration_bins,
    calibration_error,
    fit_temperature,
)
from evaluation.metrics import (
    auroc,
    category_metrics,
    confident_mistakes,
    confusion_counts,
    format_evaluation,
    format_unknown,
    fpr95,
    metrics,
)

PROBS = [
    [0.90, 0.04, 0.03, 0.01, 0.01, 0.01],  # correct and confident
    [0.86, 0.10, 0.01, 0.01, 0.01, 0.01],  # incorrect, about as confident
    [0.30, 0.50, 0.10, 0.05, 0.03, 0.02],  # correct
    [0.20, 0.10, 0.46, 0.10, 0.09, 0.05],  # the label is the least likely category
    [0.70, 0.10, 0.08, 0.06, 0.04, 0.02],  # correct
]
LABELS = [0, 1, 1, 5, 0]


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_metrics_of_logits_are_those_computed_by_hand(kind):
    measured = metrics(kind(np.log(PROBS) + 3), kind(LABELS))
    losses = [-math.log(p) for p in (0.9, 0.1, 0.5, 0.05, 0.7)]
    # Bins of 1/15: 0.90 and 0.86 in 13 and 12, 0.50 in 7, 0.46 in 6, 0.70 in 10.
    differences = [0.1, 0.86, 0.5, 0.46, 0.3]
    assert measured == pytest.approx(
        {
            "loss": sum(losses) / 5,
            "accuracy": 3 / 5,
            "top5_accuracy": 4 / 5,
            "class_accuracy": (1 + 1 / 2 + 0) / 3,
            "ece": sum(differences) / 5,
        },
        rel=1e-5,
    )
    assert all(type(value) is float for value in measured.values())


def test_large_logits_overflow_nothing():
    measured = metrics([[1e4, -1e4], [1e4, 1e4 - 1]], [0, 1])
    assert measured["loss"] == pytest.approx((0 + math.log(1 + math.e)) / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_a_loss_that_is_not_finite_and_no_warning(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = metrics([[value, value], [0.0, 1.0]], [0, 1])
    assert not math.isfinite(measured["loss"])


# ---------------------------------------------------------------- calibration


def test_predictions_are_sorted_into_bins_by_their_probability():
    probs, correct = [0.0, 0.05, 0.07, 0.5, 1.0, 1.0], [False, True, True, False, True, False]
    bins = calibration_bins(probs, correct)
    expected = np.zeros((3, CALIBRATION_BINS))
    expected[:, 0], expected[:, 1], expected[:, 7] = (2, 0.05, 1), (1, 0.07, 1), (1, 0.5, 0)
    expected[:, 14] = (2, 2.0, 1)  # a probability of 1 belongs to the last bin
    np.testing.assert_allclose(bins, expected)
    # |0.05 - 1| + |0.07 - 1| + |0.5 - 0| + |2 - 1|, of 6 predictions
    assert calibration_error(probs, correct) == pytest.approx((0.95 + 0.93 + 0.5 + 1) / 6)


# ---------------------------------------------------------------- each category


def test_confusion_counts_have_a_row_for_each_label():
    counts = confusion_counts([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0], 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_metrics_of_each_category_are_those_computed_by_hand():
    labels, predictions = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = category_metrics(labels, predictions, 4)
    assert [row["images"] for row in rows] == [3, 2, 1, 0]
    expected = {
        "precision": [1 / 2, 1 / 2, math.nan, math.nan],
        "recall": [2 / 3, 1 / 2, 0, math.nan],
        "f1": [4 / 7, 1 / 2, 0, math.nan],
    }
    for name, values in expected.items():
        assert [row[name] for row in rows] == pytest.approx(values, nan_ok=True)


# ---------------------------------------------------------------- the evaluation as text

NAMES = ["iris", "rose", "c", "d", "e", "f"]
SUMMARY = (
    "5 images of 3 categories: accuracy 60.0%, top-5 80.0%, mean of the categories 50.0%, "
    "calibration error 44.4%"
)


def test_the_most_confident_mistakes_come_first():
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]])
    labels = np.array([0, 0, 0, 1, 0])
    assert confident_mistakes(labels, probs).tolist() == [4, 2, 3, 1]
    equal = probs[[2]].repeat(50, 0)
    assert confident_mistakes(np.zeros(50, int), equal).tolist() == list(range(50))
    assert confident_mistakes(probs.argmax(1), probs).tolist() == []


def test_an_evaluation_names_the_most_frequent_confusions():
    lines = format_evaluation(torch.tensor(PROBS), torch.tensor(LABELS), NAMES)
    assert lines == [SUMMARY, "1 of rose predicted as iris", "1 of f predicted as c"]
    repeated = format_evaluation([PROBS[3], *PROBS, PROBS[3]], [5, *LABELS, 5], NAMES)
    assert repeated[1:] == ["3 of f predicted as c", "1 of rose predicted as iris"]
    assert len(format_evaluation(PROBS, LABELS, NAMES, max_confusions=1)) == 2


@pytest.mark.parametrize(("minimum", "above", "correct"), [(0.86, 40, 50), (0.95, 0, 0)])
def test_an_evaluation_counts_the_predictions_above_a_minimum(minimum, above, correct):
    lines = format_evaluation(PROBS, LABELS, NAMES, min_probability=minimum)
    line = f"{above}.0% of the predictions have a probability of at least {minimum}"
    assert lines[:2] == [SUMMARY, f"{line}, and {correct}.0% of these are correct"]


def test_an_evaluation_of_probabilities_that_are_0_is_finite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = format_evaluation([[1.0, 0.0], [1.0, 0.0]], [0, 1], ["a", "b"])
    assert "accuracy 50.0%" in lines[0] and "nan" not in lines[0]


def test_the_temperature_calibrates_the_probabilities():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.5, 1.0, 3.0):  # underconfident, calibrated, overconfident
        temperature = fit_temperature(logits * factor, labels)
        assert temperature == pytest.approx(factor, rel=0.1)
        measured = metrics(logits * factor / temperature, labels)
        assert measured["ece"] < 0.03
        assert measured["accuracy"] == metrics(logits, labels)["accuracy"]
    assert metrics(logits * 3, labels)["ece"] > 0.05


def test_the_temperature_stays_within_its_limits():
    logits, labels = torch.eye(3).repeat(1000, 1), torch.arange(3).repeat(1000)
    assert fit_temperature(logits, labels) == min(TEMPERATURES)
    assert fit_temperature(logits, (labels + 1) % 3) == max(TEMPERATURES)


def test_few_images_move_the_temperature_little():
    logits, labels = 5 * torch.eye(3), torch.arange(3)
    temperatures = [fit_temperature(logits[:n], labels[:n]) for n in range(4)]
    assert temperatures[0] == pytest.approx(PRIOR_TEMPERATURE, rel=0.03)
    assert temperatures == sorted(temperatures, reverse=True) and temperatures[-1] > 0.3
    incorrect = [fit_temperature(logits[:n], (labels[:n] + 1) % 3) for n in range(4)]
    assert incorrect == sorted(incorrect) and incorrect[1] > PRIOR_TEMPERATURE


# ---------------------------------------------------------------- unknown images


def test_an_evaluation_says_how_many_images_are_unusual():
    novelty = np.linspace(0.1, 0.5, len(LABELS))
    line = format_evaluation(PROBS, LABELS, NAMES, novelty=novelty, min_novelty=0.15)[1]
    share = np.mean(novelty < 0.15)
    assert 0 < share < 1 and line == f"{share:.1%} of the images have a novelty below 0.15"
    unknown = format_evaluation(PROBS, LABELS, NAMES, novelty=novelty * math.nan)
    assert unknown == format_evaluation(PROBS, LABELS, NAMES)


def test_unknown_images_are_compared_by_probability_and_by_novelty():
    scores = {"probs": [[0.9, 0.1], [0.2, 0.8]], "unknown_probs": [[0.5, 0.5], [0.1, 0.9]]}
    scores |= {"novelty": [0.5, 0.4], "unknown_novelty": [0.1, 0.2], "min_novelty": 0.15}
    assert format_unknown(**scores) == [
        "probability of known and unknown images: AUROC 0.6250, FPR95 50.0%",
        "novelty of known and unknown images: AUROC 1.0000, FPR95 0.0%",
        "50.0% of 2 unknown images have a novelty below 0.15",
    ]
    scores |= {"novelty": [math.nan] * 2, "unknown_novelty": [math.nan] * 2}
    assert len(format_unknown(**scores)) == 1


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    known, unknown = np.random.RandomState(0).randint(0, 20, (2, 50))
    pairs = [(u < k) + 0.5 * (u == k) for k in known for u in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))
    assert auroc([2, 3], [1, 0]) == 1 and auroc([0], [1, 2]) == 0 and auroc([1], [1]) == 0.5


def test_fpr95_is_the_share_of_unknown_images_above_the_limit():
    known = np.arange(1, 102)  # the limit is 6
    assert fpr95(known, [5.9, 6, 7, 5]) == 0.5
    assert fpr95(known, [0, 1]) == 0 and fpr95(known, [50]) == 1
