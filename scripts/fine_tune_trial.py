"""How much the momentum of batch norms matters in fine-tuning on little data: the table of docs/fine-tuning.md.

    python scripts/fine_tune_trial.py SOURCE IMAGES [--steps N] [--size PIXELS]

SOURCE is a trained classifier. IMAGES are files whose names begin with WordNet ids: animals have n01 and n02. A new
classifier of two classes, and all else, learns from every other image. Printed is what the rest gets in eval mode.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import porter
from porter.models.create import OpenedModel, open_model
from porter.photos.images import find_photos, normalized, read_image, resized

BATCH, RATE = 8, 1e-4
MOMENTA = {
    "batch norms in eval mode": None,
    "0.003 (slim, and the port)": 0.003,
    "0.01": 0.01,
    "0.1 (PyTorch, and timm)": 0.1,
    "0.997 (slim's decay, copied)": 0.997,
}


def photos(opened: OpenedModel, folder: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, size, size), and 1 for an animal."""
    spec = opened.input
    files = find_photos(folder)
    images = [
        normalized(resized(read_image(file), (size, size), spec.crop, "card"), spec.mean, spec.std) for file in files
    ]
    labels = [int(file.name.startswith(("n01", "n02"))) for file in files]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]), torch.tensor(labels)


def fine_tuned(
    source: str, images: torch.Tensor, labels: torch.Tensor, momentum: float | None, steps: int
) -> nn.Module:
    """A port of ``source`` after ``steps`` of AdamW; without a ``momentum``, batch norms compute as at inference."""
    torch.manual_seed(0)
    model = porter.create_model(source, num_classes=2)
    model.train()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = momentum
        norm.train(momentum is not None)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for _ in range(steps):
        chosen = torch.randperm(len(images))[:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("images", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    images, labels = photos(open_model(given.source), given.images, given.size)
    print("| momentum | loss | right |\n|---|---|---|")
    for name, momentum in MOMENTA.items():
        model = fine_tuned(given.source, images[::2], labels[::2], momentum, given.steps)
        with torch.no_grad():
            logits = model(images[1::2])
        right = int((logits.argmax(1) == labels[1::2]).sum())
        print(f"| {name} | {F.cross_entropy(logits, labels[1::2]):.3f} | {right} of {len(logits)} |", flush=True)


if __name__ == "__main__":
    main()
