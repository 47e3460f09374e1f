"""features: computed once, kept on disk, shared out over processes."""

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    LONG,
    ONE_THREAD,
    ROOT,
    TORCHRUN,
    all_pictures,
    assert_error,
    backbone_of,
    draw,
    extract,
    make_pictures,
    not_root,
    run,
    same_bits,
    small_backbone,
    state_of,
)
from PIL import Image
from torchvision.models import VGG16_Weights

import features
import utils
from model import PARTS, Backbone
from utils import UserError

CPU = torch.device("cpu")


def values(kept: features.Features) -> torch.Tensor:
    """All features."""
    return kept[torch.arange(len(kept))]


def two_views(root) -> list[tuple[str, int]]:
    """Two views of each picture in `root`."""
    return [(path, view) for path in all_pictures(root) for view in (0, 1)]


def feature_files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.features"))


@pytest.fixture
def computed(monkeypatch):
    """How many views each call of a backbone computed."""
    counts, forward = [], Backbone.features_and_maps

    def counting(self, images):
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "features_and_maps", counting)
    return counts


# ---------------------------------------------------------------- what is computed


def mean_of(maps):
    return maps.mean((1, 2))


def max_of(maps):
    return maps.amax((1, 2))


def test_features_are_those_of_the_views(pictures, tmp_path):
    backbone, views = small_backbone(), two_views(pictures)[:6]
    kept = values(extract(pictures, views, tmp_path))
    transform = VGG16_Weights.IMAGENET1K_V1.transforms()
    assert kept.shape == (6, 6, 384) and kept.dtype == torch.float32
    for row, (path, view) in zip(kept, views, strict=True):
        image = Image.open(pictures / path)
        if view:
            [taken] = utils.load_views(str(pictures), path, [view])
            image = utils.normalize(taken[None])[0]
        else:
            image = transform(image)
        first = backbone.features[:2](image[None])[0]
        second = backbone.features(image[None])[0]
        # The fifth of 6 parts is a fair share of 224 or 56 from 0.3 on.
        fifth = (first[:, 67:, 67:], second[:, 17:, 17:])
        for found, maps in ((row[0], (first, second)), (row[4], fifth)):
            wanted = torch.cat([f(x) for x in maps for f in (mean_of, max_of)])
            torch.testing.assert_close(found.square(), wanted, rtol=2e-3, atol=1e-5)


def test_maps_are_what_the_last_block_works_on(pictures, tmp_path):
    backbone, views = small_backbone(), two_views(pictures)[:3]
    kept = extract(pictures, views, tmp_path, maps=True)
    maps = kept.maps(torch.tensor([2, 0]))
    assert maps.shape == (2, 64, 112, 112) and maps.dtype == torch.float32
    for found, (path, view) in zip(maps, (views[2], views[0]), strict=True):
        images = utils.normalize(utils.load_views(str(pictures), path, [view]))
        wanted = backbone.features[:3](images)[0]
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)
    plain = values(extract(pictures, views, tmp_path))
    assert torch.equal(values(kept), plain)
    second = backbone.tail(kept.maps(torch.arange(3)))
    torch.testing.assert_close(second, plain[..., 128:], rtol=0.01, atol=0.01)


def test_which_views_are_computed_together_changes_no_bit(pictures, tmp_path):
    backbone, views = backbone_of(), two_views(pictures)[:7]  # the last one is alone
    precision = utils.select_precision(CPU)
    together = values(extract(pictures, views, tmp_path / "1", backbone, precision=precision))
    for number, view in [(0, views[0]), (5, views[5]), (6, views[6])]:
        alone = extract(pictures, [view], tmp_path / "2", backbone, precision=precision)
        assert torch.equal(values(alone)[0], together[number])


