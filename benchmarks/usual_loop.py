"""Train by the usual transfer-learning loop, with which train_speed.py compares train.py.

Every epoch decodes every image, crops and mirrors it at random, and runs the whole frozen VGG16 in
float32. Validation decodes and runs its images in every epoch as well. The classifier is the usual
25088 -> 512 -> N.

    python benchmarks/usual_loop.py --data_dir flowers --weights vgg16_features.pth
"""

import argparse
import copy

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


class BFloat16(nn.Sequential):
    """Layers that compute in bfloat16; input and output are float32."""

    def forward(self, images):
        """Images (N, 3, H, W) -> maps (N, 512, H / 32, W / 32)."""
        self.to(torch.bfloat16, memory_format=torch.channels_last)
        return super().forward(images.bfloat16()).float()


def evaluate(model, loader):
    """Return the accuracy, 0-1."""
    model.eval()
    with torch.no_grad():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--weights", required=True, help="state_dict of torchvision's convolutions")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--learning_rate", type=float, default=0.001, help="of Adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bfloat16", action="store_true", help="in the convolutions; to measure accuracy, not time"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    random_crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    center_crop = [transforms.Resize(256), transforms.CenterCrop(224)]
    loaders = {}
    for split in ("train", "valid", "test"):
        steps = [*(random_crop if split == "train" else center_crop), transforms.ToTensor()]
        transform = transforms.Compose([*steps, normalize])
        data = datasets.ImageFolder(f"{args.data_dir}/{split}", transform)
        loaders[split] = DataLoader(data, 64, shuffle=split == "train", num_workers=2)

    model = models.vgg16()
    model.load_state_dict(torch.load(args.weights, weights_only=True), strict=False)
    model.requires_grad_(False)
    if args.bfloat16:
        model.features = BFloat16(*model.features)
    model.classifier = nn.Sequential(
        nn.Linear(25088, 512),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(512, len(loaders["train"].dataset.classes)),
    )
    optimizer = torch.optim.Adam(model.classifier.parameters(), args.learning_rate)
    best, state = -1.0, None
    for epoch in range(1, args.epochs + 1):
        model.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            with torch.no_grad():
                features = model.features(images).flatten(1)
            nn.functional.cross_entropy(model.classifier(features), labels).backward()
            optimizer.step()
        accuracy = evaluate(model, loaders["valid"])
        print(f"epoch {epoch}: valid accuracy {accuracy:.1%}", flush=True)
        if accuracy > best:
            best, state = accuracy, copy.deepcopy(model.classifier.state_dict())
    model.classifier.load_state_dict(state)
    print(f"test accuracy {evaluate(model, loaders['test']):.1%}")


if __name__ == "__main__":
    main()
