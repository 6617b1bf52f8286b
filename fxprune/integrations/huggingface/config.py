"""Sizes of a pruned model in its transformers config: those that all layers share, and those of single layers in `per_layer_config`.

A model whose layers differ is *heterogeneous* in transformers: `per_layer_config` holds the differences, layer by layer, and its `skip` the
parts of a layer that are gone; reading a size from such a config, and not from a layer's, is an error there. An attribute is written only
where its value was the size counted in every layer; changes that no attribute can hold are sentences in `fxprune`, so that no wrong size
goes unmarked. Nothing here imports transformers: a config is an object with attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from fxprune.analysis.layer_sizes import Attention, Layer, LayerSizes, RemainingCount

_Pair: TypeAlias = tuple[int, RemainingCount]
"""A size before and after."""

_WHOLE = -1
"""Layer number of sizes that belong to no single layer."""

SKIPS = ("attention", "mlp")
"""The parts of a layer that have a name in transformers' `skip`."""


@dataclass(frozen=True)
class Attribute:
    """A size in words, and the config attributes that may hold it, of which the first that fits is used.

    `derived` are the sizes from which transformers derives it while the attribute is absent or None: when one of them changes, it must be
    written even if unchanged. A `new` attribute may be added to a config without it, and may be a list, with one number per head.
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
"""The sizes of one kind, by layer number or `_WHOLE`."""

_Values: TypeAlias = dict[str, Any]


def record_sizes(config: Any, found: LayerSizes, manifest: str) -> Any:
    """Return a copy of a config with the counted sizes; its `fxprune` names the manifest, and lists changes that no attribute can hold.

    The copy can be read back by its own class: a size that the class refuses (heads that don't divide the width) is only listed.
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
            continue  # keys and values have the heads of queries, which is the default without an attribute
        if kind in moved or (name and _follows(config, kind, name, moved)):
            told = _set_sizes(made, layers, name, sizes) if name else None
            made, layers = told or (made, layers)
            untold += [] if told else [_sentence(kind, sizes, found)]
    parts = {number: _skipped(layer) for number, layer in enumerate(found.layers)}
    skips = {number: {"skip": skipped} for number, skipped in parts.items() if skipped}
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
    """Return the sizes of each kind by layer, without attentions and neurons of removed layers and parts."""
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
    """Return the attentions of a layer that are left."""
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
    """Return the attribute (after `attribute_map`) that can hold a size of all layers; empty where none can, or layers have several."""
    row, befores = ATTRIBUTES[kind], {before for pairs in sizes.values() for before, _ in pairs}
    afters = [after for pairs in sizes.values() for _, after in pairs]
    if len(befores) != 1 or len(afters) > len(sizes) or None in afters:
        return ""
    names = [getattr(config, "attribute_map", {}).get(name, name) for name in row.names]
    free = [name for name in names if getattr(config, name, None) is None]
    absent = [name for name in free if row.new or hasattr(config, name)]
    has = [name for name in names if getattr(config, name, None) in befores]
    whole = all(isinstance(after, int) for after in afters)
    return next(iter((has if whole else []) or (absent if row.derived else [])), "")


def _follows(config: Any, kind: str, name: str, moved: set[str]) -> bool:
    """Return whether transformers would derive a size from others that have changed."""
    return getattr(config, name, None) is None and bool(moved & set(ATTRIBUTES[kind].derived))


def _set_sizes(
    config: Any, layers: dict[int, _Values], name: str, sizes: _Counts
) -> tuple[Any, dict[int, _Values]] | None:
    """Return (config, layers) with one size for all layers, or one for each; None where the config's class refuses it."""
    left = {number: pairs[0][1] for number, pairs in sizes.items()}
    alike = len(set(map(str, left.values()))) == 1
    made = copy.deepcopy(config)
    setattr(made, name, next(iter(left.values())) if alike else next(iter(sizes.values()))[0][0])
    own = layers if alike else _merged(layers, {number: {name: after} for number, after in left.items()})
    return (made, own) if _with_layers(made, own) is not None else None


def _merged(one: Mapping[int, _Values], other: Mapping[int, _Values]) -> dict[int, _Values]:
    return {number: {**one.get(number, {}), **other.get(number, {})} for number in sorted({*one, *other})}


def _with_layers(config: Any, layers: dict[int, _Values]) -> Any | None:
    """Return a copy with the values of single layers, or None where its class can't read it back."""
    for lenient in (False, True):
        made = copy.deepcopy(config)
        with suppress(Exception):  # on any error: the class can't represent this
            if layers:
                made.per_layer_config = layers
            if lenient:
                # Checks of some classes (Llama) read the one size of all layers: with this, reading it is a warning, not an error.
                made.allow_global_per_layer_attribute_access = True
            type(made).from_dict(made.to_dict())
            return made
    return None


def _skipped(layer: Layer) -> list[str]:
    """Return the parts of a layer that are gone, by transformers' names."""
    return [part for part in SKIPS if part in layer.branches and (layer.removed or layer.branches[part])]


def _gone(layer: Layer, told: bool) -> str:
    """Return a sentence about removed parts of a layer that `skip` does not cover; empty where it covers all."""
    parts = [part for part, gone in layer.branches.items() if gone or layer.removed]
    if layer.removed and not (told and parts and set(parts) <= set(SKIPS)):
        return f"{layer.name} is gone"
    rest = [part for part in parts if not told or part not in SKIPS]
    return f"{layer.name} has lost {', '.join(rest)}" if rest and not layer.removed else ""


def _elsewhere(found: LayerSizes) -> list[str]:
    """Return sentences about sizes outside of layers that have changed, other than the width of the residual stream."""
    others = [size for size in found.rest if size.role != "hidden" and size.before != size.after]
    return [f"{size.axis} has {size.after} of {size.before}" for size in others]


def _sentence(kind: str, sizes: _Counts, found: LayerSizes) -> str:
    """Return a sentence about a change that no attribute holds: where sizes of a kind have changed."""
    moved = [number for number, pairs in sizes.items() if _moved({number: pairs})]
    names = ["the model" if number == _WHOLE else found.layers[number].name for number in moved]
    return f"{ATTRIBUTES[kind].what} have changed in {', '.join(names)}"