@pytest.mark.parametrize("height, width", [(32, 32), (14, 14), (9, 13), (1, 1)])
def test_a_winograd_convolution_is_a_convolution(height, width):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(128, 24, 3, padding=1)
    images = torch.randn(3, 128, height, width)
    with torch.inference_mode():
        wanted, found = conv(images), features.WinogradConv2d(conv)(images)
    assert found.is_contiguous(memory_format=torch.channels_last) or height % 4 or width % 4
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_fast_copy_of_a_backbone_agrees_with_it():
    backbone = backbone_of()
    before = backbone.digest()
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        fast = features.fast_copy(backbone, CPU, torch.float32)
        assert any(isinstance(layer, features.WinogradConv2d) for layer in fast.features)
        found = fast(images)
        torch.testing.assert_close(found, backbone(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(fast(images[1:2]), found[1:2])  # the same bits in any batch
    assert backbone.digest() == before


def test_processes_that_decode_change_no_bit(pictures, tmp_path):
    views = two_views(pictures)[:12]
    here = values(extract(pictures, views, tmp_path / "0", workers=0))
    assert torch.equal(values(extract(pictures, views, tmp_path / "2", workers=2)), here)


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [3, 3, 0]])
def test_rows_come_in_the_order_asked_for(pictures, tmp_path, order):
    views = two_views(pictures)[:4]
    kept = extract(pictures, views, tmp_path)
    assert torch.equal(kept[torch.tensor(order)], values(kept)[order])
    same_again = extract(pictures, [views[i] for i in order], tmp_path)
    assert torch.equal(values(same_again), values(kept)[order])


def test_a_picture_asked_for_twice_is_there_twice(pictures, tmp_path):
    view = two_views(pictures)[0]
    kept = values(extract(pictures, [view, view], tmp_path))
    assert torch.equal(kept[0], kept[1])


def test_a_broken_picture_is_told_and_changes_no_other(own_pictures, tmp_path):
    views = two_views(own_pictures)
    whole = values(extract(own_pictures, views, tmp_path / "whole"))
    broken = all_pictures(own_pictures)[1]
    (own_pictures / broken).write_text("no picture")
    kept = extract(own_pictures, views, tmp_path / "broken")
    assert list(kept.failures) == [broken] and broken in kept.failures[broken]
    others = [number for number, (path, _) in enumerate(views) if path != broken]
    assert np.flatnonzero(kept.file >= 0).tolist() == others
    assert torch.equal(kept[torch.tensor(others)], whole[others])


# ---------------------------------------------------------------- what is kept


def test_the_second_call_computes_nothing(pictures, tmp_path, monkeypatch):
    views = two_views(pictures)
    first = values(extract(pictures, views, tmp_path))

    def never(self, images):
        raise AssertionError("computed again")

    monkeypatch.setattr(Backbone, "features_and_maps", never)
    assert torch.equal(values(extract(pictures, views, tmp_path)), first)
    monkeypatch.chdir(pictures.parent)  # the same folder by another name
    assert torch.equal(values(extract(pictures.name, views, tmp_path)), first)
    with pytest.raises(AssertionError, match="computed again"):
        extract(pictures, [*views, (views[0][0], 2)], tmp_path)


