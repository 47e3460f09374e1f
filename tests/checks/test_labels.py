"""train.py --check_labels and --exclude: planted label errors and near-duplicates."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import assert_error, backbone_of, same_bits, state_of
from PIL import Image

import utils
from checks.galleries import MAX_PAIRS, MAX_SUSPECTS, galleries
from checks.labels import (
    accuracy_findings,
    find_suspects,
    label_quality,
    outlier_findings,
    pair_findings,
    suspect_findings,
)
from checks.near_duplicates import Pairs
from utils import ImageFile

COLORS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
WRONG = "train/red/green.png"
TWIN, ORIGINAL = "test/blue/twin.jpg", "train/blue/0.png"


def paint(color: str, seed: int) -> Image.Image:
    """Paint patches of random colors, tinted with one; hardly two images are similar."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(-150, 150, (7, 7, 3)) + COLORS[color]
    image = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    return image.resize((260, 240), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A data folder with one incorrect label and one near-duplicate in two splits."""
    root, seed = tmp_path_factory.mktemp("painted") / "data", 0
    for split, count in (("train", 10), ("valid", 3), ("test", 3)):
        for color in COLORS:
            (root / split / color).mkdir(parents=True)
            for number in range(count):
                paint(color, seed := seed + 1).save(root / split / color / f"{number}.png")
    paint("green", seed + 1).save(root / WRONG)
    with Image.open(root / ORIGINAL) as image:
        image.save(root / TWIN, quality=85)
    return root


@pytest.fixture(scope="module")
def network(tiny, tmp_path_factory) -> tuple:
    """Flags of a tiny network whose features are stored for all tests of this module."""
    folder = tmp_path_factory.mktemp("network")
    torch.save(backbone_of("tiny").state_dict(), folder / "weights.pt")
    flags = ("--arch", tiny, "--weights", folder / "weights.pt", "--workers", 0)
    return (*flags, "--cache_dir", folder / "cache")


@pytest.fixture
def check(call, network, painted, tmp_path):
    """Check the labels of `painted` with a tiny network; returns the command and its table."""

    def with_flags(*flags, root=painted):
        table = tmp_path / "labels.csv"
        fixed = ("--data_dir", root, *network, "--hidden_units", 32, "--epochs", 30)
        done = call("train.py", *fixed, "--check_labels", table, *flags)
        if not table.exists():
            return done, []
        with open(table, newline="", encoding="utf-8") as file:
            return done, list(csv.DictReader(file))

    return with_flags


def of_kind(rows: list[dict], kind: str) -> list[dict]:
    return [row for row in rows if row["finding"] == kind]


# ---------------------------------------------------------------- findings


def test_an_incorrect_label_and_a_near_duplicate_are_found(check, painted, tmp_path):
    before = sorted(painted.rglob("*"))
    done, rows = check()
    assert done.returncode == 0, done.stderr
    first, *_ = of_kind(rows, "suspect label")
    assert (first["path"], first["category"], first["suggested"]) == (WRONG, "red", "green")
    assert float(first["probability"]) < 0.1 < float(first["suggested_probability"])
    pair, *others = of_kind(rows, "near-duplicate")
    assert all(float(other["distance"]) > 0.7 for other in others)  # to this small network
    assert (pair["path"], pair["other_path"]) == (TWIN, ORIGINAL)
    assert pair["detail"].startswith(f"in another split: {ORIGINAL}")
    assert 0 < float(pair["distance"]) < 0.2
    accuracy, error = (float(of_kind(rows, k)[0]["detail"]) for k in ("accuracy", "standard error"))
    assert 0.5 < accuracy < 1
    assert of_kind(rows, "images") and of_kind(rows, "seconds")  # of --check
    assert f"accuracy {accuracy:.1%}, standard error {error:.1%}: 40 images" in done.stdout
    assert f": {TWIN} ({ORIGINAL}, distance" in done.stdout
    assert "cross-validation: 5/5" in done.stderr
    for name in ("suspects", "near-duplicates"):
        path = tmp_path / f"labels.{name}.png"
        assert f"saved {path}" in done.stdout
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200
    assert f"saved {tmp_path / 'labels.html'}; open it" in done.stdout
    page = (tmp_path / "labels.html").read_text()
    assert WRONG in page and TWIN in page
    assert sorted(painted.rglob("*")) == before


def test_more_views_and_another_seed_find_the_same_label(check, painted, tmp_path):
    """Also where an image cannot be decoded."""
    root = shutil.copytree(painted, tmp_path / "broken")
    (root / "train" / "red" / "0.png").write_bytes((root / WRONG).read_bytes()[:3000])
    done, rows = check("--views", 2, "--seed", 5, "--no_cache", root=root)
    assert done.returncode == 0, done.stderr
    assert "train/red/0.png" in done.stderr and "left out" in done.stderr
    assert of_kind(rows, "suspect label")[0]["path"] == WRONG


# ---------------------------------------------------------------- few images, and errors


def test_labels_of_single_images_cannot_be_checked(check, painted, tmp_path):
    root = tmp_path / "few"
    for color, count in (("red", 2), ("green", 1), ("blue", 3)):
        (root / "train" / color).mkdir(parents=True)
        for number in range(count):
            shutil.copy(painted / "train" / color / f"{number}.png", root / "train" / color)
    for split in ("valid", "test"):
        (root / split / "red").mkdir(parents=True)
        shutil.copy(painted / split / "red" / "0.png", root / split / "red")
    done, rows = check(root=root)
    assert done.returncode == 0, done.stderr
    assert "labels cannot be checked: too few different images in the category" in done.stdout
    assert not [r for r in of_kind(rows, "suspect label") if r["category"] == "green"]


def test_only_near_duplicates_are_refused_in_one_line(check, painted, tmp_path):
    root = tmp_path / "same"
    for number, split in enumerate(utils.SPLITS):
        for color in ("red", "green"):
            (root / split / color).mkdir(parents=True)
            with Image.open(painted / "train" / color / "1.png") as image:
                image.save(root / split / color / "x.jpg", quality=99 - number)
    done, _ = check(root=root)
    assert_error(done, "no label can be checked")


# ---------------------------------------------------------------- --exclude


@pytest.fixture
def train(call, network, painted, tmp_path):
    """Train a tiny network on `painted`; returns the command and its checkpoint."""
    path = tmp_path / "c.pth"

    def with_flags(*flags, root=painted):
        fixed = ("--data_dir", root, "--output_cat", 3, *network, "--epochs", 2)
        fixed += ("--hidden_units", 8, "--save_dir", path, "--no_report")
        return call("train.py", *fixed, *flags), path

    return with_flags


def test_a_training_warns_of_near_duplicates_and_of_copies_once(train, painted, tmp_path):
    root = shutil.copytree(painted, tmp_path / "copied")
    shutil.copy(root / "train" / "red" / "3.png", root / "test" / "red" / "same.png")
    done, _ = train(root=root)
    [near] = [line for line in done.stderr.splitlines() if "near-duplicates" in line]
    words = "near-duplicates of images of train in valid and test: the reported accuracy will be "
    assert f"{words}too high: {TWIN} ({ORIGINAL})" in near
    [copies] = [line for line in done.stderr.splitlines() if "same.png" in line]
    assert "1 image is in two splits" in copies


def test_the_images_of_a_list_are_left_out_as_if_they_were_not_there(train, painted, tmp_path):
    root = shutil.copytree(painted, tmp_path / "clean")
    for path in (WRONG, TWIN):
        (root / path).unlink()
    done, path = train(root=root)
    assert done.returncode == 0 and TWIN not in done.stderr
    expected = state_of(path)
    table = tmp_path / "out.csv"
    exists = painted / WRONG  # not relative to the data folder
    table.write_text(f"Finding;path\nsuspect label;{exists}\nnear-duplicate;{TWIN}\nseconds;\n")
    done, path = train("--exclude", table)
    assert done.returncode == 0, done.stderr
    counts = "2 images are left out (1 suspect label, 1 near-duplicate)"
    assert f"--exclude {table}: {counts}" in done.stdout
    assert "train       30 images" in done.stdout
    assert same_bits(state_of(path), expected)


def test_paths_that_are_no_images_are_reported(train, painted, tmp_path):
    table = tmp_path / "out.csv"
    table.write_text(f"path\n{WRONG}\ntrain/red/gone.png\n")
    done, _ = train("--exclude", table)
    assert done.returncode == 0
    assert (
        f"--exclude {table}: 1 row names no image of {painted}: train/red/gone.png" in done.stderr
    )
    assert "1 image is left out" in done.stdout
    table.write_text("path\ntrain/red/gone.png\n")
    assert_error(train("--exclude", table)[0], f"--exclude {table}: has no image of", "gone.png")


def test_a_check_leaves_out_the_images_of_a_list_and_does_not_replace_it(check, tmp_path):
    table = tmp_path / "out.csv"
    table.write_text(f"finding,path\nsuspect label,{WRONG}\nnear-duplicate,{TWIN}\n")
    done, rows = check("--exclude", table)
    assert done.returncode == 0, done.stderr
    assert {WRONG, TWIN}.isdisjoint(row["path"] for row in rows)
    table.rename(tmp_path / "labels.csv")
    done, _ = check("--exclude", tmp_path / "labels.csv")
    assert_error(done, "this command reads that file")


# ---------------------------------------------------------------- each finding by hand

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
IMAGES = [ImageFile("train", "ab"[label], f"{row}.jpg") for row, label in enumerate(LABELS)]
NAMES = {"a": "rose", "b": "tulip", "c": "lily"}


def suspects_of(images, probs, labels):
    """Call `suspect_findings` with the categories a, b and c."""
    names = list(NAMES.values())
    return suspect_findings(images, probs=probs, labels=labels, categories=list(NAMES), names=names)


def test_the_quality_of_a_label_is_relative_to_its_category():
    means = [(0.9 + 0.8 + 0.02 + 0.0) / 4, (0.5 + 0.25 + 0.45) / 3]
    own = [0.9, 0.8, 0.02, 0.0, 0.5, 0.25, 0.45]
    expected = [p / means[label] for p, label in zip(own, LABELS.tolist(), strict=True)]
    assert label_quality(PROBS, LABELS).tolist() == pytest.approx(expected, rel=1e-5)


def test_suspects_are_those_with_a_low_quality_the_lowest_first():
    suspects = find_suspects(PROBS, LABELS)
    assert suspects.rows.tolist() == [3, 2] and suspects.guesses[:, 0].tolist() == [1, 2]
    assert find_suspects(PROBS[:2], LABELS[:2]).rows.tolist() == []


def test_a_label_that_is_predicted_is_never_suspect():
    probs = torch.tensor([[1.0] + [0.0] * 19] * 2 + [[0.06] + [0.05] * 19])
    labels = torch.zeros(3, dtype=torch.int64)
    assert label_quality(probs, labels)[2] < 0.1
    assert find_suspects(probs, labels).rows.tolist() == []


def test_a_suspect_label_has_both_names_and_probabilities():
    first, second = suspects_of(IMAGES, PROBS, LABELS)
    detail = "label rose 0.0%, predicted tulip 98.0%"
    assert first[:5] == ("suspect label", "train", "a", "3.jpg", detail)
    assert (first.rank, first.suggested, first.probability) == (1, "b", 0)
    assert first.suggested_probability == pytest.approx(0.98)
    assert (second.path, second.rank, second.suggested) == ("2.jpg", 2, "c")


def test_near_duplicates_of_different_categories_come_first_then_of_different_splits():
    images = [ImageFile("train", "a", "0", "x"), ImageFile("train", "a", "1", "y")]
    images += [ImageFile("test", "a", "2", "z"), ImageFile("train", "b", "3", "v")]
    images += [ImageFile("test", "a", "4", "z")]  # a copy of 2
    pairs = Pairs(
        torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 3, 4]), torch.tensor([0.1, 0.2, 0.3, 0.0])
    )
    findings = pair_findings(images, pairs)
    assert [(f.path, f.other_path, f.rank, f.detail) for f in findings] == [
        ("3", "1", 1, "in another category: 1, distance 0.30"),
        ("2", "0", 2, "in another split: 0, distance 0.20"),
        ("1", "0", 3, "0, distance 0.10"),
    ]
    assert findings[0].distance == pytest.approx(0.3)


def test_outliers_have_less_novelty_than_the_limit():
    novelty = torch.tensor([0.5, 0.002, torch.nan, 0.0, 0.003, 1.0, 0.7])
    findings = outlier_findings(IMAGES, novelty, 0.003)
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
    images = [ImageFile("train", "a", f"{row}.jpg", str(row)) for row in range(30)]
    probs = torch.tensor([[0.01, 0.19, 0.8]]).repeat(30, 1)
    probs[25:] = torch.tensor([1.0, 0.0, 0.0])
    suspects = suspects_of(images, probs, labels)
    images[15] = images[15]._replace(split="test")
    pairs = Pairs(
        torch.cat([torch.tensor([20]), torch.arange(15)]),
        torch.cat([torch.tensor([21]), torch.full((15,), 15)]),  # the first is within train
        torch.arange(16) / 20,
    )
    findings = [*suspects, *pair_findings(images, pairs)]
    drawn = galleries(findings, NAMES)
    assert len(suspects) == 25 and len(drawn["suspects"].paths) == MAX_SUSPECTS
    assert drawn["suspects"].titles[1] == "2. label rose\npredicted lily\xa080%"
    shown = drawn["near-duplicates"]
    assert len(shown.paths) == len(shown.titles) == 2 * MAX_PAIRS
    assert shown.paths[2:4] == ["1.jpg", "15.jpg"] and shown.titles[2] == "2. distance 0.10"
    [within] = [f for f in findings if f.path == "21.jpg" and f.other_path]
    assert galleries([within], NAMES) == {}
    assert galleries([f for f in findings if f.detail.startswith("0.jpg")], NAMES) == {}
