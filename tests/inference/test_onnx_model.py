"""inference.onnx_model: ONNX files as predictors, and predict.py where torch is not installed."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, TIMEOUT, assert_error, draw, free_port, parse_results, table_rows
from PIL import Image
from test_onnx_export import (
    MEANS,
    SIZE,
    STDS,
    by_command,
    difference,
    small,
    small_classifier,
    views,
)

import predict
import utils
from inference.onnx_export import export
from inference.onnx_model import OnnxModel, is_onnx
from system.arguments import VERSION
from system.files import sha256_of
from system.messages import UserError

HIDDEN = "torch torchvision onnx onnxscript scipy pandas seaborn matplotlib platformdirs".split()
__all__ = ["by_command", "small"]  # fixtures


def hide(folder: Path) -> dict[str, str]:
    """Return variables with which Python cannot import HIDDEN, as if they were not installed."""
    folder.mkdir()
    program = f"import sys\nfor name in {HIDDEN}:\n    sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": str(folder)}


# ---------------------------------------------------------------- the predictor


@pytest.mark.parametrize(
    ("name", "expected"), [("a.onnx", True), ("A.ONNX", True), ("onnx", False), ("a.pth", False)]
)
def test_the_name_says_what_a_file_is(name, expected):
    assert is_onnx(name) == is_onnx(Path("folder.onnx") / name) == expected


def test_a_file_says_what_its_checkpoint_says(small):
    classifier, path = small
    loaded = OnnxModel(path)
    for name in ("categories", "class_to_idx", "names", "image_size", "means", "stds"):
        assert getattr(loaded, name) == getattr(classifier, name)
    assert loaded.has_novelty and loaded.novelty_limit == classifier.novelty_limit
    assert loaded.settings() == classifier.settings()
    assert loaded.preprocessing == utils.preprocessing(SIZE)
    assert loaded.precision == "float32" and loaded.device_type == "cpu"


def test_means_and_stds_may_be_replaced_also_by_several_threads(small):
    classifier, path = small
    loaded = OnnxModel(path)
    settings = [(MEANS, STDS), ([0.1, 0.2, 0.6], STDS), (MEANS, [0.5, 0.1, 0.3]), (None, None)]
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(lambda both: loaded.predict_views(views(), *both), settings * 10))
    for index, output in enumerate(outputs):
        expected = classifier.predict_views(views(), *settings[index % 4])
        assert difference(output, expected) < 1e-3
    assert difference(outputs[0], outputs[1]) > 1e-3 < difference(outputs[0], outputs[2])


def test_a_file_without_novelty_has_none(tmp_path):
    classifier = small_classifier(detector=None)
    [_] = export(classifier, tmp_path / "model.onnx", [])
    loaded = OnnxModel(tmp_path / "model.onnx")
    probs, novelty = loaded.predict_views(views())
    assert difference([probs], classifier.predict_views(views())[:1]) < 1e-3
    assert novelty.shape == (3,) and np.isnan(novelty).all()
    with pytest.raises(UserError, match="no novelty"):
        loaded.check_novelty(0.1)


def test_probabilities_that_are_not_finite_are_an_error(small):
    with pytest.raises(UserError, match="^no finite probabilities"):
        OnnxModel(small[1]).predict_views(views(), [np.nan] * 3)


def test_the_precision_is_that_of_the_file(small):
    loaded = OnnxModel(small[1])
    loaded.prepare("cpu", "auto")
    loaded.prepare("cpu", "float32")
    with pytest.raises(UserError, match="^--precision bfloat16: .* computes in float32"):
        loaded.prepare("cpu", "bfloat16")


def test_a_gpu_that_onnxruntime_does_not_have_is_a_users_error(small):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime-gpu")
    with pytest.raises(UserError, match="^--device gpu: .* onnxruntime-gpu .*use --device cpu"):
        OnnxModel(small[1]).prepare("gpu", "auto")


def test_a_missing_onnxruntime_is_named(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="package onnxruntime: pip install onnxruntime$"):
        OnnxModel(small[1])


# ---------------------------------------------------------------- hostile and foreign files


def edited(change):
    """Return a function that writes the small classifier's file, changed."""

    def write(path, source):
        proto = onnx.load(source)
        change(proto)
        path.write_bytes(proto.SerializeToString())

    return write


def metadata(**values):
    """Return a function that changes metadata of the file."""

    def change(proto):
        for entry in proto.metadata_props:
            if entry.key in values:
                entry.value = values[entry.key]

    return edited(change)


