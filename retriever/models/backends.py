"""What multiplies the matrices of a cross-encoder: torch, ONNX Runtime or OpenVINO, exported once and checked against torch."""

from __future__ import annotations

import copy
import dataclasses
import queue
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retriever.errors import ConfigError
from retriever.models.exported import Compute, ModelOutput, Runtime, open_exported, open_rounded_onnx
from retriever.models.token_batches import TokenBatch

BackendName = Literal["torch", Runtime]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
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
    if plan.name == "torch":
        return TorchBackend(quantised(model), ["cpu"], "fp32") if plan.int8 else TorchBackend(model, devices(), plan.precision)
    if len(model) != 1:
        raise ConfigError(f'{where}: backend "{plan.name}" is for plain sequence-classification models; this one has {len(model)} parts. Use backend = "torch"')
    reference = ModelOutput(model.eval().transformers_model, "logits")
    exported = open_exported(plan.name, reference, folder, [batch.inputs for batch in probe], where, 'Use backend = "torch"')
    return ExportedBackend(open_rounded_onnx(folder, int8_bits()) if plan.int8 else exported)


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
    """A model in the format of another runtime."""

    workers = 1

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    def logits(self, batch: TokenBatch) -> Logits:
        """Of one batch, on the processor."""
        return self._compute(batch.inputs).reshape(len(batch.places), -1)


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
    if int8_bits() == 8:
        rounding: list[Any] = [layer for layer in copied.transformers_model.base_model.modules() if type(layer) is torch.ao.nn.quantized.dynamic.Linear]
        for layer in rounding:
            layer.forward = partial(_rounded_to_8_bits, layer)
    return copied


def int8_bits() -> int:
    """Bits of one factor of an 8-bit product: 8 where the processor adds such products without overflow (VNNI), else 7.

    torch rounds what goes into a layer to so many, ONNX Runtime the layer's weights. The bit more costs no time, and keeps more of the order.
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


def _half_precision() -> Literal["bf16", "fp16"]:
    import torch

    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
