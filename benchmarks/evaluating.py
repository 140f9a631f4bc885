"""Evaluation: images per second from JPEG files, ours against timm's own parts (PIL, its transform, its model).

.venv/bin/python benchmarks/evaluating.py [--images ../shared/real/images] [--rounds N]

One process, one thread, small_100 with the weights of the authors' 8-bit classifier; both sides see the same files
and take turns. Each photo is seen several times, so that opening the model counts as little as in a real evaluation.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from timing import RESULTS, SHARED, interleaved, table, write_result

import porter
from porter.evaluation.run import Settings, evaluate_classifier
from porter.exports.convert import convert
from porter.mapping.options import PortOptions
from porter.models.timm_import import import_timm
from porter.network.nodes import nodes

REAL = SHARED.parent / "real"
BATCH = 32
TIMES = 8  # that each photo is seen


def with_batch_norms(folded: Path, path: Path) -> Path:
    """The same weights for timm, whose network has batch norms: they add what the biases did."""
    model = porter.create_model("small_100")
    state, biased = model.state_dict(), torch.load(folded, weights_only=True)
    for node in nodes(model.network, model.num_classes):
        if node.layer:
            state[f"{node.layer}.weight"] = biased[f"{node.layer}.weight"]
            state[f"{node.norm or node.layer}.bias"] = biased[f"{node.layer}.bias"]
        if node.norm:
            state[f"{node.norm}.running_var"].fill_(1 - node.epsilon)
    torch.save(state, path)
    return path


def timm_guesses(artifact: Path, files: list[Path]) -> list[int]:
    """timm's validation loop: PIL decodes, timm's transform prepares, timm's model guesses, in batches."""
    from PIL import Image

    timm = import_timm()
    from timm.data import create_transform

    model = timm.create_model("tf_mobilenetv3_small_100").eval()
    model.load_state_dict(torch.load(artifact, weights_only=True))
    transform = create_transform(224, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875)
    guesses: list[int] = []
    for start in range(0, len(files), BATCH):
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in files[start : start + BATCH]])
        with torch.inference_mode():
            guesses += model(batch).argmax(1).tolist()
    return guesses


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=REAL / "images")
    parser.add_argument("--source", type=Path, default=REAL / "v3-small_224_1.0_uint8.tflite")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folded, _ = convert(given.source, Path(temporary) / "folded.pth", "small_100", fake_quant=False)
        artifact = with_batch_norms(folded, Path(temporary) / "a.pth")
        images = Path(temporary) / "images"
        images.mkdir()
        for number in range(TIMES):
            for path in given.images.iterdir():
                (images / f"{number}_{path.name}").symlink_to(path.resolve())
        files = sorted(images.iterdir())
        guesses: dict[str, list[int]] = {}

        def ours() -> None:
            result = evaluate_classifier(
                str(artifact), images, PortOptions("small_100"), Settings(workers=0, batch=BATCH)
            )
            assert result
            guesses["ours"] = [seen.guesses[0] for seen in result.seen]

        def theirs() -> None:
            guesses["timm"] = timm_guesses(artifact, files)

        times = interleaved({"timm's parts": theirs, "mnv3-port evaluate": ours}, given.rounds)
    same = int(np.equal(guesses["ours"], guesses["timm"]).sum())
    speeds = {name: len(files) / one.median for name, one in times.items()}
    base = speeds["timm's parts"]
    rows = [[name, f"{speed:.1f}", f"{speed / base:.2f}"] for name, speed in speeds.items()]
    print(f"{len(files)} photos, one thread; the same top-1 on {same}\n\n{table(['', 'images/s', 'x timm'], rows)}")
    found = {"images": len(files), "same_top1": same, "images_per_second": speeds}
    write_result("evaluating", found | {"ratio": speeds["mnv3-port evaluate"] / base}, given.results)


if __name__ == "__main__":
    main()
