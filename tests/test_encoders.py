"""Other people's encoders and classifiers: each can be trained and asked, or one sentence says why not. The same text
has the same prediction, whatever it is classified with and in whatever process."""

import json
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tools import command, opinionated_model, opinions, probabilities_by_hand
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import CliRunner

from imdb_sentiment import cli_model  # noqa: F401, its commands join the others
from imdb_sentiment.batcher import Batcher
from imdb_sentiment.cli import app
from imdb_sentiment.demo_corpus import handwritten_reviews
from imdb_sentiment.export import FORM_BOUNDS, export_form
from imdb_sentiment.files import predict_file
from imdb_sentiment.prediction import BATCH_BOUNDS, Predictor
from imdb_sentiment.tokens import tiny_tokenizer

REVIEWS = [row["text"] for row in handwritten_reviews()]
QUICK = ["--set", "limit=40", "--set", "epochs=1", "--set", "device=cpu"]
SIGNS = dict(
    bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", mask="<mask>", cls="<cls>", sep="<sep>"
)


def within(*args):
    "What a command says and its exit status, in this process; another error than exit fails the test."
    done = CliRunner().invoke(app, [str(a) for a in args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output, done.exit_code


def refused(said, *args):
    "Assert that a command ends with one sentence and exit status 1; returns the sentence."
    output, code = within(*args)
    last = output.strip().splitlines()[-1]
    assert code == 1, output
    assert last.startswith("imdb-sentiment: ") and said in last, output
    assert "Traceback" not in output
    return last


# Tokenizers of the three kinds there are, each with the special tokens of a family.


def family(tokens, template="<s> $A </s>", **settings):
    "A tokenizer that puts special tokens around a text."
    names = set(re.findall("</?[a-z]+>", template))
    if template:
        tokens.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, tokens.token_to_id(name)) for name in names]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokens, **settings)


@lru_cache
def wordpiece():
    return tiny_tokenizer(REVIEWS, 400)


