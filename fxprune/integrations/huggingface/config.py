"""What a transformers config says of a pruned model: sizes that all layers share, and those of single layers in `per_layer_config`.

A model whose layers differ is *heterogeneous* in transformers: `per_layer_config` holds what differs, layer by layer, and `skip` in it the
parts of a layer that are gone; asking such a config for a size, and not for a layer's, is an error there. An attribute is written only
where its value was the size that was counted in every layer; what no attribute says is a sentence in `fxprune`, so that no reader is
told a wrong size without a sign. Nothing here imports transformers: a config is an object with attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxprune.analysis.layer_sizes import Attention, Layer, LayerSizes, Left

_Pair: TypeAlias = tuple[int, Left]
"""A size before and after."""

_WHOLE = -1
"""The number of what belongs to no layer alone."""

SKIPS = ("attention", "mlp")
"""The parts of a layer that have a name in transformers' `skip`."""


@dataclass(frozen=True)
class Attribute:
    """What is counted, in words, and the attributes that may say it, of which the first that fits is taken.

    `derived` are the sizes from which transformers works it out as long as the attribute is absent or None: when one of them changes, it
    has to be written although it is what it was. A `new` one may be added to a config without it, and be a list, a number a head.
    """

    what: str
    names: tuple[str, ...]
    derived: tuple[str, ...] = ()
    new: bool = False


ATTRIBUTES: dict[str, Attribute] = {
    "heads": Attribute("attention heads", ("num_attention_heads",)),
    "shared": Attribute("heads of keys and values", ("num_key_value_heads",), ("heads",)),
    "head_dim": Attribute("dims of a head", ("head_dim",), ("heads", "hidden"), new=True),
    "qk": Attribute("query and key dims of a head", ("qk_head_dim",), ("heads", "hidden", "v"), new=True),
    "v": Attribute("value dims of a head", ("v_head_dim",), ("heads", "hidden", "qk"), new=True),
    "ffn": Attribute(
        "neurons", ("intermediate_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner"), ("hidden",)
    ),
    "experts": Attribute("experts", ("num_experts", "num_local_experts", "n_routed_experts")),
    "hidden": Attribute("dims of the residual stream", ("hidden_size",)),
}


_Counts: TypeAlias = Mapping[int, list[_Pair]]
"""The sizes of one kind by the number of the layer that they are in, or by WHOLE."""

_Values: TypeAlias = dict[str, Any]


def record_sizes(config: Any, found: LayerSizes, manifest: str) -> Any:
    """A copy of a config that says what was counted; `fxprune` in it names the manifest, and holds what the config can't say.

    The copy is one that its own class reads back: what the class refuses (heads that don't divide the width) is not said.
    """
    made = copy.deepcopy(config)
    counts = _counts(found)
    moved = {kind for kind, sizes in counts.items() if _moved(sizes)}
    fits = getattr(config, "num_hidden_layers", None) == len(found.layers)
    layers: dict[int, _Values] = {}
    untold: list[str] = []
    for kind, sizes in counts.items():
        name = _attribute(config, kind, sizes) if fits or _WHOLE in sizes else ""
        if kind == "shared" and not name and sizes == counts["heads"]:
            continue  # keys and values have the heads of queries, as in every model that says nothing else
        if kind in moved or (name and _follows(config, kind, name, moved)):
            told = _said(made, layers, name, sizes) if name else None
            made, layers = told or (made, layers)
            untold += [] if told else [_sentence(kind, sizes, found)]
    skips = {
        number: {"skip": parts} for number, layer in enumerate(found.layers) if (parts := _skipped(layer))
    }
    whole = _with_layers(made, _merged(layers, skips)) if fits else None
    sentences = [_gone(layer, whole is not None) for layer in found.layers] + _elsewhere(found)
    if moved & {"qk", "v"} and getattr(config, "head_dim", None) is not None:
        sentences.append(
            f"head_dim is still {config.head_dim}: query and value dims of a head are not that any more"
        )
    made = whole or _with_layers(made, layers) or made
    untold += [sentence for sentence in sentences if sentence]
    made.fxprune = {"manifest": manifest, "untold": untold}
    return made


def _counts(found: LayerSizes) -> dict[str, dict[int, list[_Pair]]]:
    """What is counted of what is left: attentions and neurons of layers and parts that are gone are no sizes."""
    counts: dict[str, dict[int, list[_Pair]]] = {kind: {} for kind in ATTRIBUTES}
    attentions = [attention for layer in found.layers for attention in _attentions(layer)]
    apart = any(attention.qk != attention.v for attention in attentions)
    for number, layer in enumerate(found.layers):
        for kind, pair in _sizes(layer, apart):
            counts[kind].setdefault(number, []).append(pair)
    hidden = [(size.before, size.after) for size in found.rest if size.role == "hidden"]
    counts["hidden"] = {_WHOLE: hidden} if hidden else {}
    return {kind: sizes for kind, sizes in counts.items() if sizes}