def renamed(proto):
    """Rename the input, everywhere."""
    proto.graph.input[0].name = "x"
    for node in proto.graph.node:
        node.input[:] = ["x" if name == "images" else name for name in node.input]


def more_categories(proto):
    for entry in proto.metadata_props:
        if entry.key in ("categories", "names"):
            entry.value = json.dumps(["a", "b", "c", "d"])


def content(cut):
    return lambda path, source: path.write_bytes(cut(source.read_bytes()))


def elsewhere(tensor):
    """Let a tensor say that its values are in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "secret"), ("offset", "0"), ("length", "8192")):
        tensor.external_data.add(key=key, value=value)


def branch_elsewhere(proto):
    """Weights in the graph of a branch."""
    branch = onnx.helper.make_graph([], "branch", [], [])
    branch.initializer.append(proto.graph.initializer[0])
    elsewhere(branch.initializer[0])
    node = proto.graph.node.add(op_type="If", input=["condition"], output=["result"])
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(branch)


NOT_OURS = "not an ONNX file of this program; python predict.py"
ELSEWHERE = "not a model .* it has weights in other files"
INVALID = {
    "missing": (lambda path, source: None, "cannot read it"),
    "random": (content(lambda _: np.random.default_rng(0).bytes(100_000)), "not a model"),
    "its end is cut off": (content(lambda data: data[:-100]), "not a model"),
    "without metadata": (edited(lambda p: p.ClearField("metadata_props")), NOT_OURS),
    "no list": (metadata(categories="{}"), NOT_OURS),
    "nested": (metadata(names="[" * 100_000), NOT_OURS),
    "numbers": (metadata(categories="[1, 2, 3]"), NOT_OURS),
    "one name": (metadata(names='["a"]'), NOT_OURS),
    "twice": (metadata(categories='["a", "a", "b"]'), NOT_OURS),
    "a mean": (metadata(means="[0.5]"), NOT_OURS),
    "infinite": (metadata(stds="[1, 1, Infinity]"), NOT_OURS),
    "other crop": (metadata(resize="255"), "are prepared in another way"),
    "no version": (metadata(preprocessing_version='"1"'), NOT_OURS),
    "other limit": (metadata(novelty_limit="2"), NOT_OURS),
    "other size": (metadata(image_size="96"), NOT_OURS),
    "unknown precision": (metadata(precision="int1"), NOT_OURS),
    "another input": (edited(renamed), NOT_OURS),
    "more categories": (edited(more_categories), "do not have the shapes"),
    "weights elsewhere": (edited(lambda p: elsewhere(p.graph.initializer[0])), ELSEWHERE),
    "branch elsewhere": (edited(branch_elsewhere), ELSEWHERE),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_file_is_named_with_the_reason(small, tmp_path, case):
    write, reason = INVALID[case]
    path = tmp_path / "model.onnx"
    write(path, small[1])
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{reason}") as error:
        predict.load_predictor(path).predict_views(views(1))
    assert len(str(error.value)) < 1500


def test_a_key_whose_length_takes_more_bytes_than_it_needs_is_found(small, tmp_path):
    """As protobuf reads it: 88 00 is 8."""
    proto = onnx.load(small[1])
    elsewhere(proto.graph.initializer[0])
    shortest = b"\x0a\x08location\x12\x06secret"
    content = proto.SerializeToString()
    assert content.count(shortest) == 1
    longer = content.replace(shortest, b"\x0a\x88\x80\x00location\x12\x04secr")
    [key, *_] = onnx.load_from_string(longer).graph.initializer[0].external_data
    assert (key.key, key.value) == ("location", "secr")
    (tmp_path / "longer.onnx").write_bytes(longer)
    with pytest.raises(UserError, match="it has weights in other files"):
        OnnxModel(tmp_path / "longer.onnx")


def test_a_model_in_the_own_format_of_onnxruntime_is_refused(small, tmp_path):
    """It is no protobuf message, in which another file would be found."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(small[1]), options, providers=["CPUExecutionProvider"])
    path = (tmp_path / "model.ort").rename(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="not a model that onnxruntime can run"):
        OnnxModel(path)


def test_a_file_of_a_newer_onnx_needs_a_newer_onnxruntime(small, tmp_path):
    proto = onnx.load(small[1])
    proto.ir_version = 99
    onnx.save(proto, tmp_path / "new.onnx")
    with pytest.raises(UserError, match="IR version: 99, max.*; upgrade onnxruntime$"):
        OnnxModel(tmp_path / "new.onnx")


