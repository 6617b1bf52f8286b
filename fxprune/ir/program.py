"""A Program: one captured graph with its weights, example inputs and input/output trees."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxprune.ir.arguments import shape_of
from fxprune.ir.guards import Guard, InputCheck, check, combined
from fxprune.ir.interpreter import Recorder
from fxprune.ir.islands import Islands
from fxprune.ir.naming import free_name
from fxprune.ir.summary import HasSummary, Summary, quantity
from fxprune.ir.train_mode import switchable
from fxprune.storage import is_mapped

_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True, eq=False, repr=False)
class Program(HasSummary):
    """A captured model.

    `graph_module` is called like the model that it came from and returns the same type; parameters keep their names. `args` and `kwargs`
    are the example inputs, `dynamic_shapes` their dynamic dimensions as torch.export takes them (None: all sizes are fixed), `labels`
    the names of axes from the program that this one was shrunk from. `free_outputs` names outputs whose
    dimensions may shrink (a headless encoder's hidden width), `free_inputs` such inputs (a cache of keys and values); all others keep
    their sizes. `spare` names inputs and outputs that are removed with the layer that reads or makes them. What was analysed is kept in
    `_results` (see `fxprune.analysis.cache`), for this object alone. `guards` are the conditions on input sizes under which the graph
    holds, beyond those that its inputs show (`input_guards` are all): calls that break one are refused. `notes` say
    which sizes were asked to vary and are fixed, and why. `islands` says of what model this is a part, where the whole can't be captured.
    """

    graph_module: fx.GraphModule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    labels: Mapping[tuple[str, int, int], str] = field(default_factory=dict)
    free_outputs: frozenset[str] = frozenset()
    free_inputs: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()
    guards: tuple[Guard, ...] = ()
    notes: tuple[str, ...] = ()
    islands: Islands | None = None
    _results: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_results": {}}  # a copy is another program: it is analysed again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs, in inference. A Program is a value: what it writes into buffers is gone afterwards (`module()` keeps it).

        GuardError where the graph does not hold for the sizes of the inputs.
        """
        self.check_inputs(args, kwargs)
        if self.is_mapped():
            # TypeError for other arguments, as a call in memory raises.
            inspect.signature(self.graph_module.forward).bind(*args, **kwargs)
            with torch.no_grad():
                results = Recorder(self, ()).run_flat(flatten_inputs(self, args, kwargs))
            return self.graph.process_outputs(results)
        buffers = {name: buffer.clone() for name, buffer in self.graph_module.named_buffers()}
        with torch.no_grad():
            return torch.func.functional_call(self.graph_module, buffers, args, kwargs)

    @property
    def graph(self) -> fx.Graph:
        """The graph of `graph_module`."""
        return self.graph_module.graph

    def module(self) -> nn.Module:
        """An independent nn.Module with the original's signature and output type; training it changes nothing else.

        Its `train()` and `eval()` switch dropout and batch norm (see `fxprune.ir.train_mode`); parameters have their original names.
        It refuses inputs that break a guard, as the Program does, and so do exports of it.
        """
        return switchable(checked(deep_copy(self.graph_module), self))

    def input_guards(self) -> tuple[Guard, ...]:
        """The conditions on input sizes under which the graph holds: fixed sizes, equal sizes, and all that torch.export found."""
        values = [node.meta.get("val") for node in self.placeholders()]
        before, found = self._results.get("guards", ([], ()))
        if len(before) != len(values) or not all(map(is_, before, values)):
            found = tuple(combined(self.guards, self.placeholders()))
            self._results["guards"] = values, found
        return found  # type: ignore[no-any-return]

    def check_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise GuardError for inputs that break a guard; what does not fit the signature is refused by the graph itself."""
        try:
            flat = flatten_inputs(self, args, kwargs)
        except (KeyError, ValueError):
            return
        names = [node.name for node in self.placeholders()]
        if len(flat) == len(names):
            check(self.input_guards(), dict(zip(names, flat, strict=True)))

    def plain(self) -> Program:
        """This program with its outputs in built-in containers, so that its files need no package that defines other ones."""
        graph = copy_graph(self)
        info = trees(self.graph_module)
        empty = pytree.tree_structure(_plain(info.out_spec))
        graph.set_codegen(_PyTreeCodeGen(info._replace(out_spec=empty)))
        return rebuild(self, graph, {})

    def replace(self, **changes: Any) -> Program:
        """This program with some fields changed."""
        return dataclasses.replace(self, **changes)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that the graph reads, by name, in graph order."""
        nodes = self.graph.find_nodes(op="get_attr")
        found = {str(node.target): attribute(self.graph_module, str(node.target)) for node in nodes}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def reads(self) -> dict[str, fx.Node]:
        """The node that reads each parameter or buffer, by its name (the last one, where several do)."""
        return {str(node.target): node for node in self.graph.find_nodes(op="get_attr")}

    def is_mapped(self) -> bool:
        """Whether some of its tensors are views of files: it then runs node by node, and lets go of what each one has read."""
        return any(map(is_mapped, self.tensors().values()))

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by name, shared ones once."""
        return dict(self.graph_module.named_parameters())

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters().values())

    def parameter_bytes(self) -> int:
        """Bytes of parameters and buffers; a tensor under several names counts once for each."""
        tensors = self.graph_module.state_dict(keep_vars=True).values()
        return sum(value.numel() * value.element_size() for value in tensors)

    def placeholders(self) -> list[fx.Node]:
        return list(self.graph.find_nodes(op="placeholder"))

    def input_names(self) -> tuple[str, ...]:
        """The names of the tensor inputs, in order."""
        return tuple(node.name for node in self.placeholders() if isinstance(node.meta.get("val"), Tensor))

    def output_names(self) -> tuple[str, ...]:
        """Readable names of the outputs: the keys of the output tree (`last_hidden_state`), or `output_0` and so on."""
        return tuple(self.named_outputs())

    def named_outputs(self) -> dict[str, fx.Node]:
        """The nodes that are outputs, by readable name; outputs that are no tensors (sizes, constants) are left out."""
        paths = _leaf_paths(trees(self.graph_module).out_spec)
        names = [_path_name(path) or f"output_{i}" for i, path in enumerate(paths)]
        found = zip(names, self.outputs(), strict=True)
        return {name: node for name, node in found if _is_tensor(node)}

    def spare_outputs(self) -> dict[fx.Node, str]:
        """The outputs that may be removed with the layer that makes them, with their names; not those that are a needed output, too."""
        named = self.named_outputs()
        needed = {node for name, node in named.items() if name not in self.spare}
        return {node: name for name, node in named.items() if node not in needed}

    def outputs(self) -> list[Any]:
        """The flat results of the graph: nodes, or constants such as None."""
        flat: list[Any] = pytree.tree_leaves(self.graph.output_node().args[0], is_leaf=lambda x: x is None)
        return flat

    def flat_inputs(self) -> list[Any]:
        """The example inputs in the order of the placeholders."""
        return flatten_inputs(self, self.args, self.kwargs)

    def free_dims(self) -> dict[str, tuple[int, ...]]:
        """The dynamic dimensions of the tensor inputs, by name; inputs without one are left out."""
        free: dict[str, tuple[int, ...]] = {}
        for node in self.placeholders():
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                free[node.name] = tuple(i for i, size in enumerate(value.shape) if is_free(size))
        return {name: dims for name, dims in free.items() if dims}

    def summary(self) -> Summary:
        """The inputs and outputs, with example sizes and the dims that may vary; operators, parameters and bytes."""
        operators = quantity(sum(node.op == "call_function" for node in self.graph.nodes), "operator")
        parameters = quantity(self.parameter_count(), "parameter")
        size = quantity(self.parameter_bytes(), "byte")
        pairs = list(zip(self.placeholders(), self.flat_inputs(), strict=True))
        sizes = {text: size for node, value in pairs for text, size in _free_sizes(node, value)}
        inputs = [_row("input", node.name, node, sizes) for node, _ in pairs]
        outputs = [_row("output", name, node, sizes) for name, node in self.named_outputs().items()]
        columns = ("", "name", "dtype", "shape", "free dims")
        return Summary(
            f"Program: {operators}, {parameters}, {size}", columns, (*inputs, *outputs), self.notes
        )


def deep_copy(graph: fx.GraphModule, memo: dict[int, Any] | None = None) -> fx.GraphModule:
    """Return a deep copy of a graph module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's pytree specs warn of torch's own classes
        return copy.deepcopy(graph, memo)


def checked(graph: fx.GraphModule, program: Program) -> fx.GraphModule:
    """Put the check of a program's guards before everything else in a graph that has its inputs; the graph is edited in place."""
    nodes = list(graph.graph.find_nodes(op="placeholder"))
    guards = program.input_guards()
    if nodes and guards:
        name = free_name("_guards", dict(graph.named_modules()))
        graph.add_submodule(name, InputCheck(guards, [node.name for node in program.placeholders()]))
        with graph.graph.inserting_after(nodes[-1]):
            graph.graph.call_module(name, tuple(nodes))
        graph.recompile()
    return graph


def _free_sizes(node: fx.Node, example: Any) -> list[tuple[str, int]]:
    """The symbols of an input's free dims, with their sizes in the example."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not isinstance(example, Tensor):
        return []
    return [
        (str(size), int(own)) for size, own in zip(value.shape, example.shape, strict=True) if is_free(size)
    ]


def _row(kind: str, name: str, node: fx.Node, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """An input or output in a summary; the sizes of free dims are those of the example inputs."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return kind, name, type(value).__name__, "", ""
    pairs = zip(value.shape, shape_of(value) or (), strict=True)
    shape = " × ".join(str(sizes.get(str(size), number)) for size, number in pairs) or "scalar"
    free = ", ".join(str(i) for i, size in enumerate(value.shape) if is_free(size))
    return kind, name, str(value.dtype).removeprefix("torch."), shape, free


def is_free(size: int | torch.SymInt) -> bool:
    """Whether a size is still symbolic; torch.export may have specialized a symbol to a number."""
    return not is_concrete_int(size)


def _is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor | None)


