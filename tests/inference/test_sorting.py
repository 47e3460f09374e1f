"""predict.py --sort_into: images in a folder of their category."""

import itertools
import os

import pytest
from conftest import CATEGORIES, all_images, assert_error, draw

from inference import sorting
from inference.results import Prediction, Result
from inference.sorting import Sorter
from system.messages import UserError


def files_in(folder) -> list[str]:
    """List what is in a folder of sorted images, but the table of predictions."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not path.startswith("predictions.csv"))


@pytest.fixture
def predict_test(call, checkpoint, images):
    """Call predict.py on the images of test and a damaged one."""

    def with_flags(*flags, inputs=(images / "test",)):
        return call("predict.py", "--checkpoint", checkpoint, "--input", *inputs, *flags)

    return with_flags


def test_images_are_copied_into_a_folder_of_their_category(predict_test, images, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "damaged.jpg").write_text("not an image")
    done = predict_test("--sort_into", tmp_path / "out", inputs=(images / "test", photographs))
    assert done.returncode == 1 and (tmp_path / "out" / "predictions.csv").exists()
    expected = [f"{c}/test_{n}.jpg" for c in CATEGORIES for n in (0, 1)]
    assert files_in(tmp_path / "out") == sorted([*expected, "unreadable/damaged.jpg"])
    for path in expected:
        assert (tmp_path / "out" / path).read_bytes() == (images / "test" / path).read_bytes()
    assert len(all_images(images)) == 32  # nothing was moved


def test_links_are_made_if_asked_for(predict_test, images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    assert (
        predict_test("--sort_into", tmp_path, "--sort_by", "link", inputs=["test"]).returncode == 0
    )
    link = tmp_path / "x y" / "test_1.jpg"
    assert link.is_symlink() and link.samefile(images / "test" / "x y" / "test_1.jpg")


def test_an_interrupted_sorting_continues_and_has_each_image_once(
    predict_test, images, tmp_path, monkeypatch
):
    place = Sorter._place
    calls = itertools.count()

    def stop_after_three(self, *args):
        place(self, *args)
        if next(calls) == 3:  # the image is there, and is not recorded
            raise KeyboardInterrupt

    monkeypatch.setattr(sorting.Sorter, "_place", stop_after_three)
    assert predict_test("--sort_into", tmp_path).returncode == 130
    monkeypatch.undo()
    assert len(files_in(tmp_path)) == 4
    assert_error(predict_test("--sort_into", tmp_path), "is not empty; continue with --resume")
    assert predict_test("--sort_into", tmp_path, "--resume").returncode == 0
    assert files_in(tmp_path) == [f"{c}/test_{n}.jpg" for c in CATEGORIES for n in (0, 1)]


def test_images_of_one_name_get_different_ones(predict_test, images, tmp_path):
    twice = (images / "test" / "2" / "test_0.jpg", images / "test" / "2")
    assert predict_test("--sort_into", tmp_path, inputs=twice).returncode == 0
    assert files_in(tmp_path) == ["2/test_0-2.jpg", "2/test_0.jpg", "2/test_1.jpg"]


def test_after_an_interruption_only_the_first_image_may_be_there_already(tmp_path):
    names = ["1/image.jpg", "2/other.jpg"]
    for name in (*names, "out/b/image.jpg", "out/b/other.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("the same in all files")
    best = Prediction("b", "a name", 0.9, 0.5)
    results = [Result(str(tmp_path / name), [best]) for name in names]
    sorter = Sorter(str(tmp_path / "out"), ["b"], is_link=False, resume=True)
    assert list(sorter.sort(results)) == results
    assert files_in(tmp_path / "out") == ["b/image.jpg", "b/other-2.jpg", "b/other.jpg"]


def test_images_within_the_folder_that_is_written_are_an_error(predict_test, tmp_path):
    draw(0, 0).save(tmp_path / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path)
    flags = ("--sort_into", tmp_path, "--resume")
    done = predict_test(*flags, inputs=[tmp_path / "link" / "a.jpg"])
    assert_error(done, "--sort_into", "contains", "a.jpg of --input")
    assert files_in(tmp_path) == ["a.jpg"]


def test_what_is_in_no_category_has_folders_of_its_own(tmp_path):
    (tmp_path / "image.jpg").write_text("image")
    sure = Prediction("unknown", "a name", 0.9, 0.5)
    results = [
        Result(str(tmp_path / "image.jpg"), [prediction], error)
        for prediction, error in [
            (sure, ""),  # a category that is called so
            (sure._replace(is_unusual=True), ""),
            (sure._replace(category=""), ""),
            (sure, "damaged"),
        ]
    ]
    results.append(Result(str(tmp_path / "gone.jpg"), [], "no such file"))
    sorter = Sorter(str(tmp_path / "out"), ["unknown", "b"], is_link=False, resume=False)
    assert list(sorter.sort(results)) == results
    names = ["unknown/image.jpg", "unknown_/image-2.jpg", "unknown_/image.jpg"]
    assert files_in(tmp_path / "out") == sorted([*names, "unreadable/image.jpg"])


@pytest.mark.parametrize("category", ["../a", "/a", "a/b", "..", ".", ""])
def test_a_category_of_a_foreign_file_does_not_lead_out_of_the_folder(tmp_path, category):
    with pytest.raises(UserError, match="no names of folders"):
        Sorter(str(tmp_path / "out"), ["b", category], is_link=False, resume=False)
    assert os.listdir(tmp_path) == []
