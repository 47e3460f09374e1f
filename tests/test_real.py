"""The real thing: ImageNet's weights on photographs of flowers, where both are at hand."""

import shutil

import pytest
import torch
from conftest import run

import predict
import utils
from model import load_checkpoint

TIGER_LILY = "7"
CATEGORIES = (TIGER_LILY, "1", "10", "13", "17")


@pytest.fixture(scope="module")
def part(flowers_dir, tmp_path_factory):
    """Five categories of the photographs, of 12 / 5 / 5 pictures each."""
    folder = tmp_path_factory.mktemp("part")
    for split, count in (("train", 12), ("valid", 5), ("test", 5)):
        for category in CATEGORIES:
            photographs = sorted((flowers_dir / split / category).iterdir())[:count]
            assert len(photographs) == count
            (folder / split / category).mkdir(parents=True)
            for photograph in photographs:
                shutil.copy(photograph, folder / split / category)
    return folder


@pytest.fixture(scope="module")
def checkpoint(part, vgg16_weights, tmp_path_factory):
    """What the command line makes of them at default flags."""
    path = tmp_path_factory.mktemp("real") / "checkpoint.pth"
    flags = ("--weights", vgg16_weights, "--save_dir", path)
    done = run("train.py", "--data_dir", part, "--output_cat", len(CATEGORIES), *flags)
    assert done.returncode == 0, done.stderr
    yield path
    path.unlink()


def test_flowers_are_told_apart(checkpoint):
    metrics = torch.load(checkpoint, weights_only=True)["metrics"]
    assert metrics["test_accuracy"] >= 0.8


def test_a_tiger_lily_is_named(checkpoint, part, flowers_dir):
    photographs = sorted((part / "test" / TIGER_LILY).iterdir())
    top = predict.predict(load_checkpoint(checkpoint), photographs)
    right = [path for path, [p] in zip(photographs, top, strict=True) if p.category == TIGER_LILY]
    assert len(right) >= 4
    names = flowers_dir / "cat_to_name.json"
    flags = ("--checkpoint", checkpoint, "--category_names", names)
    done = run("predict.py", "--input", right[0], *flags)
    assert done.returncode == 0, done.stderr
    assert utils.load_category_names(names)[TIGER_LILY] == "tiger lily"
    assert done.stdout.splitlines()[1].split()[2:5] == ["tiger", "lily", TIGER_LILY]


def test_bfloat16_gives_the_same_answers(checkpoint, part):
    photographs = sorted((part / "test").glob("*/*"))
    answers = []
    for precision in (torch.float32, torch.bfloat16):
        model = load_checkpoint(checkpoint)
        model.backbone.to(precision)
        top = predict.predict(model, photographs)
        answers.append([best.category for [best] in top])
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert same >= 0.95 * len(photographs)
