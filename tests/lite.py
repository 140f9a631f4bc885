"""Running a ``.tflite`` by an interpreter of TensorFlow Lite."""


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
