"""image_files.splits: the content of a file alone decides its group."""

import random

import pytest

from image_files.splits import divide

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
SPLITS = list(SHARES)


def digest_at(position: float) -> str:
    return f"{int(position * 16**16):016x}"


def divided(positions: list[float], groups=SPLITS) -> dict[str, list[float]]:
    digests = {str(position): digest_at(position) for position in positions}
    assigned = divide(digests, SHARES, groups)
    parts = {group: [] for group in groups}
    for path, group in assigned.items():
        parts[group].append(float(path))
    return parts


def test_the_content_alone_decides_the_group():
    expected = {"train": [0.0, 0.5, 0.79], "valid": [0.8, 0.89], "test": [0.91, 0.999]}
    assert divided([0.0, 0.5, 0.79, 0.8, 0.89, 0.91, 0.999]) == expected
    assert divided([0.5, 0.85, 0.95], ["train", "test"]) == {"train": [0.5, 0.85], "test": [0.95]}
    stand_in = divided([0.5, 0.79, 0.92], ["train", "valid"])  # the nearest to 0.85
    assert stand_in == {"train": [0.5, 0.92], "valid": [0.79]}
    copies = divide({"a": digest_at(0.95), "b": digest_at(0.95)}, SHARES, SPLITS)
    assert copies == {"a": "train", "b": "train"}  # the only content


@pytest.mark.parametrize("seed", range(50))
def test_three_images_are_enough_for_three_groups(seed):
    generator = random.Random(seed)
    positions = [generator.random() for _ in range(3 + seed % 9)]
    parts = divided(positions)
    assert all(parts.values())
    assert sorted(sum(parts.values(), [])) == sorted(positions)
    # As stable as promised: one more image moves none, unless an image stands in for a group.
    natural = {"train": (0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1)}
    stand_ins = [
        p for group, (low, high) in natural.items() for p in parts[group] if not low <= p < high
    ]
    for _ in range(20):
        extra = generator.random()
        again = divided([*positions, extra])
        moved = [p for group in SPLITS for p in parts[group] if p not in again[group]]
        assert len(moved) <= (2 if stand_ins else 0)


def test_files_without_digest_and_too_few_files_are_divided_as_well():
    assert divide({"a": ""}, SHARES, SPLITS) == {"a": "train"}
    assert divided([0.95]) == {"train": [0.95], "valid": [], "test": []}
    assert divided([0.95, 0.85]) == {"train": [0.85], "valid": [], "test": [0.95]}
    assert sum(map(len, divided([0.3, 0.4]).values())) == 2
    assert divide({}, SHARES, SPLITS) == {}