def _leaf_paths(spec: Any) -> Iterator[tuple[Any, ...]]:
    """The path of keys to each leaf, read from the spec, since classes can't be rebuilt with leaves that are not tensors."""
    if spec.is_leaf():
        yield ()
        return
    for key, child in zip(_keys(spec), spec.children(), strict=True):
        yield from ((key, *path) for path in _leaf_paths(child))


def _keys(spec: Any) -> Sequence[Any]:
    """The names of a container's children: the keys of a mapping, the fields of a class, or their positions."""
    context = spec.context
    if spec.type is dict:
        return list(context)
    fields = getattr(context, "_fields", context)  # a named tuple's context is its class
    for names in (fields, *(fields if isinstance(fields, (list, tuple)) else ())):
        named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if named and len(names) == spec.num_children:
            return list(names)
    return range(spec.num_children)


def _plain(spec: Any) -> Any:
    """A value with the structure of a tree, made of lists, dicts (where children have names) and tuples."""
    if spec.is_leaf():
        return 0
    children = [_plain(child) for child in spec.children()]
    if spec.type is list:
        return children
    keys = _keys(spec)
    return tuple(children) if isinstance(keys, range) else dict(zip(keys, children, strict=True))


def _path_name(path: tuple[Any, ...]) -> str:
    if not any(isinstance(key, str) for key in path):
        return ""
    return ".".join(str(key) for key in path)


