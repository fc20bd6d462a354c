"A form whose probabilities differ from those of its model is refused, and nothing is left behind."

import pytest
from tools import opinionated_model
from transformers import LongformerConfig

from imdb_sentiment import export, forms
from imdb_sentiment.export import export_form
from imdb_sentiment.model import TransformerClassifier, TransformerClassifierConfig, save_model
from imdb_sentiment.runs import RunError
from imdb_sentiment.tokens import tiny_tokenizer

pytest.importorskip("onnxruntime")
TRUE_GRAPH = forms.write_graph


def favouring(model, pad_id, path):
    "A graph that favours a label."
    model.head.bias.data[0] += 0.01
    TRUE_GRAPH(model, pad_id, path)


def unsupported(model, pad_id, path):
    "An operation that ONNX does not have."
    raise TypeError("no such operation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("forms") / "model")


@pytest.mark.parametrize(
    "module, name, fault, message",
    [
        (forms, "write_graph", favouring, "more than 0.0001"),
        (forms, "write_graph", unsupported, "cannot be written as ONNX"),
        (export, "form_difference", lambda *_: float("nan"), "at most nan"),
    ],
)
def test_a_fault_of_the_export_is_noticed(
    model, tmp_path, monkeypatch, module, name, fault, message
):
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(RunError, match=message):
        export_form(model, tmp_path / "onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_reads_one_length_only_is_refused(tmp_path):
    "Longformer cuts its attention into pieces, whose number the exporter takes for a constant."
    tokenizer = tiny_tokenizer(["a wonderful film", "a dull film"] * 5)
    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=64, attention_window=8)
    config = TransformerClassifierConfig(LongformerConfig(**small, **sizes), read_length=32)
    save_model(TransformerClassifier(config), tokenizer, tmp_path / "longformer")
    with pytest.raises(RunError, match="cannot be computed as onnx"):
        export_form(tmp_path / "longformer", tmp_path / "refused" / "onnx", "onnx")
    assert list((tmp_path / "refused").iterdir()) == []


def test_a_model_that_does_not_exist_is_no_form(tmp_path):
    with pytest.raises(RunError, match="holds no model"):
        export_form(tmp_path / "nowhere", tmp_path / "onnx", "onnx")