def test_a_file_cannot_take_all_memory(small, tmp_path):
    """Each of its operators doubles what the one before has; 2^31 times the probabilities."""
    proto = onnx.load(small[1])
    nodes = proto.graph.node
    last = next(node for node in nodes if "probabilities" in node.output)
    last.output[:] = ["0"]
    for number in range(31):
        doubled = [f"{number}", f"{number}"]
        nodes.append(onnx.helper.make_node("Concat", doubled, [f"{number + 1}"], axis=0))
    nodes.append(onnx.helper.make_node("ReduceMax", ["31"], ["largest"], keepdims=0))
    nodes.append(onnx.helper.make_node("Mul", ["0", "largest"], ["probabilities"]))
    onnx.save(proto, tmp_path / "bomb.onnx")
    program = (
        "import resource, sys, numpy as np\n"
        "from inference import onnx_model\n"
        "onnx_model.MEMORY_LIMIT = 2**28\n"
        "images = np.zeros((1, 3, 64, 64), np.uint8)\n"
        "try:\n    onnx_model.OnnxModel(sys.argv[1]).predict_views(images)\n"
        "except onnx_model.UserError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "bomb.onnx"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    error, memory = done.stdout.splitlines()
    assert re.search("onnxruntime failed: .* a smaller --batch_size", error)
    assert int(memory) < 3 * 2**30  # with the imports


# ---------------------------------------------------------------- predict.py without torch


@pytest.fixture
def both(by_command, checkpoint, call):
    """Call predict.py with an ONNX file, and with the checkpoint that it was made of."""
    replaced = ("--category_names", by_command / "names.json", "--means", *MEANS, "--stds", *STDS)
    replaced += ("--checkpoint", checkpoint, "--precision", "float32")

    def with_flags(*flags):
        done = call("predict.py", *flags, "--checkpoint", by_command / "model.onnx")
        return done, call("predict.py", *flags, *replaced)

    return with_flags


@pytest.fixture
def mixed(images, tmp_path):
    """A folder with images of several kinds, and some that cannot be read."""
    folder = shutil.copytree(images / "test" / "2", tmp_path / "mixed")
    draw(1, 1).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "broken.jpg").write_bytes((folder / "test_0.jpg").read_bytes()[:300])
    (folder / "text.jpg").write_text("no image")
    return folder


def test_many_predictions_are_those_of_the_checkpoint(both, images, mixed):
    flags = ("--input", mixed, images / "test", "--top_k", 9, "--format", "json")
    done, expected = both(*flags, "--batch_size", 5)
    assert done.returncode == expected.returncode == 1
    assert done.stderr == expected.stderr
    pairs = zip(json.loads(done.stdout), json.loads(expected.stdout), strict=True)
    for actual, other in pairs:
        assert actual["path"] == other["path"] and actual.get("error") == other.get("error")
        if "error" not in actual:
            # The file has 16 bits of each large weight.
            assert actual["novelty"] == pytest.approx(other["novelty"], abs=2e-3)
            for one, two in zip(actual["predictions"], other["predictions"], strict=True):
                assert one["name"] == two["name"]
                assert one["probability"] == pytest.approx(two["probability"], abs=1e-3)


