"""What ``--json`` prints, and the JSON Schemas in docs/."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
KINDS = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict, "null": type(None)}
KNOWN = {"$schema", "$ref", "title", "description", "type", "const", "enum", "required", "properties", "items"}


def check_json(value, name):
    """``value`` is as docs/verify.schema.json describes it, or the entry ``name`` of docs/json.schema.json."""
    definitions = json.loads((DOCS / "json.schema.json").read_text())["$defs"]
    schema = json.loads((DOCS / "verify.schema.json").read_text()) if name == "verify" else definitions[name]
    _check(value, schema, definitions, "$")


def _check(value, schema, definitions, at):
    """The words of JSON Schema that are used there; every key must be described."""
    assert schema.keys() <= KNOWN | {"additionalProperties"}, at
    if "$ref" in schema:
        return _check(value, definitions[schema["$ref"].removeprefix("#/$defs/")], definitions, at)
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        types = tuple(KINDS.get(name, (int, float)) for name in names)
        assert isinstance(value, types), at
        assert "boolean" in names or not isinstance(value, bool), at
    if "const" in schema or "enum" in schema:
        assert value in schema.get("enum", [schema.get("const")]), at
    if isinstance(value, dict) and schema:
        assert set(schema.get("required", ())) <= value.keys(), at
        for key, below in value.items():
            described = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            assert described is not None, f"{at}.{key} is not described"
            _check(below, described, definitions, f"{at}.{key}")
    for number, below in enumerate(value if isinstance(value, list) and schema else ()):
        _check(below, schema["items"], definitions, f"{at}[{number}]")
