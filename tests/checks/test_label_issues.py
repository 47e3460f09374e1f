"""label_issues: suspect labels by hand, and their findings and galleries."""

import pytest
import torch

from checks.findings import File
from checks.galleries import MAX_PAIRS, MAX_SUSPECTS, galleries
from checks.label_issues import (
    accuracy_findings,
    find_suspects,
    label_quality,
    outlier_findings,
    pair_findings,
    suspect_findings,
)
from checks.near_duplicates import Pairs

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1])
PROBS = torch.tensor(
    [
        [0.90, 0.05, 0.05],
        [0.80, 0.10, 0.10],
        [0.02, 0.08, 0.90],  # suspect: probably 2
        [0.00, 0.98, 0.02],  # more suspect: probably 1
        [0.10, 0.50, 0.40],
        [0.70, 0.25, 0.05],  # another category is predicted, but this one is not impossible
        [0.50, 0.45, 0.05],
    ]
)
FILES = [File("train", "ab"[label], f"{row}.jpg") for row, label in enumerate(LABELS.tolist())]
NAMES = {"a": "rose", "b": "tulip", "c": "lily"}


def test_the_quality_of_a_label_is_relative_to_its_category():
    means = [(0.9 + 0.8 + 0.02 + 0.0) / 4, (0.5 + 0.25 + 0.45) / 3]
    own = [0.9, 0.8, 0.02, 0.0, 0.5, 0.25, 0.45]
    expected = [p / means[label] for p, label in zip(own, LABELS.tolist(), strict=True)]
    assert label_quality(PROBS, LABELS).tolist() == pytest.approx(expected, rel=1e-5)


def test_suspects_are_those_with_a_low_quality_the_lowest_first():
    suspects = find_suspects(PROBS, LABELS)
    assert suspects.rows.tolist() == [3, 2] and suspects.suggested.tolist() == [1, 2]
    assert find_suspects(PROBS[:2], LABELS[:2]).rows.tolist() == []


def test_a_label_that_is_predicted_is_never_suspect():
    probs = torch.full((3, 20), 0.0)
    probs[:2, 0] = 1.0
    probs[2] = 0.9 / 19
    probs[2, 0] = 0.1 - 1e-3  # less than a tenth, but no other category has more
    probs[:, 0] += 1e-4
    labels = torch.zeros(3, dtype=torch.int64)
    probs[2] *= 0.6
    assert label_quality(probs, labels)[2] < 0.1
    assert find_suspects(probs, labels).rows.tolist() == []


def test_a_category_that_is_predicted_for_no_image_of_it_is_suspect_as_a_whole():
    probs, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 1])
    assert find_suspects(probs, labels).rows.tolist() == [0, 1]


def test_a_suspect_label_has_both_names_and_probabilities():
    first, second = suspect_findings(FILES, PROBS, LABELS, list("abc"), list(NAMES.values()))
    assert first[:5] == ("suspect label", "train", "a", "3.jpg", "rose 0.0%, tulip 98.0%")
    assert (first.rank, first.suggested, first.probability) == (1, "b", 0)
    assert first.suggested_probability == pytest.approx(0.98)
    assert (second.path, second.rank, second.suggested) == ("2.jpg", 2, "c")


def test_near_duplicates_of_different_categories_come_first_then_of_different_splits():
    files = [File("train", "a", "0"), File("train", "a", "1"), File("test", "a", "2")]
    files += [File("train", "b", "3"), File("test", "a", "4")]
    pairs = Pairs(
        torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 3, 4]), torch.tensor([0.1, 0.2, 0.3, 0.0])
    )
    digests = {"0": "x", "1": "y", "2": "z", "3": "v", "4": "z"}  # 2 and 4 are copies
    findings = pair_findings(files, pairs, digests)
    assert [(f.path, f.other_path, f.rank) for f in findings] == [
        ("3", "1", 1),
        ("2", "0", 2),
        ("1", "0", 3),
    ]
    assert findings[0].detail == "in another category: 1, distance 0.30"
    assert findings[1].detail == "in another split: 0, distance 0.20"
    assert findings[2].detail == "0, distance 0.10"
    assert findings[0].distance == pytest.approx(0.3)


def test_outliers_have_less_novelty_than_the_limit():
    novelty = torch.tensor([0.5, 0.002, torch.nan, 0.0, 0.003, 1.0, 0.7])
    findings = outlier_findings(FILES, novelty, 0.003)
    assert [(f.finding, f.path, f.rank) for f in findings] == [
        ("outlier", "3.jpg", 1),
        ("outlier", "1.jpg", 2),
    ]
    assert findings[1].novelty == pytest.approx(0.002)


def test_the_accuracy_has_its_standard_error():
    accuracy, error = accuracy_findings(torch.tensor([True] * 8 + [False] * 2))
    assert (accuracy.detail, error.detail) == ("0.8000", "0.1369")  # sqrt(9/12 * 3/12 / 10)
    accuracy, error = accuracy_findings(torch.tensor([True] * 8))
    assert (accuracy.detail, error.detail) == ("1.0000", "0.1061")  # sqrt(9/10 * 1/10 / 8)


def test_galleries_show_the_first_suspects_and_pairs_that_matter():
    labels = torch.zeros(30, dtype=torch.int64)
    files = [File("train", "a", f"{row}.jpg") for row in range(30)]
    probs = torch.tensor([[0.01, 0.19, 0.8]]).repeat(30, 1)
    probs[25:] = torch.tensor([1.0, 0.0, 0.0])
    suspects = suspect_findings(files, probs, labels, list("abc"), list(NAMES.values()))
    files[15] = File("test", "a", "15.jpg")
    pairs = Pairs(
        torch.cat([torch.tensor([20]), torch.arange(15)]),
        torch.cat([torch.tensor([21]), torch.full((15,), 15)]),  # the first is within train
        torch.arange(16) / 20,
    )
    findings = [*suspects, *pair_findings(files, pairs, {f.path: f.path for f in files})]
    drawn = galleries(findings, NAMES)
    assert len(suspects) == 25 and len(drawn["suspects"].paths) == MAX_SUSPECTS
    assert drawn["suspects"].titles[1] == "2. rose 1%\nlily 80%"
    shown = drawn["near-duplicates"]
    assert len(shown.paths) == len(shown.titles) == 2 * MAX_PAIRS
    assert shown.paths[2:4] == ["1.jpg", "15.jpg"] and shown.titles[2] == "2. distance 0.10"
    [within] = [f for f in findings if f.path == "21.jpg" and f.other_path]
    assert galleries([within], NAMES) == {}
    assert galleries([f for f in findings if f.detail.startswith("0.jpg")], NAMES) == {}
