"""Models of graphs, tables and time series: name to (call, inputs in words)."""

from __future__ import annotations

from typing import Any

from zoo.calls import Call, call

_GRAPH = "x=rows/10x12 edge_index=edges/10x24"


def _graph(name: str, **options: Any) -> tuple[Call, str]:
    return call(f"torch_geometric.nn:{name}", 12, 24, 2, 7, **options), _GRAPH


GRAPHS = {
    "torch-geometric/GCN": _graph("GCN"),
    "torch-geometric/GAT": _graph("GAT", heads=2),
    "torch-geometric/GraphSAGE": _graph("GraphSAGE", norm="batch_norm"),
    "torch-geometric/GIN": _graph("GIN"),
    "torch-geometric/GPSConv": (
        call(
            "torch_geometric.nn:GPSConv",
            24,
            call("torch_geometric.nn:GCNConv", 24, 24),
            heads=4,
        ),
        "x=rows/10x24 edge_index=edges/10x24",
    ),
    "egnn-pytorch/EGNN_Network": (
        call("egnn_pytorch:EGNN_Network", depth=2, dim=16, num_tokens=99, m_dim=12),
        "feats=ids/9 coors=real/9x3",
    ),
    "e3nn/FullyConnectedNet": (
        call(
            "e3nn.nn:FullyConnectedNet", [8, 24, 24, 5], call("zoo.calls:named", "torch.nn.functional:silu")
        ),
        "input=real/8",
    ),
}

_TAB: dict[str, Any] = {
    "categories": (31, 31, 31),
    "num_continuous": 4,
    "dim": 24,
    "depth": 2,
    "heads": 3,
    "dim_head": 8,
}
_BLOCK: dict[str, Any] = {
    "n_blocks": 2,
    "d_block": 24,
    "attention_n_heads": 4,
    "attention_dropout": 0.0,
    "ffn_d_hidden": None,
    "ffn_d_hidden_multiplier": 1.5,
    "ffn_dropout": 0.0,
    "residual_dropout": 0.0,
    "d_out": 3,
}

TABULAR = {
    "tab-transformer-pytorch/TabTransformer": (
        call(
            "tab_transformer_pytorch:TabTransformer",
            **_TAB,
            mlp_act=call("torch.nn:ReLU"),
            num_residual_streams=1,
        ),
        "x_categ=ids/3 x_cont=real/4",
    ),
    "tab-transformer-pytorch/FTTransformer": (
        call("tab_transformer_pytorch:FTTransformer", **_TAB, num_residual_streams=1),
        "x_categ=ids/3 x_numer=real/4",
    ),
    "rtdl-revisiting-models/FTTransformer": (
        call("rtdl_revisiting_models:FTTransformer", n_cont_features=4, cat_cardinalities=[31, 31], **_BLOCK),
        "x_cont=real/4 x_cat=ids/2",
    ),
    "rtdl-revisiting-models/ResNet": (
        call(
            "rtdl_revisiting_models:ResNet",
            d_in=12,
            d_out=3,
            n_blocks=2,
            d_block=24,
            d_hidden_multiplier=2.0,
            dropout1=0.0,
            dropout2=0.0,
        ),
        "x=real/12",
    ),
    "rtdl-revisiting-models/MLP": (
        call("rtdl_revisiting_models:MLP", d_in=12, d_out=3, n_blocks=3, d_block=24, dropout=0.0),
        "x=real/12",
    ),
    "pytorch-tabnet/TabNet": (
        call("pytorch_tabnet.tab_network:TabNet", 12, 3, group_attention_matrix=call("torch:eye", 12)),
        "x=real/12",
    ),
    **{
        f"deepctr-torch/{name}": (
            call(
                f"deepctr_torch.models:{name}",
                [call("deepctr_torch.inputs:SparseFeat", f"f{i}", 31, 8) for i in range(3)],
                [call("deepctr_torch.inputs:SparseFeat", f"f{i}", 31, 8) for i in range(3)],
                dnn_hidden_units=(24, 16),
            ),
            "X=numbers/3",
        )
        for name in ("DeepFM", "xDeepFM", "DCN")
    },
}

SERIES = {
    "pytorch-tcn/TCN": (
        call("pytorch_tcn:TCN", 6, [16, 20, 24], kernel_size=3, dropout=0.0, use_norm="batch_norm"),
        "x=real/6x32",
    ),
    "iTransformer/iTransformer": (
        call(
            "iTransformer:iTransformer",
            num_variates=5,
            lookback_len=24,
            depth=2,
            dim=24,
            pred_length=6,
            dim_head=8,
            heads=3,
            num_residual_streams=1,
            flash_attn=False,
        ),
        "x=real/24x5",
    ),
    "pytorch-forecasting/NBEATSGenericBlock": (
        call("pytorch_forecasting.models.nbeats.sub_modules:NBEATSGenericBlock", 24, 8, 3, 12, 5),
        "x=real/12",
    ),
    "pytorch-forecasting/GatedResidualNetwork": (
        call(
            "pytorch_forecasting.models.temporal_fusion_transformer.sub_modules:GatedResidualNetwork",
            12,
            24,
            10,
        ),
        "x=real/12",
    ),
}

TABLES: dict[str, tuple[Call, str]] = {**GRAPHS, **TABULAR, **SERIES}
