"""A .tflite file as a C header, the form in which LiteRT for Microcontrollers takes a model.

Its kernels are fewer: it has no DENSIFY, dequantizes neither f16 nor weights with a scale a
channel, and computes no int8 weights on f32 inputs. So a header holds f32, or int8 throughout,
with zeros stored as they are.
"""

import importlib.util
import math
import re
import tempfile
from typing import Any

import numpy as np

from edge_export.reading import parsed
from edge_export.schema import ALIGNMENT, schema
from edge_export.verify import Floats, Track, redirected, silent
from fedsparse.errors import ExportError, MissingExtraError

LINE = 12
"""Bytes on a line of the array."""
_ADD = {
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "MAX_POOL_2D": "MaxPool2D",
    "AVERAGE_POOL_2D": "AveragePool2D",
    "PADV2": "PadV2",
}
"""Operators whose method of MicroMutableOpResolver is not their name in capitals and small."""


def identifier(stem: str) -> str:
    """Return a file's name as a C and C++ identifier."""
    name = re.sub(r"[^0-9a-z]+", "_", stem.lower()).strip("_") or "model"
    name = f"n{name}" if name[0].isdigit() else name
    return name if name.endswith("model") else f"{name}_model"  # never a keyword


def render(content: bytes, stem: str, about: str, arena_bytes: int | None = None) -> bytes:
    """Return a .tflite file's bytes as a header for C11, C++11 and later; `about` is one line.

    `arena_bytes` is what `arena` found, None where it was not asked.
    """
    model = parsed(content, stem)
    graph = model.subgraphs[0]
    name = identifier(stem)
    codes = [_code(model.operatorCodes[number]) for number in _used(model)]
    given, made = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    upper = name.upper()
    lines = [
        f"/* {_comment(about)}",
        " *",
        " * A model for LiteRT for Microcontrollers: tflite::GetModel takes the array. Weights are",
        " * stored densely, because this runtime has no kernel for sparse ones.",
        f" * {_quantization(graph)} Images are rows, columns, channels.",
        f" * {_arena(graph, arena_bytes)}",
        " * What it takes on the device, arena_used_bytes() tells there.",
        " *",
        f" * tflite::MicroMutableOpResolver<{upper}_OPERATORS> resolver;",
        *(f" * resolver.Add{_method(code)}();" for code in codes),
        " */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#ifndef __cplusplus",
        "#include <stdalign.h>",
        "#endif",
        "",
        f"#define {upper}_BYTES {len(content)}u",
        f"#define {upper}_OPERATORS {len(codes)}",
        *_described(f"{upper}_INPUT", given),
        *_described(f"{upper}_OUTPUT", made),
        "",
        f"alignas({ALIGNMENT}) static const unsigned char {name}[{upper}_BYTES] = {{",
        *_rows(content),
        "};",
        "",
        f"#endif /* {upper}_H */",
        "",
    ]
    return "\n".join(lines).encode()


def content_of(header: bytes) -> bytes:
    """Return the bytes of the array in a header that `render` wrote."""
    body = header.decode().partition("= {")[2].partition("}")[0]
    return bytes(int(word, 16) for word in body.replace(",", " ").split())


def _rows(content: bytes) -> list[str]:
    words = [f"0x{byte:02x}," for byte in content]
    return ["  " + " ".join(words[n : n + LINE]) for n in range(0, len(words), LINE)]


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("\\", "/").replace("\n", " ")


def _described(name: str, tensor: Any) -> list[str]:
    """Return the macros of an input or output, which are f32 in every file of ours."""
    shape = [int(size) for size in tensor.shape]
    sizes = ", ".join(map(str, shape))
    return [
        f"#define {name}_FLOATS {math.prod(shape)}",
        f"#define {name}_RANK {len(shape)}",
        f"#define {name}_SHAPE {{{sizes}}}",
    ]


