"""predict.py --sort_into: images in a folder of their category."""

import itertools
import os
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import CATEGORIES, all_images, assert_error, draw, full_disk, not_root

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


@pytest.fixture
def interrupted(predict_test):
    """Call predict.py as `predict_test` does, and interrupt it after four images.

    The last of them is in its folder, and is not recorded.
    """
    place = Sorter._place

    def with_flags(*flags, **inputs):
        calls = itertools.count()

        def stop_after_three(self, *args):
            place(self, *args)
            if next(calls) == 3:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sorting.Sorter, "_place", stop_after_three)
            assert predict_test(*flags, **inputs).returncode == 130

    return with_flags


SORTED = [f"{c}/test_{n}.jpg" for c in CATEGORIES for n in (0, 1)]  # the images of test


def example(path, **changes) -> Result:
    """Make a result of an image of category b."""
    return Result(str(path), [Prediction("b", "a name", 0.9, 0.5, **changes)])


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
    predict_test, interrupted, tmp_path
):
    interrupted("--sort_into", tmp_path)
    assert len(files_in(tmp_path)) == 4
    done = predict_test("--sort_into", tmp_path)
    assert_error(done, "is not empty; continue an interrupted run with --resume")
    done = predict_test("--sort_into", tmp_path, "--resume", "--sort_by", "link")
    assert_error(done, "another --sort_by (copy, not link)")
    assert predict_test("--sort_into", tmp_path, "--resume").returncode == 0
    assert files_in(tmp_path) == SORTED


@pytest.mark.parametrize("sort_by", ["copy", "link"])
def test_the_folder_may_be_in_one_of_the_images(
    predict_test, interrupted, images, tmp_path, monkeypatch, sort_by
):
    """A resumed run does not sort what is in it; a link to it leads there as well."""
    for path in SORTED:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((images / "test" / path).read_bytes())
    monkeypatch.chdir(tmp_path)
    Path("also").symlink_to("sorted")
    flags = ("--sort_into", "sorted", "--sort_by", sort_by)
    interrupted(*flags, inputs=["."])
    assert predict_test(*flags, "--resume", inputs=["."]).returncode == 0
    assert files_in(tmp_path / "sorted") == SORTED
    assert len(Path("sorted/predictions.csv").read_text().splitlines()) == 1 + len(SORTED)


def test_a_path_with_a_nul_is_predicted_which_makes_it_an_error(tmp_path):
    paths = ["b\0c/x.jpg", str(tmp_path / "sorted" / "a.jpg")]
    sorter = Sorter(str(tmp_path / "sorted"), ["a"], is_link=False, resume=False)
    assert list(sorter.outside(paths)) == paths[:1]


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


@pytest.mark.parametrize("flags", [(), ("--resume",)])
def test_a_folder_that_no_earlier_run_has_made_is_an_error(predict_test, tmp_path, flags):
    draw(0, 0).save(tmp_path / "a.jpg")
    assert_error(predict_test("--sort_into", tmp_path, *flags), "--sort_into", "is not empty")
    assert files_in(tmp_path) == ["a.jpg"]


def test_an_output_that_is_not_sorted_is_not_continued_with_sorting(predict_test, tmp_path):
    flags = ("--output", tmp_path / "names.csv")
    assert predict_test(*flags).returncode == 0
    done = predict_test(*flags, "--sort_into", tmp_path / "out", "--resume")
    assert_error(done, "names.csv was made with another --sort_into (None, not ")
    assert predict_test(*flags, "--sort_into", tmp_path / "out").returncode == 0
    assert files_in(tmp_path / "out") == SORTED
    assert_error(predict_test(*flags, "--resume"), "another --sort_into", "not None")


def test_the_file_of_predictions_may_be_within_the_folder(predict_test, tmp_path):
    flags = ("--sort_into", tmp_path / "out", "--output", tmp_path / "out" / "new" / "names.csv")
    assert predict_test(*flags).returncode == 0
    assert files_in(tmp_path / "out") == sorted(
        [*SORTED, "new/names.csv", "new/names.csv.settings"]
    )


