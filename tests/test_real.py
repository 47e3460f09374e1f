"""ImageNet weights on photographs of flowers, if the environment names both."""

import csv
import shutil

import pytest
import torch
from PIL import Image

import predict
import train
from image_files.names import load_names
from model import load_checkpoint

TIGER_LILY = "7"
CATEGORIES = (TIGER_LILY, "1", "10", "13", "17")


@pytest.fixture(scope="module")
def five_flowers(flowers_dir, make_once):
    """A data folder with 12 / 5 / 5 photographs of each of five categories."""

    def copy(folder):
        for split, count in (("train", 12), ("valid", 5), ("test", 5)):
            for category in CATEGORIES:
                photographs = sorted((flowers_dir / split / category).iterdir())[:count]
                assert len(photographs) == count
                (folder / split / category).mkdir(parents=True)
                for photograph in photographs:
                    shutil.copy(photograph, folder / split / category)

    return make_once("five flowers", copy)


@pytest.fixture(scope="module")
def checkpoint(five_flowers, vgg16_weights, make_once):
    """A checkpoint that was trained with default flags."""
    flags = ["--data_dir", five_flowers, "--output_cat", len(CATEGORIES), "--no_report"]
    flags += ["--weights", vgg16_weights, "--save_dir"]
    return make_once("real.pth", lambda path: train.main([*map(str, flags), str(path)]))


@pytest.fixture(scope="module")
def predictions(checkpoint, five_flowers) -> dict:
    """For each photograph of test all predictions, the most likely first, in float32."""
    photographs = sorted((five_flowers / "test").glob("*/*"))
    ranked = predict.predict(load_checkpoint(checkpoint), photographs, top_k=len(CATEGORIES))
    return dict(zip(photographs, ranked, strict=True))


def test_the_accuracy_is_high_and_a_tiger_lily_is_recognized(
    checkpoint, predictions, flowers_dir, call
):
    assert torch.load(checkpoint, weights_only=True)["metrics"]["test_accuracy"] >= 0.8
    lilies = {path: best for path, [best, *_] in predictions.items() if TIGER_LILY in path.parts}
    correct = [path for path, best in lilies.items() if best.category == TIGER_LILY]
    assert len(lilies) == 5 and len(correct) >= 4
    names = flowers_dir / "cat_to_name.json"
    flags = ("--checkpoint", checkpoint, "--category_names", names)
    done = call("predict.py", "--input", correct[0], *flags)
    assert done.returncode == 0, done.stderr
    assert load_names(names)[TIGER_LILY] == "tiger lily"
    assert done.stdout.splitlines()[1].split()[2:5] == ["tiger", "lily", TIGER_LILY]


def test_the_check_finds_an_incorrect_label_and_a_copy(five_flowers, vgg16_weights, call, tmp_path):
    root, table = shutil.copytree(five_flowers, tmp_path / "photographs"), tmp_path / "labels.csv"
    lily = sorted((root / "train" / TIGER_LILY).iterdir())[0]
    lily.rename(wrong := root / "train" / "1" / lily.name)
    original = sorted((root / "train" / "10").iterdir())[0]
    with Image.open(original) as image:
        smaller = image.resize((image.width * 3 // 4, image.height * 3 // 4))
        smaller.save(copy := root / "test" / "10" / "copy.jpg", quality=80)
    flags = ("--weights", vgg16_weights, "--check_labels", table)
    done = call("train.py", "--data_dir", root, *flags)
    assert done.returncode == 0, done.stderr
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    suspect = next(row for row in rows if row["finding"] == "suspect label")
    assert (root / suspect["path"], suspect["suggested"]) == (wrong, TIGER_LILY)
    pairs = [row for row in rows if row["finding"] == "near-duplicate"]
    found = {(root / pair["other_path"], root / pair["path"]) for pair in pairs}
    assert (original, copy) in found and len(found) < 8
    assert (tmp_path / "labels.suspects.png").exists()


def test_bfloat16_gives_the_same_predictions(checkpoint, predictions):
    """Two photographs: without native bfloat16, each takes seconds."""
    model = load_checkpoint(checkpoint)
    model.backbone.to(torch.bfloat16)
    photographs = list(predictions)[:: len(predictions) // 2]
    rows = predict.predict(model, photographs, top_k=len(CATEGORIES))
    for path, ranked in zip(photographs, rows, strict=True):
        expected = {p.category: p.probability for p in predictions[path]}
        assert ranked[0].category == predictions[path][0].category
        for p in ranked:  # small ones as well: they differ by 4 % at most
            assert p.probability == pytest.approx(expected[p.category], rel=0.3, abs=0)
