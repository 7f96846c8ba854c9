"""A transformer in the format of ONNX Runtime or OpenVINO: exported once, and held against torch at every opening."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, MissingExtraError
from retriever.files import made_once

Runtime = Literal["onnx", "openvino"]

Inputs = Mapping[str, NDArray[np.int64]]
"""input_ids, attention_mask and, where the model takes them, token_type_ids, each [B, L]."""

Compute = Callable[[Inputs], NDArray[np.float32]]

TOLERANCE = 1e-3
"""How far a number that the exported model gives may be from torch's."""


class ModelOutput:
    """One output of a transformer, such as its logits, as a function of arrays: what torch says.

    Attributes:
        model: of transformers, on the processor.
        output: its name.
    """

    def __init__(self, model: Any, output: str) -> None:
        self.model = model
        self.output = output

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """[B, ...] for texts [B, L]."""
        import torch

        with torch.inference_mode():
            found: NDArray[np.float32] = self.module()(**{name: torch.from_numpy(values) for name, values in inputs.items()}).float().numpy()
        return found

    def module(self) -> Any:
        """As a module that takes arrays in their order and gives the output alone, which is what exporters trace."""
        import torch

        output = self.output

        class Alone(torch.nn.Module):
            def __init__(self, inner: torch.nn.Module) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
                types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
                return self.inner(input_ids=input_ids, attention_mask=attention_mask, **types)[output]

        return Alone(self.model).eval()


def open_exported(runtime: Runtime, reference: ModelOutput, folder: Path, probe: Sequence[Inputs], where: str, instead: str) -> Compute:
    """The same function of arrays, computed by another runtime on the processor.

    Args:
        runtime: which.
        reference: the function that torch computes.
        folder: belongs to this model alone; the export is made there where it is not there yet, and kept if it agrees.
        probe: texts with padding among them, on which it must say what torch says.
        where: begins error messages.
        instead: ends them: what to do about it.

    Raises:
        MissingExtraError: the runtime's packages are not installed.
        ConfigError: the model cannot be exported, or the exported one says something else.
    """
    export, read = (_onnx if runtime == "onnx" else _openvino)(reference, probe[0])

    def make(new: Path) -> None:
        try:
            if list(probe[0])[:2] != ["input_ids", "attention_mask"]:
                raise ValueError(f"it takes {', '.join(probe[0])}, and input_ids and attention_mask are needed")
            export(new)
            check_agreement(read(new), reference, probe, where, instead)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(f"{where}: the model cannot be exported ({str(error).splitlines()[0]:.120}). {instead}") from error

    opened = read(made_once(_place(runtime, folder), f"exporting a model for {runtime}", make))
    check_agreement(opened, reference, probe, where, instead)
    return opened


def open_rounded_onnx(folder: Path, bits: int = 8) -> Compute:
    """The fp32 export that lies in a folder with 8-bit weights; ONNX Runtime rounds what goes into its products, to 8 bits, as it comes.

    Args:
        folder: that of `open_exported`.
        bits: of the weights' 8, those that are used: 7 where a processor's sums of two products of bytes would overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = _place("onnx", folder)
    path = source / ("int8.onnx" if bits == 8 else f"int8-of-{bits}-bits.onnx")
    if not path.exists():
        with _silent(), tempfile.TemporaryDirectory(dir=source) as temporary:
            made = Path(temporary) / path.name
            quantize_dynamic(source / "model.onnx", made, weight_type=QuantType.QInt8, per_channel=True, reduce_range=bits < 8)
            made.replace(path)
    return _onnx_session(path)


def check_agreement(compute: Compute, reference: Compute, probe: Sequence[Inputs], where: str, instead: str) -> None:
    """Refuses an export that says something else.

    Raises:
        ConfigError: an output is further than `TOLERANCE` from torch's.
    """
    difference = largest_difference(compute, reference, probe)
    if not difference <= TOLERANCE:
        raise ConfigError(f"{where}: the exported model says something else than torch: outputs differ by {difference:.3g}, allowed is {TOLERANCE}. {instead}")


def largest_difference(one: Compute, other: Compute, probe: Sequence[Inputs]) -> float:
    """The largest absolute difference of two functions' outputs on a probe; infinite where one is not a number."""
    differences = [np.abs(one(inputs) - other(inputs)).max() for inputs in probe]
    return float(np.nan_to_num(np.max(differences), nan=np.inf))


def _openvino(reference: ModelOutput, example: Inputs) -> tuple[Callable[[Path], None], Callable[[Path], Compute]]:
    """How to write an export, and how to read it."""
    openvino = _package("openvino")
    core = openvino.Core()

    def export(target: Path) -> None:
        import torch

        with _silent(), torch.no_grad():
            made = openvino.convert_model(reference.module(), example_input={name: torch.from_numpy(values) for name, values in example.items()})
        openvino.save_model(made, target / "model.xml", compress_to_fp16=False)

    def read(source: Path) -> Compute:
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _threads()}
        compiled = core.compile_model(core.read_model(source / "model.xml"), "CPU", options)
        return _on_named_inputs(lambda inputs: compiled(inputs)[0], [one.any_name for one in compiled.inputs])

    return export, read


def _onnx(reference: ModelOutput, example: Inputs) -> tuple[Callable[[Path], None], Callable[[Path], Compute]]:
    """How to write an export, and how to read it."""
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        _package(needed)

    def export(target: Path) -> None:
        import torch

        names, inputs = list(example), tuple(torch.from_numpy(values) for values in example.values())
        shapes = tuple({0: "texts", 1: "tokens"} for _ in names)
        with _silent(), torch.no_grad():
            made = torch.onnx.export(
                reference.module(), inputs, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=[reference.output], verbose=False
            )
        if made is None:
            raise RuntimeError("torch.onnx.export gave nothing")
        made.save(str(target / "model.onnx"))

    return export, lambda source: _onnx_session(source / "model.onnx")


def _onnx_session(path: Path) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _on_named_inputs(lambda inputs: session.run(None, inputs)[0], [one.name for one in session.get_inputs()])


def _on_named_inputs(compute: Callable[[dict[str, NDArray[np.int64]]], Any], names: Sequence[str]) -> Compute:
    """A function that is given the inputs that its model has: an export leaves out those that change nothing."""
    return lambda inputs: np.asarray(compute({name: inputs[name] for name in names}), dtype=np.float32)


def _place(runtime: Runtime, folder: Path) -> Path:
    """Where the export for the installed version lies."""
    return folder / f"{runtime}-{importlib.metadata.version('onnxruntime' if runtime == 'onnx' else runtime)}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Exporters warn about what the check of agreement then looks at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _package(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "export") from error
