"""transformers.exporters: prune models inside OnnxExporter, OpenVINOExporter or DynamoExporter, or hand pruned modules to them.

    exporter(OnnxExporter, "heads(ratio=0.25), ffn(ratio=0.5)").export(model, inputs, OnnxConfig(dynamic=True))
    OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, quantizer=Prune("ffn(ratio=0.5)")))
    OnnxExporter().export(module(slim, model), inputs, OnnxConfig(dynamic=True))

The first keeps all later steps of an exporter, its fusions for ONNX Runtime included; the second fits into an existing configuration
(transformers switches `ort_fusions` off for any `quantizer`).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from transformers.exporters.configs import DynamoConfig, ExportFormat
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.quantizers.base import ExportQuantizer

from fxprune.analysis.layer_sizes import count_layer_sizes
from fxprune.errors import ExportError, UsageError
from fxprune.frontend.capture import capture, from_exported_module
from fxprune.frontend.io_constraints import free_dims
from fxprune.frontend.library_patches import modeling_patches
from fxprune.integrations.huggingface.config import record_sizes
from fxprune.ir import Program, quiet, trees
from fxprune.ir.signature import owners
from fxprune.passes import parse_pipeline
from fxprune.pipeline import Pipeline, Result
from fxprune.rewrite.transfer import replay_pruning, same_weights
from fxprune.runtimes import Settings
from fxprune.runtimes.base import DEFAULT
from fxprune.runtimes.peepholes import rewrite_model
from fxprune.verification import Proof, verify

#: how a key/value cache, which is an input and an output of the same name, may change
CACHES = {
    "whole": "it stays as the model's config has it: heads of keys and values, and layers, stay",
    "layers": "an entry goes with its layer; heads of keys and values stay",
    "free": "it follows: entries go with layers, and shrink with heads of keys and values",
}


@dataclass
class Pruning:
    """A pipeline for models in parts, as exporters pass them: decided once, and repeated on every other part that reads the same weights.

    `cache` is a row of CACHES. `verdicts` are the proofs, one per part of the model; `results` are the decisions, with their programs.
    """

    pipeline: Pipeline
    cache: str = "whole"
    verdicts: list[Proof] = field(default_factory=list)
    results: list[tuple[Program, Result]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise UsageError(f"no way {self.cache!r} to treat a cache; ways: {', '.join(CACHES)}")

    def prune(self, program: Program) -> Program:
        """Prune and prove a captured part of the model."""
        program = self._freed(program)
        for before, result in self.results:
            if same_weights(before, program):
                return self._again(before, result, program)
        result = self.pipeline.run(program)
        self.verdicts.append(result.proof.require())
        self.results.append((program, result))
        return result.program

    def described(self, config: Any) -> Any:
        """Return a copy of the model's config with the sizes that are left, as far as a config can hold them (see `record_sizes`)."""
        if config is None or not self.results:
            return config
        before, result = self.results[0]
        if len(self.results) > 1:
            made = copy.deepcopy(config)
            made.fxprune = {"manifest": "", "untold": [f"{self.pipeline} in {len(self.results)} parts"]}
            return made
        return record_sizes(config, count_layer_sizes(before, result.program, result.selection.removed), "")

    def _again(self, before: Program, result: Result, program: Program) -> Program:
        if not result.is_selected:
            raise ExportError(
                f"{self.pipeline} replaces matrices by factors, or trains, which can be exported in one part only; this model has several"
                " (use `export`, or passes that remove units)"
            )
        made = replay_pruning(before, result.program, result.selection, program, result.refitted)
        self.verdicts.append(verify(program, made.program, made.selection, made.refitted))
        return made.program

    def _freed(self, program: Program) -> Program:
        """Free the cache as `cache` allows; it is found as the inputs and outputs with a name in common."""
        if self.cache == "whole":
            return program
        info = trees(program.graph_module)
        keys = set(info.orig_args) & {name.partition(".")[0] for name in program.output_names()}
        owner, names = owners(program), program.input_names()
        inputs = [name for name, key in owner.items() if key in keys and name in names]
        outputs = [name for name in program.output_names() if name.partition(".")[0] in keys]
        if self.cache == "layers":
            return free_dims(program, spare=[*inputs, *outputs])
        return free_dims(program, inputs, outputs, [*inputs, *outputs])


def exporter(
    kind: type[Any],
    pipeline: str | Pipeline,
    cache: str = "whole",
    settings: Settings = DEFAULT,
    **options: Any,
) -> Any:
    """Return an exporter of a kind (OnnxExporter, OpenVINOExporter, …) that prunes each model before export; `options` are the kind's.

    ONNX files are in the forms that the runtime of the `settings` computes faster (`fxprune.runtimes.peepholes`), where the exporter itself
    fused nothing. Its `pruning.verdicts` are the proofs. With `export_for_generation` all parts of a model lose the same units.
    """
    found = type(f"Pruned{kind.__name__}", (_PruningMixin, kind), {})(**options)
    found.pruning, found.settings = Pruning(_parsed(pipeline), cache), settings
    return found