def test_the_table_of_an_image_is_that_of_the_checkpoint(by_command, both, images, tmp_path):
    """Also where only requirements-predict.txt is installed: in LIGHT_PYTHON of .ci/run, if set.

    Without it, all other packages are hidden.
    """
    flags = ("--input", images / "test" / "2" / "test_0.jpg", "--top_k", 3)
    done, expected = both(*flags)
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    assert len(table_rows(done.stdout)) == 3
    words = ["predict.py", *map(str, flags), "--checkpoint", str(by_command / "model.onnx")]
    for python in os.environ.get("LIGHT_PYTHON", "").split(os.pathsep):
        variables = {} if python else hide(tmp_path / "hidden")
        light = subprocess.run(
            [python or sys.executable, *words, "--verbose"],
            cwd=ROOT,
            env={**os.environ, **variables, "WORLD_SIZE": "1"},  # torchrun with one process
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (light.returncode, light.stdout) == (0, expected.stdout), light.stderr
        assert re.fullmatch(
            f"{re.escape(str(by_command))}.*: sha256 [0-9a-f]{{64}}\n", light.stderr
        )


FOR_TRAINING = ["torchvision", "torch._dynamo", "scipy", "pandas", "seaborn", "IPython", "notebook"]
FOR_TRAINING += ["onnx", "onnxscript", "platformdirs", "flask", "train", "training", "checks"]
FOR_FIGURES = ["matplotlib", "evaluation.plots"]
LIST_IMPORTS = """
import json, sys, predict
for words in json.loads(sys.argv[1]):
    predict.main(words)
    print("imported", *(name for name in sys.argv[2:] if name in sys.modules))
"""


def test_nothing_is_imported_that_a_command_does_not_need(small, trained, images, tmp_path):
    data = tmp_path / "data"
    for category in small[0].categories:
        shutil.copytree(images / "test" / "2", data / category)
    with_onnx = ["--checkpoint", small[1]]
    with_torch = ["--checkpoint", trained.checkpoint]
    one = ["--input", images / "test" / "2" / "test_0.jpg"]
    many = ["--input", images / "test" / "2", "--format", "csv"]
    evaluation = ["--evaluate", data, "--unknown", images]
    commands = [[*with_onnx, *one], [*with_onnx, *many], [*with_onnx, *evaluation]]
    commands += [[*with_torch, *one], [*with_torch, *many]]
    commands += [[*with_onnx, *one, "--plot", tmp_path / "bars.png"]]
    commands += [[*with_onnx, *evaluation, "--plot", tmp_path / "confusion.png"]]
    words = json.dumps([[*map(str, command)] for command in commands])
    cache = tmp_path / "cache"
    listed = ["torch", *FOR_FIGURES, *FOR_TRAINING]
    done = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS, words, *listed],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("imported")]
    assert lines[:3] == [[], [], []]
    assert lines[3:5] == [["torch"], ["torch"]]
    assert lines[5:] == [["torch", *FOR_FIGURES]] * 2
    assert (tmp_path / "bars.png").exists() and (tmp_path / "confusion.png").exists()
    assert not list(cache.rglob("*onnxruntime*"))  # where it would store its telemetry


