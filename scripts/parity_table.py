"""The README's parity table: all six variants against the recorded graphs, tf.nn in float64, and in timm's own class.

.venv/bin/python scripts/parity_table.py [FOLDER OF CHECKPOINTS]     (default ../shared/checkpoints)

Exits with 1 when a variant misses a bar.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from porter import verify
from porter.conversion import convert, plan_port
from porter.network.timm_import import import_timm

ROOT = Path(__file__).parent.parent


def timm_error(folder: Path, variant: str) -> float:
    """Max |timm's logits - TensorFlow's| over the scale, our artifact loaded with strict=True."""
    with tempfile.TemporaryDirectory() as temporary:
        path, _ = convert(folder, Path(temporary) / "a.pth")
        model = import_timm().create_model(f"tf_mobilenetv3_{variant}").eval()
        model.load_state_dict(torch.load(path, weights_only=True), strict=True)
    with np.load(folder / "expected.npz") as file:
        images, logits = torch.from_numpy(file["input"]).permute(0, 3, 1, 2), file["logits"][:, 1:]
    with torch.no_grad():
        return float(np.abs(model(images).numpy() - logits).max() / np.abs(logits).max())


def main() -> int:
    """Print the table in Markdown."""
    folders = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "checkpoints"
    print("| variant | variables, left over | logits | endpoints, worst | float64, worst | in timm's class, logits |")
    print("|---|---|---|---|---|---|")
    good = True
    for folder in sorted(path for path in folders.iterdir() if (path / "expected.npz").is_file()):
        plan = plan_port(folder).plan
        recorded = verify(folder, reference=str(folder / "expected.npz"))
        exact = verify(folder, reference="tf.nn", dtype="float64")
        rows = recorded.worst_rows()
        logits = next(row.max_rel for row in rows if row.endpoint == "Logits")
        worst = max(rows, key=lambda row: row.max_rel)
        furthest = max(row.max_rel for row in exact.rows)
        timm = timm_error(folder, plan.variant)
        good &= recorded.passed and exact.passed and timm <= 1e-5
        print(
            f"| `{plan.variant}` | {len(plan.steps)}, 0 | {logits:.1e} | {worst.max_rel:.1e} of {len(rows)} | "
            f"{furthest:.1e} | {timm:.1e} |",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
