"""The pages, in a real browser: reviewing labels, a report, and a classifier."""

import base64
import csv
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, TIMEOUT, draw
from PIL import Image, ImageOps

import predict
import train
import utils
from checks.corrections import correct_labels
from checks.findings import Finding
from checks.review_page import write_review_page
from evaluation.report_page import write_report_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# A name of a category or a file, which would run as HTML.
HOSTILE = '</script><script>document.title=1</script><img src=x onerror="document.title=1">, "a"\n;'


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A browser that saves downloads in `downloads`; `open(path)` shows a page from the disk."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    reason = "the package selenium, which controls a browser, is not installed"
    webdriver = pytest.importorskip("selenium.webdriver", reason=reason)
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(TIMEOUT)
    yield SimpleNamespace(driver=driver, downloads=downloads)
    driver.quit()


@pytest.fixture
def browser(chromium):
    """The browser; after the test, no page has asked for anything or reported an error."""
    driver = chromium.driver
    for kind in ("performance", "browser"):
        driver.get_log(kind)
    yield chromium
    entries = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [
        entry["params"]["request"]["url"]
        for entry in entries
        if entry["method"] == "Network.requestWillBeSent"
    ]
    assert requests and all(url.startswith(("file:", "blob:", "data:")) for url in requests)
    assert driver.get_log("browser") == []
    assert driver.title != "1"  # what HOSTILE would do as HTML


def text_of(browser, name: str) -> str:
    """Return the text of the element with an id."""
    return browser.driver.find_element("id", name).text


def press(browser, keys: str) -> None:
    """Press keys, one after the other."""
    for key in keys:
        browser.driver.find_element("tag name", "body").send_keys(key)


def click(browser, text: str) -> None:
    """Click on the button that begins with a text."""
    buttons = browser.driver.find_elements("tag name", "button")
    next(button for button in buttons if button.text.startswith(text)).click()


def wait_for(condition) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------- labels.html


@pytest.fixture
def reviewed(tmp_path, browser) -> Path:
    """A data folder with odd names, whose page of findings is open; the page's path is beside."""
    root = tmp_path / "photographs"
    names = ["a\n.jpg", "<b>.jpg", "c,'\".jpg", "d.jpg"]
    for kind, category in enumerate(["x", "y", "z"]):
        (root / category).mkdir(parents=True)
        for number, name in enumerate(names):
            draw(kind, number).save(root / category / name)
    data = utils.read_images(utils.list_images(root))
    suspect = Finding("suspect label", "train", "x", "x/a\n.jpg", "detail", suggested="z")
    findings = [
        suspect._replace(second_guess="y"),
        suspect._replace(path="x/<b>.jpg"),
        suspect._replace(path="x/c,'\".jpg"),
        Finding("near-duplicate", "train", "y", "y/d.jpg", HOSTILE, other_path="y/a\n.jpg"),
        Finding("duplicate", "train", "z", "z/d.jpg", "z/a\n.jpg", other_path="z/a\n.jpg"),
        Finding("outlier", "train", "x", "x/<b>.jpg"),
        Finding("mode", "train", "z", "z/d.jpg", "L"),
    ]
    write_review_page(tmp_path / "labels.html", data, findings, {"x": HOSTILE})
    browser.driver.get(f"file://{tmp_path}/labels.html")
    wait_for(lambda: text_of(browser, "title"))
    browser.driver.execute_script("localStorage.clear()")
    reload(browser)
    return root


def reload(browser) -> None:
    """Load the page again, and wait for its decisions, which it reads after its first frame."""
    browser.driver.refresh()
    wait_for(lambda: text_of(browser, "title"))


def saved_corrections(browser) -> tuple[Path, list[list[str]]]:
    """Click on the button that saves; return the file, and its rows."""
    path = browser.downloads / "corrections.csv"
    path.unlink(missing_ok=True)
    click(browser, "Save")
    wait_for(path.exists)
    assert text_of(browser, "count") == (
        "corrections.csv is among your downloads: give it to train.py --corrections"
    )
    with open(path, newline="", encoding="utf-8") as file:
        return path, list(csv.reader(file))


