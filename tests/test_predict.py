"""predict: one image, inputs, many images, several processes, evaluation, errors."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    CATEGORIES,
    ROOT,
    TIMEOUT,
    TORCHRUN,
    all_images,
    assert_error,
    parse_results,
    run,
    table_rows,
)
from PIL import Image
from torchvision.models import VGG16_Weights

import predict
import utils
from evaluation import plots
from image_files import folders
from image_files.names import load_names
from model import load_checkpoint
from system import messages
from system.messages import UserError

TEST_IMAGE = "test/2/test_0.jpg"


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
        return call("predict.py", "--input", *inputs, "--checkpoint", checkpoint, *flags)

    return with_flags


# ---------------------------------------------------------------- names


def test_names_follow_from_the_category_folder(predict_image, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"1": "one", "10": "ten", "2": "two", "3": "three"}')
    for category in CATEGORIES:
        image = f"train/{category}/train_1.jpg"
        done = predict_image("--category_names", names, "--top_k", 4, image=image)
        assert names_in(done) == {"1": "one", "10": "ten", "2": "two", "x y": "x y"}
        assert table_rows(done.stdout)[0][3] == category


def names_in(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {category: name for _, _, name, category in table_rows(done.stdout)}


def changed_checkpoint(checkpoint, path, **changes) -> Path:
    """Write a copy of a checkpoint with other values."""
    torch.save(torch.load(checkpoint, weights_only=True) | changes, path)
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


def test_the_bytes_of_standard_output_are_those_of_a_file(trained, images, tmp_path):
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
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == path.read_bytes()
    assert "ä 日本.jpg".encode() in done.stdout and b"no text \xff.jpg" in done.stdout
    assert "Gänseblümchen ひ".encode() in done.stdout


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


def test_an_unsure_prediction_is_unknown(predict_image, tmp_path):
    [before] = json.loads(predict_image("--format", "jsonl").stdout)["predictions"]
    flags = ("--top_k", 2, "--min_probability", 0.99999, "--min_novelty", 0.99999)
    done = predict_image(*flags, "--plot", tmp_path / "a.png", "--heatmap", tmp_path / "b.png")
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 +[0-9.]+% +unknown\b", done.stdout)
    assert (tmp_path / "a.png").exists() and (tmp_path / "b.png").exists()
    [prediction] = json.loads(predict_image(*flags, "--format", "jsonl").stdout)["predictions"]
    assert prediction == {**before, "category": "", "name": "unknown"}


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A folder of images that resemble none of the categories."""
    folder = tmp_path_factory.mktemp("noise")
    for seed in range(4):
        pixels = np.random.RandomState(seed).randint(0, 256, (90, 100, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_an_image_of_no_category_is_reported(predict_image, noise, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(predict, "save_figure", lambda figure, path: figures.append(figure))
    flags = ("--top_k", 4, "--plot", tmp_path / "a.png")
    done = predict_image(*flags, **{"--input": noise / "0.png"})
    table, _, saved = done.stdout.rpartition("saved ")
    assert len(table_rows(table)) == 4 and saved == f"{tmp_path / 'a.png'}\n"
    assert re.search(r"none of the categories \(novelty 0\.00\d\d\): the names", done.stdout)
    assert "none of the categories" not in predict_image(*flags).stdout
    captions = [figure.axes[0].get_xlabel() for figure in figures]
    assert captions == ["0.png resembles none of the categories", "test_0.jpg"]
    done = predict_image("--min_novelty", 0.002, **{"--input": noise / "0.png"})
    assert re.search(r"   1 +[0-9.]+% +unknown\b.*\nThis image resembles none", done.stdout)


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
    listed = io.BytesIO(b"one.jpg\n\n two words.jpg\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
    assert list(folders.find_files(["x", "-"])) == ["x", "one.jpg", " two words.jpg"]
    assert list(folders.find_files(["no such*"])) == []


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    for name in ("a[1].jpg", "a1.jpg"):
        (tmp_path / name).touch()
    assert list(folders.find_files([str(tmp_path / "a[1].jpg")])) == [str(tmp_path / "a[1].jpg")]


# ---------------------------------------------------------------- many images


def test_a_file_and_standard_output_have_every_result(predict_images, checkpoint, photos, tmp_path):
    path = tmp_path / "new folder" / "out.CSV"
    flags = ("--top_k", 2, "--precision", "float32", "--output", path, "--format", "csv")
    done = predict_images(*flags)
    assert done.returncode == 1
    assert done.stdout == path.read_text()
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "a damaged one.jpg: not an image" in warnings[0]
    assert done.stderr.splitlines()[-1] == "5 images predicted, 2 could not be read"
    assert sorted(os.listdir(path.parent)) == [path.name, f"{path.name}.settings"]
    items = parse_results(path.read_text(), "csv")
    assert [item["path"] for item in items] == list(folders.find_files([str(photos)]))
    model = load_checkpoint(checkpoint)
    for item in items:
        if "error" in item:
            continue
        [ranked] = predict.predict(model, [item["path"]], top_k=2)
        assert item["novelty"] == pytest.approx(ranked[0].novelty, abs=1e-4)
        for prediction, expected in zip(item["predictions"], ranked, strict=True):
            assert prediction["category"] == expected.category
            assert prediction["name"] == expected.name
            assert prediction["probability"] == pytest.approx(expected.probability, abs=1e-4)


def test_a_file_and_standard_output_may_differ_in_format(predict_images, photos, tmp_path):
    paths = (photos / "copy of 0", photos / "b" / "empty.jpg")
    path = tmp_path / "a.csv"
    done = predict_images("--output", path, inputs=paths)
    assert (done.returncode, done.stdout) == (1, "")
    text = path.read_text()
    done = predict_images("--format", "jsonl", "--output", path, "--quiet", inputs=paths)
    assert parse_results(done.stdout, "jsonl") == parse_results(text, "csv")
    assert path.read_text() == text and done.stderr == ""


def test_two_images_have_tables_under_their_paths(predict_images, predict_image, photos):
    path = photos / "copy of 0"
    table = predict_image("--top_k", 2, **{"--input": path}).stdout
    done = predict_images("--top_k", 2, inputs=[path, path])
    assert done.returncode == 0
    assert done.stdout == 2 * f"{path}\n{table}\n"


def test_a_million_paths_are_not_read_before_the_first_prediction(checkpoint, images):
    """However many paths there are, only a few images are decoded ahead."""
    model = load_checkpoint(checkpoint)
    count = itertools.count()
    paths = (str(images / TEST_IMAGE) for _ in iter(lambda: next(count), 10**6))
    for workers in (0, 2):
        before = next(count)
        stream = predict.predict_stream(model, paths, batch_size=3, workers=workers)
        for number in range(10):
            assert next(stream).probs.shape == (len(CATEGORIES),)
            assert next(count) - before <= number + 30
        stream.close()


def test_several_threads_may_share_one_model(checkpoint, images):
    model = load_checkpoint(checkpoint)
    paths = [images / path for path in all_images(images)[::3][:8]]
    one_by_one = [predict.predict(model, [path], top_k=4) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda path: predict.predict(model, [path], top_k=4), paths))
    assert at_once == one_by_one


# ---------------------------------------------------------------- several processes


def test_two_processes_write_the_same_bytes_as_one(trained, photos, call, tmp_path):
    """The first of two processes has 16 files."""
    damaged = photos / "a damaged one.jpg"
    flags = ["--input", photos, *[damaged] * 9, photos / "b", "--checkpoint", trained.checkpoint]
    flags += ["--top_k", 2, "--batch_size", 1, "--output"]
    assert call("predict.py", *flags, tmp_path / "one.csv").returncode == 1
    launcher = (*TORCHRUN, "--nproc_per_node=2")
    done = run("predict.py", *flags, tmp_path / "two.csv", launcher=launcher)
    assert done.returncode == 1, done.stderr  # some images are damaged
    assert len(parse_results((tmp_path / "two.csv").read_text(), "csv")) == 19
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert done.stderr.count("a damaged one.jpg: not an image") == 10  # given so often


@pytest.mark.parametrize(("rank", "rows"), [("0", 1), ("1", 0)])
def test_under_torchrun_one_image_is_printed_once(predict_image, monkeypatch, rank, rows):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    done = predict_image()
    assert done.returncode == 0
    assert done.stdout.count("probability") == rows


def test_without_a_terminal_progress_is_a_line_with_the_time_left(
    predict_images, images, tmp_path, monkeypatch
):
    """Also of a resumed run, which has done some images already."""
    clock = SimpleNamespace(monotonic=itertools.count(0, 2).__next__)  # 2 seconds an image
    monkeypatch.setattr(messages, "time", clock)
    table = tmp_path / "out.csv"
    paths = [images / path for path in all_images(images)]
    done = predict_images("--output", table, inputs=paths[:2])
    assert re.findall(r"^images: 1/2, \d+ s left$", done.stderr, re.MULTILINE)
    done = predict_images("--output", table, "--resume", inputs=paths[:8])
    lines = re.findall(r"^images: (\d)/8, \d+ s left$", done.stderr, re.MULTILINE)
    assert lines == list("345678")
    assert "left" not in predict_images("--output", table, "--quiet", inputs=paths).stderr


# ---------------------------------------------------------------- evaluation


def test_a_checkpoint_is_evaluated_as_after_training(call, checkpoint, images, tmp_path):
    flags = ("--checkpoint", checkpoint, "--evaluate")
    files = ("--plot", tmp_path / "confusion.png", "--report", tmp_path / "report.html")
    done = call("predict.py", *flags, images, *files)
    assert done.returncode == 0, done.stderr
    metrics = torch.load(checkpoint, weights_only=True)["metrics"]
    assert done.stdout.splitlines()[0] == (
        f"8 images of 4 categories: accuracy {metrics['test_accuracy']:.1%}, top-5 "
        f"{metrics['test_top5_accuracy']:.1%}, mean of the categories "
        f"{metrics['test_class_accuracy']:.1%}, calibration error {metrics['test_ece']:.1%}"
    )
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg;base64,") == 8
    saved = "".join(f"saved {tmp_path / name}\n" for name in ("confusion.png", "report.html"))
    assert call("predict.py", *flags, images / "test").stdout + saved == done.stdout


def test_the_evaluation_on_a_trainings_own_images_is_warned_of(call, checkpoint, images, tmp_path):
    """A data folder without splits has no test folder, so that all of its images are used."""
    (tmp_path / "link").symlink_to(images / "train")
    arguments = {"data_dir": str(tmp_path / "link")}
    other = changed_checkpoint(checkpoint, tmp_path / "c.pth", arguments=arguments)
    done = call("predict.py", "--checkpoint", other, "--evaluate", images / "train")
    assert done.returncode == 0
    assert "train: the checkpoint was trained on it: the reported accuracy" in done.stderr
    done = call("predict.py", "--checkpoint", other, "--evaluate", images / "test")
    assert done.returncode == 0 and "trained on it" not in done.stderr


def test_incorrect_labels_are_counted_and_unreadable_images_are_left_out(
    call, checkpoint, images, tmp_path
):
    data = shutil.copytree(images / "test", tmp_path / "test")
    (data / "1").rename(data / "other")
    (data / "10").rename(data / "1")
    (data / "other").rename(data / "10")
    (data / "1" / "damaged").write_text("not an image")
    flags = ("--checkpoint", checkpoint, "--evaluate", data, "--min_probability", 1e-6)
    done = call("predict.py", *flags)
    assert done.returncode == 1 and "damaged: not an image" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("8 images of 4 categories: accuracy 50.0%")
    assert lines[1].startswith("100.0% of the predictions") and "50.0% of these" in lines[1]
    names = load_names(ROOT / "cat_to_name.json")
    assert f"2 of {names['1']} predicted as {names['10']}" in lines


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
    flags = ("--checkpoint", checkpoint, "--evaluate", images)
    plain = call("predict.py", *flags).stdout.splitlines()
    (tmp_path / "damaged.jpg").write_text("not an image")
    unknown = ("--unknown", noise, tmp_path / "damaged.jpg")
    done = call("predict.py", *flags, *unknown, "--min_novelty", 0.01)
    assert done.returncode == 1 and "damaged.jpg: not an image" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == plain[0]  # is that of the known images
    assert "have a novelty below 0.01" in lines[1]
    assert lines[-2] == "novelty of known and unknown images: AUROC 1.0000, FPR95 0.0%"
    assert lines[-1] == "100.0% of 4 unknown images have a novelty below 0.01"


@pytest.mark.parametrize("flag", ["--evaluate", "--unknown"])
def test_an_evaluation_without_a_readable_image_is_an_error(
    call, checkpoint, images, tmp_path, flag
):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "damaged").write_text("not an image")
    done = call("predict.py", "--checkpoint", checkpoint, "--evaluate", images, flag, tmp_path)
    assert_error(done, f"{flag} {tmp_path}: none of its images")


# ---------------------------------------------------------------- errors


def test_an_image_that_cannot_be_read_is_reported(predict_image, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    assert_error(predict_image(**{"--input": tmp_path / "text.jpg"}), "text.jpg: not an image")


def test_a_missing_file_of_names_is_reported(predict_image):
    done = predict_image("--category_names", "no such names.json")
    assert_error(done, "no such names.json")


def test_a_file_that_is_no_checkpoint_is_reported(predict_image, tmp_path):
    done = predict_image(**{"--checkpoint": tmp_path})
    assert_error(done, tmp_path, "is a folder, not a file")


ONNX = "--checkpoint c.onnx --input a.jpg"
MANY = "--checkpoint c.pth --input a.jpg b.jpg"
ONE = "--checkpoint c.pth --input a.jpg"
EVALUATE = "--checkpoint c.pth --evaluate d"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--checkpoint c.pth", "--input PATH is missing"),
        ("--input a.jpg", "--checkpoint FILE is missing"),
        (f"{ONNX} --heatmap h.png", "--heatmap needs a checkpoint and torch"),
        (f"{ONNX} --to_onnx d.onnx", "--to_onnx needs a checkpoint and torch"),
        (f"{EVALUATE} --input a.jpg", "--evaluate goes without --input, --output and --format"),
        (f"{EVALUATE} --output a.csv", "--evaluate goes without"),
        (f"{EVALUATE} --format csv", "--evaluate goes without"),
        (f"{ONE} --unknown b.jpg", "--unknown and --report go with --evaluate"),
        (f"{ONE} --report b.html", "--unknown and --report go with --evaluate"),
        (f"{EVALUATE} --report b.pdf", "--report b.pdf: the name has to end in .html"),
        (f"{ONE} --to_html d.htm", "--to_html d.htm: the name has to end in .html"),
        (f"{ONNX} --to_html d.html", "--to_html of an ONNX file goes without --input"),
        (f"{ONE} --web_runtime d", "--web_runtime goes with --to_html"),
        (f"{EVALUATE} --sort_into d", "--evaluate goes without --input, --output"),
        (f"{ONE} --to_onnx d.pth", "--to_onnx d.pth: the name has to end in .onnx"),
        (f"{ONE} --int8", "--int8 goes with --to_onnx or --to_html, and"),
        ("--checkpoint c.pth --to_onnx d.onnx --int8", "--int8 goes with --to_onnx or"),
        (f"{MANY} --to_onnx d.onnx", "--to_onnx and --to_html go with one"),
        (f"{EVALUATE} --to_onnx d.onnx", "--to_onnx and --to_html go with one"),
        (f"{MANY} --plot p.png", "--plot and --heatmap are for one image"),
        (f"{ONE} --plot p.png --output o.csv", "--plot and --heatmap are for one image"),
        (f"{ONE} --plot p.png --format csv", "--plot and --heatmap are for one image"),
        ("--checkpoint c.pth --input - --plot p.png", "--plot and --heatmap are for one image"),
        ("--checkpoint c.pth --input . --plot p.png", "--plot and --heatmap are for one image"),
        ("--checkpoint c.pth --input *.x --plot p.png", "--plot and --heatmap are for one image"),
        (f"{EVALUATE} --heatmap p.png", "--plot and --heatmap are for one image"),
        (f"{ONE} --resume", "--resume and --overwrite go with --output FILE"),
        (f"{ONE} --output a.xlsx", "the name has to end in .csv or .jsonl or .json"),
        (f"{ONE} --top_k 0", "--top_k"),
        (f"{ONE} --batch_size 0", "--batch_size"),
        (f"{ONE} --workers 257", "--workers"),
        (f"{ONE} --min_probability 1", "--min_probability"),
        (f"{ONE} --min_novelty 1", "--min_novelty"),
        (f"{ONE} --device tpu", "--device"),
        (f"{ONE} --format xml", "--format"),
    ],
)
def test_a_command_line_that_cannot_be_followed_is_refused(words, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        predict.parse_arguments(words.split())


def test_an_onnx_file_is_not_for_several_processes_of_torchrun(monkeypatch):
    for size in ("", "1"):  # as a variable that is left empty, and with one process
        monkeypatch.setenv("WORLD_SIZE", size)
        assert predict.parse_arguments(ONNX.split()).checkpoint == "c.onnx"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun needs a checkpoint and torch"):
        predict.parse_arguments(ONNX.split())


def test_gpu_without_a_gpu_is_an_error(predict_image):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert_error(predict_image("--device", "gpu"), "--device", "gpu")


def test_an_image_that_comes_out_black_is_warned_of_unless_quiet(predict_images, tmp_path):
    Image.fromarray(np.full((30, 30), 2000, np.uint16)).save(tmp_path / "dark.png")
    done = predict_images("--format", "csv", inputs=[tmp_path])
    assert done.returncode == 0
    assert done.stderr.count("dark.png: comes out nearly black") == 1
    assert predict_images("--format", "csv", "--quiet", inputs=[tmp_path]).stderr == ""


# ---------------------------------------------------------------- files that are not replaced


@pytest.mark.parametrize(
    ("flag", "name", "reason"),
    [
        ("--plot", "image.png", "this command reads that file"),
        ("--heatmap", "image.png", "this command reads that file"),
        ("--output", "checkpoint.json", "this command reads that file"),
        ("--output", "names.json", "this command reads that file"),
        ("--to_onnx", "photo.onnx", "exists and is no"),
    ],
)
def test_what_a_command_reads_or_is_plainly_something_else_is_not_replaced(
    call, images, tmp_path, monkeypatch, flag, name, reason
):
    monkeypatch.chdir(tmp_path)
    for file in ("image.png", "checkpoint.json", "names.json", "photo.onnx"):
        shutil.copy(images / TEST_IMAGE, file)  # an image, whatever its name says
    files = ("--checkpoint", "checkpoint.json", "--category_names", "names.json")
    assert_error(call("predict.py", "--input", "image.png", *files, flag, name), flag, name, reason)
    assert Path(name).read_bytes() == (images / TEST_IMAGE).read_bytes()
    assert len(os.listdir()) == 4


@pytest.mark.parametrize(
    ("flag", "file", "output", "reason"),
    [
        ("--input", "n.csv.partial", "n.csv", "n.csv.partial: this command reads that file"),
        ("--category_names", "n.csv.settings", "n.csv", "n.csv.settings: this command reads that"),
        ("", "n.csv.settings", "n.csv", "n.csv.settings: exists and is no unfinished output"),
        ("", "n.csv.lock", "n.csv", "n.csv.lock: exists and is no lock"),
        ("", "other", "long" * 61 + ".csv", "cannot write there: File name too long"),
    ],
)
def test_files_beside_the_output_are_checked_as_well(
    call, checkpoint, images, tmp_path, monkeypatch, flag, file, output, reason
):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text("mine")
    words = ["--input", images / TEST_IMAGE, "--checkpoint", checkpoint, "--output", output]
    if flag:
        words += [flag, file]
    assert_error(call("predict.py", *words), reason)
    assert os.listdir() == [file] and Path(file).read_text() == "mine"


def test_two_figures_are_two_files(predict_image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = predict_image("--plot", "a.png", "--heatmap", "./a.png")
    assert_error(done, "--heatmap ./a.png: --plot writes that file, too")


def test_the_figure_of_an_evaluation_replaces_no_image(call, checkpoint, own_images):
    (own_images / "test" / "b").rename(own_images / "test" / "10")
    image = (own_images / "test" / "a").rename(own_images / "test" / "1") / "test_0.jpg"
    before = image.read_bytes()
    flags = ("--evaluate", own_images / "test", "--checkpoint", checkpoint, "--plot", image)
    assert_error(call("predict.py", *flags), "--plot", "this command reads that file")
    flags = ("--evaluate", own_images / "valid", "--checkpoint", checkpoint, "--plot", image)
    (own_images / "valid" / "a").rename(own_images / "valid" / "2")
    (own_images / "valid" / "b").rename(own_images / "valid" / "10")
    done = call("predict.py", *flags, "--unknown", own_images / "test")  # in a folder
    assert_error(done, "--plot", "this command reads that file")
    assert image.read_bytes() == before


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
        (" ", "--input: its value is empty"),
        ("empty", "--input empty: no images there"),
    ],
)
def test_an_input_that_means_nothing_is_named(predict_images, tmp_path, monkeypatch, word, reason):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert_error(predict_images("--output", "x.csv", inputs=[word]), reason)
    assert os.listdir() == ["empty"]


def test_a_line_of_a_list_that_is_no_path_is_one_unreadable_image(
    predict_images, photos, monkeypatch
):
    lines = f"{photos / 'copy of 0'}\na\0b.jpg\n{photos / 'copy of 0'}\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    done = predict_images("--format", "jsonl", inputs=["-"])
    results = parse_results(done.stdout, "jsonl")
    assert done.returncode == 1
    assert ["error" in result for result in results] == [False, True, False]
    assert "not a valid path" in results[1]["error"]


def test_images_to_calibrate_on_are_chosen_from_all_categories():
    paths = [str(number) for number in range(33)]
    chosen = predict.choose_evenly(paths, 32)
    assert len(set(chosen)) == 32 and chosen == sorted(chosen, key=int)
    assert predict.choose_evenly(paths, 3) == ["0", "11", "22"]
    assert predict.choose_evenly(paths[:3], 32) == ["0", "1", "2"]
