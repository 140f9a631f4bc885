"""The model card, and the configuration that timm reads from a Hugging Face folder."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from porter.artifacts.files import Artifact
from porter.conversion import Port
from porter.evaluation.result import Evaluation
from porter.mapping.cost import multiply_accumulates
from porter.mapping.network import Network
from porter.mapping.schema import VariantMapping
from porter.parity.verdict import Verdict

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # not learned


def model_name(mapping: VariantMapping) -> str:
    """timm's name of the architecture, or the variant's."""
    return mapping.timm or f"mobilenetv3_{mapping.variant}"


def config(port: Port) -> bytes:
    """``config.json`` for ``timm.create_model("local-dir:FOLDER")``."""
    spec, network = port.mapping.input, port.network
    pretrained = {
        "custom_load": False,
        "input_size": [spec.channels, spec.size, spec.size],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": spec.crop,
        "crop_mode": "center",
        "mean": spec.mean,
        "std": spec.std,
        "num_classes": port.plan.num_classes,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }
    content = {
        "architecture": model_name(port.mapping),
        "num_classes": port.plan.num_classes,
        "num_features": network.features,
        "pretrained_cfg": pretrained,
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def model_card(
    port: Port,
    artifact: Artifact,
    weights: Path,
    verdict: Verdict,
    evaluation: Evaluation | None,
    exports: dict[str, Path],
) -> bytes:
    """The card: Hugging Face's front matter, how to use the weights, and timm's block of ``model-index``."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    name, network, spec = model_name(port.mapping), port.network, port.mapping.input
    parameters = sum(value.numel() for entry, value in artifact.tensors.items() if not entry.endswith(STATISTICS))
    operations = multiply_accumulates(network, spec.size, port.plan.num_classes)
    index = _model_index(port, name, parameters, operations, weights, evaluation)
    template = files(__package__).joinpath("card.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = environment.from_string(template).render(
        front_matter=yaml.safe_dump(_front_matter(name, evaluation), sort_keys=False),
        model_index=yaml.safe_dump(index, sort_keys=False),
        name=name,
        port=port,
        spec=spec,
        parameters=parameters,
        operations=operations,
        weights=weights.name,
        metadata=artifact.metadata,
        verdict=verdict,
        evaluation=evaluation,
        exports={kind: path.name for kind, path in exports.items()},
        not_in_timm=_not_in_timm(port),
    )
    return text.encode()


def _not_in_timm(port: Port) -> str | None:
    """Why timm's class does not compute what these weights are for; None where it does."""
    if port.mapping.timm is None:
        return "timm has no such architecture"
    if port.plan.folded or port.network.folded:
        return "batch norms are folded into these weights, and timm's class has them"
    if port.network.blocks[0].kind == "projection":
        return "timm's class has a ReLU behind the first projection that the original network has not"
    return None


def _front_matter(name: str, evaluation: Evaluation | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tags": ["image-classification", "timm", "mobilenetv3"],
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "datasets": ["imagenet-1k"],
    }
    if evaluation:
        metrics = [
            {"type": "accuracy", "name": f"Top {k} accuracy", "value": round(evaluation.accuracy(0, k).value * 100, 3)}
            for k in (1, 5)
        ]
        task = {"type": "image-classification", "name": "Image Classification"}
        dataset = {"type": "imagenet-1k", "name": f"{len(evaluation.seen)} labelled images"}
        found["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return found


def _model_index(
    port: Port, name: str, parameters: int, operations: int, weights: Path, evaluation: Evaluation | None
) -> dict[str, Any]:
    training, spec = port.mapping.training, port.mapping.input
    metadata: dict[str, Any] = {
        "FLOPs": operations,
        "Parameters": parameters,
        "File Size": weights.stat().st_size,
        "Architecture": _architecture(port.network, port.plan.num_classes),
        "Tasks": ["Image Classification"],
    }
    if training:
        metadata |= {
            "Training Techniques": ["RMSProp", "Weight Decay"],
            "Training Data": ["ImageNet"],
            "Training Resources": training.resources,
        }
    metadata["ID"] = name
    if training:
        metadata |= {
            "LR": training.lr,
            "Dropout": training.dropout,
            "Momentum": training.momentum,
            "Batch Size": training.batch_size,
            "Weight Decay": training.weight_decay,
            "RMSProp Decay": training.rmsprop_decay,
        }
    metadata |= {"Crop Pct": str(spec.crop), "Image Size": str(spec.size), "Interpolation": "bilinear"}
    model: dict[str, Any] = {
        "Name": name,
        "In Collection": "TF MobileNet V3",
        "Metadata": metadata,
        "Weights": weights.name,
    }
    if evaluation:
        metrics = {f"Top {k} Accuracy": f"{evaluation.accuracy(0, k).value:.2%}" for k in (1, 5)}
        dataset = f"{len(evaluation.seen)} labelled images"
        model["Results"] = [{"Task": "Image Classification", "Dataset": dataset, "Metrics": metrics}]
    paper = {"Title": "Searching for MobileNetV3", "URL": "https://arxiv.org/abs/1905.02244"}
    return {"Type": "model-index", "Collections": [{"Name": "TF MobileNet V3", "Paper": paper}], "Models": [model]}


def _architecture(network: Network, classes: int) -> list[str]:
    """What the network is made of, in timm's words, read from its table."""
    activations = {block.activation for block in network.blocks} | {network.stem_activation, network.last_activation}
    parts = {
        "1x1 Convolution": True,
        "Batch Normalization": True,
        "Convolution": True,
        "Dense Connections": classes > 0,
        "Depthwise Separable Convolution": any(block.depthwise for block in network.blocks),
        "Dropout": classes > 0,
        "Global Average Pooling": True,
        "Hard Swish": "hard_swish" in activations,
        "Inverted Residual Block": any(block.expands for block in network.blocks),
        "ReLU": "relu" in activations,
        "Residual Connection": any(block.residual for block in network.blocks),
        "Softmax": classes > 0,
        "Squeeze-and-Excitation Block": any(block.squeezed for block in network.blocks),
    }
    return [name for name, there in parts.items() if there]