@lru_cache
def bytes_(template="<s> $A </s>", signs=("bos", "pad", "eos", "unk", "mask")):
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = [SIGNS[sign] for sign in signs]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings = dict(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokens.train_from_iterator(REVIEWS, trainers.BpeTrainer(vocab_size=400, **settings))
    return family(tokens, template, **{f"{sign}_token": SIGNS[sign] for sign in signs})


@lru_cache
def unigram(template="<s> $A </s>", side="right"):
    tokens = Tokenizer(models.Unigram())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    settings = dict(special_tokens=list(SIGNS.values()), unk_token="<unk>", show_progress=False)
    tokens.train_from_iterator(REVIEWS, trainers.UnigramTrainer(vocab_size=400, **settings))
    signs = {f"{sign}_token": name for sign, name in SIGNS.items()}
    return family(tokens, template, padding_side=side, **signs)


without_padding = partial(bytes_, "", ("eos",))
xlnet = partial(unigram, "$A:0 <sep>:0 <cls>:2", "left")
SIZE = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
READS = dict(max_position_embeddings=50, vocab_size=500)
BERT_LIKE = dict(SIZE, **READS)
ROBERTA_LIKE = dict(BERT_LIKE, pad_token_id=1)
RELATIVE = dict(BERT_LIKE, relative_attention=True, position_biased_input=False)
SEVERAL = dict(BERT_LIKE, num_key_value_heads=1)

# Name of the configuration, its settings, the tokenizer, and the tokens that it reads; None for any number.
KINDS = {
    "BERT": ("Bert", BERT_LIKE, wordpiece, 50),
    "DistilBERT": (
        "DistilBert",
        dict(READS, dim=32, n_layers=1, n_heads=2, hidden_dim=64),
        wordpiece,
        50,
    ),
    "RoBERTa": ("Roberta", ROBERTA_LIKE, bytes_, 48),
    "XLM-R": ("XLMRoberta", dict(BERT_LIKE, pad_token_id=2), unigram, 47),
    "MPNet": ("MPNet", ROBERTA_LIKE, bytes_, 48),
    "Longformer": ("Longformer", dict(ROBERTA_LIKE, attention_window=8), bytes_, 48),
    "XLNet": (
        "XLNet",
        dict(vocab_size=500, d_model=32, n_layer=1, n_head=2, d_inner=64),
        xlnet,
        None,
    ),
    "Electra": ("Electra", dict(BERT_LIKE, embedding_size=16), wordpiece, 50),
    "ALBERT": ("Albert", dict(BERT_LIKE, embedding_size=16), unigram, 50),
    "DeBERTa-v2": ("DebertaV2", dict(RELATIVE, pos_att_type=["p2c", "c2p"]), unigram, 50),
    "ModernBERT": ("ModernBert", ROBERTA_LIKE, bytes_, 50),
    "NomicBERT": ("NomicBert", BERT_LIKE, wordpiece, 50),
    "BigBird": ("BigBird", dict(BERT_LIKE, block_size=4, num_random_blocks=1), unigram, 50),
    "GPT-2": (
        "GPT2",
        dict(vocab_size=500, n_positions=50, n_embd=32, n_layer=1, n_head=2),
        without_padding,
        50,
    ),
    "Llama": ("Llama", SEVERAL, without_padding, 50),
}
HALVES = dict(encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64)
BART = dict(READS, **HALVES, d_model=32, encoder_attention_heads=2, decoder_attention_heads=2)
T5 = dict(vocab_size=500, d_model=32, num_layers=1, num_heads=2, d_ff=64, d_kv=16)
LANDMARKS = dict(BERT_LIKE, segment_means_seq_len=16, num_landmarks=4)
REFUSED = {  # as above, and what is said
    "T5": ("T5", T5, unigram, "'t5' has a decoder as well"),
    "BART": ("Bart", BART, bytes_, "'bart' has a decoder as well"),
    "ConvBERT": ("ConvBert", dict(BERT_LIKE, embedding_size=32), wordpiece, "with the padding"),
    "Nystromformer": ("Nystromformer", LANDMARKS, unigram, "does not turn tokens into vectors"),
    "few vectors": ("Bert", dict(BERT_LIKE, vocab_size=99), wordpiece, "vectors for 99 tokens"),
}


def configuration(name, settings):
    "The configuration of an encoder, with the ids of special tokens that the small vocabulary has."
    names = ("bos", "eos", "cls", "sep", "pad")
    ids = {f"{name}_token_id": 0 for name in names if f"{name}_token_id" not in settings}
    return getattr(transformers, f"{name}Config")(**ids, **settings)


def save_pretrained(model_class, kind, folder):
    "A model with random weights, and its tokenizer."
    name, settings, tokenizer, _ = {**KINDS, **REFUSED}[kind]
    torch.manual_seed(0)
    model_class.from_config(configuration(name, settings)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_trains_and_predicts(kind, tmp_path):
    "Also with what the message advises after a length that is too large by one."
    limit, backbone = KINDS[kind][3], save_pretrained(AutoModel, kind, tmp_path / "encoder")
    train = ["train", *QUICK, "--run-dir", tmp_path / "run", "--set", f"backbone={backbone}"]
    length = 200
    if limit:
        advice = refused(f"at most {limit} tokens", *train, "--set", f"max_length={limit + 1}")
        length = int(re.search(r"Set max_length=(\d+)", advice)[1])
        assert length == limit
    output, code = within(*train, "--set", f"max_length={length}")
    assert code == 0, output
    (tmp_path / "in.txt").write_text("\n".join([*REVIEWS[:9], "a film " * 300]), encoding="utf-8")
    files = ["--input", tmp_path / "in.txt", "--out", tmp_path / "out.jsonl"]
    output, code = within("predict", "--model", tmp_path / "run" / "model", *files)
    assert code == 0, output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    assert rows[9]["share_read"] < 0.5
    predictor = Predictor.load(tmp_path / "run" / "model", "cpu")
    alone = np.array([predictor(text).probabilities["pos"] for text in REVIEWS[:9]])
    together = predictor.probabilities([*REVIEWS[:9], "film"])[:9, predictor.labels.index("pos")]
    assert abs(alone - together).max() < BATCH_BOUNDS["fp32"]


@pytest.mark.parametrize("kind", REFUSED)
def test_encoder_that_cannot_be_used(kind, tmp_path):
    backbone, said = save_pretrained(AutoModel, kind, tmp_path / "encoder"), REFUSED[kind][3]
    refused(said, "train", *QUICK, "--run-dir", tmp_path, "--set", f"backbone={backbone}")


def test_encoder_without_bf16(tmp_path):
    "What is advised works."
    name, settings = "Deberta", dict(RELATIVE, pos_att_type=["p2c", "c2p"])
    AutoModel.from_config(configuration(name, settings)).save_pretrained(tmp_path / "encoder")
    bytes_().save_pretrained(tmp_path / "encoder")
    train = ["train", *QUICK, "--run-dir", tmp_path / "run", "--set", "max_length=40"]
    train += ["--set", f"backbone={tmp_path / 'encoder'}", "--set"]
    assert refused("in bf16", *train, "precision=bf16").endswith("Set precision=fp32.")
    output, code = within(*train, "precision=fp32")
    assert code == 0, output


def test_training_on(tmp_path):
    "A model of this library, by the command; in a form that cannot be trained, one sentence."
    train = ["train", *QUICK, "--run-dir"]
    assert command(*train, tmp_path / "first").returncode == 0
    first = tmp_path / "first" / "model"
    for name in ("onnx", "huggingface"):
        export_form(first, tmp_path / name, name)
    done = command(
        *train, tmp_path / "second", "--set", f"backbone={first}", "--set", "max_length=60"
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "second" / "model" / "config.json").read_text())
    assert config["read_length"] == 60
    done = command("predict", "--model", tmp_path / "second" / "model", REVIEWS[0])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    exported = f"backbone={tmp_path / 'huggingface'}"
    assert within(*train, tmp_path / "third", "--set", exported)[1] == 0
    for place, said in (("onnx", "weights cannot be loaded"), ("first", "is a run folder")):
        refused(said, *train, tmp_path / "fourth", "--set", f"backbone={tmp_path / place}")


CLASSIFIERS = {"XLNet": None, "GPT-2": None, "DeBERTa-v2": None, "BART": None}
CLASSIFIERS |= {"Nystromformer": "cannot classify a text", "few vectors": "vectors for 99 tokens"}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_classifier_of_others(kind, tmp_path):
    "The special tokens in one of the texts are no reason to fail."
    folder = save_pretrained(AutoModelForSequenceClassification, kind, tmp_path / "model")
    predict = ["predict", "--model", folder]
    if said := CLASSIFIERS[kind]:
        refused(said, *predict, REVIEWS[0])
        return
    texts = [*REVIEWS[:5], "a </s> film <pad>", "a film " * 100]
    output, code = within(*predict, *texts)
    assert code == 0, output
    predictor = Predictor.load(folder, "cpu")
    alone = np.concatenate([predictor.probabilities([text]) for text in texts])
    assert abs(alone - predictor.probabilities(texts)).max() < BATCH_BOUNDS["fp32"]


# The same text, the same prediction.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "With sub-folders, as a download leaves them."
    folder = opinionated_model(tmp_path_factory.mktemp("encoders") / "model", max_length=64)
    for name in (".cache", "onnx"):
        (folder / name).mkdir()
        (folder / name / "model.onnx").write_bytes(b"not ours")
    return folder


FORMS = {"huggingface": "fp32", "onnx": "fp32", "int8": "int8", "openvino": "bf16"}


@pytest.fixture(scope="module")
def forms(model):
    "The model in some forms."
    return {f: export_form(model, model.parent / "forms" / f, f) for f in FORMS}


def mixed():
    "64 texts of 3 to 500 tokens."
    texts = [text for text, _ in opinions(64, seed=1)]
    return [f"{text} " * (1 + 9 * (i % 5 == 0)) for i, text in enumerate(texts)]


def in_a_file(predictor, texts, folder):
    "Through a file, as the command does."
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts), encoding="utf-8")
    predict_file(predictor, source, out)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    signed = [(row["probability"], row["prediction"] == "good") for row in rows]
    return np.array([p if good else 1 - p for p, good in signed])


