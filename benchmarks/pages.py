"""What the pages bring: labels corrected in a browser, and a classifier that predicts there.

    python benchmarks/pages.py --data_dir flowers17 --weights vgg16.pth --web_runtime package

First, labels of 5 % of the images of train and valid are changed at random, in a copy of the data
folder. A script that knows the true labels works through labels.html in Chromium, as a person
would: a suspect label that is true is kept, another one is changed to the true one; all copies and
outliers are kept. A training with corrections.csv is compared with one on the changed labels and
one on the true ones, by the accuracy on test, whose labels are not changed.

Then a page of the last classifier predicts images of test in Chromium: sizes, times, and the
largest difference from predict.py with the same ONNX file. It needs Debian's packages chromium and
chromium-driver, selenium (PyPI) and onnxruntime-web (npm).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import ROOT, data_parser, mean_and_deviation, run_script, show, timed, train_command
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

import predict
import utils
from system.arguments import whole_number
from training.feature_store import default_cache_folder

SHARE = 0.05  # of labels that are changed
TIMEOUT = 120  # seconds
PREDICT = """
    const [number, done] = arguments;
    (async () => {
      const start = performance.now();
      const view = await viewOf(byId("choose").files[number]);
      const middle = performance.now();
      const { probs, novelty } = await (await prepared)(view);
      const end = performance.now();
      let text = "";
      for (const byte of view) text += String.fromCharCode(byte);
      done([btoa(text), [...probs], novelty, middle - start, end - middle]);
    })();
"""


def open_browser(downloads: Path) -> webdriver.Chrome:
    """Start Chromium without a window; it saves files in `downloads`."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    browser.set_script_timeout(TIMEOUT)
    return browser


# ---------------------------------------------------------------- labels


def change_labels(source: Path, target: Path, seed: int) -> dict[str, str]:
    """Copy a data folder with some labels changed; returns the true category of each path."""
    generator = random.Random(seed)
    data = utils.read_data_folder(source)
    categories = list(data.class_to_idx)
    truth = {}
    for image in data.images:
        label = image.category
        if image.split != "test" and generator.random() < SHARE:
            label = generator.choice([other for other in categories if other != label])
        path = f"{image.split}/{label}/{Path(image.path).name}"
        truth[path] = image.category
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / image.path, target / path)
    return truth


def wait_for_title(browser: webdriver.Chrome) -> None:
    """Wait until a page of findings has read its decisions, after its first frame."""
    WebDriverWait(browser, TIMEOUT).until(lambda _: browser.find_element(By.ID, "title").text)


def review(browser: webdriver.Chrome, page: Path, truth: dict[str, str]) -> dict[str, int]:
    """Decide about all findings of a page by its buttons; returns how many of each decision."""
    browser.get(f"file://{page}")
    wait_for_title(browser)
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    wait_for_title(browser)
    items = browser.execute_script("return DATA.items")
    images = browser.execute_script(
        "return DATA.images.map(({ path, label }) => ({ path, label }))"
    )
    categories = [one["folder"] for one in browser.execute_script("return DATA.categories")]
    decisions = {"kept": 0, "changed to the suggestion": 0, "changed to another": 0}
    for item in items:
        image = images[item["images"][0]]
        label = categories.index(truth[image["path"]])
        body = browser.find_element(By.TAG_NAME, "body")
        if item["kind"] != "suspect label" or label == image["label"]:
            body.send_keys("k")
            decisions["kept"] += 1
        elif label == item["guesses"][0]:
            body.send_keys("r")
            decisions["changed to the suggestion"] += 1
        else:
            Select(browser.find_element(By.TAG_NAME, "select")).select_by_value(str(label))
            decisions["changed to another"] += 1
    text = browser.find_element(By.ID, "count").text
    assert text == f"{len(items)} of {len(items)} decided", text
    browser.find_element(By.ID, "save").click()
    return decisions


def measure_labels(args: argparse.Namespace, folder: Path) -> dict[str, list]:
    """Return accuracies on test, in per cent, of each seed, and what was decided."""
    result: dict[str, list] = {"true": [], "changed": [], "corrected": [], "decisions": []}
    downloads = folder / "downloads"
    downloads.mkdir()
    browser = open_browser(downloads)
    for seed in range(args.seeds):
        data = folder / f"changed{seed}"
        truth = change_labels(Path(args.data_dir), data, seed)
        flags = ["--cache_dir", args.cache_dir, "--seed", str(seed)]
        table = folder / f"labels{seed}.csv"
        check = ["--data_dir", str(data), "--weights", args.weights, "--check_labels", str(table)]
        seconds, _ = timed(str(ROOT / "train.py"), *check, *flags)
        page = table.with_suffix(".html")
        start = time.perf_counter()
        decisions = review(browser, page, truth)
        corrections = downloads / "corrections.csv"
        WebDriverWait(browser, TIMEOUT).until(lambda _, path=corrections: path.exists())
        wrong = sum(path.split("/")[1] != label for path, label in truth.items())
        decisions |= {"labels changed": wrong, "page in bytes": page.stat().st_size}
        decisions |= {"check in s": round(seconds), "review in s": time.perf_counter() - start}
        result["decisions"].append(decisions)
        print(f"seed {seed}: {decisions}", flush=True)
        trainings = {
            "true": [args.data_dir],
            "changed": [str(data)],
            "corrected": [str(data), "--corrections", str(corrections)],
        }
        for name, (root, *more) in trainings.items():
            checkpoint = folder / f"{name}.pth"
            timed(*train_command(root, args.weights, str(checkpoint), *more, *flags))
            metrics = json.loads(checkpoint.with_suffix(".metrics.json").read_text())["metrics"]
            result[name].append(100 * metrics["test_accuracy"])
        corrections.unlink()
    browser.quit()
    return result