def test_a_checkpoint_needs_torch_and_a_figure_matplotlib(
    small, checkpoint, images, call, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    image = ("--input", images / "test" / "2" / "test_0.jpg", "--checkpoint")
    done = call("predict.py", *image, checkpoint)
    assert_error(done, checkpoint, "a checkpoint needs the package torch: pip install torch")
    done = call("predict.py", *image, small[1], "--plot", tmp_path / "plot.png")
    assert_error(done, "matplotlib: pip install matplotlib")
    for path, reason in (
        (tmp_path / "missing.pth", "No such file"),
        (tmp_path, "is a folder, not a file"),
        (images / "test" / "2" / "test_0.jpg", "neither a checkpoint of train.py nor an ONNX file"),
    ):
        done = call("predict.py", *image, path)
        assert_error(done, f"{path}: ", reason)
        assert "package torch" not in done.stderr


def test_a_killed_run_is_resumed_to_the_same_bytes(small, call, mixed, tmp_path):
    """The run gets its list from standard input, and prints each result while the list grows."""
    path = tmp_path / "killed.csv"
    partial = tmp_path / "killed.csv.partial"
    flags = ["--checkpoint", small[1], "--top_k", 2, "--batch_size", 1, "--workers", 0, "--output"]
    command = [sys.executable, ROOT / "predict.py", "--input", "-", "--format", "jsonl", *flags]
    env = {**os.environ}
    env.pop("PYTHONUNBUFFERED", None)  # it would hide a result that is not flushed
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*map(str, command), path], env=env, **pipes) as process:
        watchdog = threading.Timer(TIMEOUT, process.kill)  # readline would wait forever
        watchdog.daemon = True
        watchdog.start()
        for image in sorted(map(str, mixed.iterdir()))[:3]:
            process.stdin.write(f"{image}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["path"] == image
        watchdog.cancel()
        process.send_signal(signal.SIGKILL)
    stored = parse_results(partial.read_text(), "jsonl")  # whatever the output's format
    assert len(stored) >= 2 and not path.exists()  # a result is printed, then written
    done = call("predict.py", "--input", mixed, *flags, path, "--resume")
    assert done.returncode == 1
    assert done.stderr.endswith(f", {len(stored)} were in {path} already\n")
    assert call("predict.py", "--input", mixed, *flags, tmp_path / "whole.csv").returncode == 1
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not partial.exists()


# ---------------------------------------------------------------- the server of the README


def post(url: str, body: bytes, kind: str = "image/jpeg") -> tuple[int, dict]:
    """Send a body of this content type; returns the status and the JSON."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def form(*contents: bytes, name: str = "image") -> tuple[bytes, str]:
    """Return files as a form, as curl -F sends them, and its content type."""
    start = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n\r\n'
    parts = [start.encode() + content + b"\r\n" for content in contents]
    return b"".join(parts) + b"--x--\r\n", "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def server(small, tmp_path_factory):
    """The address of a server of a small ONNX file, and its log."""
    port = free_port()
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(small[1], folder / "model.onnx")
    (folder / "model.html").write_text("a page")
    env = os.environ | hide(folder / "hidden") | {"MODEL": str(folder / "model.onnx")}
    command = [sys.executable, "-m", "flask", "--app", "assets/serve_example", "run"]
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen([*command, "--port", port], cwd=ROOT, env=env, stderr=log)
        while "Running on" not in (folder / "log.txt").read_text():
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", folder / "log.txt"
        process.terminate()
        process.wait(timeout=TIMEOUT)


def png_of_view() -> bytes:
    content = io.BytesIO()
    Image.fromarray(views(1)[0].transpose(1, 2, 0)).save(content, "PNG")
    return content.getvalue()


def test_the_server_predicts_what_is_uploaded(server, small, tmp_path):
    url, log = server
    (tmp_path / "image.png").write_bytes(png_of_view())
    [expected] = predict.predict(small[0], [tmp_path / "image.png"], top_k=2)
    status, reply = post(f"{url}/predict?top_k=2", *form(png_of_view(), b"no image"))
    first, second = reply["images"]
    assert status == 200 and reply["model"] == sha256_of(small[1])
    assert first["novelty"] == pytest.approx(expected[0].novelty, abs=1e-3)
    assert first["resembles_none"] == expected[0].is_unusual
    for one, two in zip(first["predictions"], expected, strict=True):
        assert (one["category"], one["name"]) == (two.category, two.name)
        assert one["probability"] == pytest.approx(two.probability, abs=1e-3)
    assert second == {"path": "a.jpg", "error": "not an image, but a text file"}
    assert "127.0.0.1: a.jpg: not an image, but a text file" in log.read_text()
    for kind in ("image/png", "application/x-www-form-urlencoded"):  # the latter by curl
        _, other = post(f"{url}/predict?top_k=2", png_of_view(), kind)
        assert other["images"][0]["predictions"] == first["predictions"]


def test_the_server_refuses_in_json_and_in_its_log(server):
    url, log = server
    wide = io.BytesIO()
    Image.new("L", (60_000, 1000)).save(wide, "PNG")
    cases = [
        (post(f"{url}/predict?top_k=0", png_of_view()), 400, "top_k: '0' is not a whole number"),
        (post(f"{url}/predict", *form(b"", name="picture")), 400, "image: 0 files; send 1 to 16"),
        (post(f"{url}/predict", *form(*[b"x"] * 17)), 400, "image: 17 files; send 1 to 16"),
        (post(f"{url}/predict", bytes(51_000_000)), 413, "exceeds the capacity limit"),
        (post(f"{url}/predict", iter([b"x"])), 411, "Content-Length is missing"),
        (post(f"{url}/nowhere", b"x"), 404, "not found"),
    ]
    for (status, reply), expected, reason in cases:
        assert status == expected and reason in reply["error"]
        assert reason in log.read_text()
    status, reply = post(f"{url}/predict", wide.getvalue())
    assert status == 400 and "too large: " in reply["images"][0]["error"]


def test_the_server_says_what_it_serves(server, small):
    url, _ = server
    with urllib.request.urlopen(f"{url}/health") as reply:
        health = json.load(reply)
    assert health["model"] == sha256_of(small[1])
    assert health["categories"] == [small[0].names[name] for name in small[0].categories]
    assert health["version"] == VERSION
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == b"a page"


def test_the_server_says_what_is_missing(server):
    url, log = server
    page = log.with_name("model.html")
    page.rename(log.with_name("other.html"))
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url)
    assert json.load(error.value)["error"] == "there is no model.html beside model.onnx"
    log.with_name("other.html").rename(page)
    env = {name: value for name, value in os.environ.items() if name != "MODEL"}
    command = [sys.executable, "-m", "flask", "--app", "assets/serve_example", "run"]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stderr) == (4, "set MODEL to an ONNX file\n")