def _attentions(layer: Layer) -> tuple[Attention, ...]:
    """Those that are left."""
    return () if layer.removed or layer.branches.get("attention") else layer.attentions


def _sizes(layer: Layer, apart: bool) -> Iterator[tuple[str, _Pair]]:
    for attention in _attentions(layer):
        yield "heads", attention.heads
        yield "shared", attention.shared
        yield from [("qk", attention.qk), ("v", attention.v)] if apart else [("head_dim", attention.qk)]
    for size in () if layer.removed or layer.branches.get("mlp") else layer.sizes:
        if size.role in ("ffn", "experts"):
            yield size.role, (size.before, size.after)


def _moved(sizes: _Counts) -> bool:
    return any(before != after for pairs in sizes.values() for before, after in pairs)


def _attribute(config: Any, kind: str, sizes: _Counts) -> str:
    """The attribute whose value every layer had, by the name that others map to; empty where there is none, or several sizes in a layer."""
    row, befores = ATTRIBUTES[kind], {before for pairs in sizes.values() for before, _ in pairs}
    afters = [after for pairs in sizes.values() for _, after in pairs]
    if len(befores) != 1 or len(afters) > len(sizes) or None in afters:
        return ""
    names = [getattr(config, "attribute_map", {}).get(name, name) for name in row.names]
    absent = [
        name for name in names if getattr(config, name, None) is None and (row.new or hasattr(config, name))
    ]
    has = [name for name in names if getattr(config, name, None) in befores]
    whole = all(isinstance(after, int) for after in afters)
    return next(iter((has if whole else []) or (absent if row.derived else [])), "")


def _follows(config: Any, kind: str, name: str, moved: set[str]) -> bool:
    """Whether transformers would work a size out from others that have changed."""
    return getattr(config, name, None) is None and bool(moved & set(ATTRIBUTES[kind].derived))


def _said(
    config: Any, layers: dict[int, _Values], name: str, sizes: _Counts
) -> tuple[Any, dict[int, _Values]] | None:
    """The config with a size of all layers, or the layers with their own; None where the config's class refuses it."""
    left = {number: pairs[0][1] for number, pairs in sizes.items()}
    alike = len(set(map(str, left.values()))) == 1
    made = copy.deepcopy(config)
    setattr(made, name, next(iter(left.values())) if alike else next(iter(sizes.values()))[0][0])
    own = layers if alike else _merged(layers, {number: {name: after} for number, after in left.items()})
    return (made, own) if _with_layers(made, own) is not None else None


def _merged(one: Mapping[int, _Values], other: Mapping[int, _Values]) -> dict[int, _Values]:
    return {number: {**one.get(number, {}), **other.get(number, {})} for number in sorted({*one, *other})}


def _with_layers(config: Any, layers: dict[int, _Values]) -> Any | None:
    """A copy with what layers have of their own, if its class reads it back."""
    for lenient in (False, True):
        made = copy.deepcopy(config)
        with suppress(Exception):  # whatever a class refuses with, it can't say this
            if layers:
                made.per_layer_config = layers
            if lenient:
                # The checks of some classes (Llama) ask for the one size of all layers: with this a reader is warned, and not stopped.
                made.allow_global_per_layer_attribute_access = True
            type(made).from_dict(made.to_dict())
            return made
    return None


def _skipped(layer: Layer) -> list[str]:
    """The parts of a layer that are gone, in transformers' words."""
    return [part for part in SKIPS if part in layer.branches and (layer.removed or layer.branches[part])]


def _gone(layer: Layer, told: bool) -> str:
    """What `skip` does not say of a layer, in a sentence; empty where it says all."""
    parts = [part for part, gone in layer.branches.items() if gone or layer.removed]
    if layer.removed and not (told and parts and set(parts) <= set(SKIPS)):
        return f"{layer.name} is gone"
    rest = [part for part in parts if not told or part not in SKIPS]
    return f"{layer.name} has lost {', '.join(rest)}" if rest and not layer.removed else ""


def _elsewhere(found: LayerSizes) -> list[str]:
    """What has changed outside of layers, other than the width of the stream."""
    others = [size for size in found.rest if size.role != "hidden" and size.before != size.after]
    return [f"{size.axis} has {size.after} of {size.before}" for size in others]


def _sentence(kind: str, sizes: _Counts, found: LayerSizes) -> str:
    """What no attribute says: where sizes have changed."""
    names = [
        "the model" if number == _WHOLE else found.layers[number].name
        for number, pairs in sizes.items()
        if any(before != after for before, after in pairs)
    ]
    return f"{ATTRIBUTES[kind].what} have changed in {', '.join(names)}"
