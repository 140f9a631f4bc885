"""Record the state-dict keys and shapes of timm's tf_mobilenetv3_* models: tests/data/timm_keys.json.

Needs timm: .venv/bin/python scripts/record_timm_keys.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from porter.mapping.files import list_variants, load_variant
from porter.models.timm_import import import_timm

timm = import_timm()
recorded = {
    variant: {key: list(value.shape) for key, value in timm.create_model(name).state_dict().items()}
    for variant in list_variants()
    if (name := load_variant(variant).timm)
}
out = ROOT / "tests" / "data" / "timm_keys.json"
out.write_text(json.dumps({"timm": timm.__version__, "keys": recorded}, separators=(",", ":")) + "\n")
print(f"{out}: timm {timm.__version__}, {sum(map(len, recorded.values()))} keys of {len(recorded)} models")