CHANGES = {
    "content": lambda path: draw(3, 99).save(path),
    "time": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_a_changed_picture_is_computed_again(own_pictures, tmp_path, computed, change):
    views = two_views(own_pictures)
    before = values(extract(own_pictures, views, tmp_path / "cache"))
    assert sum(computed) == len(views)
    computed.clear()
    path, status = own_pictures / views[4][0], (own_pictures / views[4][0]).stat()
    CHANGES[change](path)
    if change == "longer":  # its size alone has to show it
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = values(extract(own_pictures, views, tmp_path / "cache"))
    assert sum(computed) == 2
    assert torch.equal(after[:4], before[:4]) and torch.equal(after[6:], before[6:])
    assert torch.equal(after[4:6], before[4:6]) == (change != "content")
    fresh = values(extract(own_pictures, views, tmp_path / "fresh"))
    assert torch.equal(after, fresh)


def test_only_an_added_picture_is_computed(own_pictures, tmp_path, computed):
    extract(own_pictures, two_views(own_pictures), tmp_path / "cache")
    computed.clear()
    draw(0, 55).save(own_pictures / "train" / "a" / "added.jpg")
    extract(own_pictures, two_views(own_pictures), tmp_path / "cache")
    assert sum(computed) == 2


def other_stage():
    backbone = small_backbone()
    backbone.stages = (0, 5)  # before the ReLU
    return backbone


@pytest.mark.parametrize(
    "changes",
    [
        {"means": [0.4, 0.5, 0.6]},
        {"stds": [0.4, 0.5, 0.6]},
        {"precision": torch.bfloat16},
        {"backbone": small_backbone(seed=1)},
        {"backbone": other_stage()},
    ],
    ids=["means", "stds", "precision", "weights", "stages"],
)
def test_another_setting_has_features_of_its_own(pictures, tmp_path, computed, changes):
    views = two_views(pictures)[:4]
    first = values(extract(pictures, views, tmp_path))
    computed.clear()
    other = values(extract(pictures, views, tmp_path, **changes))
    assert sum(computed) == 4
    assert not torch.equal(other, first)
    assert torch.equal(values(extract(pictures, views, tmp_path)), first)
    assert sum(computed) == 4


def test_another_folder_has_features_of_its_own(pictures, tmp_path, computed):
    views = two_views(pictures)[:4]
    extract(pictures, views, tmp_path / "cache")
    shutil.copytree(pictures, tmp_path / "copy")
    extract(tmp_path / "copy", views, tmp_path / "cache")
    assert sum(computed) == 8


def cut(path, size):
    os.truncate(path, path.stat().st_size - 10)


def flip(path, size):
    content = bytearray(path.read_bytes())
    content[2 * size + size // 2] ^= 1  # one bit of the third record
    path.write_bytes(content)


def overwrite(path, size):
    content = path.read_bytes()
    path.write_bytes(content[: 3 * size] + bytes(size) + content[4 * size :])


@pytest.mark.parametrize("damage", [cut, flip, overwrite])
def test_a_damaged_record_is_noticed_and_computed_again(pictures, tmp_path, computed, damage):
    views = two_views(pictures)[:8]
    kept = extract(pictures, views, tmp_path)
    first = values(kept)
    [path] = feature_files(tmp_path)
    damage(path, kept.dtype.itemsize)
    computed.clear()
    assert torch.equal(values(extract(pictures, views, tmp_path)), first)
    assert sum(computed) == 1
    assert torch.equal(values(extract(pictures, views, tmp_path)), first)
    assert sum(computed) == 1


def test_files_of_rubbish_are_not_used(pictures, tmp_path, computed):
    views = two_views(pictures)[:4]
    kept = extract(pictures, views, tmp_path)
    folder = feature_files(tmp_path)[0].parent
    (folder / "0.features").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "1.features").touch()
    again = extract(pictures, views, tmp_path)
    assert torch.equal(values(again), values(kept))
    assert sum(computed) == 4


def test_an_interrupted_extraction_goes_on_where_it_stopped(pictures, tmp_path, monkeypatch):
    views, counts, forward = two_views(pictures), [], Backbone.features_and_maps
    uninterrupted = values(extract(pictures, views, tmp_path / "other"))

    def stopping(self, images):
        if len(counts) == 3:
            raise KeyboardInterrupt
        counts.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "features_and_maps", stopping)
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, views, tmp_path / "cache")
    monkeypatch.setattr(
        Backbone, "features_and_maps", lambda *args: counts.append(-1) or forward(*args)
    )
    kept = extract(pictures, views, tmp_path / "cache")
    assert torch.equal(values(kept), uninterrupted)
    assert sum(counts[:3]) > 0
    records = sum(path.stat().st_size for path in feature_files(tmp_path / "cache"))
    assert records == len(views) * kept.dtype.itemsize  # none was computed twice