def in_requests(predictor, texts):
    "Through the batcher of the server, each text in a request of its own, all at the same time."
    batcher = Batcher(predictor, speed=1e6)
    futures = [batcher.submit([text]) for text in texts]
    found = [future.result(60)[0].probabilities["good"] for future in futures]
    batcher.close()
    return np.array(found)


@pytest.mark.parametrize("form", [*FORMS, "bf16"])
def test_same_text_same_prediction(form, model, forms, tmp_path):
    "Alone, among others, in a file, and in the server, within the stated bound."
    if form == "bf16":
        predictor, bound = Predictor.load(model, "cpu", "bf16"), BATCH_BOUNDS["bf16"]
    else:
        predictor, bound = Predictor.load(forms[form], "cpu"), BATCH_BOUNDS[FORMS[form]]
    texts = mixed()
    good = predictor.labels.index("good")
    alone = np.array([predictor(text).probabilities["good"] for text in texts])
    assert alone.min() < 0.2
    assert alone.max() > 0.8
    for found in (
        predictor.probabilities(texts)[:, good],
        predictor.probabilities(texts[::-1])[::-1, good],
        in_a_file(predictor, texts, tmp_path),
        in_requests(predictor, texts),
    ):
        assert abs(found - alone).max() < bound


def test_command_computes_in_fp32(model, tmp_path):
    "Nobody asked for bf16."
    texts = mixed()
    (tmp_path / "in.txt").write_text("\n".join(texts), encoding="utf-8")
    files = ["--input", tmp_path / "in.txt", "--out", tmp_path / "out.jsonl"]
    output, code = within("predict", "--model", model, *files, "--device", "cpu")
    assert code == 0, output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = probabilities_by_hand(model, texts).max(1)
    assert (
        abs(np.array([row["probability"] for row in rows]) - expected).max() < BATCH_BOUNDS["fp32"]
    )


