"""What the forms of a network are compared with: the module in float64, and how far its own float32 is from it."""

import numpy as np
import torch

from porter.prediction.boxes import Box

ULP = 2.0**-23


def module_outputs(model, images):
    """The outputs of ``model`` for (N, H, W, C) images in float64, and what another float32 computation may be off by.

    Over an output's scale: eight times the error of the module's own float32, which sums in another order, or the
    rounding of eight numbers where that is larger (docs/verification.md derives the multiple).
    """
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        single, exact = (_arrays(model.to(dtype)(inputs.to(dtype))) for dtype in (torch.float32, torch.float64))
    model.float()
    rounding = max(np.abs(a - b).max() / (np.abs(b).max() or 1) for a, b in zip(single, exact, strict=True))
    return exact, 8 * max(rounding, 8 * ULP)


def _arrays(found):
    return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    scale = np.abs(expected).max() or 1.0
    assert np.abs(found - expected).max() <= tolerance * scale


def run_onnx(path, images):
    """The outputs of an ``.onnx`` for (N, H, W, C) images; maps are NCHW."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})


def run_tflite(path, images):
    """The outputs of a ``.tflite`` for (N, H, W, C) images by LiteRT's own kernels; maps are NHWC."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    runner = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
    [given] = runner.get_input_details()
    runner.resize_tensor_input(given["index"], images.shape)
    runner.allocate_tensors()
    runner.set_tensor(given["index"], images)
    runner.invoke()
    return [runner.get_tensor(one["index"]) for one in runner.get_output_details()]


def check_files(onnx, tflite, images, exact, tolerance):
    """Both files give ``exact``, (N, ...) or NCHW; what they give beside it does not count."""
    for found, want in zip(run_onnx(onnx, images), exact, strict=False):
        close(found, want, tolerance)
    for found, want in zip(run_tflite(tflite, images), exact, strict=False):
        close(found, want.transpose(0, 2, 3, 1) if want.ndim == 4 else want, tolerance)


def suppressed(boxes, scores, overlap=0.6, most=100, least=1e-8):
    """The best of (boxes, 4), with ``scores`` (boxes, classes) without the background.

    Non-maximum suppression as object_detection describes it, class by class; classes count from 1 on.
    """
    found = []
    areas = np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)
    for number in range(scores.shape[1]):
        left = [box for box in np.argsort(-scores[:, number], kind="stable") if scores[box, number] > least]
        kept = 0
        while left and kept < most:
            best, *others = left
            found.append((float(scores[best, number]), number + 1, best))
            kept += 1
            others = np.array(others, int)
            low = np.maximum(boxes[others, :2], boxes[best, :2])
            high = np.minimum(boxes[others, 2:], boxes[best, 2:])
            common = np.prod(np.maximum(high - low, 0), axis=1)
            together = areas[others] + areas[best] - common
            left = list(others[~(common > overlap * together)])
    found.sort(key=lambda one: -one[0])
    return [Box(*np.clip(boxes[box], 0, 1).tolist(), number, score) for score, number, box in found[:most]]
