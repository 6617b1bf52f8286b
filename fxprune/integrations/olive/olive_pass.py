"""Olive pass: turn a PyTorch model into a smaller, proven ONNX model (the extra `olive`).

    {"type": "FxPrune", "pipeline": "heads(ratio=0.25), ffn(ratio=0.5), fold"}

It takes the place of OnnxConversion: Olive's passes on ONNX models come after it. Olive finds it by a package config, which
`write_package_config` writes.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

from olive.common.config_utils import validate_config
from olive.data.config import DataConfig
from olive.evaluator.olive_evaluator import OliveEvaluator
from olive.model import HfModelHandler, ONNXModelHandler, PyTorchModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from pydantic import field_validator
from torch import Tensor, nn

from fxprune.calibration import Calibration, check_calibration
from fxprune.errors import ExportError, FxpruneError, PipelineError, UsageError
from fxprune.files import write_text
from fxprune.frontend.capture import capture
from fxprune.frontend.io_constraints import free_dims
from fxprune.integrations.olive.deliver import Delivery, deliver, summary
from fxprune.integrations.olive.io_spec import Axes, dynamic_shapes_of, named, varied, vary_sizes
from fxprune.ir import Program
from fxprune.passes import parse_pipeline

# Olive shows the messages of loggers below its own name.
logger = logging.getLogger("olive.fxprune")

# Olive's own conversion writes this opset, so its later passes support it.
OPSET = 20

PACKAGE = {
    "module_path": "fxprune.integrations.olive.olive_pass.FxPrune",
    "supported_providers": ["*"],
    "supported_accelerators": ["*"],
    "supported_precisions": ["*"],
    "supported_algorithms": [],
    "supported_quantization_encodings": [],
    "module_dependencies": ["fxprune"],
    "dataset": "dataset_optional",
}


class FxPrune(Pass):  # type: ignore[misc]  # Olive has no types
    """Prune a PyTorch model with fxprune, prove that nothing else changed, and give the ONNX model.

    The figures of the proof are in `model_attributes["fxprune"]`, the kept units in selection.json beside the model.
    """

    _accepts: ClassVar[tuple[type, ...]] = (HfModelHandler, PyTorchModelHandler)

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        return {
            "pipeline": PassConfigParam(
                type_=str,
                required=True,
                description="Text of an fxprune pipeline, such as 'heads(ratio=0.25), ffn(ratio=0.5), fold', or"
                " 'slim(latency=0.5)' for a share of the measured time.",
            ),
            "data_config": PassConfigParam(
                type_=DataConfig | dict,
                default_value=None,
                description="Unlabelled inputs for passes and scores that look at activations.",
            ),
            "free_outputs": PassConfigParam(
                type_=list[str],
                default_value=None,
                description="Names of outputs whose dimensions may shrink; all others keep their sizes.",
            ),
            "target_opset": PassConfigParam(
                type_=int,
                default_value=OPSET,
                description="The version of the ONNX opset. From 23 on attention is one operator, which ONNX Runtime's quantization"
                " takes for another one of its own.",
            ),
        }

    @classmethod
    def _validators(cls) -> dict[str, Any]:
        return {"validate_pipeline": field_validator("pipeline")(_check_pipeline)}

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        """Run the pass; refusals become ValueErrors.

        Olive ends with the message of a ValueError in every run; of an OlivePassError it keeps only that a pass failed.
        """
        try:
            delivery = self._deliver(model, config, Path(resolve_onnx_path(output_model_path)).parent)
        except FxpruneError as error:
            raise ValueError(f"fxprune: {error}") from error
        logger.info("%s", summary(delivery.figures))
        return ONNXModelHandler(
            model_path=str(delivery.model.parent),
            onnx_file_name=delivery.model.name,
            model_attributes=_attributes(model, delivery),
        )

    def _deliver(self, model: Any, config: Any, folder: Path) -> Delivery:
        if not isinstance(model, self._accepts):
            wanted = " or ".join(kind.__name__ for kind in self._accepts)
            raise UsageError(
                f"FxPrune takes a {wanted}, got {type(model).__name__}: let it come before the conversion to ONNX, not after"
            )
        program = _captured(model, config.free_outputs or ())
        data = _calibration(config.data_config, program)
        return deliver(program, parse_pipeline(config.pipeline), folder, data, config.target_opset)


def package_config() -> dict[str, Any]:
    """Return Olive's own package config with FxPrune among its passes, for `olive.workflows.run(workflow, package_config=…)`."""
    own = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    return {**own, "passes": {**own["passes"], "FxPrune": PACKAGE}}