def test_labels_are_corrected_by_keys_and_training_takes_the_file(reviewed, browser):
    assert text_of(browser, "count") == "0 of 5 decided"
    assert not browser.driver.find_element("id", "save").is_enabled()
    assert browser.driver.find_element("tag name", "figcaption").text.startswith("Label: </script>")
    press(browser, "r2xk1k")  # the second one has no second guess
    assert text_of(browser, "count") == "5 of 5 decided: save them now"
    click(browser, "Outliers")  # it is about an image that is left out
    assert "(another finding: Leave out)" in text_of(browser, "images")
    click(browser, "Near-duplicates")
    press(browser, "\ue012u")  # the arrow to the left, which changes nothing
    assert text_of(browser, "count") == "4 of 5 decided"
    press(browser, "k")
    path, [header, *rows] = saved_corrections(browser)
    assert header == ["path", "action", "category", "digest"]
    assert [row[:3] for row in rows] == [
        ["x/a\n.jpg", "relabel", "z"],
        ["x/<b>.jpg", "exclude", ""],
        ["x/c,'\".jpg", "keep", ""],
        ["y/a\n.jpg", "exclude", ""],
        ["y/d.jpg", "keep", ""],
    ]
    data = correct_labels(utils.list_images(reviewed), [str(path)])
    labels = {image.path: image.category for image in data.images}
    assert labels["x/a\n.jpg"] == "z" and labels["x/c,'\".jpg"] == "x"
    assert "x/<b>.jpg" not in labels and len(labels) == 10


def test_labels_are_corrected_by_clicks_and_decisions_survive_a_reload(reviewed, browser):
    click(browser, "2 Change to y")
    click(browser, "Next")
    select = browser.driver.find_element("tag name", "select")
    select.find_element("xpath", "option[.='y']").click()  # of the third one
    click(browser, "Near-duplicates")
    click(browser, "2 Leave out 2")
    reload(browser)
    assert text_of(browser, "count") == "3 of 5 decided"
    assert text_of(browser, "title") == "Suspect labels: 2 of 3"  # the first that is open
    click(browser, "Near-duplicates")
    press(browser, "u")  # what was decided before the reload
    assert text_of(browser, "count") == "2 of 5 decided"
    click(browser, "2 Leave out 2")
    click(browser, "Suspect labels")
    assert "New label: y" in text_of(browser, "images")
    _, [_, *rows] = saved_corrections(browser)
    assert [row[:3] for row in rows] == [
        ["x/a\n.jpg", "relabel", "y"],
        ["x/c,'\".jpg", "relabel", "y"],
        ["y/a\n.jpg", "keep", ""],
        ["y/d.jpg", "exclude", ""],
    ]


def test_nothing_is_read_or_stored_before_the_first_frame(reviewed, browser):
    # Chromium answers such a page on the disk with an empty store, and forgets what it stores,
    # at one reload of 5 on a busy machine.
    script = """
        let early = true;
        requestAnimationFrame(() => (early = false));
        for (const name of ["getItem", "setItem"]) {
            const original = Storage.prototype[name];
            Storage.prototype[name] = function (...arguments) {
                console.assert(!early, "before the first frame");
                window.used = true;
                return original.apply(this, arguments);
            };
        }"""
    command = "Page.addScriptToEvaluateOnNewDocument"
    identifier = browser.driver.execute_cdp_cmd(command, {"source": script})
    reload(browser)
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", identifier)
    assert browser.driver.execute_script("return window.used")
    assert browser.driver.get_log("browser") == []


def test_a_decision_is_about_the_content_of_an_image(reviewed, browser):
    press(browser, "x")
    assert text_of(browser, "count") == "1 of 5 decided"
    draw(2, 9).save(reviewed / "x" / "a\n.jpg")
    data = utils.read_images(utils.list_images(reviewed))
    suspect = Finding("suspect label", "train", "x", "x/a\n.jpg", suggested="z")
    write_review_page(reviewed.parent / "labels.html", data, [suspect], {})
    reload(browser)
    assert text_of(browser, "count") == "0 of 1 decided"


def test_a_page_without_findings_says_so(reviewed, browser):
    data = utils.read_images(utils.list_images(reviewed))
    write_review_page(reviewed.parent / "labels.html", data, [], {})
    reload(browser)
    assert text_of(browser, "title").startswith("Nothing to review")


# ---------------------------------------------------------------- report.html


