"""predict: the table, names, overrides, errors and what is imported."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, LONG, ROOT, all_pictures, assert_error, run, table_rows
from PIL import Image
from torchvision.models import VGG16_Weights

import plots
import predict
import utils
from model import load_checkpoint


@pytest.fixture
def names_file(tmp_path):
    """Names of the categories of `pictures`; one has none."""
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"1": "one", "10": "ten", "2": "two", "0": "nought", "3": "three"}))
    return path


@pytest.fixture
def ask(call, trained, pictures):
    """Predict a picture of `pictures` by the trained checkpoint, in this process."""

    def with_flags(*flags, picture="test/2/test_0.jpg", **changes):
        fixed = {"--input": pictures / picture, "--checkpoint": trained.checkpoint} | changes
        return call("predict.py", *(word for pair in fixed.items() for word in pair), *flags)

    return with_flags


# ---------------------------------------------------------------- the table


def test_the_script_prints_a_table(trained, pictures):
    picture = pictures / "train" / "2" / "train_0.jpg"
    done = run("predict.py", "--input", picture, "--checkpoint", trained.checkpoint, "--top_k", 3)
    assert done.returncode == 0 and done.stderr == ""
    found = table_rows(done.stdout)
    assert [rank for rank, *_ in found] == [1, 2, 3]
    percents = [percent for _, percent, *_ in found]
    assert percents == sorted(percents, reverse=True) and sum(percents) <= 100.2
    oxford = json.loads((ROOT / "cat_to_name.json").read_text())  # the default, by category
    assert all(name == oxford.get(category, category) for _, _, name, category in found)


def test_from_elsewhere_the_default_names_may_be_missing(trained, pictures, tmp_path):
    picture, flags = "test/10/test_0.jpg", ("--checkpoint", trained.checkpoint, "--top_k", 4)
    shutil.copy(pictures / picture, tmp_path / "a picture.jpg")
    done = run("predict.py", "--input", "a picture.jpg", *flags, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert {(name, category) for _, _, name, category in table_rows(done.stdout)} == {
        (category, category) for category in CATEGORIES
    }


def test_columns_are_aligned(ask, names_file):
    lines = ask("--top_k", 4, "--category_names", names_file).stdout.splitlines()
    place = lines[0].index("category")
    assert all(line[place - 2 : place] == "  " and line[place] != " " for line in lines)


def test_one_category_is_the_default(ask):
    assert len(table_rows(ask().stdout)) == 1


def test_more_than_there_are_gives_all(ask):
    found = table_rows(ask("--top_k", 10**6).stdout)
    assert sorted(category for *_, category in found) == sorted(CATEGORIES)
    assert sum(percent for _, percent, *_ in found) == pytest.approx(100, abs=0.3)


def test_bars_are_as_long_as_probabilities(ask):
    lines = ask("--top_k", 4).stdout.splitlines()
    for line, (_, percent, *_) in zip(lines[1:], table_rows("\n".join(lines)), strict=True):
        assert abs(line.count("█") - percent * predict.BAR / 100) < 0.51
        assert line == line.rstrip()


def test_a_terminal_without_blocks_gets_other_bars(trained, pictures):
    flags = ("--input", pictures / "test" / "2" / "test_0.jpg", "--checkpoint", trained.checkpoint)
    done = run("predict.py", *flags, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and re.search("  #+$", done.stdout) and "\\" not in done.stdout


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("top_k", [1, 4])
def test_a_plot_and_a_heat_map_are_drawn(ask, tmp_path, top_k):
    plot, heat = tmp_path / "plot.png", tmp_path / "heat.jpg"
    done = ask("--top_k", top_k, "--plot", plot, "--heatmap", heat)
    assert done.returncode == 0 and done.stdout == ask("--top_k", top_k).stdout
    for path, kind in ((plot, "PNG"), (heat, "JPEG")):
        with Image.open(path) as image:
            assert image.format == kind and min(image.size) > 300
            assert len(image.convert("RGB").getcolors(10**7)) > 100


def test_the_heat_map_is_of_the_likeliest_category(trained, pictures, ask, tmp_path):
    path = pictures / "test" / "2" / "test_0.jpg"
    model = load_checkpoint(trained.checkpoint)
    model.backbone.to(utils.select_precision(torch.device("cpu")))
    [[best]] = predict.predict(model, [path], names=utils.load_category_names())
    seen, heat = predict.explain(model, path, best.category)
    assert np.array_equal(seen, utils.plain_view(utils.load_image(path)).permute(1, 2, 0))
    other = next(category for category in CATEGORIES if category != best.category)
    assert not np.array_equal(heat, predict.explain(model, path, other)[1])
    assert ask("--top_k", 3, "--heatmap", tmp_path / "asked.png").returncode == 0
    utils.save_figure(plots.heat_map(seen, heat, best.name), tmp_path / "drawn.png")
    asked, drawn = (
        np.asarray(Image.open(tmp_path / name).convert("RGB"), int)
        for name in ("asked.png", "drawn.png")
    )
    assert np.abs(asked - drawn).max() <= 8  # layers in channels_last round otherwise


@pytest.mark.parametrize("flag", ["--plot", "--heatmap"])
@pytest.mark.parametrize("name", ["no folder/a.png", "a.what", "folder.png"])
def test_a_figure_that_cannot_be_written_is_named(ask, tmp_path, flag, name):
    (tmp_path / "folder.png").mkdir()
    done = ask(flag, tmp_path / name)
    assert_error(done, tmp_path / name)
    assert len(table_rows(done.stdout)) == 1  # the answer is there


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("category", CATEGORIES)
def test_names_are_found_by_category_folder(ask, names_file, category):
    done = ask(
        "--category_names", names_file, "--top_k", 4, picture=f"train/{category}/train_1.jpg"
    )
    found = table_rows(done.stdout)
    assert {(name, folder) for _, _, name, folder in found} == {
        ("one", "1"),
        ("ten", "10"),
        ("two", "2"),
        ("x y", "x y"),
    }
    assert found[0][3] == category


def test_missing_names_that_were_asked_for_are_an_error(ask):
    assert_error(ask("--category_names", "no such names.json"), "no such names.json")


def test_wrong_names_are_an_error(ask, tmp_path):
    (tmp_path / "names.json").write_text("[1]")
    assert_error(ask("--category_names", tmp_path / "names.json"), tmp_path / "names.json")


# ---------------------------------------------------------------- the prediction


def test_probabilities_are_the_networks(trained, pictures):
    paths = [pictures / path for path in all_pictures(pictures)[:3]]
    model = load_checkpoint(trained.checkpoint)
    model.temperature = 0.7
    found = predict.predict(model, paths, top_k=4)
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    for predictions, path in zip(found, paths, strict=True):
        with torch.inference_mode():
            logits = model(transform(utils.load_image(path))[None])[0]
        wanted = (logits / model.temperature).softmax(0)
        assert sum(p.probability for p in predictions) == pytest.approx(1, abs=1e-5)
        for p in predictions:
            index = sorted(CATEGORIES).index(p.category)
            assert p.probability == pytest.approx(wanted[index].item(), abs=1e-5)


def test_means_and_deviations_override_the_checkpoints(ask):
    as_trained = ask("--top_k", 4).stdout
    same = ask("--top_k", 4, "--means", utils.MEANS, "--stds", utils.STDS)
    assert same.stdout == as_trained
    assert ask("--top_k", 4, "--means", "0", "0", "0").stdout != as_trained
    assert ask("--top_k", 4, "--stds", "2", "2", "2").stdout != as_trained


def test_a_picture_is_read_as_in_training(trained, pictures, tmp_path):
    """Turned by its camera or not, it is the same picture."""
    upright = utils.load_image(pictures / "test" / "2" / "test_1.jpg")
    exif = utils.Image.Exif()
    exif[0x0112] = 8  # to be turned to the left
    upright.save(tmp_path / "upright.png")
    upright.transpose(utils.Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    model = load_checkpoint(trained.checkpoint)
    one, other = predict.predict(
        model, [tmp_path / "upright.png", tmp_path / "turned.png"], top_k=4
    )
    assert one == other


def test_nothing_is_imported_that_a_prediction_does_not_need(trained, pictures):
    program = """
