"""What multiplies the matrices of a cross-encoder: torch, ONNX Runtime or OpenVINO, exported once and checked against torch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import importlib.metadata
import logging
import queue
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError, MissingExtraError
from retriever.files import make_folder, replace_folder
from retriever.token_batches import TokenBatch

BackendName = Literal["torch", "onnx", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TOLERANCE = 1e-3
"""How far an exported model's fp32 logits may be from torch's."""

Logits = NDArray[np.float32]
"""[B, labels]."""


class Backend(Protocol):
    """Gives the logits of token batches."""

    def logits(self, batch: TokenBatch) -> Logits:
        """[B, labels], float32; may be called from several threads at once."""
        ...

    @property
    def workers(self) -> int:
        """How many batches it works on at once."""
        ...


@dataclasses.dataclass(frozen=True)
class BackendPlan:
    """What is to be opened.

    Attributes:
        name: of the backend.
        precision: "fp32", "bf16" or "fp16"; never "auto".
        int8: whether the weights of linear layers are rounded to 8 bits, and activations as they come.
    """

    name: BackendName
    precision: Literal["fp32", "bf16", "fp16"]
    int8: bool


def devices() -> list[str]:
    """What torch can compute on: every GPU, else Apple's, else the processor."""
    import torch

    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def plan_backend(name: BackendName, precision: Precision, int8: bool, where: str) -> BackendPlan:
    """The backend with its precision settled: "auto" is half precision on a GPU that has it, fp32 elsewhere.

    Raises:
        ConfigError: the parts do not go together on this machine; the message begins with `where`.
    """
    on_gpu = name == "torch" and devices()[0].startswith("cuda")
    settled = (_half_precision() if on_gpu and not int8 else "fp32") if precision == "auto" else precision
    if int8 and name == "openvino":
        raise ConfigError(f'{where}: int8 = true is for the backends torch and onnx. Choose backend = "torch", or leave int8 out')
    if int8 and (settled != "fp32" or on_gpu):
        raise ConfigError(f'{where}: int8 = true runs on the processor in fp32. Set precision = "fp32" and hide the GPUs, or leave int8 out')
    if name != "torch" and settled != "fp32":
        raise ConfigError(f'{where}: backend "{name}" computes in fp32 here, found precision = "{settled}". Choose backend = "torch" for it')
    return BackendPlan(name, settled, int8)


def open_backend(plan: BackendPlan, model: Any, folder: Path, probe: Sequence[TokenBatch], where: str) -> Backend:
    """The backend of a model, exported into `folder` where it needs that and is not there yet, and checked there against torch.

    Args:
        plan: of `plan_backend`.
        model: a sentence-transformers CrossEncoder on the processor.
        folder: belongs to this model alone.
        probe: batches, with padding among them, on which an exported model must say what torch says.
        where: begins error messages.

    Raises:
        MissingExtraError: the backend's packages are not installed.
        ConfigError: the model cannot be exported, or the exported one says something else.
    """
    reference = TorchBackend(model.eval(), ["cpu"], "fp32")
    if plan.name == "torch":
        return TorchBackend(quantised(model), ["cpu"], "fp32") if plan.int8 else TorchBackend(model, devices(), plan.precision)
    if len(model) != 1:
        raise ConfigError(f'{where}: backend "{plan.name}" is for plain sequence-classification models; this one has {len(model)} parts. Use backend = "torch"')
    opened = {"onnx": _open_onnx, "openvino": _open_openvino}[plan.name](reference, folder, probe, where)
    return _open_int8_onnx(folder) if plan.int8 else opened


