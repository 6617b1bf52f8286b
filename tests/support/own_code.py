"""A Hugging Face folder whose config, model and tokenizer are code of its own, which writes a marker file when it is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.tiny import BERT, saved

_HEAD = "from pathlib import Path\nPath({marker!r}).touch()\n"

_FILES = {
    "configuration_marked": """
from transformers import BertConfig
class MarkedConfig(BertConfig):
    model_type = "marked-bert"
""",
    "modeling_marked": """
from transformers import BertForSequenceClassification, BertModel
from .configuration_marked import MarkedConfig
class MarkedModel(BertModel):
    config_class = MarkedConfig
class MarkedForSequenceClassification(BertForSequenceClassification):
    config_class = MarkedConfig
""",
    "tokenization_marked": """
from transformers import BertTokenizer
class MarkedTokenizer(BertTokenizer):
    pass
""",
}

_CONFIG = {"AutoConfig": "configuration_marked.MarkedConfig"}
_MODELS = {
    "AutoModel": "modeling_marked.MarkedModel",
    "AutoModelForSequenceClassification": "modeling_marked.MarkedForSequenceClassification",
}
_TOKENIZER = {"AutoTokenizer": ["tokenization_marked.MarkedTokenizer", None]}


def marked(
    folder: Path, marker: Path, config: bool = True, models: bool = True, tokenizer: bool = False
) -> Path:
    """Save a tiny BERT with code of its own for some of config, models and tokenizer."""
    saved(folder, **BERT)
    for name, text in _FILES.items():
        (folder / f"{name}.py").write_text(_HEAD.format(marker=str(marker)) + text)
    classes = (_CONFIG if config else {}) | (_MODELS if models else {})
    told: dict[str, Any] = {"auto_map": classes} if classes else {}
    told |= {"model_type": "marked-bert"} if config else {}
    told |= {"architectures": ["MarkedModel"]} if models else {}
    _change(folder / "config.json", told)
    if tokenizer:
        _change(
            folder / "tokenizer_config.json", {"auto_map": _TOKENIZER, "tokenizer_class": "MarkedTokenizer"}
        )
    return folder


def _change(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
