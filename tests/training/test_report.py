"""training.report: the tables and figures of a training beside its checkpoint."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, assert_error, detector_of
from PIL import Image

from training import report
from training.fitting import Evaluation

FILES = ["history.csv", "categories.csv", "curves.png", "confusion.png", "mistakes.png"]
FILES += ["metrics.json", "report.html"]


def read_csv(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- of a training


def test_a_report_is_written_beside_the_checkpoint_and_named_after_it(trained):
    beside = {path.name for path in trained.checkpoint.parent.iterdir()}
    assert beside == {"model.pth", *(f"model.{name}" for name in FILES)}
    for name in FILES[2:5]:
        with Image.open(trained.checkpoint.with_suffix(f".{name}")) as image:
            assert image.format == "PNG" and min(image.size) > 100
            assert len(image.convert("RGB").getcolors(10**7)) > 20  # something is drawn


def test_the_history_has_the_epochs_that_were_printed(trained):
    rows = read_csv(trained.checkpoint.with_suffix(".history.csv"))
    lines = [line for line in trained.done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(rows) == len(lines) == 8
    for row, line in zip(rows, lines, strict=True):
        number, *values = map(float, row.values())
        assert list(row) == ["epoch", "train_loss", "valid_loss", "valid_accuracy"]
        printed = [f"{values[0]:.3f}", f"{values[1]:.3f}", f"{values[2]:.1%}"]
        assert re.findall(r"[\d.]+%?", line) == [f"{number:.0f}", "8", *printed]


def test_the_categories_have_the_given_names_and_add_up_to_the_test_accuracy(train_tiny, tmp_path):
    (tmp_path / "names.json").write_text('{"1": "one", "2": "two $ & two"}')
    done, path = train_tiny("--category_names", tmp_path / "names.json", report=True)
    assert done.returncode == 0, done.stderr
    rows = read_csv(path.with_suffix(".categories.csv"))
    assert [row["category"] for row in rows] == list(CATEGORIES)
    assert [row["name"] for row in rows] == ["one", "10", "two $ & two", "x y"]
    assert [row["images"] for row in rows] == ["2"] * 4
    metrics = torch.load(path, weights_only=True)["metrics"]
    correct = sum(float(row["recall"]) * 2 for row in rows)
    assert correct == pytest.approx(8 * metrics["test_accuracy"])


def test_the_metrics_are_those_of_the_checkpoint(trained):
    content = json.loads(trained.checkpoint.with_suffix(".metrics.json").read_text())
    stored = torch.load(trained.checkpoint, weights_only=True)
    assert stored["metrics"].items() <= content["metrics"].items()
    assert content["arguments"] == stored["arguments"]
    assert content["checkpoint"] == "model.pth" and content["versions"]["torch"]
    assert content["seconds"] > 0 and 0 <= content["metrics"]["test_unusual"] <= 1


def test_the_page_has_all_images_of_a_small_test_split(trained):
    page = trained.checkpoint.with_suffix(".report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8


def test_a_report_that_cannot_be_written_is_named_before_the_training(train_tiny, tmp_path):
    done, path = train_tiny("--no_report")
    assert done.returncode == 0 and "report:" not in done.stdout
    assert list(tmp_path.glob("tiny.*")) == [path]
    path.unlink()
    (tmp_path / "tiny.confusion.png").mkdir()
    assert_error(train_tiny(report=True)[0], "tiny.confusion.png: cannot write there: is a folder")
    assert not path.exists()


# ---------------------------------------------------------------- single tables and figures


def test_each_category_has_its_row():
    labels = torch.tensor([0, 0, 0, 1])
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0]])
    rows = report.category_table(["1", "2", "3"], ["rose", "tulip", "lily"], labels, probs)
    assert [list(row) for row in rows] == [
        ["category", "name", "images", "precision", "recall", "f1"]
    ] * 3
    columns = ("category", "name", "images", "precision", "recall")
    assert [rows[0][column] for column in columns] == ["1", "rose", 3, 1, pytest.approx(2 / 3)]
    assert [rows[1][column] for column in columns] == ["2", "tulip", 1, 0.5, 1]
    assert (rows[2]["name"], rows[2]["images"]) == ("lily", 0)


def test_the_gallery_shows_each_mistake_with_its_predicted_and_actual_name(images):
    files = ["test/1/test_0.jpg", "test/10/test_0.jpg", "test/1/test_1.jpg"]
    labels, probs = torch.tensor([0, 1, 0]), torch.tensor([[0.9, 0.1], [0.75, 0.25], [0.0, 1.0]])
    figure = report.mistakes_figure(
        str(images), files=files, labels=labels, probs=probs, names=["rose", "tulip"]
    )
    expected = [(2, "label rose\npredicted tulip 100%"), (1, "label tulip\npredicted rose 75%")]
    for axes, (number, title) in zip(figure.axes, expected, strict=True):
        assert axes.get_title().replace("\xa0", " ") == title and axes.get_xlabel() == files[number]
        with Image.open(images / files[number]) as image:
            assert np.array_equal(axes.images[0].get_array(), image)


def test_the_results_say_how_many_test_images_resemble_no_category():
    names = ("accuracy", "top5_accuracy", "class_accuracy", "ece", "ece_without_temperature")
    evaluation = Evaluation(
        temperature=0.5,
        detector=detector_of(4),
        labels=torch.tensor([0, 1, 0]),
        probs=torch.full((3, 2), 0.5),
        novelty=torch.tensor([0.001, 0.5, 0.0]),
        metrics={f"test_{name}": 0.25 for name in names},
    )
    lines = report.format_results(Path("c.pth"), evaluation).splitlines()
    assert lines[0].startswith("test accuracy 25.0% (3 images), top-5 25.0%")
    assert lines[2] == "2 of these images resemble no category (novelty below 0.003)"
    without = evaluation._replace(detector=None, novelty=torch.full((3,), torch.nan))
    assert report.format_results(Path("c.pth"), without).splitlines()[2].startswith("no novelty: ")