class TorchBackend:
    """torch itself; a replica of the model on each device."""

    def __init__(self, model: Any, places: Sequence[str], precision: str) -> None:
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        replicas = [model, *(copy.deepcopy(model) for _ in places[1:])]
        self.model = model
        self.workers = len(places)
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for replica, place in zip(replicas, places, strict=True):
            self._idle.put((replica.to(place, dtype).eval() if precision != "fp32" or place != "cpu" else replica.eval(), place))

    def logits(self, batch: TokenBatch) -> Logits:
        """Of one batch, on the device that is free next."""
        import torch

        replica, place = self._idle.get()
        try:
            with torch.inference_mode():
                features = {name: torch.from_numpy(values).to(place) for name, values in batch.inputs.items()}
                scores = replica({**features, "modality": "text"})["scores"].float().cpu().numpy()
        finally:
            self._idle.put((replica, place))
        return np.asarray(scores.reshape(len(batch.places), -1), dtype=np.float32)


class ExportedBackend:
    """A model in the format of another runtime, as one function."""

    workers = 1

    def __init__(self, compute: Callable[[dict[str, NDArray[np.int64]]], Any], names: Sequence[str]) -> None:
        self._compute = compute
        self._names = names

    def logits(self, batch: TokenBatch) -> Logits:
        """Of one batch, on the processor."""
        return np.asarray(self._compute({name: batch.inputs[name] for name in self._names}), dtype=np.float32).reshape(len(batch.places), -1)


def quantised(model: Any) -> Any:
    """A copy of a model whose linear layers, all but its head's, hold 8-bit weights, a scale for each output.

    torch rounds what goes into them as it comes, with one scale for a batch: a pair's score depends a little on those beside it.
    """
    import torch

    copied = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 means to replace its 8-bit tensors, and says so
        layers = {torch.nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
        quantise: Any = torch.ao.quantization.quantize_dynamic
        quantise(copied.transformers_model.base_model, layers, dtype=torch.qint8, inplace=True)
    if int8_input_bits() == 8:
        rounding: list[Any] = [layer for layer in copied.transformers_model.base_model.modules() if type(layer) is torch.ao.nn.quantized.dynamic.Linear]
        for layer in rounding:
            layer.forward = partial(_rounded_to_8_bits, layer)
    return copied


def int8_input_bits() -> int:
    """Bits to which torch rounds what goes into an 8-bit layer: 8 where the processor adds products of bytes without overflow (VNNI), else 7.

    The bit more costs no time, and keeps more of the order.
    """
    import torch

    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.9 does not say
    return 8 if found.get("avx512_vnni") or found.get("avx_vnni") else 7


def _rounded_to_8_bits(layer: Any, inputs: Any) -> Any:
    """What torch's own 8-bit layer does, which always rounds to 7."""
    import torch

    return torch.ops.quantized.linear_dynamic(inputs, layer._packed_params._packed_params, reduce_range=False)


def all_logits(backend: Backend, work: Iterator[TokenBatch], n_pairs: int) -> Logits:
    """[n, labels], the logits of all pairs in their order; batches run on all devices at once.

    Args:
        backend: what computes.
        work: batches that hold each of the n places once.
        n_pairs: n.
    """
    found: Logits | None = None
    with ThreadPoolExecutor(backend.workers) as pool:
        for places, logits in pool.map(lambda batch: (batch.places, backend.logits(batch)), work) if backend.workers > 1 else _one_by_one(backend, work):
            found = np.empty((n_pairs, logits.shape[1]), dtype=np.float32) if found is None else found
            found[places] = logits
    return np.zeros((0, 1), dtype=np.float32) if found is None else found


def _one_by_one(backend: Backend, work: Iterator[TokenBatch]) -> Iterator[tuple[NDArray[np.int64], Logits]]:
    return ((batch.places, backend.logits(batch)) for batch in work)


def largest_difference(backend: Backend, reference: Backend, probe: Sequence[TokenBatch]) -> float:
    """The largest absolute difference of two backends' logits on a probe; infinite where one is not a number."""
    differences = [np.abs(backend.logits(batch) - reference.logits(batch)).max() for batch in probe]
    return float(np.nan_to_num(np.max(differences), nan=np.inf))


def _half_precision() -> Literal["bf16", "fp16"]:
    import torch

    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _open_openvino(reference: TorchBackend, folder: Path, probe: Sequence[TokenBatch], where: str) -> Backend:
    openvino = _package("openvino")
    core = openvino.Core()

    def export(target: Path) -> None:
        import torch

        with _silent(), torch.no_grad():
            example = {name: torch.from_numpy(values) for name, values in probe[0].inputs.items()}
            made = openvino.convert_model(_plain(reference.model, list(example)), example_input=example)
        openvino.save_model(made, target / "model.xml", compress_to_fp16=False)

    def read(source: Path) -> Backend:
        threads = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _threads()}
        compiled = core.compile_model(core.read_model(source / "model.xml"), "CPU", threads)
        return ExportedBackend(lambda inputs: compiled(inputs)[0], [one.any_name for one in compiled.inputs])

    return _exported(folder / f"openvino-{_version('openvino')}", export, read, reference, probe, where)