# ---------------------------------------------------------------- the classifier


def measure_page(
    args: argparse.Namespace, checkpoint: Path, folder: Path, is_int8: bool
) -> dict[str, float]:
    """Return sizes, times and differences of a classifier's page."""
    onnx = folder / "model.onnx"
    page = folder / "page.html"
    command = [str(ROOT / "predict.py"), "--to_html", str(page)]
    flags = ["--int8", "--input", str(Path(args.data_dir, "train"))] if is_int8 else []
    timed(*command, "--checkpoint", str(checkpoint), "--to_onnx", str(onnx), *flags)
    without_runtime = page.stat().st_size
    timed(*command, "--checkpoint", str(onnx), "--web_runtime", args.web_runtime)
    files = sorted(Path(args.data_dir, "test").glob("*/*.jpg"))[:: args.every]
    with Image.open(files[0]) as image:  # of 12 megapixels, as a telephone makes them
        image.convert("RGB").resize((4032, 3024)).save(folder / "large.jpg", quality=90)
    files.append(folder / "large.jpg")
    browser = open_browser(folder)
    start = time.perf_counter()
    browser.get(f"file://{page}")
    WebDriverWait(browser, TIMEOUT).until(
        lambda _: browser.find_element(By.ID, "status").text == "Ready."
    )
    ready = time.perf_counter() - start
    browser.execute_script("byId('choose').onchange = null")
    browser.find_element(By.ID, "choose").send_keys("\n".join(map(str, files)))
    model = predict.load_predictor(onnx)
    rows = []
    for number, file in enumerate(files):
        text, probs, novelty, view_ms, network_ms = browser.execute_async_script(PREDICT, number)
        view = np.frombuffer(base64.b64decode(text), np.uint8).reshape(3, model.image_size, -1)
        expected = utils.load_plain_view(file, model.image_size)
        [expected_probs], [expected_novelty] = model.predict_views(expected[None])
        rows.append(
            {
                "view": int(np.abs(view.astype(int) - expected).max()),
                "probability": float(np.abs(expected_probs - probs).max()),
                "novelty": float(abs(expected_novelty - novelty)),
                "view in ms": view_ms,
                "network in ms": network_ms,
            }
        )
    version = browser.capabilities["browserVersion"]
    browser.quit()
    *photographs, large = rows
    return {
        "browser": version,
        "page without runtime in MB": without_runtime / 1e6,
        "page in MB": page.stat().st_size / 1e6,
        "images": len(photographs),
        "equal views": sum(row["view"] == 0 for row in photographs),
        "largest difference of a probability": max(row["probability"] for row in photographs),
        "largest difference of the novelty": max(row["novelty"] for row in photographs),
        "ready in s": ready,
        "view in ms": statistics.median(row["view in ms"] for row in photographs),
        "network in ms": statistics.median(row["network in ms"] for row in photographs),
        "large JPEG: view in ms": large["view in ms"],
        "large JPEG: largest difference of 255": large["view"],
        "large JPEG: difference of a probability": large["probability"],
    }


def main() -> None:
    """Measure, and print tables and JSON."""
    parser = data_parser(__doc__)
    parser.add_argument("--web_runtime", required=True, help="folder of the npm package")
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    parser.add_argument("--seeds", type=whole_number(1), default=3)
    parser.add_argument("--every", type=whole_number(1), default=8, help="n-th image of test")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = measure_labels(args, folder)
        accuracies = ("true", "changed", "corrected")
        show(
            "Accuracy on test, labels of 5 % of train and valid changed",
            ["labels", "accuracy"],
            [[name, mean_and_deviation(labels[name], 1)] for name in accuracies],
            {"labels": labels},
        )
        of_precision = {
            precision: measure_page(args, folder / "true.pth", folder, precision == "int8")
            for precision in ("float32", "int8")
        }
        keys = list(of_precision["int8"])
        show(
            "A classifier as a page, in Chromium",
            ["", *of_precision],
            [
                [key, *(format_value(values[key]) for values in of_precision.values())]
                for key in keys
            ],
            {"page": of_precision},
        )


def format_value(value: str | float) -> str:
    """Format a number of the table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_script(main)
