"""training.features: computed once, cached on disk, the same bits in any order and batch."""

import re
import shutil

import pytest
import torch
from conftest import (
    all_images,
    backbone_of,
    extract,
    feature_files,
    load_views,
    views_of,
)

import utils
from model import Backbone
from system.devices import select_precision
from system.messages import UserError
from training import features

pytestmark = pytest.mark.usefixtures("tiny")


def extract_tiny(root, views, cache, backbone=None, **changes) -> features.Features:
    """Call `conftest.extract` with a tiny backbone."""
    return extract(root, views, cache, backbone or backbone_of("tiny"), **changes)


def values(extracted: features.Features) -> torch.Tensor:
    """Read all features."""
    return extracted[torch.arange(len(extracted))]


def two_views(root) -> list[features.View]:
    """List two views of each image in `root`."""
    return views_of(root, all_images(root), (0, 1))


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many views each call of a backbone computed."""
    counts, forward = [], Backbone.features_and_maps

    def counting(self, images):
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "features_and_maps", counting)
    return counts


# ---------------------------------------------------------------- what is computed


def test_which_views_are_computed_together_changes_no_bit(images, tmp_path):
    backbone, views = backbone_of("vgg13"), two_views(images)[:5]  # in batches of 4 and 1
    precision = select_precision(torch.device("cpu"))
    together = values(extract(images, views, tmp_path / "0", backbone, precision=precision))
    for rows in ([3], [4, 1]):
        batch, cache = [views[row] for row in rows], tmp_path / str(rows)
        apart = values(extract(images, batch, cache, backbone, precision=precision))
        assert torch.equal(apart, together[rows])


def test_processes_that_decode_change_no_bit(images, tmp_path):
    views = two_views(images)[:12]
    in_process = values(extract_tiny(images, views, tmp_path / "0", workers=0))
    assert torch.equal(values(extract_tiny(images, views, tmp_path / "2", workers=2)), in_process)


def test_rows_come_in_the_requested_order(images, tmp_path):
    order = [3, 3, 0]
    views = two_views(images)[:4]
    extracted = extract_tiny(images, views, tmp_path)
    assert torch.equal(extracted[torch.tensor(order)], values(extracted)[order])
    again = extract_tiny(images, [views[i] for i in order], tmp_path)
    assert torch.equal(values(again), values(extracted)[order])


def test_a_broken_image_is_reported_and_changes_no_other(own_images, tmp_path):
    complete = values(extract_tiny(own_images, two_views(own_images), tmp_path / "complete"))
    broken = all_images(own_images)[1]
    (own_images / broken).write_text("no image")
    views = two_views(own_images)
    extracted = extract_tiny(own_images, views, tmp_path / "broken")
    assert list(extracted.failures) == [broken] and broken in extracted.failures[broken]
    others = [number for number, view in enumerate(views) if view.path != broken]
    assert torch.equal(extracted[torch.tensor(others)], complete[others])
    with pytest.raises(UserError, match=re.escape(broken) + ".*--strict"):
        extract_tiny(own_images, views, tmp_path / "strict", strict=True)


def test_the_views_of_train_come_first(own_images):
    data = utils.read_data_folder(own_images)
    views = features.list_views(data, 2)
    expected = [(path, number) for path in data.paths("train") for number in (0, 1)]
    expected += [(path, 0) for split in ("valid", "test") for path in data.paths(split)]
    assert [(path, number) for path, number, _ in views] == expected
    digests = {image.path: image.digest for image in data.images}
    assert all(view.digest == digests[view.path] for view in views)


# ---------------------------------------------------------------- what is cached


def test_the_second_call_computes_nothing(images, tmp_path, computed, monkeypatch):
    views = two_views(images)[:10]
    first = values(extract_tiny(images, views, tmp_path))
    assert sum(computed) == 10
    assert torch.equal(values(extract_tiny(images, views, tmp_path)), first)
    monkeypatch.chdir(images.parent)  # the same folder by another name
    assert torch.equal(values(extract_tiny(images.name, views, tmp_path)), first)
    assert sum(computed) == 10
    more = views_of(images, [views[0].path], [2])
    assert torch.equal(values(extract_tiny(images, [*views, *more], tmp_path))[:10], first)
    assert sum(computed) == 11


def test_equal_images_share_their_features(own_images, tmp_path, computed, monkeypatch):
    paths = all_images(own_images)
    (own_images / paths[1]).write_text("not an image")
    others = ["test/b/copy.jpg", "test/b/not an image"]
    for path, other in zip(paths, others, strict=False):
        shutil.copy(own_images / path, own_images / other)
    decoded, load = [], utils.load_views

    def recording(root, path, *args):
        decoded.append(path)
        return load(root, path, *args)

    monkeypatch.setattr(utils, "load_views", recording)
    views = views_of(own_images, paths[:1], (0, 1)) + views_of(own_images, paths[1:] + others)
    extracted = extract_tiny(own_images, views, tmp_path)
    assert decoded == paths  # each content once, for all views of it
    assert sum(computed) == len(paths)
    assert set(extracted.failures) == {paths[1], others[1]}
    for path, reason in extracted.failures.items():
        assert reason.startswith(f"{own_images}/{path}: not an image")
    first, copy = extracted[torch.tensor([0, len(paths) + 1])]
    assert torch.equal(first, copy)


def other_stage():
    backbone = backbone_of("tiny")
    backbone.feature_layers = (4, 8)  # before the ReLU
    return backbone


CHANGED_SETTINGS = {
    "means": lambda: {"means": [0.4, 0.5, 0.6]},
    "stds": lambda: {"stds": [0.4, 0.5, 0.6]},
    "precision": lambda: {"precision": torch.bfloat16},
    "weights": lambda: {"backbone": backbone_of("tiny", seed=1)},
    "stages": lambda: {"backbone": other_stage()},
    "image_size": lambda: {"image_size": 96},
}


@pytest.mark.parametrize(("size", "regions"), [(96, 6), (224, 6), (256, 12)])
def test_features_are_those_of_views_of_the_image_size(images, tmp_path, size, regions):
    backbone, views = backbone_of("tiny"), two_views(images)[:3]
    extracted = values(extract_tiny(images, views, tmp_path, backbone, image_size=size))
    assert extracted.shape == (3, regions, 48) and extracted.dtype == torch.float32
    for row, (path, number, _) in zip(extracted, views, strict=True):
        [view] = load_views(images, path, [number], size)
        with torch.inference_mode():
            expected = backbone(utils.normalize(view[None]))[0]
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("setting", CHANGED_SETTINGS)
def test_each_setting_has_its_own_features(images, tmp_path, computed, setting):
    views = two_views(images)[:4]
    first = extract_tiny(images, views, tmp_path)
    computed.clear()
    changed = extract_tiny(images, views, tmp_path, **CHANGED_SETTINGS[setting]())
    assert sum(computed) == 4
    assert changed.identity() != first.identity()
    assert not torch.equal(values(changed), values(first))
    again = extract_tiny(images, views, tmp_path)
    assert again.identity() == first.identity() and torch.equal(values(again), values(first))
    assert sum(computed) == 4


CHANGED_PROGRAM = [("PREPROCESSING_VERSION", 0), ("MAX_ASPECT", 8), ("CROP_SCALE", (0.2, 1.0))]
CHANGED_PROGRAM.append(("CROP_RATIO", (1.0, 1.0)))


def test_features_of_another_preprocessing_are_not_used(images, tmp_path, computed, monkeypatch):
    views = two_views(images)[:2]
    extract_tiny(images, views, tmp_path)
    for name, value in CHANGED_PROGRAM:
        computed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(utils, name, value)
            extract_tiny(images, views, tmp_path)
        assert sum(computed) == 2


def test_an_interrupted_extraction_continues_where_it_stopped(images, tmp_path, monkeypatch):
    views, counts, forward = two_views(images)[:20], [], Backbone.features_and_maps
    uninterrupted = values(extract_tiny(images, views, tmp_path / "other"))

    def stopping(self, images):
        if len(counts) == 3:
            raise KeyboardInterrupt
        counts.append(len(images))
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "features_and_maps", stopping)
        with pytest.raises(KeyboardInterrupt):
            extract_tiny(images, views, tmp_path / "cache")
    assert len(counts) == 3 and 0 < sum(counts) < len(views)
    extracted = extract_tiny(images, views, tmp_path / "cache")
    assert torch.equal(values(extracted), uninterrupted)
    records = sum(path.stat().st_size for path in feature_files(tmp_path / "cache"))
    assert records == len(views) * extracted.store.dtype.itemsize  # none was computed twice


def test_batches_that_exceed_the_memory_are_halved(images, tmp_path, monkeypatch, capsys):
    views, forward = two_views(images)[:7], Backbone.features_and_maps
    precision = torch.bfloat16  # in float32, images pass one by one
    expected = values(extract_tiny(images, views, tmp_path / "enough", precision=precision))

    def limited(self, images):
        if len(images) > limit:
            raise torch.OutOfMemoryError("as a GPU reports it")
        return forward(self, images)

    monkeypatch.setattr(Backbone, "features_and_maps", limited)
    limit = 1
    small = extract_tiny(images, views, tmp_path / "small", precision=precision)
    assert torch.equal(values(small), expected)
    sizes = re.findall(r"continuing with (\d)", capsys.readouterr().err)
    assert sizes == ["2", "1"]
    limit = 0
    with pytest.raises(UserError, match="not enough GPU memory"):
        extract_tiny(images, views, tmp_path / "none", precision=precision)


def test_a_cache_folder_that_cannot_be_used_is_named_with_the_flag(images, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/.*: cannot store .* another folder with --cache_dir"):
        extract_tiny(images, two_views(images)[:1], tmp_path / "file")


def test_the_seconds_of_a_view_are_those_of_the_image_size(images, monkeypatch):
    sizes, forward = set(), Backbone.features_and_maps

    def recording(self, inputs):
        sizes.add(tuple(inputs.shape[2:]))
        return forward(self, inputs)

    monkeypatch.setattr(Backbone, "features_and_maps", recording)
    settings = features.Settings(image_size=256)
    assert features.seconds_per_view("tiny", str(images), all_images(images)[:2], settings) > 0
    assert sizes == {(256, 256), (128, 128)}
