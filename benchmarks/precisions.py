"""What a head that was fitted on features of one precision predicts from features of another.

    python benchmarks/precisions.py --data_dir $FLOWERS_DIR --weights $VGG16_WEIGHTS
    python benchmarks/precisions.py --data_dir flowers --weights $VGG16_WEIGHTS --trained int8

For each precision of the training and of the prediction: accuracy on test, calibration error, the
share of the images with a low novelty, images with another most likely category than in the
precision of the training, and the mean and largest difference in probability.
"""

from __future__ import annotations

import torch
from common import (
    DROPOUT,
    HIDDEN,
    SETTINGS,
    data_parser,
    extract,
    mean_and_deviation,
    run_script,
    show,
)

from evaluation.metrics import metrics
from model import Head
from networks.novelty import NOVELTY_LIMIT
from system.arguments import whole_number
from training import features, fitting
from training.feature_store import default_cache_folder
from training.head_outputs import compute_outputs
from utils import read_data_folder

PRECISIONS = {"int8": torch.int8, "float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ("accuracy", "calibration error", "reported", "another category", "mean difference")


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--cache_dir", default=str(default_cache_folder()))
    parser.add_argument("--seeds", type=whole_number(0), nargs="+", default=[0, 1, 2])
    names = ["int8", "float32"]
    parser.add_argument("--trained", nargs="+", choices=PRECISIONS, default=names)
    parser.add_argument("--predicted", nargs="+", choices=PRECISIONS, default=names)
    args = parser.parse_args()
    data = read_data_folder(args.data_dir)

    def features_of(name: str, splits: tuple[str, ...]) -> features.Features:
        views = features.views_of([image for split in splits for image in data.of(split)], [0])
        return extract(args, data.root, views, strict=True, precision=PRECISIONS[name])

    test = {
        name: features_of(name, ("test",)) for name in dict.fromkeys(args.trained + args.predicted)
    }
    test_labels = torch.tensor(data.labels("test"))
    rows = torch.arange(len(test_labels))
    results: dict[tuple[str, str], list[list[float]]] = {}
    for trained in args.trained:
        samples, _ = fitting.label_features(
            features_of(trained, ("train", "valid", "test")), data, 1
        )
        num_features = samples.features[rows[:1]].shape[-1]
        for seed in args.seeds:
            torch.manual_seed(seed)
            classes = len(data.class_to_idx)
            head = Head(num_features, HIDDEN, classes, classes, DROPOUT)
            fitting.fit(head, samples, SETTINGS)
            evaluation = fitting.evaluate(head, samples)
            expected = evaluation.probs
            for predicted in args.predicted:
                logits, scores = compute_outputs(head, evaluation.detector, test[predicted], rows)
                logits = logits / evaluation.temperature
                probs = logits.softmax(1)
                measured = metrics(logits, test_labels)
                novelty = evaluation.detector.novelty_of(scores)
                difference = (probs - expected).abs().amax(1)
                results.setdefault((trained, predicted), []).append(
                    [
                        100 * measured["accuracy"],
                        100 * measured["ece"],
                        100 * (novelty < NOVELTY_LIMIT).float().mean().item(),
                        float((probs.argmax(1) != expected.argmax(1)).sum()),
                        difference.mean().item(),
                        difference.amax().item(),
                    ]
                )
    table = []
    for (trained, predicted), values in results.items():
        columns = list(zip(*values, strict=True))
        row = [trained, predicted]
        row += [mean_and_deviation(column, 2) for column in columns[:3]]
        row += [f"{sum(columns[3]) / len(values):.1f}", f"{sum(columns[4]) / len(values):.4f}"]
        row.append(f"{max(columns[5]):.3f}")
        table.append(row)
    header = ["trained in", "predicted in", *COLUMNS, "largest"]
    title = f"{args.data_dir}, {len(test_labels)} images of test, seeds {args.seeds}"
    show(title, header, table, {f"{a}, {b}": values for (a, b), values in results.items()})


if __name__ == "__main__":
    run_script(main)
