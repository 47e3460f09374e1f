"""Change the program in one place at a time, and list which tests notice.

    python benchmarks/mutations.py
    python benchmarks/mutations.py --only networks --output noticed.json

Each of MUTATIONS is a fault that a developer may make: another operator, constant or condition, or
a missing call. A copy of the checkout gets one of them, and the tests run: first those of the same
module, then, if all of them pass, all others. The first test that fails is listed. A fault that no
test notices gives exit status 1.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 1200  # seconds for all tests; a fault that makes a test endless is noticed, too
# Fast ones first; pytest runs a test only once.
OTHER_TESTS = ["tests/test_utils.py", "tests/test_model.py", "tests/image_files", "tests/networks"]
OTHER_TESTS += ["tests/evaluation", "tests/training", "tests/checks", "tests/inference", "tests"]


class Mutation(NamedTuple):
    """A text that occurs once in a file of the program, and a faulty one that replaces it."""

    file: str
    text: str
    replacement: str


MUTATIONS = [
    Mutation("train.py", "if output_cat > num_classes:", "if output_cat >= num_classes:"),
    Mutation("train.py", "head=final or head,", "head=head,"),
    Mutation("train.py", 'if args.weights != "none":', "if False:"),
    Mutation("train.py", "    unfinished.remove()\n", ""),
    Mutation("train.py", "    failures |= samples.features.failures\n", ""),
    Mutation("train.py", "torch.manual_seed(args.seed)", "torch.manual_seed(0)"),
    Mutation("train.py", "output_cat == len(folders):", "False:"),
    Mutation("train.py", "< FEW_IMAGES * len", "> FEW_IMAGES * len"),
    Mutation("predict.py", "sys.exit(1)", "sys.exit(0)"),
    Mutation("predict.py", "or len(args.input) > 1:", "or len(args.input) > 2:"),
    Mutation("predict.py", "if (args.resume or args.overwrite) and not args.output:", "if False:"),
    Mutation("predict.py", "    model.check_novelty(args.min_novelty)\n", ""),
    Mutation("predict.py", "args.min_novelty or model.novelty_limit", "model.novelty_limit"),
    Mutation("predict.py", "top_k=max(args.top_k, MIN_PLOTTED)", "top_k=args.top_k"),
    Mutation("utils.py", "return round(size * RESIZE / CROP)", "return size"),
    Mutation("utils.py", "plain_view(image, size)[:, :, ::-1]", "plain_view(image, size)[:, ::-1]"),
    Mutation("utils.py", "if digest_of(file) != digest:", "if False:"),
    Mutation("utils.py", "splits.get(image.path, image.split)", "image.split"),
    Mutation("utils.py", "return values.sub_(mean).div_(std)", "return values.div_(std)"),
    Mutation("utils.py", "if image.path not in paths]", "if image.path in paths]"),
    Mutation("model.py", "avg_pool2d(images, 2).flip(3)", "avg_pool2d(images, 2)"),
    Mutation("model.py", "if image_size <= CROP else", "if image_size < CROP else"),
    Mutation("model.py", "hidden(standardized).mean(1)", "hidden(standardized).amax(1)"),
    Mutation("model.py", " + self.linear(standardized.mean(1))", ""),
    Mutation("model.py", "(hidden)[..., : self.num_classes]", "(hidden)"),
    Mutation("model.py", "list(stds) == STDS", "True"),
    Mutation("model.py", "(logits / self.temperature).softmax(1)", "logits.softmax(1)"),
    Mutation("model.py", "if content[name] != expected[name]]", "if False]"),
    Mutation("model.py", "        detector.check()\n", "        pass\n"),
    Mutation("checks/findings.py", "if original is not image:", "if original is image:"),
    Mutation("checks/labels.py", "(quality < SUSPECT)", "(quality < 2)"),
    Mutation(
        "checks/labels.py", '    is_counted[len(images) - len(data.of("test")) :] = False\n', ""
    ),
    Mutation("checks/labels.py", "if image.digest != other.digest:", "if True:"),
    Mutation("checks/near_duplicates.py", "tril(row - column - 1)", "tril(row - column)"),
    Mutation("checks/data_folder.py", "min(width, height) < size", "min(width, height) <= size"),
    Mutation("checks/data_folder.py", "if image.split != original.split:", "if False:"),
    Mutation("checks/galleries.py", "< 2 * MAX_PAIRS", "< MAX_PAIRS"),
    Mutation("training/optimization.py", "top = 0.3 *", "top = 0.25 *"),
    Mutation("training/optimization.py", "nesterov=True", "nesterov=False"),
    Mutation("training/fitting.py", "total += loss.item() * len(batch)", "total += loss.item()"),
    Mutation(
        "training/fitting.py", '(valid_logits, labels[rows["valid"]])', "(logits, test_labels)"
    ),
    Mutation("training/fitting.py", "head.standardize_by(mean, std)", "pass"),
    Mutation("training/fitting.py", " * LINEAR_IMAGES / images_of_label", ""),
    Mutation("training/linear.py", "add_(penalties.double())", "add_(1)"),
    Mutation("training/linear.py", "weights[labels].float()", "weights[labels].float() * 2"),
    Mutation("training/features.py", '        "precision": str(settings.precision),\n', ""),
    Mutation(
        "training/features.py",
        "first.setdefault(features.keys[index], index)",
        "first[features.keys[index]] = index",
    ),
    Mutation("training/feature_store.py", "_checksum(record) == record[-4:]", "True"),
    Mutation("training/resume.py", "previous.get(name) != value:", "False:"),
    Mutation("training/sampling.py", "balanced_size(labels) // len(counts)", "int(counts.min())"),
    Mutation(
        "training/report.py",
        "[probs[i].max().item() for i in mistakes]",
        "[probs[0].max().item() for i in mistakes]",
    ),
    Mutation("inference/formats.py", 'in ("", "1"):', 'in ("1",):'),
    Mutation("inference/formats.py", 'lineterminator="\\r\\n"', 'lineterminator="\\n"'),
    Mutation("inference/output_file.py", 'if not line.endswith(b"\\n"):', "if False:"),
    Mutation(
        "inference/results.py", "novelty < model.novelty_limit", "novelty > model.novelty_limit"
    ),
    Mutation("inference/results.py", "min_probability or novelty", "min_probability and novelty"),
    Mutation("inference/onnx_model.py", "if OTHER_FILE.search(content):", "if False:"),
    Mutation("inference/onnx_export.py", "            halve_weights(proto)\n", ""),
    Mutation("inference/onnx_export.py", "if not is_int8 and not is_equal:", "if False:"),
    Mutation("inference/predictor.py", "if not np.isfinite(probs).all():", "if False:"),
    Mutation("image_files/decoding.py", "    values[is_transparent] = 255\n", ""),
    Mutation("image_files/decoding.py", "== WHITE_IS_ZERO:", "== 1:"),
    Mutation(
        "image_files/crops.py", "round((image.width - width) / 2)", "(image.width - width) // 2"
    ),
    Mutation("image_files/splits.py", "(count + 5) // 10", "count // 10"),
    Mutation("image_files/splits.py", '- {""}', ""),
    Mutation("image_files/digests.py", "status.changed < started - MIN_AGE", "True"),
    Mutation("image_files/folders.py", "if real in parents:", "if len(parents) > 50:"),
    Mutation("image_files/names.py", "if counts[name] > 1 else", "if counts[name] > 2 else"),
    Mutation("image_files/oxford102.py", "round(len(group) / 10)", "len(group) // 10"),
    Mutation("networks/vgg.py", "/ (height * width)", "/ (height * height)"),
    Mutation("networks/novelty.py", "    variance *= 1 + 1 / len(scores)", "    pass"),
    Mutation("networks/novelty.py", "squares.amin(1)", "squares.amax(1)"),
    Mutation("networks/checkpoint_files.py", "weights_only=True", "weights_only=False"),
    Mutation("networks/checkpoint_files.py", "        if damaged:", "        if False:"),
    Mutation("networks/heat_maps.py", "other.flip(3)", "other"),
    Mutation("networks/int8.py", "round(-lowest / scale)", "0"),
    Mutation("networks/weights.py", "transpose(3, 2, 0, 1)", "transpose(3, 2, 1, 0)"),
    Mutation("evaluation/metrics.py", "(rank < 5)", "(rank <= 5)"),
    Mutation("evaluation/metrics.py", "float(class_accuracy.mean())", "float(correct.mean())"),
    Mutation("evaluation/metrics.py", "not_higher).mean() / 2", "lower).mean() / 2"),
    Mutation("evaluation/calibration.py", "PRIOR_WEIGHT * distance**2 -", "0 -"),
    Mutation("evaluation/calibration.py", "/ bins.counts.sum()", "/ len(bins.counts)"),
    Mutation("evaluation/plots.py", "accuracies[epochs.index(used_epoch)]", "accuracies[-1]"),
    Mutation("evaluation/plots.py", '.replace("$", r"\\$")', ""),
    Mutation("system/files.py", "path = Path(os.path.realpath(path))", "path = Path(path)"),
    Mutation("system/outputs.py", "    if same:", "    if False:"),
    Mutation("system/outputs.py", "and not _is_running(int(number)):", "and int(number):"),
    Mutation("system/scripts.py", "sys.exit(141)", "sys.exit(1)"),
    Mutation("system/arguments.py", "> MAX_OF_TRIPLE:", "> 1000:"),
    Mutation("system/devices.py", "if int(quota) > 0:", "if False:"),
    Mutation("system/devices.py", 'has_int8 and capabilities.get("avx2")', "has_int8"),
    Mutation("system/messages.py", "words[:limit])", "words[: limit + 1])"),
    Mutation("system/workers.py", "if len(pending) > ahead:", "if len(pending) > 10 * ahead:"),
    Mutation("system/pages.py", '.replace("<", "\\\\u003c")', ""),
    Mutation("inference/classifier.html", "Math.trunc(0.5 + (weight", "Math.trunc(0.1 + (weight"),
    Mutation("inference/classifier.html", 'fillStyle = "white"', 'fillStyle = "black"'),
    Mutation("checks/review.html", "relabel: 1, exclude: 2", "relabel: 1, exclude: -1"),
    Mutation("checks/review.html", "localStorage.setItem(STORE", "(STORE"),
    Mutation("training/fitting.py", "uncertainty_of(known.logits)", "uncertainty_of(valid_logits)"),
    Mutation("training/fitting.py", "num_train <= MAX_CROSS_VALIDATED", "num_train >= 0"),
    Mutation("inference/sorting.py", "if not resume and _has_files(folder):", "if False:"),
    Mutation("checks/review.html", "requestAnimationFrame(() => {", "[0].map(() => {"),
    Mutation("evaluation/report_page.py", '"count": int(count)}', '"count": 1}'),
    Mutation("checks/corrections.py", "digest_of_file(file) == correction.digest", "True"),
    Mutation("inference/sorting.py", "or best.is_unusual else", "else"),
    Mutation("inference/sorting.py", "            self.is_first = False\n", ""),
    Mutation(
        "checks/corrections.py", "correction.action != KEEP or path not in", "True or path in"
    ),
    Mutation("assets/serve_example.py", "request.get_data())", "request.data)"),
    Mutation("training/resume.py", "elif self.path.exists():", "elif False:"),
    Mutation("checks/review.html", "?? [current, null]", "?? [0, null]"),
]


def tests_of(checkout: Path, file: str) -> list[str]:
    """Return the tests of a module: its own file, or all of its package."""
    path = Path(file)
    own = checkout / "tests" / path.parent / f"test_{path.name}"
    return [str(own if own.exists() else own.parent)]


def first_failure(checkout: Path, tests: list[str]) -> str:
    """Run tests, in their order, until one fails; returns its name, or "" if none does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-n", "0"]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=checkout, capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f"no end within {TIMEOUT} s"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    return failed[1] if failed else (done.stdout + done.stderr).strip()[-200:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="files whose path begins with this text")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose tests run (this one)")
    parser.add_argument("--output", type=Path, help="a JSON file: mutation -> first failing test")
    args = parser.parse_args()
    noticed = {}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(args.checkout, copy, ignore=shutil.ignore_patterns(".git", "model"))
        for mutation in MUTATIONS:
            if not mutation.file.startswith(args.only):
                continue
            path = copy / mutation.file
            original = path.read_text()
            if original.count(mutation.text) != 1:
                sys.exit(f"{mutation.file} does not have {mutation.text!r} once")
            start = time.perf_counter()
            path.write_text(original.replace(mutation.text, mutation.replacement))
            failure = first_failure(copy, tests_of(copy, mutation.file))
            failure = failure or first_failure(copy, OTHER_TESTS)
            path.write_text(original)
            noticed[f"{mutation.file}: {mutation.text.strip()}"] = failure
            seconds = time.perf_counter() - start
            name = f"{mutation.file}: {mutation.text.strip()} -> {mutation.replacement.strip()}"
            print(f"{seconds:4.0f} s  {name}: {failure or 'NOT NOTICED'}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(noticed, indent=1))
    print(f"{sum(map(bool, noticed.values()))} of {len(noticed)} are noticed")
    sys.exit(not all(noticed.values()))


if __name__ == "__main__":
    main()
