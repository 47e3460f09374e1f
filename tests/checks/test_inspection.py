"""inspection: what is noticed about the images of a data folder."""

import shutil

from conftest import all_images, draw

import utils
from checks.data_folder import inspect_images


def test_an_inspection_finds_what_may_reduce_the_quality_of_a_training(own_images):
    train = own_images / "train"
    (train / "a" / "broken.jpg").write_text("not an image")
    shutil.copy(train / "a" / "train_0.jpg", train / "b" / "twice.jpg")
    shutil.copy(train / "b" / "train_1.jpg", own_images / "test" / "b" / "leak.jpg")
    draw(0, 7, 900, 250).save(train / "a" / "long.png")
    draw(0, 7, 750, 250).save(train / "a" / "not long.png")
    draw(1, 8, 224, 224).convert("L").save(train / "a" / "gray.png")
    draw(1, 9, 300, 223).save(train / "a" / "low.png")
    (train / "lily").mkdir()
    (own_images / "valid" / "rose").mkdir()
    draw(2, 9, 300, 250).save(own_images / "valid" / "rose" / "fine.png")
    scan = utils.read_images(own_images, utils.list_images(own_images))
    findings = inspect_images(str(own_images), *scan, utils.load_image, 224)
    assert {f[:3]: f.detail for f in findings if f.finding == "images"} == {
        ("images", "train", "a"): "7",
        ("images", "train", "b"): "3",
        ("images", "train", "lily"): "0",
        ("images", "valid", "a"): "1",
        ("images", "valid", "b"): "1",
        ("images", "valid", "rose"): "1",
        ("images", "test", "a"): "1",
        ("images", "test", "b"): "2",
    }
    others = [f for f in findings if f.finding not in ("images", "below 224 pixels")]
    assert {(f.finding, f.split, f.category, f.path.rsplit("/")[-1]) for f in others} == {
        ("unknown category", "valid", "rose", ""),
        ("empty category", "train", "lily", ""),
        ("unreadable", "train", "a", "broken.jpg"),
        ("duplicate", "train", "b", "twice.jpg"),
        ("duplicate", "test", "b", "leak.jpg"),
        ("long", "train", "a", "long.png"),
        ("mode", "train", "a", "gray.png"),
    }
    copies = {f.other_path: f.distance for f in others if f.finding == "duplicate"}
    assert copies == {"train/a/train_0.jpg": 0, "train/b/train_1.jpg": 0}
    details = {f.path.rsplit("/")[-1]: f.detail for f in others}
    assert details["twice.jpg"] == "in another category: train/a/train_0.jpg"
    assert details["leak.jpg"] == "in another split: train/b/train_1.jpg"
    assert details["broken.jpg"].startswith("not an image")
    assert (details["long.png"], details["gray.png"]) == ("900 x 250", "L")
    small = {f.path: f.detail for f in findings if f.finding == "below 224 pixels"}
    assert small.pop("train/a/low.png") == "300 x 223"
    assert set(small) == {p for p in all_images(own_images) if not p.endswith("broken.jpg")}
    assert set(small.values()) == {"100 x 90"}
