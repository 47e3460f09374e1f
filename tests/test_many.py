"""predict, by the thousand: what is found, the formats, resuming, several processes, threads."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import (
    CATEGORIES,
    ONE_THREAD,
    ROOT,
    TORCHRUN,
    all_pictures,
    assert_error,
    run,
    small_backbone,
)

import predict
import utils
from model import Classifier, Head, load_checkpoint
from predict import Prediction, Result

KINDS = ("csv", "jsonl", "json")


@pytest.fixture(scope="module")
def photos(pictures, tmp_path_factory) -> Path:
    """A folder with sub-folders: 12 pictures, one of them twice, two broken, some hidden."""
    root = tmp_path_factory.mktemp("many") / "photos"
    for number, path in enumerate(all_pictures(pictures)[::3][:11]):
        folder = root / ("b", "a sub-folder/deeper")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / path, folder / f"{number}, a picture.jpg")
    shutil.copy(root / "b" / "0, a picture.jpg", root / "copy of 0")
    (root / "a broken one.jpg").write_text("no picture")
    (root / "b" / "empty.jpg").touch()
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.jpg").write_text("not looked at")
    (root / "b" / ".also hidden").write_text("not looked at")
    return root


@pytest.fixture
def ask(call, trained, photos):
    def with_flags(*flags, inputs=(photos,)):
        given = ("--input", *inputs) if inputs else ()
        return call("predict.py", *given, "--checkpoint", trained.checkpoint, *flags)

    return with_flags


def results_in(text: str, kind: str) -> list[dict]:
    """What a JSON file would have, of any kind."""
    if kind == "json":
        return json.loads(text)
    if kind == "jsonl":
        return [json.loads(line) for line in text.splitlines()]
    found = []
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["path", "rank", "category", "name", "probability", "error"]
    for row in rows:
        if row["error"]:
            assert row["rank"] == row["category"] == row["name"] == row["probability"] == ""
            found.append({"path": row["path"], "error": row["error"]})
            continue
        if row["rank"] == "1":
            found.append({"path": row["path"], "predictions": []})
        prediction = {"rank": int(row["rank"]), "category": row["category"], "name": row["name"]}
        prediction["probability"] = float(row["probability"])
        assert row["path"] == found[-1]["path"]
        found[-1]["predictions"].append(prediction)
    return found


# ---------------------------------------------------------------- what is found


def test_folders_patterns_and_lists_are_found_in_order(photos, monkeypatch):
    found = [Path(path).relative_to(photos).as_posix() for path in utils.find_pictures([photos])]
    assert found == sorted(found) and len(found) == 14
    assert not [path for path in found if "hidden" in path]
    some = list(utils.find_pictures([f"{photos}/b/*picture.jpg", f"{photos}/copy*"]))
    assert some == sorted(map(str, photos.glob("b/*picture.jpg"))) + [str(photos / "copy of 0")]
    assert list(utils.find_pictures([f"{photos}/**/deeper"])) == [
        str(path) for path in sorted((photos / "a sub-folder" / "deeper").iterdir())
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("one.jpg\n\n two words.jpg\r\n"))
    assert list(utils.find_pictures(["x", "-"])) == ["x", "one.jpg", " two words.jpg"]
    assert list(utils.find_pictures(["no such*"])) == ["no such*"]  # reading it will say why


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    for name in ("a[1].jpg", "a1.jpg"):
        (tmp_path / name).touch()
    assert list(utils.find_pictures([str(tmp_path / "a[1].jpg")])) == [str(tmp_path / "a[1].jpg")]


def test_links_lead_to_files_but_not_into_circles(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "a" / "y").symlink_to("x")
    (tmp_path / "a" / "nowhere").symlink_to("nothing")
    found = [Path(path).name for path in utils.find_pictures([str(tmp_path)])]
    assert found == ["nowhere", "x", "y"]


# ---------------------------------------------------------------- the formats


@pytest.fixture
def wanted(trained, photos):
    """The results for `photos`, by one call of `predict` each."""
    model = load_checkpoint(trained.checkpoint)
    model.backbone.to(utils.select_precision(torch.device("cpu")))
    found = []
    for path in utils.find_pictures([str(photos)]):
        try:
            [best] = predict.predict(model, [path], top_k=2, names=utils.load_category_names())
            found.append({"path": path, "predictions": best})
        except utils.UserError as error:
            found.append({"path": path, "error": str(error).removeprefix(f"{path}: ")})
    assert sum("error" in one for one in found) == 2
    return found


def assert_same(found: list[dict], wanted: list[dict]) -> None:
    assert [one["path"] for one in found] == [one["path"] for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.get("error") == other.get("error")
        assert len(one.get("predictions", ())) == len(other.get("predictions", ()))
        for place, (p, q) in enumerate(
            zip(one.get("predictions", ()), other.get("predictions", ()), strict=True), 1
        ):
            assert (p["rank"], p["category"], p["name"]) == (place, q.category, q.name)
            assert p["probability"] == pytest.approx(q.probability, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_and_standard_output_have_every_result(ask, wanted, photos, tmp_path, kind):
    target = tmp_path / "new folder" / f"out.{kind.upper()}"
    done = ask("--top_k", 2, "--output", target)
    assert (done.returncode, done.stdout) == (1, "")
    assert_same(results_in(target.read_text(), kind), wanted)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and "a broken one.jpg: not a picture" in warnings[0]
    assert done.stderr.splitlines()[-1] == "12 pictures named, 2 could not be read"
    assert os.listdir(target.parent) == [target.name]
    shown = ask("--top_k", 2, "--format", kind, "--quiet")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout == target.read_text()
    both = ask("--top_k", 2, "--format", "jsonl", "--output", target, "--quiet")
    assert_same(results_in(both.stdout, "jsonl"), wanted)
    assert target.read_text() == shown.stdout


def test_a_table_has_each_picture_by_its_path(ask, wanted):
    done = ask("--top_k", 2)
    assert done.returncode == 1
    blocks = [block.splitlines() for block in done.stdout.strip().split("\n\n")]
    named = [one for one in wanted if "error" not in one]
    for (path, head, *rows), one in zip(blocks, named, strict=True):
        assert path == one["path"] and head.split() == ["rank", "probability", "name", "category"]
        assert [one["predictions"][0].name in rows[0], len(rows)] == [True, 2]


def test_a_million_is_not_read_before_the_first_answer():
    """However many paths there are, only a few are decoded ahead."""
    torch.manual_seed(0)
    about = {"arch": "vgg13", "class_to_idx": {"a": 0, "b": 1}, "image_size": 224}
    head = Head(384, 8, 2, 2, 0.5)
    model = Classifier(small_backbone(), head, **about, means=utils.MEANS, stds=utils.STDS).eval()
    picture = ROOT / "assets" / "sample_flowers" / "test" / "54" / "drawing_031.jpg"
    taken = itertools.count()
    paths = (str(picture) for _ in iter(lambda: next(taken), 10**6))
    for workers in (0, 2):
        before = next(taken)
        answers = predict.answer(model, paths, batch_size=3, workers=workers)
        for number in range(10):
            assert next(answers).probs.shape == (2,)
            assert next(taken) - before <= number + 30
        answers.close()


def test_results_come_while_the_list_is_still_being_written(trained, photos):
    command = [sys.executable, ROOT / "predict.py", "--input", "-", "--format", "jsonl"]
    command += ["--checkpoint", trained.checkpoint, "--batch_size", "1", "--workers", "0"]
    paths = sorted(map(str, (photos / "b").glob("*picture.jpg")))[:2]
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for path in paths:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["path"] == path
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_an_answer_that_is_not_sure_is_unknown(ask, call, trained, pictures):
    probs, model = torch.tensor([0.2, 0.5, 0.3, 0.0]), load_checkpoint(trained.checkpoint)
    assert predict.rank(model, probs, 2, {}, 0.5)[0] == Prediction("10", "10", 0.5)
    [(category, name, probability)] = predict.rank(model, probs, 2, {}, 0.51)
    assert (category, name, probability) == ("", "unknown", 0.5)
    picture, unsure = pictures / "test" / "2" / "test_0.jpg", ("--means", 0.3, 0.9, 0)
    flags = ("--input", picture, "--checkpoint", trained.checkpoint, "--top_k", 2, *unsure)
    surest = json.loads(call("predict.py", *flags, "--format", "jsonl").stdout)["predictions"][0]
    assert surest["probability"] < 0.999
    flags += ("--min_probability", 0.999)
    assert re.search(r"1 +[0-9.]+% +unknown\b", call("predict.py", *flags).stdout)
    [only] = json.loads(call("predict.py", *flags, "--format", "jsonl").stdout)["predictions"]
    unknown = {"rank": 1, "category": "", "name": "unknown"}
    assert only == {**unknown, "probability": surest["probability"]}


# ---------------------------------------------------------------- resuming

ODD = os.fsdecode(b"of \xff bytes")
MADE_UP = [
    Result("a.jpg", [Prediction("1", "one", 0.9), Prediction("2", 'so "called"', 0.1)]),
    Result("line\nbreak, comma.jpg", [Prediction("1", "one", 0.6), Prediction("2", "two", 0.4)]),
    Result('"quoted"', [], 'not a picture, "they" say'),
    Result("a.jpg", [Prediction("1", "one", 0.9), Prediction("2", 'so "called"', 0.1)]),
    Result(ODD, [Prediction("", "unknown", 0.4)]),
    Result("ünïcode", [Prediction("ö", "é", 0.7), Prediction("2", "two", 0.3)]),
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_cut_off_anywhere_is_completed(tmp_path, kind):
    target, partial = tmp_path / f"out.{kind}", tmp_path / f"out.{kind}.partial"
    ends = []  # of each result, in bytes
    for number in range(len(MADE_UP) + 1):
        predict.OutputFile(str(target), False).write(MADE_UP[:number])
        ends.append(len(target.read_bytes()))
    whole = target.read_bytes()
    found = results_in(whole.decode(errors="surrogateescape"), kind)
    assert [one["path"] for one in found] == [result.path for result in MADE_UP]
    by_path = {result.path: result for result in MADE_UP}
    for length in range(len(whole) + 1):
        target.unlink()
        partial.write_bytes(whole[:length])
        output = predict.OutputFile(str(target), True)
        missing = list(output.missing(result.path for result in MADE_UP))
        output.write(by_path[path] for path in missing)
        assert target.read_bytes() == whole, length
        there = sum(end <= length for end in ends[1:])
        assert len(missing) <= len(MADE_UP) - there + (kind == "csv")  # its last may lack rows
    assert os.listdir(tmp_path) == [target.name]


@pytest.mark.parametrize("kind", KINDS)
def test_new_pictures_are_added_to_a_whole_output(tmp_path, kind):
    target = tmp_path / f"out.{kind}"
    predict.OutputFile(str(target), False).write(MADE_UP[:4])
    output = predict.OutputFile(str(target), True)
    assert list(output.missing(result.path for result in MADE_UP)) == [ODD, "ünïcode"]
    assert target.exists()  # until the new one is whole
    output.write(MADE_UP[4:])
    added = target.read_bytes()
    predict.OutputFile(str(target), False).write(MADE_UP)
    assert target.read_bytes() == added


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_to_the_same_bytes(trained, photos, tmp_path, kind):
    flags = ["--input", photos, photos / "b", "--checkpoint", trained.checkpoint, "--top_k", 2]
    flags += ["--batch_size", 2, "--output"]
    target, whole = tmp_path / f"killed.{kind}", tmp_path / f"whole.{kind}"
    assert run("predict.py", *flags, whole, env=ONE_THREAD).returncode == 1
    command = [sys.executable, ROOT / "predict.py", *flags, target]
    partial = tmp_path / f"killed.{kind}.partial"
    with subprocess.Popen(list(map(str, command)), env={**os.environ, **ONE_THREAD}) as process:
        while process.poll() is None and not (partial.exists() and partial.stat().st_size > 300):
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
    assert partial.exists() and not target.exists()
    done = run("predict.py", *flags, target, "--resume", env=ONE_THREAD)
    assert done.returncode == 1 and "were in" in done.stderr
    assert target.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_an_output_that_cannot_be_written_or_gone_on_with_is_named(ask, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    assert_error(ask("--output", tmp_path / "folder.csv"), "folder.csv", "is a folder")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert_error(ask("--output", tmp_path / "other.csv", "--resume"), "other.csv", "--resume")
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"
    assert_error(ask("--output", tmp_path / "out.xlsx"), "out.xlsx", ".jsonl")
    assert_error(ask("--resume"), "--resume", "--output")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_error(ask("--output", tmp_path / "x.csv", inputs=[empty]), empty, "no pictures")
    assert_error(ask("--plot", tmp_path / "x.png"), "--plot")
    assert not (tmp_path / "x.csv").exists()


# ---------------------------------------------------------------- several processes, threads


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_write_the_same_bytes_as_one(trained, photos, tmp_path, kind):
    flags = ["--input", photos, photos / "b", "--checkpoint", trained.checkpoint, "--top_k", 2]
    flags += ["--batch_size", 1, "--workers", 1, "--output"]
    one, two = tmp_path / f"one.{kind}", tmp_path / f"two.{kind}"
    assert run("predict.py", *flags, one, env=ONE_THREAD).returncode == 1
    launcher = (*TORCHRUN, "--nproc_per_node=2")
    done = run("predict.py", *flags, two, launcher=launcher, env=ONE_THREAD)
    assert done.returncode == 1, done.stderr  # two pictures are broken
    assert two.read_bytes() == one.read_bytes()
    assert done.stderr.count("a broken one.jpg: not a picture") == 1


def test_threads_share_one_model(trained, pictures):
    model = load_checkpoint(trained.checkpoint)
    paths = [pictures / path for path in all_pictures(pictures)[:16]]
    one_by_one = [predict.predict(model, [path], top_k=4) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda path: predict.predict(model, [path], top_k=4), paths))
    assert at_once == one_by_one


# ---------------------------------------------------------------- judging


def test_a_checkpoint_is_judged_as_after_training(call, trained, pictures, tmp_path):
    judged = ("--checkpoint", trained.checkpoint, "--evaluate")
    done = call("predict.py", *judged, pictures, "--plot", tmp_path / "confusion.png")
    assert done.returncode == 0, done.stderr
    metrics = torch.load(trained.checkpoint, weights_only=True)["metrics"]
    first = done.stdout.splitlines()[0]
    assert first == (
        f"8 pictures of 4 categories: accuracy {metrics['test_accuracy']:.1%}, top-5 "
        f"{metrics['test_top5_accuracy']:.1%}, mean of the categories "
        f"{metrics['test_class_accuracy']:.1%}, calibration error {metrics['test_ece']:.1%}"
    )
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    assert call("predict.py", *judged, pictures / "test").stdout == done.stdout


def test_mistakes_and_sure_answers_are_counted(call, trained, pictures, tmp_path):
    names = utils.load_category_names()
    for category, other in zip(CATEGORIES, CATEGORIES[1:] + CATEGORIES[:1], strict=True):
        (tmp_path / category).mkdir()
        for path in (pictures / "train" / other).iterdir():
            shutil.copy(path, tmp_path / category)
    (tmp_path / "1" / "broken").write_text("no picture")
    model = load_checkpoint(trained.checkpoint)
    paths = [str(path) for c in CATEGORIES for path in sorted((tmp_path / c).glob("*.jpg"))]
    answers = [best for [best] in predict.predict(model, paths)]
    wrong = sum(
        Path(path).parent.name != p.category for path, p in zip(paths, answers, strict=True)
    )
    assert wrong >= 12  # all labels are wrong
    flags = ("--checkpoint", trained.checkpoint, "--evaluate", tmp_path)
    done = call("predict.py", *flags, "--min_probability", 1e-6)
    assert done.returncode == 1 and "broken: not a picture" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"16 pictures of 4 categories: accuracy {1 - wrong / 16:.1%}")
    assert lines[1].startswith("100.0% of them") and f"{1 - wrong / 16:.1%} of these" in lines[1]
    taken = [re.fullmatch("([0-9]+) of (.+) taken for (.+)", line).groups() for line in lines[2:]]
    assert sum(int(count) for count, *_ in taken) == wrong
    assert {name for _, name, _ in taken} <= {names.get(c, c) for c in CATEGORIES}


def test_what_cannot_be_judged_is_named(call, trained, tmp_path):
    flags = ("--checkpoint", trained.checkpoint, "--evaluate")
    assert_error(call("predict.py", *flags, tmp_path / "nowhere"), "nowhere")
    (tmp_path / "unheard of").mkdir()
    assert_error(call("predict.py", *flags, tmp_path), "unheard of")
    (tmp_path / "unheard of").rmdir()
    (tmp_path / "1").mkdir()
    assert_error(call("predict.py", *flags, tmp_path), "no pictures")
    (tmp_path / "1" / "broken").write_text("no picture")
    assert_error(call("predict.py", *flags, tmp_path), "none of its pictures")
    assert_error(call("predict.py", *flags, tmp_path, "--input", "x.jpg"), "--evaluate", "--input")
