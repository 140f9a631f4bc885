"""Record what the original graph makes of every variant's demo weights: tests/data/original/<variant>.npz.

.venv/bin/python scripts/record_original_outputs.py [--shared ../shared]

The shared checkpoints have a frozen graph that the original code wrote, for some variants. The demo's weights are put
into it. For the other variants, our `tf.nn` graph computes. The tests compare the port with the record, so they need
neither TensorFlow nor those files.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from porter.mapping.files import list_variants
from porter.network.nodes import endpoint_names
from porter.parity.demo import demo_variables, write_demo_checkpoint
from porter.parity.references.choose import open_reference
from porter.parity.references.recorded import record
from porter.parity.samples import noise
from porter.port import plan_port
from porter.sources import protos

FOLDER = Path(__file__).parents[1] / "tests" / "data" / "original"
KEEP = 64  # values of each endpoint: eight files have half a megabyte together
SIZE = (75, 64)  # odd and not square: padding differs on each side


def with_weights(graph: Path, variables: dict[str, np.ndarray]) -> bytes:
    """The frozen ``graph``, its constants replaced by ``variables`` of their names."""
    definition = protos.GraphDef.FromString(graph.read_bytes())
    replaced = set()
    for node in definition.node:
        name = node.name.decode()
        if node.op == b"Const" and name in variables:
            [value] = [attr.value.tensor for attr in node.attr if attr.key == b"value"]
            values = variables[name]
            assert tuple(dim.size for dim in value.tensor_shape.dim) == values.shape, name
            for field in ("float_val", "double_val", "int_val", "half_val"):
                value.ClearField(field)
            value.tensor_content = values.astype("<f4").tobytes()
            replaced.add(name)
    left = variables.keys() - replaced - {"global_step"}
    assert not left, sorted(left)[:5]
    return definition.SerializeToString()


def recorded(variant: str, graphs: list[Path]) -> tuple[bytes, str]:
    """The record, and what computed it."""
    with tempfile.TemporaryDirectory() as temporary:
        source = write_demo_checkpoint(Path(temporary), variant)
        variables = demo_variables(variant)
        for graph in graphs:
            try:
                (source / "graph.pb").write_bytes(with_weights(graph, variables))
            except AssertionError:  # of another variant
                continue
        port = plan_port(source)
        kind = "frozen" if (source / "graph.pb").exists() else "tf.nn"
        levels = np.round((noise(SIZE, seed=0, count=1).images + 1) * 127.5)  # of 8 bits, which compress well
        images = (levels / 127.5 - 1).astype(np.float32)
        names = endpoint_names(port.network, port.classes)
        return record(open_reference(kind, port), images, names, KEEP), kind


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    graphs = sorted((parser.parse_args().shared / "checkpoints").glob("*/*.pb"))
    FOLDER.mkdir(parents=True, exist_ok=True)
    for variant in list_variants():
        data, kind = recorded(variant, graphs)
        (FOLDER / f"{variant}.npz").write_bytes(data)
        print(f"{variant:<18} {kind:<7} {len(data):>8,} bytes")


if __name__ == "__main__":
    main()