def flatten_inputs(program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """Inputs as a flat list in the order of the placeholders, whatever the order of the keywords."""
    info = trees(program.graph_module)
    names = info.orig_args
    bound = {**dict(zip(names, args, strict=False)), **kwargs}
    positional = info.in_spec.child(0).num_children
    ordered = tuple(bound[name] for name in names)
    keyed = dict(zip(info.in_spec.child(1).context, ordered[positional:], strict=True))
    return pytree.tree_leaves((ordered[:positional], keyed), is_leaf=lambda x: x is None)


def trees(graph: Any) -> Any:
    """The pytree info of a graph module's inputs and outputs: `orig_args`, `in_spec`, `out_spec`."""
    return graph.graph._codegen.pytree_info


def container_modules(program: Program) -> tuple[str, ...]:
    """The modules that define the classes of inputs and outputs: a process that reads the program's .pt2 file must have imported them."""
    found: dict[str, None] = {}
    waiting = [trees(program.graph_module).in_spec, trees(program.graph_module).out_spec]
    while waiting:
        spec = waiting.pop()
        waiting += spec.children()
        if spec.type is not None:
            found[spec.type.__module__] = None
    return tuple(name for name in found if name != "builtins")


def attribute(module: nn.Module, name: str) -> Any:
    """The attribute of a module under a dotted name."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set a parameter, a buffer or an object under a dotted name, creating plain modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module._parameters.pop(last, None)
    module._buffers.pop(last, None)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(last, value)
    else:
        setattr(module, last, value)


def sibling(name: str, last: str, taken: Container[str]) -> str:
    """A free name for `last` in the module of the tensor `name`, numbered from 2 where it is taken."""
    path = name.rpartition(".")[0]
    return free_name(".".join(filter(None, (path, last))), taken)


def rebuild(program: Program, graph: fx.Graph, tensors: Mapping[str, Tensor]) -> Program:
    """The program with a new graph and exactly the tensors that it reads: those given, else the program's own."""
    root = nn.Module()
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        set_attribute(root, name, tensors[name] if name in tensors else attribute(program.graph_module, name))
    for node in graph.find_nodes(
        op="call_module"
    ):  # the check of guards, in a module that `Program.module` made
        set_attribute(root, str(node.target), attribute(program.graph_module, str(node.target)))
    module = fx.GraphModule(root, graph)
    module.graph.lint()
    module.eval()
    return program.replace(graph_module=module)


def copy_graph(program: Program) -> fx.Graph:
    """A copy of the graph that keeps names, metadata and the input and output trees."""
    source = program.graph
    graph = fx.Graph()
    mapped: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(source, mapped)
    graph.output(output)
    graph.output_node().meta = dict(source.output_node().meta)
    graph.set_codegen(copy.copy(source._codegen))
    return graph


def source_line(node: fx.Node) -> str:
    """The user's source line of a node, as `file.py:12 in forward: code`; empty where the node has no stack trace."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    frames = list(_frames(lines))
    own = [frame for frame in frames if not frame.startswith(_TORCH)]
    return (own or frames or [""])[-1]


def _frames(lines: list[str]) -> Iterator[str]:
    for line, code in zip(lines, [*lines[1:], ""], strict=False):
        if line.strip().startswith("File "):
            file, number, where = [part.strip() for part in line.strip().removeprefix("File ").split(",", 2)]
            yield f"{file.strip(chr(34))}:{number.removeprefix('line ')} {where}: {code.strip()}"
