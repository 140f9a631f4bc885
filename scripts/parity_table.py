"""Print the README's parity table: all six variants against the original graph or tf.nn, here and in timm's class.

.venv/bin/python scripts/parity_table.py [FOLDER OF CHECKPOINTS]     (default ../shared/checkpoints)

Exits with 1 when a variant has no parity.
"""

import sys
import tempfile
from pathlib import Path

from porter import verify
from porter.exports.convert import convert
from porter.parity.verdict import Verdict
from porter.port import plan_port

ROOT = Path(__file__).parent.parent


def in_timm(folder: Path, variant: str) -> Verdict:
    """Verify our artifact in timm's own class, loaded with strict=True."""
    with tempfile.TemporaryDirectory() as temporary:
        path, _ = convert(folder, Path(temporary) / "a.pth")
        return verify(folder, f"timm:tf_mobilenetv3_{variant}", weights_file=path, sizes=[(224, 224)])


def main() -> int:
    """Print the table in Markdown."""
    folders = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "checkpoints"
    print("| variant | variables, left over | reference | endpoints | float64, worst | float32 | in timm's class |")
    print("|---|---|---|---|---|---|---|")
    good = True
    for folder in sorted(path for path in folders.iterdir() if (path / "ema").is_dir()):
        plan = plan_port(folder).plan
        ours, timm = verify(folder), in_timm(folder, plan.variant)
        good &= ours.passed and timm.passed
        print(
            f"| `{plan.variant}` | {len(plan.steps)}, 0 | {ours.reference.split(' (')[0]} | {len(ours.worst_rows())} | "
            f"{ours.function_distance():.1e} | {ours.noise_ratio():.2f} x | "
            f"{timm.function_distance():.1e}, {timm.noise_ratio():.2f} x |",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