def write_package_config(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Write `package_config` to a file, for `olive run --package-config FILE`; ExportError where it exists, unless `overwrite`.

    Olive finds the passes of that file and no others.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise ExportError(f"{target} exists; give another name, or allow overwriting")
    write_text(target, json.dumps(package_config(), indent=1) + "\n", overwrite=True)


def _check_pipeline(text: str) -> str:
    """Return the text of a pipeline; ValueError points at the part that can't be read, before any pass runs."""
    try:
        parse_pipeline(text)
    except PipelineError as error:
        raise ValueError(str(error)) from error
    return text


def _captured(model: Any, free_outputs: Sequence[str]) -> Program:
    """Capture the model as Olive would convert it: with its dummy inputs, its dynamic axes, its names."""
    module, io = model.load_model(), model.io_config
    if not io:
        raise UsageError("Olive knows no inputs for this model: give io_config in the workflow")
    inputs = _inputs(model, module, io)
    axes = _axes(io)
    given = vary_sizes(inputs, axes)
    program = capture(module, (), given, dynamic_shapes_of(given, axes))
    renamed = [name for name in given if name not in program.input_names()]
    if renamed:
        raise UsageError(
            f"input {renamed[0]!r} is a word of Python's own: give it another name in forward and io_config"
        )
    return free_dims(named(varied(program), io["output_names"]), outputs=free_outputs)


def _inputs(model: Any, module: nn.Module, io: Mapping[str, Any]) -> dict[str, Tensor]:
    made = model.get_dummy_inputs()
    values = [made] if isinstance(made, Tensor) else made
    named = values.items() if isinstance(values, Mapping) else zip(io["input_names"], values, strict=False)
    found = dict(named)
    takes = list(inspect.signature(module.forward).parameters)
    strange = [name for name in found if name not in takes]
    if strange:
        raise UsageError(
            f"there is an input {strange[0]!r}, and {type(module).__name__}.forward takes {', '.join(takes)}:"
            " name inputs in io_config as forward does, for so they are named in the ONNX file"
        )
    nested = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if nested:
        raise UsageError(
            f"input {nested[0]!r} is no tensor but a {type(found[nested[0]]).__name__}; models that take a cache are not"
            " supported here: give the task without '-with-past', or leave the input out of io_config"
        )
    return found


def _axes(io: Mapping[str, Any]) -> Axes:
    axes = io.get("dynamic_axes") or io.get("dynamic_shapes") or {}
    if not isinstance(axes, Mapping):
        raise UsageError("dynamic_shapes is a list here: give dynamic_axes, by the names of inputs")
    return {name: dims for name, dims in axes.items() if isinstance(dims, Mapping)}


def _calibration(config: Any, program: Program) -> Calibration | None:
    if config is None:
        return None
    loader = validate_config(config, DataConfig).to_data_container().create_dataloader()
    return check_calibration(program, _batches(loader, set(program.input_names())))


def _batches(loader: Any, names: set[str]) -> Iterator[Any]:
    """Yield the inputs of each batch, without labels, and without tokenizer outputs that the model does not take."""
    for batch in loader:
        inputs = OliveEvaluator.extract_input_data(batch)
        wanted = isinstance(inputs, Mapping)
        yield {name: value for name, value in inputs.items() if name in names} if wanted else inputs


def _attributes(model: Any, delivery: Delivery) -> dict[str, Any]:
    """Return the attributes that Olive's own conversion keeps, the figures, and the selection as a file that is copied with the model."""
    own = deepcopy(model.model_attributes or {})
    hugging = {"hf_task": model.task, "type": model.model_type} if isinstance(model, HfModelHandler) else {}
    files = [*own.get("additional_files", []), str(delivery.selection)]
    return {**own, **hugging, "fxprune": dict(delivery.figures), "additional_files": files}
