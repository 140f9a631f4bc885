"""Making and running a ``.tflite``, by TensorFlow Lite."""

import numpy as np


def tflite_logits(lite, content, batch, builtin=True):
    """(N, H, W, C) -> what the interpreter gives, in floats."""
    resolver = lite.OpResolverType
    kind = resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else resolver.AUTO
    runner = lite.Interpreter(model_content=content, experimental_op_resolver_type=kind)
    [given], [output] = runner.get_input_details(), runner.get_output_details()
    runner.resize_tensor_input(given["index"], batch.shape)
    runner.allocate_tensors()
    runner.set_tensor(given["index"], batch)
    runner.invoke()
    return runner.get_tensor(output["index"])


def eight_bits(tf, converter, low, whole=True, taken="int8", side=224):
    """Post-training quantisation as today's converter does it: int8, a scale for each channel of the weights."""
    random = np.random.default_rng(0)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.uniform(low, low + 2 if low else 255, (1, side, side, 3)).astype("f")] for _ in range(4)
    )
    if whole:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, taken)
    return converter.convert()