@pytest.mark.parametrize("room", [3, 1, 0])
def test_where_memory_does_not_suffice_batches_are_halved(
    pictures, tmp_path, monkeypatch, capsys, room
):
    views, forward = two_views(pictures)[:7], Backbone.features_and_maps
    expected = values(extract(pictures, views, tmp_path / "enough"))

    def small(self, images):
        if len(images) > room:
            raise torch.OutOfMemoryError("as a GPU says it")
        return forward(self, images)

    monkeypatch.setattr(Backbone, "features_and_maps", small)
    capsys.readouterr()
    if room:
        assert torch.equal(values(extract(pictures, views, tmp_path / "little")), expected)
        said = re.findall(r"going on with (\d)", capsys.readouterr().err)
        assert said == (["2"] if room == 3 else ["2", "1"])
    else:
        with pytest.raises(UserError, match="not enough GPU memory"):
            extract(pictures, views, tmp_path / "little")


def test_a_cache_that_cannot_be_written_is_named(pictures, tmp_path, locked_folder):
    views = two_views(pictures)[:1]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file.*--cache_dir"):
        extract(pictures, views, tmp_path / "file")
    with pytest.raises(UserError, match="locked.*--cache_dir"), not_root():
        extract(pictures, views, locked_folder)


def test_features_that_vanish_in_use_are_an_error(pictures, tmp_path):
    kept = extract(pictures, two_views(pictures)[:3], tmp_path)
    [path] = feature_files(tmp_path)
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(UserError, match="cut off"):
        values(kept)
    assert kept[torch.tensor([0])].isfinite().all()
    path.unlink()
    with pytest.raises(UserError, match="gone"):
        kept[torch.tensor([0])]


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features.default_cache_folder().parent == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert features.default_cache_folder().parent == tmp_path / "home" / ".cache"


READ_ALL = """
import sys, torch, features, train
from model import Head

def most_memory():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024

kept = features.FeatureStore(sys.argv[1], 256).find(
    [number.to_bytes(16, "big") for number in range(66_000)]
)
assert (kept.file >= 0).all()
rows = torch.arange(66_000)
head = Head(256, 4, 2, 2, 0.0)
train.compute_logits(head, kept, rows[:1024])
before = most_memory()
train.compute_logits(head, kept, rows)
train.mean_and_std(kept, rows)
for some in torch.randperm(66_000)[:4096].split(8):
    kept[some, some % 6]
print(most_memory() - before)
"""


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc, which tells a process's memory")
    store, rng = features.FeatureStore(tmp_path, 256), np.random.default_rng(0)
    for start in range(0, 66_000, 6000):
        keys = [number.to_bytes(16, "big") for number in range(start, start + 6000)]
        store.append(keys, rng.random((6000, len(PARTS), 256), np.float32))
    store.close()
    [path] = feature_files(tmp_path)
    size = path.stat().st_size // 2**20
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert size > 190 and int(done.stdout) < size / 2  # MiB