def test_a_folder_that_cannot_be_read_is_an_error(locked_folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--sort_into .*file: cannot read it: Not a directory"):
        Sorter(str(tmp_path / "file"), ["b"], is_link=False, resume=False)
    with pytest.raises(UserError, match="cannot read it: Permission denied"), not_root():
        Sorter(str(locked_folder), ["b"], is_link=False, resume=False)


def test_an_image_that_cannot_be_read_is_an_error_and_the_others_are_sorted():
    with not_root(), tempfile.TemporaryDirectory() as name:
        for image in ("locked.jpg", "other.jpg"):
            Path(name, image).write_text("image")
        Path(name, "locked.jpg").chmod(0)
        sorter = Sorter(f"{name}/out", ["b"], is_link=False, resume=False)
        first, second = sorter.sort([example(f"{name}/locked.jpg"), example(f"{name}/other.jpg")])
        assert first == Result(f"{name}/locked.jpg", [], "Permission denied")
        assert second == example(f"{name}/other.jpg")
        assert files_in(Path(name, "out")) == ["b/other.jpg"]


def test_a_full_disk_is_an_error_and_leaves_no_half_of_an_image(tmp_path):
    (tmp_path / "image.jpg").write_bytes(bytes(2000))
    sorter = Sorter(str(tmp_path / "out"), ["b"], is_link=False, resume=False)
    with pytest.raises(UserError, match="cannot write .*image.jpg there: File too large"):
        with full_disk(1000):
            list(sorter.sort([example(tmp_path / "image.jpg")]))
    assert files_in(tmp_path / "out") == []


def test_what_a_killed_run_has_left_of_an_image_is_deleted(tmp_path):
    sorter = Sorter(str(tmp_path), ["b"], is_link=False, resume=True)
    sorter.temporary.write_text("half an ima")
    assert list(sorter.sort([])) == [] and os.listdir(tmp_path) == []


def test_the_name_of_an_image_may_be_as_long_as_the_system_allows(tmp_path):
    name = "x" * (os.pathconf(tmp_path, "PC_NAME_MAX") - len(".jpg")) + ".jpg"
    (tmp_path / name).write_text("image")
    sorter = Sorter(str(tmp_path / "out"), ["b"], is_link=False, resume=False)
    list(sorter.sort([example(tmp_path / name)]))
    assert files_in(tmp_path / "out") == [f"b/{name}"]


def test_a_resumed_link_is_not_taken_for_that_of_an_equal_image(tmp_path):
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "image.jpg").write_text("the same in both files")
    for folder in ("1", "2", "2"):  # the last run continues behind a link that is not recorded
        sorter = Sorter(str(tmp_path / "out"), ["b"], is_link=True, resume=folder == "2")
        list(sorter.sort([example(tmp_path / folder / "image.jpg")]))
    assert files_in(tmp_path / "out") == ["b/image-2.jpg", "b/image.jpg"]


def test_the_status_of_a_resumed_run_tells_of_all_errors_in_the_output(predict_test, tmp_path):
    (tmp_path / "damaged.jpg").write_text("not an image")
    flags = ("--output", tmp_path / "names.csv")
    assert predict_test(*flags, inputs=[tmp_path / "damaged.jpg"]).returncode == 1
    done = predict_test(*flags, "--resume")
    assert done.returncode == 1 and "8 images predicted, 1 could not be read" in done.stderr
    assert predict_test(*flags).returncode == 0


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


def test_a_category_called_as_a_file_in_the_folder_is_an_error(predict_test, checkpoint, tmp_path):
    content = torch.load(checkpoint)
    content["class_to_idx"]["predictions.csv"] = content["class_to_idx"].pop("1")
    content["names"] = {}
    torch.save(content, tmp_path / "other.pth")
    flags = ("--checkpoint", tmp_path / "other.pth", "--sort_into", tmp_path / "out")
    assert_error(predict_test(*flags), "no names of folders: 'predictions.csv'")
    assert files_in(tmp_path / "out") == []