# Forked, in threads, and pickled.


def good(predictor, text):
    return predictor(text).probabilities["good"]


@pytest.fixture
def two_threads():
    "With a single one, nothing could wait for another in vain."
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


WORKERS = {
    "fork": lambda: ProcessPoolExecutor(2, multiprocessing.get_context("fork")),
    "spawn": lambda: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")),
    "threads": lambda: ThreadPoolExecutor(8),
}


@pytest.mark.parametrize(
    ("way", "form"),
    [*((way, "huggingface") for way in WORKERS), ("fork", "onnx"), ("threads", "openvino")],
)
def test_workers(way, form, forms, two_threads):
    "After it was used here, a predictor works in the workers of a pool, and still here."
    predictor, texts = Predictor.load(forms[form], "cpu"), mixed()[:6]
    expected = [good(predictor, text) for text in texts]
    with WORKERS[way]() as pool:
        futures = [pool.submit(good, predictor, text) for text in texts]
        found = [future.result(120) for future in futures]
    assert found == pytest.approx(expected, abs=BATCH_BOUNDS[FORMS[form]])
    assert [good(predictor, text) for text in texts] == found or way != "threads"


class Texts(torch.utils.data.Dataset):
    "Each text with its prediction; the predictor is made before the workers fork."

    def __init__(self, predictor, texts):
        self.predictor, self.texts = predictor, texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return good(self.predictor, self.texts[i])


def test_data_loader(forms, two_threads):
    texts = mixed()
    data = Texts(Predictor.load(forms["huggingface"], "cpu"), texts)
    expected = [data[i] for i in range(len(data))]
    loader = torch.utils.data.DataLoader(
        data, 8, num_workers=2, timeout=120, multiprocessing_context="fork"
    )
    assert torch.cat(list(loader)).tolist() == pytest.approx(expected, abs=1e-5)


# Exports.


@pytest.mark.parametrize("form", FORM_BOUNDS)
def test_export_says_how_far_it_differs(form, model, tmp_path):
    "Also whatever else is in the folder of the model."
    out, code = within("export", "--model", model, "--out", tmp_path / form, "--form", form)
    if form == "openvino-int8":
        assert "split.parquet" in out  # it needs the texts of a run
        return
    said = re.search(r"the probabilities of 3 texts differ by at most (\S+)", out)
    assert code == 0, out
    assert float(said[1]) <= FORM_BOUNDS[form]
    assert all(path.is_file() for path in (tmp_path / form).iterdir())


def test_export_that_differs_is_not_written(model, tmp_path, monkeypatch):
    "No export is exact to the last bit."
    monkeypatch.setitem(FORM_BOUNDS, "onnx", 0.0)
    out = tmp_path / "out" / "onnx"
    refused("was not written", "export", "--model", model, "--out", out, "--form", "onnx")
    assert list(out.parent.iterdir()) == []