# ---------------------------------------------------------------- several processes


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A data folder with one broken picture, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("few")
    make_pictures(folder / "data", ("a", "b"), 3, 1, 1)
    (folder / "data" / "train" / "b" / "broken.jpg").write_text("no picture")
    flags = ("--data_dir", folder / "data", "--output_cat", 2, "--weights", "none", "--no_report")
    done = run("train.py", *flags, "--no_cache", "--save_dir", folder / "1.pth", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    yield flags, folder / "1.pth"
    (folder / "1.pth").unlink()


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_weights(few, tmp_path, processes):
    flags, checkpoint = few
    launcher = (*TORCHRUN, f"--nproc_per_node={processes}")
    flags = (*flags, "--cache_dir", tmp_path / "cache", "--save_dir", tmp_path / "n.pth")
    done = run("train.py", *flags, launcher=launcher, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert same_bits(state_of(tmp_path / "n.pth"), state_of(checkpoint))
    assert done.stdout.count("epoch 7/7") == 1
    assert done.stderr.count("broken.jpg") == 1
    assert len(feature_files(tmp_path / "cache")) == 1


def start(flags, launcher=(), env=None) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *launcher, ROOT / "train.py", *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_features(cache: Path, process: subprocess.Popen) -> None:
    """Until the first features have been written."""
    deadline = time.monotonic() + LONG
    while not any(path.stat().st_size for path in feature_files(cache)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no features yet"
        time.sleep(0.02)


def children(parent: int) -> list[int]:
    """The processes that a process has started, the first one first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with_parent = path.read_text() if path.exists() else ""
        if re.search(rf"\) \S {parent} ", with_parent):
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.fixture
def many(pictures, tmp_path):
    """A training that takes long enough to be disturbed: flags, cache and checkpoint."""
    cache, checkpoint = tmp_path / "cache", tmp_path / "checkpoint.pth"
    flags = ("--data_dir", pictures, "--output_cat", 4, "--weights", "none", "--epochs", 2)
    flags += ("--cache_dir", cache, "--save_dir", checkpoint, "--no_report")
    yield flags, cache, checkpoint
    checkpoint.unlink(missing_ok=True)


def assert_some_were_kept(cache: Path, checkpoint: Path) -> int:
    assert not checkpoint.exists() and not list(checkpoint.parent.glob(".*"))
    [path] = feature_files(cache)
    assert path.stat().st_size > 0
    return path.stat().st_size


def test_a_killed_process_ends_the_run_and_loses_nothing(many):
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc, which tells the processes of torchrun")
    flags, cache, checkpoint = many
    process = start(flags, (*TORCHRUN, "--nproc_per_node=2"))
    wait_for_features(cache, process)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    process.communicate(timeout=LONG)
    assert process.returncode != 0
    kept = assert_some_were_kept(cache, checkpoint)
    record = features.FeatureStore(cache, 2048).dtype.itemsize
    done = run("train.py", *flags, launcher=(*TORCHRUN, "--nproc_per_node=2"), env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert checkpoint.exists()
    total = sum(path.stat().st_size // record for path in feature_files(cache))
    assert total == 32 and kept < 32 * record  # 4 categories of 4 + 2 + 2 pictures, each once


def test_the_loss_of_a_process_is_one_line(many):
    flags, cache, checkpoint = many
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    first, other = (start(flags, env={**env, "RANK": str(rank)}) for rank in (0, 1))
    wait_for_features(cache, first)
    other.kill()
    out, err = first.communicate(timeout=LONG)
    other.communicate(timeout=LONG)
    done = subprocess.CompletedProcess(first.args, first.returncode, out, err)
    assert_error(done, "another process", "kept", "same command")
    assert_some_were_kept(cache, checkpoint)


def test_records_of_several_files_are_found(tmp_path):
    rng = np.random.default_rng(0)
    made = rng.random((6, len(PARTS), 4), np.float32).astype(np.float16)
    keys = [bytes([number] * 16) for number in range(7)]
    for first, second in itertools.pairwise([0, 2, 3, 6]):
        store = features.FeatureStore(tmp_path, 4)
        store.append(keys[first:second], made[first:second])
        store.close()
    kept = features.FeatureStore(tmp_path, 4).find(keys)
    assert len(feature_files(tmp_path)) == 3
    assert (kept.file >= 0).tolist() == [True] * 6 + [False]
    rows, parts = torch.tensor([5, 0, 3]), torch.tensor([2, 0, 5])
    assert torch.equal(kept[rows], torch.from_numpy(made[[5, 0, 3]]).float())
    assert torch.equal(kept[rows, parts], torch.from_numpy(made[[5, 0, 3], [2, 0, 5]]).float())