@pytest.fixture
def report(tmp_path, browser) -> None:
    """An open report of 5 predictions, one of which is incorrect; no image of "c" exists."""
    probs = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.7, 0.3, 0], [0.2, 0.8, 0], [0.1, 0.9, 0]])
    files = [f"{number}{HOSTILE}.jpg" for number in range(5)]
    history = [
        {"epoch": number, "train_loss": 1, "valid_loss": 0.5, "valid_accuracy": 0.9}
        for number in (1, 2)
    ]
    write_report_page(
        tmp_path / "report.html",
        title=HOSTILE,
        figures=[("time", HOSTILE, "")],
        settings={"data_dir": HOSTILE, "final": False, "corrections": ["a.csv", "b.csv"]},
        history=history,
        categories=["a", HOSTILE, "c"],
        labels=np.array([0, 0, 1, 1, 1]),
        probs=probs,
        files=files,
        images={2: "data:,", 0: "data:,", 3: "data:,"},
    )
    browser.driver.get(f"file://{tmp_path}/report.html")


def test_a_cell_of_the_confusion_matrix_shows_its_images(report, browser):
    cells = browser.driver.find_elements("class name", "cell")
    counts = browser.driver.find_elements("class name", "count")
    assert [count.text for count in counts] == ["2", "1", "2"]
    cells[0].click()
    assert text_of(browser, "chosen") == "Label a, predicted a: 2 images, of which this page has 1"
    cells[1].send_keys("\ue007")  # Enter
    assert text_of(browser, "chosen").endswith("predicted a: 1 image")
    [image] = browser.driver.find_elements("css selector", "#chosen-images figure")
    assert f"2{HOSTILE}.jpg".replace("\n", " ") in image.text and "70.0 %" in image.text
    assert text_of(browser, "mistakes-title").startswith("1 incorrect predictions")


def test_the_report_has_figures_and_a_table_that_sorts(report, browser):
    assert text_of(browser, "title") == HOSTILE.replace("\n", " ")
    figures = text_of(browser, "figures")
    assert "80.0 %" in figures and "95 % interval 37.6 % to 96.4 %" in figures
    assert len(browser.driver.find_elements("css selector", "#curves svg")) == 2
    texts = browser.driver.find_elements("css selector", "#calibration text")
    assert [text.text for text in texts if text.text in ("1", "2")] == ["1", "2", "2"]
    settings = text_of(browser, "settings")
    assert settings.startswith("--data_dir </script>") and "final" not in settings
    assert settings.endswith("--corrections a.csv b.csv")

    def column(number: int) -> list[str]:
        rows = browser.driver.find_elements("css selector", "#rows tr")
        return [row.find_elements("tag name", "td")[number].text for row in rows]

    click(browser, "images")
    assert column(1) == ["3", "2", "0"]
    click(browser, "images")
    assert column(1) == ["0", "2", "3"]
    click(browser, "recall")
    assert column(3) == ["–", "66.7 %", "100.0 %"]


# ---------------------------------------------------------------- the classifier


@pytest.fixture(scope="session")
def classifier(tiny, make_once) -> Path:
    """A folder with a page and an ONNX file of a tiny network that was trained on drawings."""
    runtime = os.environ.get("WEB_RUNTIME")
    if not runtime:
        pytest.skip("WEB_RUNTIME, the folder of the npm package onnxruntime-web, is not set")

    def make(folder: Path) -> None:
        data = ROOT / "assets" / "sample_flowers"
        flags = ["--data_dir", data, "--output_cat", 6, "--arch", tiny, "--weights", "none"]
        flags += ["--workers", 0, "--no_report", "--no_cache", "--save_dir", folder / "model.pth"]
        train.main([*map(str, flags)])
        flags = ["--checkpoint", folder / "model.pth", "--to_onnx", folder / "model.onnx"]
        flags += ["--to_html", folder / "page.html", "--web_runtime", runtime]
        predict.main([*map(str, flags)])

    return make_once("classifier page", make)


@pytest.fixture
def open_classifier(classifier, browser):
    """The browser with the page, which is ready."""
    browser.driver.get(f"file://{classifier}/page.html")
    wait_for(lambda: text_of(browser, "status") != "Preparing the classifier …")
    assert text_of(browser, "status") == "Ready."
    return browser


PREDICT = """
    const [number, done] = arguments;
    const view = await viewOf(byId("choose").files[number]);
    const { probs, novelty } = await (await prepared)(view);
    done([btoa(String.fromCharCode(...view.subarray(0, 75264)))
        + "," + btoa(String.fromCharCode(...view.subarray(75264))), [...probs], novelty]);
"""