class _PruningMixin:
    """Mixin that precedes an exporter in the method resolution order."""

    pruning: Pruning
    settings: Settings

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export as the exporter does; each export decides anew what is removed, and its config records the sizes that are left."""
        made: Any = super()
        return self._pruned(made.export, args, kwargs)

    def export_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Export as `export_for_generation` does, with one decision for all parts of the model."""
        made: Any = super()
        return self._pruned(made.export_for_generation, args, kwargs)

    def _pruned(self, export: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.pruning = Pruning(self.pruning.pipeline, self.pruning.cache)
        exported = export(*args, **kwargs)
        exported.config = self.pruning.described(exported.config)
        return exported

    def export_program(self, model: nn.Module, sample_inputs: MutableMapping[str, Any], config: Any) -> Any:
        """Export the pruned model, on the inputs that are left."""
        slim = self.pruning.prune(captured(model, sample_inputs, config))
        shapes = slim.dynamic_shapes if config.dynamic or config.dynamic_shapes else None
        config = dataclasses.replace(config, dynamic_shapes=shapes)
        made: Any = super()
        exported = made.export_program(module(slim, model), dict(slim.kwargs), config=config)
        for each in exported if isinstance(exported, tuple) else (exported,):
            rewrite_model(each, self.settings)
        return exported


class Prune(ExportQuantizer):
    """Pruning as a configuration's quantizer: `OnnxConfig(…, quantizer=Prune("ffn(ratio=0.5)"))`; `then` is a quantizer that follows."""

    quantizes_fx_graph = True
    supported_formats = tuple(ExportFormat)

    def __init__(
        self, pipeline: str | Pipeline, cache: str = "whole", then: ExportQuantizer | None = None
    ) -> None:
        super().__init__()
        if then is not None and not then.quantizes_fx_graph:
            raise UsageError(
                f"{type(then).__name__} works on converted models: give it to exporter(…)'s configuration instead"
            )
        self.pruning, self.then = Pruning(_parsed(pipeline), cache), then

    def quantize(
        self, model: fx.GraphModule, sample_inputs: dict[str, Any], export_format: ExportFormat
    ) -> Any:
        """Prune the graph that an exporter traced; UsageError where the cache would change."""
        if self.pruning.cache != "whole":
            raise UsageError(
                "a cache that changes needs other inputs, which a configuration can't give: use exporter(…)"
            )
        slim = self.pruning.prune(from_exported_module(model, sample_inputs))
        made = module(slim, model)
        return self.then.quantize(made, sample_inputs, export_format) if self.then else made


def module(program: Program, like: nn.Module) -> nn.Module:
    """Return a program as a module for exporters: named, configured and called as `like`, with the same class of outputs."""
    made: nn.Module = type(type(like).__name__, (_Module,), {})(program, like)
    return made


class _Module(nn.Module):
    """Wrapper of a graph whose weights keep their names, without a prefix for the graph."""

    def __init__(self, program: Program, like: nn.Module) -> None:
        super().__init__()
        graph = program.module()
        for name, child in graph.named_children():
            self.add_module(name, child)
        for name, parameter in graph.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in graph.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._graph = (graph,)  # a tuple hides it from nn.Module
        for known in ("config", "generation_config", "main_input_name"):
            if hasattr(like, known):
                setattr(self, known, getattr(like, known))
        self.forward = _with_signature(graph, trees(program.graph_module).orig_args)
        self.eval()


def _with_signature(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of these keywords, with them in its signature, where torch.export reads the names of inputs."""

    def forward(**kwargs: Any) -> Any:
        return function(**kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=None) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward


def _parsed(pipeline: str | Pipeline) -> Pipeline:
    return parse_pipeline(pipeline) if isinstance(pipeline, str) else pipeline


def captured(model: Any, sample_inputs: Mapping[str, Any], config: DynamoConfig) -> Program:
    """Capture a model by transformers' own exporter."""
    plain = DynamoConfig(
        dynamic=config.dynamic,
        strict=config.strict,
        dynamic_shapes=config.dynamic_shapes,
        prefer_deferred_runtime_asserts_over_guards=config.prefer_deferred_runtime_asserts_over_guards,
    )
    with quiet(), modeling_patches():
        exported, _ = DynamoExporter().export_program(model, dict(sample_inputs), plain)
    return capture(exported)