def _quantization(graph: Any) -> str:
    """Return a sentence on how the first and last int8 values stand for numbers."""
    whole = [
        tensor
        for tensor in graph.tensors
        if tensor.type == schema().TensorType.INT8 and not tensor.buffer
    ]
    if not whole:
        return "Values are f32 throughout."
    ends = " and ".join(
        f"(q - {int(t.quantization.zeroPoint[0])}) * {float(t.quantization.scale[0]):.9g}"
        for t in (whole[0], whole[-1])
    )
    return f"int8 inside, f32 at both ends; the first and last int8 values stand for\n * {ends}."


def _arena(graph: Any, arena_bytes: int | None) -> str:
    if arena_bytes is None:
        return (
            f"The arena takes more than {_least(graph):,} bytes, the inputs and outputs of its\n"
            " * largest operator."
        )
    return f"An arena of {arena_bytes:,} bytes is just enough on a 64-bit machine."


def _least(graph: Any) -> int:
    """Return bytes that every arena must hold: of the operator with the largest values."""
    types = schema().TensorType
    size = {types.FLOAT32: 4, types.INT8: 1, types.INT32: 4}

    def nbytes(number: int) -> int:
        tensor = graph.tensors[number]
        if tensor.buffer:  # a constant stays where the file is
            return 0
        return math.prod(int(n) for n in tensor.shape) * size.get(tensor.type, 1)

    return max(
        sum(nbytes(int(n)) for n in {*operator.inputs, *operator.outputs})
        for operator in graph.operators
    )


def _used(model: Any) -> list[int]:
    """Return the operator codes in use, one for each operator whatever its version."""
    found: dict[int, int] = {}
    for operator in model.subgraphs[0].operators:
        number = int(operator.opcodeIndex)
        found.setdefault(int(model.operatorCodes[number].builtinCode), number)
    return list(found.values())


def _code(code: Any) -> str:
    names: dict[str, int] = dict(vars(schema().BuiltinOperator))
    return next(name for name, number in names.items() if number == code.builtinCode)


def _method(code: str) -> str:
    return _ADD.get(code) or "".join(word.capitalize() for word in code.split("_"))


# -- under the runtime itself -----------------------------------------------------------------

LARGEST_ARENA = 1 << 28


def installed() -> bool:
    """Whether the runtime is there to check files with: the extra `micro`."""
    return importlib.util.find_spec("tflite_micro") is not None


def run(content: bytes, samples: Floats, track: Track = iter) -> Floats:
    """Return a .tflite file's outputs (n, outputs) under LiteRT for Microcontrollers.

    Raises MissingExtraError without the extra `micro`, ExportError for what it does not run.
    """
    interpreter = _interpreter(content, LARGEST_ARENA)
    rows = []
    for number in track(range(len(samples))):
        sample = samples[number]
        image = sample.transpose(1, 2, 0) if sample.ndim == 3 else sample
        interpreter.set_input(np.ascontiguousarray(image)[None], 0)
        interpreter.invoke()
        rows.append(interpreter.get_output(0).reshape(-1).copy())
    return np.stack(rows)


def arena(content: bytes) -> int:
    """Return the bytes that the runtime allocates for a file on this machine.

    Pointers are wider here than on a microcontroller, so there it is a little less. Raises as
    `run` does.
    """
    interpreter = _interpreter(content, LARGEST_ARENA)
    with tempfile.TemporaryFile() as said, redirected(said.fileno()):
        interpreter.print_allocations()  # past Python; a trial with less would crash
        said.seek(0)
        found = re.search(rb"allocation total (\d+) bytes", said.read())
    if found is None:
        raise ExportError("LiteRT for Microcontrollers does not say what it allocates")
    return int(found[1])


def _interpreter(content: bytes, nbytes: int) -> Any:
    try:
        module = importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    except ImportError:
        raise MissingExtraError("running a file on LiteRT for Microcontrollers", "micro") from None
    try:
        with silent():
            return module.Interpreter.from_bytes(content, arena_size=nbytes)
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:160] if str(error) else "it says no more"
        raise ExportError(f"LiteRT for Microcontrollers does not run the file: {reason}") from None
