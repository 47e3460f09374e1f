"""predict: one image, inputs, many images, resuming, several processes, evaluation, errors."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CATEGORIES,
    ONE_THREAD,
    ROOT,
    TIMEOUT,
    TORCHRUN,
    all_images,
    assert_error,
    parse_results,
    run,
    run_and_list_imports,
    small_backbone,
    table_rows,
)
from PIL import Image
from torchvision.models import VGG16_Weights

import predict
import train
import utils
from evaluation import plots
from image_files import folders
from image_files.names import load_names
from inference.formats import FILE_FORMATS
from model import Classifier, Head, load_checkpoint
from system.devices import select_precision
from system.messages import UserError

TEST_IMAGE = "test/2/test_0.jpg"


@pytest.fixture(scope="module")
def checkpoint(tiny, images, tmp_path_factory) -> Path:
    """A checkpoint of a tiny network, which this process knows: an image takes milliseconds.

    Its predictions are correct and not sure, with probabilities from 0.7 on.
    """
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    flags = ["--data_dir", images, "--output_cat", len(CATEGORIES), "--arch", tiny]
    flags += ["--weights", "none", "--workers", 0, "--views", 4]
    flags += ["--epochs", 8, "--batch_size", 8, "--learning_rate", 0.0003]
    train.main([*map(str, flags), "--save_dir", str(path), "--no_report", "--no_cache"])
    return path


@pytest.fixture
def names_file(tmp_path):
    """Names of the categories of `images`; one has none."""
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"1": "one", "10": "ten", "2": "two", "0": "nought", "3": "three"}))
    return path


@pytest.fixture
def predict_image(call, checkpoint, images):
    """Call predict.py on an image of `images`, in this process."""

    def with_flags(*flags, image=TEST_IMAGE, **changes):
        fixed = {"--input": images / image, "--checkpoint": checkpoint} | changes
        return call("predict.py", *(word for pair in fixed.items() for word in pair), *flags)

    with_flags.image = images / TEST_IMAGE
    return with_flags


@pytest.fixture(scope="module")
def photos(images, tmp_path_factory) -> Path:
    """A folder with sub-folders: 5 images, two of them equal, 2 damaged files, some hidden."""
    root = tmp_path_factory.mktemp("many") / "photos"
    for number, path in enumerate(all_images(images)[::8][:4]):
        folder = root / ("b", "a sub-folder/deeper")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(images / path, folder / f"{number}, an image.jpg")
    shutil.copy(root / "b" / "0, an image.jpg", root / "copy of 0")
    (root / "a damaged one.jpg").write_text("not an image")
    (root / "b" / "empty.jpg").touch()
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.jpg").write_text("not read")
    (root / "b" / ".also hidden").write_text("not read")
    return root


@pytest.fixture
def predict_images(call, checkpoint, photos):
    """Call predict.py on many images, in this process."""

    def with_flags(*flags, inputs=(photos,)):
        given = ("--input", *inputs) if inputs else ()
        return call("predict.py", *given, "--checkpoint", checkpoint, *flags)

    return with_flags


# ---------------------------------------------------------------- the table


def test_the_script_prints_a_table(trained, images):
    image = images / "train" / "2" / "train_0.jpg"
    done = run("predict.py", "--input", image, "--checkpoint", trained.checkpoint, "--top_k", 3)
    assert done.returncode == 0 and done.stderr == ""
    rows = table_rows(done.stdout)
    assert [rank for rank, *_ in rows] == [1, 2, 3]
    percents = [percent for _, percent, *_ in rows]
    assert percents == sorted(percents, reverse=True) and sum(percents) <= 100.2
    oxford = json.loads((ROOT / "cat_to_name.json").read_text())  # the default, by category
    assert all(name == oxford.get(category, category) for _, _, name, category in rows)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("category", CATEGORIES)
def test_names_follow_from_the_category_folder(predict_image, names_file, category):
    image = f"train/{category}/train_1.jpg"
    done = predict_image("--category_names", names_file, "--top_k", 4, image=image)
    rows = table_rows(done.stdout)
    assert {(name, folder) for _, _, name, folder in rows} == {
        ("one", "1"),
        ("ten", "10"),
        ("two", "2"),
        ("x y", "x y"),
    }
    assert rows[0][3] == category


def names_in(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {category: name for _, _, name, category in table_rows(done.stdout)}


def changed_checkpoint(checkpoint, path, **changes) -> Path:
    """Write a copy of a checkpoint with other values; a value of None removes it."""
    content = torch.load(checkpoint, weights_only=True) | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def test_names_travel_with_the_checkpoint(predict_image, checkpoint, tmp_path, monkeypatch):
    oxford = load_names(ROOT / "cat_to_name.json")  # the default, at training
    expected = {category: oxford.get(category, category) for category in CATEGORIES}
    monkeypatch.chdir(tmp_path)
    done = predict_image("--top_k", 4)
    assert names_in(done) == expected and done.stderr == ""
    (tmp_path / "cat_to_name.json").write_text('{"1": "rose"}')  # of something else
    assert names_in(predict_image("--top_k", 4)) == expected
    [ranked] = predict.predict(load_checkpoint(checkpoint), [predict_image.image], top_k=4)
    assert {p.category: p.name for p in ranked} == expected


def test_equal_names_are_distinguished_in_figures(predict_image, checkpoint, tmp_path, monkeypatch):
    bars, maps = [], []
    real_bars, real_map = plots.prediction_bars, plots.heat_map
    monkeypatch.setattr(plots, "prediction_bars", lambda *a: bars.append(a[1]) or real_bars(*a))
    monkeypatch.setattr(plots, "heat_map", lambda *a: maps.append(a[2]) or real_map(*a))
    names = dict.fromkeys(CATEGORIES, "rose")
    same = changed_checkpoint(checkpoint, tmp_path / "same.pth", names=names)
    figures = ("--plot", tmp_path / "a.png", "--heatmap", tmp_path / "b.png")
    done = predict_image(*figures, **{"--checkpoint": same})
    assert done.returncode == 0, done.stderr
    assert sorted(bars[0]) == [f"rose ({category})" for category in CATEGORIES]
    assert maps == [bars[0][0]]


def test_a_name_that_no_encoding_can_write_is_replaced(predict_images, photos, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(dict.fromkeys(CATEGORIES, "\ud800 ä")))
    path = tmp_path / "out.csv"
    done = predict_images(
        "--category_names", names, "--output", path, inputs=[photos / "copy of 0"]
    )
    assert done.returncode == 0, done.stderr
    assert parse_results(path.read_text(encoding="utf-8"), "csv")[0]["predictions"][0]["name"] == (
        "\ufffd ä"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_bytes_of_standard_output_are_those_of_a_file(trained, images, tmp_path, encoding):
    """Whatever the locale is, and also where the name of a file is not text."""
    path, folder = tmp_path / "out.csv", tmp_path / "photos"
    folder.mkdir()
    for name in ("ä 日本.jpg", os.fsdecode(b"no text \xff.jpg")):
        shutil.copy(images / TEST_IMAGE, folder / name)
    names = tmp_path / "names.json"
    names.write_text(json.dumps(dict.fromkeys(CATEGORIES, "Gänseblümchen ひ")))
    flags = ("--input", folder, "--checkpoint", trained.checkpoint, "--category_names", names)
    flags += ("--format", "csv", "--output", path, "--quiet")
    done = subprocess.run(
        [sys.executable, str(ROOT / "predict.py"), *map(str, flags)],
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == path.read_bytes()
    assert "ä 日本.jpg".encode() in done.stdout and b"no text \xff.jpg" in done.stdout
    assert "Gänseblümchen ひ".encode() in done.stdout


def test_a_missing_file_of_names_is_an_error(predict_image):
    assert_error(predict_image("--category_names", "no such names.json"), "no such names.json")


def test_invalid_names_are_an_error(predict_image, tmp_path):
    (tmp_path / "names.json").write_text("[1]")
    done = predict_image("--category_names", tmp_path / "names.json")
    assert_error(done, tmp_path / "names.json")


# ---------------------------------------------------------------- predictions


def test_probabilities_are_those_of_the_network(checkpoint, images):
    paths = [images / path for path in all_images(images)[:3]]
    model = load_checkpoint(checkpoint)
    model.temperature = 0.7
    predictions = predict.predict(model, paths, top_k=4)
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    for ranked, path in zip(predictions, paths, strict=True):
        with torch.inference_mode():
            [expected], [novelty] = model(transform(utils.load_image(path))[None])
        assert [p.novelty for p in ranked] == pytest.approx([novelty.item()] * 4, abs=1e-4)
        assert sum(p.probability for p in ranked) == pytest.approx(1, abs=1e-5)
        for p in ranked:
            index = sorted(CATEGORIES).index(p.category)
            assert p.probability == pytest.approx(expected[index].item(), abs=1e-5)


def test_means_and_deviations_replace_those_of_the_checkpoint(predict_image):
    as_trained = predict_image("--top_k", 4).stdout
    same = predict_image("--top_k", 4, "--means", utils.MEANS, "--stds", utils.STDS)
    assert same.stdout == as_trained
    assert predict_image("--top_k", 4, "--means", "0", "0", "0").stdout != as_trained
    assert predict_image("--top_k", 4, "--stds", "2", "2", "2").stdout != as_trained


def test_an_image_is_decoded_as_in_training(checkpoint, images, tmp_path):
    """An image that EXIF turns gives the same predictions as the upright one."""
    upright = utils.load_image(images / "test" / "2" / "test_1.jpg")
    exif = Image.Exif()
    exif[0x0112] = 8  # turn it to the left
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    paths = [tmp_path / "upright.png", tmp_path / "turned.png"]
    first, second = predict.predict(load_checkpoint(checkpoint), paths, top_k=4)
    assert first == second


def test_an_unsure_prediction_is_unknown(predict_image, tmp_path):
    done = predict_image("--top_k", 2, "--format", "jsonl")
    probability = json.loads(done.stdout)["predictions"][0]["probability"]
    assert probability < 1
    flags = ("--top_k", 2, "--min_probability", (1 + probability) / 2)
    done = predict_image(*flags, "--plot", tmp_path / "a.png", "--heatmap", tmp_path / "b.png")
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 +[0-9.]+% +unknown\b", done.stdout)
    assert (tmp_path / "a.png").exists() and (tmp_path / "b.png").exists()
    [prediction] = json.loads(predict_image(*flags, "--format", "jsonl").stdout)["predictions"]
    unknown = {"rank": 1, "category": "", "name": "unknown"}
    assert prediction == {**unknown, "probability": probability}


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A folder of images that resemble none of the categories."""
    folder = tmp_path_factory.mktemp("noise")
    for seed in range(4):
        pixels = np.random.RandomState(seed).randint(0, 256, (90, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_an_image_of_no_category_is_reported(predict_image, noise, tmp_path):
    flags = {"--input": noise / "0.png"}
    done = predict_image("--top_k", 4, "--plot", tmp_path / "a.png", **flags)
    assert len(table_rows(done.stdout)) == 4  # the names are shown
    assert re.search(r"none of the categories \(novelty 0\.00\d\d\): the names", done.stdout)
    assert "none of the categories" not in predict_image().stdout
    done = predict_image("--top_k", 4, "--min_novelty", 0.002, **flags)
    assert re.search(r"   1 +[0-9.]+% +unknown\b.*\nThis image resembles none", done.stdout)


def test_the_figure_says_if_an_image_resembles_no_category(
    predict_image, images, noise, tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(predict, "save_figure", lambda figure, path: figures.append(figure))
    for path in (noise / "0.png", images / TEST_IMAGE):
        predict_image("--plot", tmp_path / "a.png", **{"--input": path})
    captions = [figure.axes[0].get_xlabel() for figure in figures]
    assert captions == ["0.png resembles none of the categories", os.path.basename(TEST_IMAGE)]


def test_novelty_is_written_for_every_image(predict_images, checkpoint, photos, noise, tmp_path):
    paths = [noise / "1.png", photos / "copy of 0", noise / "2.png"]
    expected = predict.predict(load_checkpoint(checkpoint), paths, min_novelty=0.002)
    assert [best.name == "unknown" for [best] in expected] == [True, False, True]
    for kind in ("csv", "jsonl", "json"):
        output = tmp_path / f"out.{kind}"
        flags = ("--output", output, "--min_novelty", 0.002, "--precision", "float32")
        done = predict_images(*flags, inputs=paths)
        assert "3 images predicted, 2 resemble no category (novelty below 0.003), " in done.stderr
        assert "2 are unknown, 0 could not be read" in done.stderr
        items = parse_results(output.read_text(), kind)
        assert len(items) == 3
        for item, [best] in zip(items, expected, strict=True):
            assert item["novelty"] == pytest.approx(best.novelty, abs=2e-6)
            assert item["predictions"][0]["name"] == best.name
    flags = ("--output", output, "--precision", "float32", "--resume")
    done = predict_images(*flags, inputs=paths)
    assert_error(done, "another --min_novelty (0.002, not 0.0)")


HEAVY = ("matplotlib", "seaborn", "pandas", "scipy", "IPython", "notebook", "onnx", "platformdirs")
HEAVY += ("torchvision", "torch._dynamo")
PROJECT = ("train", "training", "checks", "evaluation.plots")


def test_nothing_is_imported_that_a_prediction_does_not_need(trained, images):
    flags = ("--checkpoint", trained.checkpoint, "--input")
    output, imported = run_and_list_imports("predict", HEAVY + PROJECT, *flags, images / TEST_IMAGE)
    assert imported == [] and len(table_rows(output)) == 1
    output, imported = run_and_list_imports(
        "predict", HEAVY + PROJECT, *flags, images / "test", "--format", "csv"
    )
    assert imported == [] and len(output.splitlines()) == 1 + 8


def test_verbose_prints_the_digest_of_the_checkpoint(predict_image, checkpoint):
    done = predict_image("--verbose")
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert done.stderr == f"{checkpoint}: sha256 {sha256}\n"
    assert done.stdout == predict_image().stdout and done.returncode == 0


# ---------------------------------------------------------------- inputs


def test_folders_patterns_and_lists_are_in_order(photos, monkeypatch):
    paths = [Path(path).relative_to(photos).as_posix() for path in folders.find_files([photos])]
    assert paths == sorted(paths) and len(paths) == 7
    assert not [path for path in paths if "hidden" in path]
    matches = list(folders.find_files([f"{photos}/b/*image.jpg", f"{photos}/copy*"]))
    assert matches == sorted(map(str, photos.glob("b/*image.jpg"))) + [str(photos / "copy of 0")]
    assert list(folders.find_files([f"{photos}/**/deeper"])) == [
        str(path) for path in sorted((photos / "a sub-folder" / "deeper").iterdir())
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one.jpg\n\n two words.jpg\r\n"))
    assert list(folders.find_files(["x", "-"])) == ["x", "one.jpg", " two words.jpg"]
    assert list(folders.find_files(["no such*"])) == []


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    for name in ("a[1].jpg", "a1.jpg"):
        (tmp_path / name).touch()
    assert list(folders.find_files([str(tmp_path / "a[1].jpg")])) == [str(tmp_path / "a[1].jpg")]


def test_links_are_followed_but_not_in_a_circle(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z").touch()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "missing").symlink_to("nothing")
    (tmp_path / "a" / "y").symlink_to("x")
    names = [Path(path).name for path in folders.find_files([str(tmp_path / "a")])]
    assert names == ["z", "z", "missing", "x", "y"]


# ---------------------------------------------------------------- many images


@pytest.fixture(scope="module")
def expected(checkpoint, photos):
    """The results for `photos`, by one call of `predict` for each image."""
    model = load_checkpoint(checkpoint)
    model.backbone.to(select_precision(torch.device("cpu")))
    names = load_names(ROOT / "cat_to_name.json")
    results = []
    for path in folders.find_files([str(photos)]):
        try:
            [best] = predict.predict(model, [path], top_k=2, names=names)
            results.append({"path": path, "predictions": best})
        except UserError as error:
            results.append({"path": path, "error": str(error).removeprefix(f"{path}: ")})
    assert sum("error" in result for result in results) == 2
    return results


def assert_same(actual: list[dict], expected: list[dict]) -> None:
    """Assert that parsed results are the expected ones, up to rounding."""
    assert [result["path"] for result in actual] == [result["path"] for result in expected]
    for result, other in zip(actual, expected, strict=True):
        assert result.get("error") == other.get("error")
        assert len(result.get("predictions", ())) == len(other.get("predictions", ()))
        pairs = zip(result.get("predictions", ()), other.get("predictions", ()), strict=True)
        for rank, (p, q) in enumerate(pairs, 1):
            assert (p["rank"], p["category"], p["name"]) == (rank, q.category, q.name)
            assert p["probability"] == pytest.approx(q.probability, abs=1e-4)


@pytest.mark.parametrize("kind", [*FILE_FORMATS])
def test_a_file_or_standard_output_has_every_result(predict_images, expected, tmp_path, kind):
    path = tmp_path / "new folder" / f"out.{kind.upper()}"
    done = predict_images("--top_k", 2, "--output", path, "--format", kind)
    assert done.returncode == 1
    assert_same(parse_results(path.read_text(), kind), expected)
    assert done.stdout == path.read_text()
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "a damaged one.jpg: not an image" in warnings[0]
    assert done.stderr.splitlines()[-1] == "5 images predicted, 2 could not be read"
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.settings"]


def test_a_file_and_standard_output_may_differ_in_format(predict_images, photos, tmp_path):
    paths, csv = (photos / "copy of 0", photos / "b" / "empty.jpg"), tmp_path / "a.csv"
    to_file = predict_images("--output", csv, inputs=paths)
    assert (to_file.returncode, to_file.stdout) == (1, "")
    text = csv.read_text()
    to_stdout = predict_images("--format", "csv", "--quiet", inputs=paths)
    assert (to_stdout.returncode, to_stdout.stdout, to_stdout.stderr) == (1, text, "")
    to_both = predict_images("--format", "jsonl", "--output", csv, "--quiet", inputs=paths)
    assert parse_results(to_both.stdout, "jsonl") == parse_results(text, "csv")
    assert csv.read_text() == text and to_both.stderr == ""


def test_a_table_has_each_image_under_its_path(predict_images, expected):
    done = predict_images("--top_k", 2)
    assert done.returncode == 1
    blocks = [block.splitlines() for block in done.stdout.strip().split("\n\n")]
    readable = [result for result in expected if "error" not in result]
    for (path, head, *rows), result in zip(blocks, readable, strict=True):
        assert path == result["path"]
        assert head.split() == ["rank", "probability", "name", "category"]
        assert [result["predictions"][0].name in rows[0], len(rows)] == [True, 2]


def test_a_list_on_standard_input_may_end(predict_images, expected, photos, monkeypatch):
    paths = [result["path"] for result in expected[:2]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths)))
    done = predict_images("--format", "json", "--top_k", 2, inputs=["-"])
    assert_same(parse_results(done.stdout, "json"), expected[:2])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = predict_images("--format", "json", inputs=["-"])
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


def test_a_million_paths_are_not_read_before_the_first_prediction():
    """However many paths there are, only a few images are decoded ahead."""
    torch.manual_seed(0)
    values = {"arch": "vgg13", "class_to_idx": {"a": 0, "b": 1}, "image_size": 224}
    values |= {"means": utils.MEANS, "stds": utils.STDS}
    model = Classifier(small_backbone(), Head(384, 8, 2, 2, 0.5), **values).eval()
    image = ROOT / "assets" / "sample_flowers" / "test" / "54" / "drawing_031.jpg"
    count = itertools.count()
    paths = (str(image) for _ in iter(lambda: next(count), 10**6))
    for workers in (0, 2):
        before = next(count)
        stream = predict.predict_stream(model, paths, batch_size=3, workers=workers)
        for number in range(10):
            assert next(stream).probs.shape == (2,)
            assert next(count) - before <= number + 30
        stream.close()


def test_no_images_have_no_predictions(checkpoint):
    assert predict.predict(load_checkpoint(checkpoint), []) == []


def test_several_threads_may_share_one_model(checkpoint, images):
    model = load_checkpoint(checkpoint)
    paths = [images / path for path in all_images(images)[::3][:8]]
    one_by_one = [predict.predict(model, [path], top_k=4) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda path: predict.predict(model, [path], top_k=4), paths))
    assert at_once == one_by_one


# ---------------------------------------------------------------- resuming, several processes


@pytest.fixture(scope="module")
def uninterrupted(trained, photos, tmp_path_factory):
    """The flags of a run on 21 files, and the bytes that it writes in one process."""
    flags = ["--input", photos, photos, photos, "--checkpoint", trained.checkpoint]
    flags += ["--top_k", 2, "--batch_size", 1, "--workers", 1, "--output"]
    path = tmp_path_factory.mktemp("uninterrupted") / "names.csv"
    assert run("predict.py", *flags, path, env=ONE_THREAD).returncode == 1
    assert len(parse_results(path.read_text(), "csv")) == 21  # 16 for the first of two processes
    return flags, path.read_bytes()


def test_a_killed_run_is_resumed_to_the_same_bytes(trained, photos, uninterrupted, tmp_path):
    """The run gets its list from standard input, and prints each result while the list grows."""
    flags, complete = uninterrupted
    path, partial = tmp_path / "killed.csv", tmp_path / "killed.csv.partial"
    command = [sys.executable, ROOT / "predict.py", "--input", "-", "--format", "jsonl"]
    command += ["--checkpoint", trained.checkpoint, "--top_k", 2]
    command += ["--batch_size", 1, "--workers", 0, "--output", path]
    env = {**os.environ, **ONE_THREAD}
    env.pop("PYTHONUNBUFFERED", None)  # it would hide a result that is not flushed
    with subprocess.Popen(
        list(map(str, command)),
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(TIMEOUT, process.kill)  # readline would wait forever
        watchdog.daemon = True
        watchdog.start()
        for image in itertools.islice(folders.find_files([str(photos)]), 5):
            process.stdin.write(f"{image}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["path"] == image
        watchdog.cancel()
        process.send_signal(signal.SIGKILL)
    stored = parse_results(partial.read_text(), "jsonl")  # whatever the output's format
    assert len(stored) >= 4 and not path.exists()  # a result is printed, then written
    done = run("predict.py", *flags, path, "--resume", env=ONE_THREAD)
    assert done.returncode == 1
    already = re.search(r", ([0-9]+) were in (.+) already$", done.stderr.splitlines()[-1])
    assert int(already[1]) == len(stored) and already[2] == str(path)
    assert path.read_bytes() == complete
    assert not partial.exists()


def test_two_processes_write_the_same_bytes_as_one(uninterrupted, tmp_path):
    flags, complete = uninterrupted
    path, launcher = tmp_path / "two.csv", (*TORCHRUN, "--nproc_per_node=2")
    done = run("predict.py", *flags, path, launcher=launcher, env=ONE_THREAD)
    assert done.returncode == 1, done.stderr  # some images are damaged
    assert path.read_bytes() == complete
    assert done.stderr.count("a damaged one.jpg: not an image") == 3  # given so often


def test_an_output_that_cannot_be_written_or_continued_is_reported(predict_images, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    done = predict_images("--output", tmp_path / "folder.csv")
    assert_error(done, "folder.csv", "is a folder")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    done = predict_images("--output", tmp_path / "other.csv", "--resume")
    assert_error(done, "other.csv", "--output")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    assert_error(predict_images("--output", tmp_path / "out.xlsx"), "out.xlsx", ".jsonl")
    assert_error(predict_images("--resume"), "--resume", "--output")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = predict_images("--output", tmp_path / "x.csv", inputs=[empty])
    assert_error(done, empty, "no images")
    assert_error(predict_images("--plot", tmp_path / "x.png"), "--plot")
    assert not (tmp_path / "x.csv").exists()


# ---------------------------------------------------------------- evaluation


def test_a_checkpoint_is_evaluated_as_after_training(call, checkpoint, images, tmp_path):
    flags = ("--checkpoint", checkpoint, "--evaluate")
    done = call("predict.py", *flags, images, "--plot", tmp_path / "confusion.png")
    assert done.returncode == 0, done.stderr
    metrics = torch.load(checkpoint, weights_only=True)["metrics"]
    assert done.stdout.splitlines()[0] == (
        f"8 images of 4 categories: accuracy {metrics['test_accuracy']:.1%}, top-5 "
        f"{metrics['test_top5_accuracy']:.1%}, mean of the categories "
        f"{metrics['test_class_accuracy']:.1%}, calibration error {metrics['test_ece']:.1%}"
    )
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert call("predict.py", *flags, images / "test").stdout == done.stdout


def test_the_evaluation_on_a_trainings_own_images_is_warned_of(
    call, checkpoint, own_images, tmp_path
):
    """A data folder without splits has no test folder, so that all of its images are used."""
    data = tmp_path / "link"
    data.symlink_to(own_images / "train")
    content = torch.load(checkpoint, weights_only=True)
    content |= {"arguments": {"data_dir": str(data)}, "class_to_idx": {"a": 0, "b": 1}}
    content |= {"names": {}, "num_outputs": 4}
    content["state_dict"]["detector.means"] = content["state_dict"]["detector.means"][:2]
    torch.save(content, tmp_path / "c.pth")
    flags = ("--checkpoint", tmp_path / "c.pth", "--evaluate")
    done = call("predict.py", *flags, own_images / "train")
    assert done.returncode == 0
    assert (
        "train: the checkpoint was trained on it: the reported accuracy will be too" in done.stderr
    )
    done = call("predict.py", *flags, own_images / "test")
    assert done.returncode == 0 and "trained on it" not in done.stderr


def test_mistakes_and_sure_predictions_are_counted(call, checkpoint, images, tmp_path):
    names = load_names(ROOT / "cat_to_name.json")
    for category, other in zip(CATEGORIES, CATEGORIES[1:] + CATEGORIES[:1], strict=True):
        (tmp_path / category).mkdir()
        for path in sorted((images / "train" / other).iterdir())[:2]:
            shutil.copy(path, tmp_path / category)
    (tmp_path / "1" / "damaged").write_text("not an image")
    paths = [str(path) for c in CATEGORIES for path in sorted((tmp_path / c).glob("*.jpg"))]
    predictions = predict.predict(load_checkpoint(checkpoint), paths)
    mistakes = sum(
        Path(path).parent.name != best.category
        for path, [best] in zip(paths, predictions, strict=True)
    )
    assert mistakes >= 6  # all labels are incorrect
    flags = ("--checkpoint", checkpoint, "--evaluate", tmp_path)
    done = call("predict.py", *flags, "--min_probability", 1e-6)
    assert done.returncode == 1 and "damaged: not an image" in done.stderr
    lines, accuracy = done.stdout.splitlines(), f"{1 - mistakes / 8:.1%}"
    assert lines[0].startswith(f"8 images of 4 categories: accuracy {accuracy}")
    assert lines[1].startswith("100.0% of the predictions") and f"{accuracy} of these" in lines[1]
    pattern = "([0-9]+) of (.+) predicted as (.+)"
    assert re.fullmatch(r"[0-9.]+% of the images have a novelty below 0.003", lines[2])
    confusions = [re.fullmatch(pattern, line).groups() for line in lines[3:]]
    assert sum(int(count) for count, *_ in confusions) == mistakes
    assert {name for _, name, _ in confusions} <= {names.get(c, c) for c in CATEGORIES}


def test_a_minimum_needs_a_checkpoint_with_novelty(call, checkpoint, images, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    for name in [name for name in content["state_dict"] if name.startswith("detector.")]:
        del content["state_dict"][name]
    torch.save(content, tmp_path / "without.pth")
    flags = ("--checkpoint", tmp_path / "without.pth", "--input", images / TEST_IMAGE)
    done = call("predict.py", *flags, "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["novelty"] is None
    done = call("predict.py", *flags, "--output", tmp_path / "out.csv", "--min_novelty", 0.01)
    assert_error(done, "has no novelty")
    assert os.listdir(tmp_path) == ["without.pth"]
    with pytest.raises(UserError, match="has no novelty"):
        path = images / TEST_IMAGE
        predict.predict(load_checkpoint(tmp_path / "without.pth"), [path], min_novelty=0.01)


def test_unknown_images_are_distinguished_from_known_ones(
    call, checkpoint, images, noise, tmp_path
):
    (noise / "damaged.jpg").write_text("not an image")
    flags = ("--checkpoint", checkpoint, "--evaluate", images)
    plain = call("predict.py", *flags).stdout.splitlines()
    done = call("predict.py", *flags, "--unknown", noise, "--min_novelty", 0.01)
    (noise / "damaged.jpg").unlink()
    assert done.returncode == 1 and "damaged.jpg: not an image" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == plain[0]  # is that of the known images
    assert "have a novelty below 0.01" in lines[1]
    assert re.fullmatch("probability of known and unknown images: AUROC .*, FPR95 .*%", lines[-3])
    assert lines[-2] == "novelty of known and unknown images: AUROC 1.0000, FPR95 0.0%"
    assert lines[-1] == "100.0% of 4 unknown images have a novelty below 0.01"
    assert_error(call("predict.py", *flags, "--unknown", tmp_path), "--unknown", "none of its")
    done = call("predict.py", "--checkpoint", checkpoint, "--input", noise, "--unknown", noise)
    assert_error(done, "--unknown goes with --evaluate")


def test_a_folder_that_cannot_be_evaluated_is_reported(call, checkpoint, tmp_path):
    flags = ("--checkpoint", checkpoint, "--evaluate")
    assert_error(call("predict.py", *flags, tmp_path / "missing"), "missing")
    (tmp_path / "not a category").mkdir()
    assert_error(call("predict.py", *flags, tmp_path), "not a category")
    (tmp_path / "not a category").rmdir()
    (tmp_path / "1").mkdir()
    assert_error(call("predict.py", *flags, tmp_path), "no images")
    (tmp_path / "1" / "damaged").write_text("not an image")
    assert_error(call("predict.py", *flags, tmp_path), "none of its images")
    assert_error(call("predict.py", *flags, tmp_path, "--input", "x.jpg"), "--evaluate", "--input")


# ---------------------------------------------------------------- errors


def test_probabilities_that_are_not_finite_are_an_error(checkpoint, images):
    model = load_checkpoint(checkpoint)
    model.temperature = 1e-45
    with pytest.raises(UserError, match="probabilities"):
        predict.predict(model, [images / TEST_IMAGE])


def test_the_script_reports_an_image_that_it_cannot_read(trained, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    flags = ("--checkpoint", trained.checkpoint)
    assert_error(run("predict.py", "--input", tmp_path / "text.jpg", *flags), "text.jpg")


@pytest.mark.parametrize("kind", ["missing", "empty", "cut off", "folder"])
def test_an_image_that_cannot_be_read_is_reported(predict_image, images, tmp_path, kind):
    path = tmp_path / "image.jpg"
    if kind == "empty":
        path.touch()
    elif kind == "cut off":
        shutil.copy(images / TEST_IMAGE, path)
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "folder":
        path.mkdir()
    assert_error(predict_image(**{"--input": path}), path)


@pytest.mark.parametrize("kind", ["missing", "text", "weights only", "folder"])
def test_a_file_that_is_no_checkpoint_is_reported(predict_image, tmp_path, kind):
    path = tmp_path / "checkpoint.pth"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "weights only":
        torch.save({"features.0.bias": torch.zeros(64)}, path)
    elif kind == "folder":
        path.mkdir()
    assert_error(predict_image(**{"--checkpoint": path}), path)


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
def test_an_invalid_value_is_reported(predict_image, flag, value):
    assert_error(predict_image(flag, value), flag, value)


@pytest.mark.parametrize(
    ("flags", "word"), [([], "--input"), (["--input", "image.jpg"], "--checkpoint")]
)
def test_missing_flags_are_reported(call, flags, word):
    assert_error(call("predict.py", *flags), word)


def test_gpu_without_a_gpu_is_an_error(predict_image):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert_error(predict_image("--device", "gpu"), "--device", "gpu")


def test_an_image_that_comes_out_black_is_warned_of_unless_quiet(trained, call, tmp_path):
    for name in ("dark.png", "darker.png"):
        Image.fromarray(np.full((30, 30), 2000, np.uint16)).save(tmp_path / name)
    flags = ("--input", tmp_path, "--checkpoint", trained.checkpoint, "--format", "csv")
    done = call("predict.py", *flags)
    assert done.returncode == 0
    assert done.stderr.count("dark.png: comes out nearly black") == 1
    assert done.stderr.count("darker.png: comes out nearly black") == 1
    assert call("predict.py", *flags, "--quiet").stderr == ""


# ---------------------------------------------------------------- files that are not replaced


@pytest.fixture
def own_files(checkpoint, images, tmp_path) -> dict[str, Path]:
    """Copies of a checkpoint, an image and a file of names, in the working folder."""
    files = {name: tmp_path / name for name in ("c.pth", "image.png", "names.json", "photo.csv")}
    shutil.copy(checkpoint, files["c.pth"])
    utils.load_image(images / TEST_IMAGE).save(files["image.png"])
    files["names.json"].write_text('{"1": "one"}')
    shutil.copy(files["image.png"], files["photo.csv"])  # an image, whatever its name says
    (tmp_path / "link.png").symlink_to("image.png")
    (tmp_path / "link.pth").symlink_to("c.pth")
    os.link(files["names.json"], tmp_path / "second.json")
    return files


REPLACEMENTS = [
    ("--plot", "image.png"),
    ("--heatmap", "image.png"),
    ("--plot", "link.png"),
    ("--plot", "./x/../image.png"),
    ("--output", "names.json"),
    ("--output", "second.json"),
    ("--output", "photo.csv"),
    ("--to_onnx", "c.pth"),
    ("--to_onnx", "link.pth"),
    ("--to_onnx", "image.png"),
    ("--to_onnx", "photo.csv"),
]


@pytest.mark.parametrize(("flag", "name"), REPLACEMENTS)
def test_what_a_command_reads_or_is_plainly_something_else_is_not_replaced(
    call, own_files, tmp_path, monkeypatch, flag, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    before = {file: file.read_bytes() for file in own_files.values()}
    files = ("--checkpoint", "c.pth", "--category_names", "names.json")
    done = call("predict.py", "--input", "image.png", *files, flag, name)
    assert_error(done, flag, name.removeprefix("./"))
    assert {file: file.read_bytes() for file in own_files.values()} == before
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob("*.settings"))


def test_the_figure_of_an_evaluation_replaces_no_image(call, checkpoint, own_images, tmp_path):
    for category, name in (("a", "1"), ("b", "10")):
        (own_images / "test" / category).rename(own_images / "test" / name)
    image = own_images / "test" / "1" / "test_0.jpg"
    (tmp_path / "link.jpg").symlink_to(image)
    before = image.read_bytes()
    for path in (image, tmp_path / "link.jpg"):
        flags = ("--evaluate", own_images / "test", "--checkpoint", checkpoint, "--plot", path)
        assert_error(call("predict.py", *flags), "--plot", "this command reads that file")
    assert image.read_bytes() == before


def test_a_pipe_is_not_replaced_by_a_file(predict_images, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    assert_error(predict_images("--output", tmp_path / "pipe.csv"), "--output", "pipe")
    assert (tmp_path / "pipe.csv").is_fifo()


def test_an_output_is_not_continued_with_another_command(
    predict_images, checkpoint, tmp_path, photos
):
    output = ("--output", tmp_path / "out.csv")
    one = [photos / "copy of 0"]
    assert predict_images(*output, inputs=one).returncode == 0
    before = (tmp_path / "out.csv").read_bytes()
    for flags in (("--top_k", 2), ("--means", "0", "0", "0"), ("--min_novelty", 0.5)):
        done = predict_images(*output, *flags, "--resume")
        assert_error(done, f"made with another {flags[0]} ")
    other = changed_checkpoint(checkpoint, tmp_path / "other.pth", temperature=3.0)
    assert_error(predict_images(*output, "--resume", "--checkpoint", other), "another --checkpoint")
    assert (tmp_path / "out.csv").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["other.pth", "out.csv", "out.csv.settings"]
    assert predict_images(*output, "--resume").returncode == 1  # the others are added
    assert (tmp_path / "out.csv").read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("nothing*.jpg", "--input nothing*.jpg: no file matches this pattern"),
        ("", "--input: a path is empty"),
        (" ", "--input: a path is empty"),
    ],
)
def test_an_input_that_means_nothing_is_named(predict_images, word, reason):
    assert_error(predict_images(inputs=[word]), reason)


def test_a_folder_is_no_checkpoint(predict_image, tmp_path):
    done = predict_image(**{"--checkpoint": tmp_path})
    assert_error(done, tmp_path, "is a folder, not a checkpoint")


def test_under_torchrun_one_image_is_printed_once(trained, images):
    launcher = (*TORCHRUN, "--nproc_per_node=2")
    flags = ("--input", images / TEST_IMAGE, "--checkpoint", trained.checkpoint)
    done = run("predict.py", *flags, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert len(table_rows(done.stdout)) == 1