def predict_in_page(browser, paths) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Return the view (3, 224, 224), probabilities and novelty that the page has for files."""
    browser.driver.execute_script("byId('choose').onchange = null")
    browser.driver.find_element("id", "choose").send_keys("\n".join(map(str, paths)))
    outputs = []
    for number in range(len(paths)):
        script = f"(async (...arguments) => {{{PREDICT}}})(...arguments)"
        views, probs, novelty = browser.driver.execute_async_script(script, number)
        content = b"".join(base64.b64decode(text) for text in views.split(","))
        outputs.append((np.frombuffer(content, np.uint8).reshape(3, 224, 224), probs, novelty))
    return outputs


def odd_images(folder: Path) -> list[Path]:
    """Write images that are decoded in another way each: all of them equal to the pixel."""
    image = Image.open(ROOT / "assets" / "car.jpg").convert("RGB")
    transparent = image.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[274] = 6  # turned
    image.save(folder / "turned.jpg", quality=95, exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.convert("L").save(folder / "gray.png")
    image.quantize(32).save(folder / "palette.png")
    transparent.save(folder / "transparent.png")
    ImageOps.pad(image, (4608, 4000)).save(folder / "large.png", compress_level=1)
    image.resize((70, 5000)).save(folder / "long.png")
    image.resize((5, 3)).save(folder / "small.png")
    image.save(folder / "lossless.webp", lossless=True)
    return sorted(folder.iterdir())


def test_views_and_probabilities_are_those_of_predict_py(classifier, open_classifier, tmp_path):
    drawings = sorted((ROOT / "assets" / "sample_flowers" / "test").glob("*/*.jpg"))[::3]
    paths = [*drawings, *odd_images(tmp_path)]
    assert len(paths) > 20
    model = predict.load_predictor(classifier / "model.onnx")
    for path, output in zip(paths, predict_in_page(open_classifier, paths), strict=True):
        view, probs, novelty = output
        expected = utils.load_plain_view(path)
        assert np.array_equal(view, expected), path
        [expected_probs], [expected_novelty] = model.predict_views(expected[None])
        assert np.allclose(probs, expected_probs, atol=1e-5), path
        assert novelty == pytest.approx(expected_novelty, abs=1e-4), path


def test_a_large_jpeg_differs_by_a_few_of_255(open_classifier, tmp_path):
    image = Image.open(ROOT / "assets" / "car.jpg").convert("RGB").resize((4032, 3024))
    image.save(tmp_path / "large.jpg", quality=90)
    [(view, _, _)] = predict_in_page(open_classifier, [tmp_path / "large.jpg"])
    difference = np.abs(view.astype(int) - utils.load_plain_view(tmp_path / "large.jpg"))
    assert difference.max() <= 4 and difference.mean() < 0.5


def test_images_are_predicted_one_after_the_other(classifier, open_classifier, tmp_path):
    sunflower = ROOT / "assets" / "sample_flowers" / "test" / "54" / "drawing_031.jpg"
    hostile = tmp_path / "<img src=x>.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(hostile)
    (tmp_path / "scan.tiff").write_bytes(b"II*\0")
    files = [sunflower, tmp_path / "scan.tiff", hostile]
    driver = open_classifier.driver
    driver.find_element("id", "choose").send_keys("\n".join(map(str, files)))
    done = ".result ol, .result > .warning"
    wait_for(lambda: len(driver.find_elements("css selector", done)) == 3)
    first, unreadable, last = driver.find_elements("class name", "result")
    model = predict.load_predictor(classifier / "model.onnx")
    ranked = predict.predict(model, [sunflower, hostile], top_k=5)
    for result, predictions in ((first, ranked[0]), (last, ranked[1])):
        shown = [item.text.split("\n") for item in result.find_elements("tag name", "li")]
        likely = [p for p in predictions if p.probability >= 0.0005]
        assert shown == [[p.name, f"{100 * p.probability:.1f} %"] for p in likely]
        assert ("resembles none" in result.text) == predictions[0].is_unusual
    assert ranked[1][0].is_unusual and "<img src=x>.jpg" in last.text
    assert "scan.tiff: it is damaged, or this browser" in unreadable.text


def test_without_a_runtime_the_page_loads_one_version_of_it(classifier, tmp_path):
    flags = ["--checkpoint", classifier / "model.onnx", "--to_html", tmp_path / "page.html"]
    predict.main([*map(str, flags)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "connect-src https://cdn.jsdelivr.net" in page
    assert (
        'https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/ort.wasm.bundle.min.mjs"' in page
    )
    assert len(page) < len((classifier / "page.html").read_text(encoding="utf-8")) - 4_000_000