import sys, predict
predict.main(sys.argv[1:])
heavy = ("matplotlib", "seaborn", "pandas", "IPython", "notebook", "train", "features")
print([name for name in heavy if name in sys.modules])
"""
    flags = ["--input", pictures / all_pictures(pictures)[0], "--checkpoint", trained.checkpoint]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(table_rows("\n".join(done.stdout.splitlines()[:-1]))) == 1


def test_the_checkpoint_can_be_pinned(ask, trained):
    done = ask("--verbose")
    sha256 = hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest()
    assert done.stderr == f"{trained.checkpoint}: sha256 {sha256}\n"
    assert done.stdout == ask().stdout and done.returncode == 0


# ---------------------------------------------------------------- errors


def test_probabilities_that_are_no_numbers_are_not_shown(trained, pictures):
    model = load_checkpoint(trained.checkpoint)
    model.temperature = 1e-45
    with pytest.raises(utils.UserError, match="probabilities"):
        predict.predict(model, [pictures / all_pictures(pictures)[0]])


def test_the_script_names_a_picture_that_it_cannot_read(trained, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    flags = ("--checkpoint", trained.checkpoint)
    assert_error(run("predict.py", "--input", tmp_path / "text.jpg", *flags), "text.jpg")


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "folder"])
def test_a_picture_that_cannot_be_read_is_named(ask, pictures, tmp_path, kind):
    path = tmp_path / "picture.jpg"
    if kind == "empty":
        path.touch()
    elif kind == "cut off":
        shutil.copy(pictures / all_pictures(pictures)[0], path)
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "folder":
        path.mkdir()
    assert_error(ask(**{"--input": path}), path)


@pytest.mark.parametrize("kind", ["missing", "text", "weights only", "folder"])
def test_a_file_that_is_no_checkpoint_is_named(ask, tmp_path, kind):
    path = tmp_path / "checkpoint.pth"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind == "weights only":
        torch.save({"features.0.bias": torch.zeros(64)}, path)
    elif kind == "folder":
        path.mkdir()
    assert_error(ask(**{"--checkpoint": path}), path)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--top_k", "0"),
        ("--top_k", "-1"),
        ("--top_k", "1.5"),
        ("--device", "tpu"),
        ("--means", "1,2"),
        ("--stds", "1,2,0"),
        ("--stds", "1e-300,1,1"),
        ("--means", "1e300,0,0"),
        ("--shape", "round"),
    ],
)
def test_a_wrong_value_is_named(ask, flag, value):
    assert_error(ask(flag, value), flag, value)


@pytest.mark.parametrize(
    ("flags", "word"), [([], "--input"), (["--input", "picture.jpg"], "--checkpoint")]
)
def test_missing_flags_are_named(call, flags, word):
    assert_error(call("predict.py", *flags), word)


def test_gpu_without_a_gpu_is_an_error(ask):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert_error(ask("--device", "gpu"), "--device", "gpu")