def _open_onnx(reference: TorchBackend, folder: Path, probe: Sequence[TokenBatch], where: str) -> Backend:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        _package(needed)

    def export(target: Path) -> None:
        import torch

        names = list(probe[0].inputs)
        example = tuple(torch.from_numpy(values) for values in probe[0].inputs.values())
        with _silent(), torch.no_grad():
            shapes = tuple({0: "pairs", 1: "tokens"} for _ in names)
            made = torch.onnx.export(
                _plain(reference.model, names), example, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=["logits"], verbose=False
            )
        if made is None:
            raise RuntimeError("torch.onnx.export gave nothing")
        made.save(str(target / "model.onnx"))

    return _exported(_onnx_folder(folder), export, lambda source: _onnx_session(source / "model.onnx"), reference, probe, where)


def _open_int8_onnx(folder: Path) -> Backend:
    """The checked fp32 export with 8-bit weights; ONNX Runtime rounds what goes into its products as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source = _onnx_folder(folder)
    path = source / "int8.onnx"
    if not path.exists():
        with _silent(), tempfile.TemporaryDirectory(dir=source) as temporary:
            made = Path(temporary) / path.name
            quantize_dynamic(source / "model.onnx", made, weight_type=QuantType.QInt8, per_channel=True)
            made.replace(path)
    return _onnx_session(path)


def _onnx_folder(folder: Path) -> Path:
    return folder / f"onnx-{_version('onnxruntime')}"


def _onnx_session(path: Path) -> Backend:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return ExportedBackend(lambda inputs: session.run(None, inputs)[0], [one.name for one in session.get_inputs()])


def _exported(
    folder: Path, export: Callable[[Path], None], read: Callable[[Path], Backend], reference: Backend, probe: Sequence[TokenBatch], where: str
) -> Backend:
    """What lies in `folder`, exported first if need be; it is kept only when it agrees with torch, and checked at every opening."""
    if not folder.is_dir():
        make_folder(folder.parent)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
        try:
            export(new)
            _check_agreement(read(new), reference, probe, where)
            replace_folder(new, folder)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(f'{where}: the model cannot be exported ({str(error).splitlines()[0]:.120}). Use backend = "torch"') from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
    opened = read(folder)
    _check_agreement(opened, reference, probe, where)
    return opened


def _check_agreement(backend: Backend, reference: Backend, probe: Sequence[TokenBatch], where: str) -> None:
    difference = largest_difference(backend, reference, probe)
    if not difference <= TOLERANCE:
        raise ConfigError(
            f'{where}: the exported model says something else than torch: logits differ by {difference:.3g}, allowed is {TOLERANCE}. Use backend = "torch"'
        )


def _plain(model: Any, names: Sequence[str]) -> Any:
    """The model as a module that takes these inputs in this order and gives the logits alone."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, **types).logits

    if list(names)[:2] != ["input_ids", "attention_mask"]:
        raise ValueError(f"it takes {', '.join(names)}, and input_ids and attention_mask are needed")
    return Plain(model.transformers_model).eval()


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


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _package(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, "export") from error
