"""At every interface a speed gives the prediction computed without this library, or one sentence says why not."""

import json

import httpx
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.special import softmax
from tools import (
    Server,
    command,
    failed_politely,
    opinionated_model,
    opinions,
    probabilities_by_hand,
)

from imdb_sentiment.runs import RunError
from imdb_sentiment.cascade import Cascade, write_cascades
from imdb_sentiment.files import predict_file
from imdb_sentiment.ngrams import fit_ngrams, save_ngrams
from imdb_sentiment.prediction import InputError, Predictor
from imdb_sentiment.scale import score_folder

CASCADES = dict(
    accurate=Cascade(1e9, 0.7, 1.5, 2.0, 0.9),
    balanced=Cascade(1.0, 0.7, 1.5, 2.0, 0.8),
    fastest=Cascade(0.0, 0.7, 1.5, 2.0, None),
)
TEXTS = [
    "a wonderful film",
    "a dull film",
    "wonderful, dull and weak",
    "the plot",
    "so WONDERFUL<br />and moving!",
    "这部电影非常精彩",
    "😀 İ dull",
    "wonderful " * 400,
    "?",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A model with opinions, n-grams of the same texts, and three speeds."
    folder = opinionated_model(tmp_path_factory.mktemp("speeds") / "model")
    texts, shares = zip(*opinions(600, seed=1))
    rows = pd.DataFrame(dict(text=texts, label=[int(share > 0.5) for share in shares]))
    save_ngrams(fit_ngrams(rows[:400], rows[400:])[0], folder)
    write_cascades(folder, CASCADES)
    return folder


def score_by_hand(folder, text):
    "The score of the n-grams: one word at a time, from the file."
    found = load_file(folder / "ngrams.safetensors")
    words = {w: i for i, w in enumerate(found["words"].tobytes().decode().split("\n"), 1)}
    shares = found["codes"][:, 0].astype(float) / 127
    weights = dict(
        zip(found["features"].tolist(), np.sign(shares) * shares**2 * found["largest"][0])
    )
    tokens, word = [], ""
    for sign in text.replace("<br />", " ") + " ":
        sign = sign.lower() if len(sign.lower()) == 1 else sign
        if sign.isalnum() or sign == "_":
            word += sign
            continue
        tokens += [word] if word else []
        tokens += [sign] if not sign.isspace() else []
        word = ""
    numbers = [words.get(token, 0) for token in tokens]
    pairs = zip(numbers, numbers[1:])
    keys = {n for n in numbers if n} | {a * (len(words) + 1) + b for a, b in pairs if a and b}
    return float(found["bias"][0]) + sum(weights.get(key, 0.0) for key in keys)


def by_hand(folder, speed, text):
    "Probability of each label, and whether the encoder read the text."
    score, cascade = score_by_hand(folder, text), CASCADES[speed]
    ngrams = np.array([-score, score]) / 2
    if abs(score) >= cascade.ask_below:
        return softmax(cascade.alone_weight * ngrams), False
    encoder = np.log(probabilities_by_hand(folder, [text.replace("<br />", " ")])[0])
    return softmax(cascade.encoder_weight * encoder + cascade.ngram_weight * ngrams), True


@pytest.mark.parametrize("speed", CASCADES)
def test_a_speed_gives_the_prediction_computed_by_hand(model, speed):
    predictor = Predictor.load(model, "cpu", speed=speed)
    asked, threshold = predictor.asks(TEXTS), CASCADES[speed].abstain_below
    for text, prediction, reads in zip(TEXTS, predictor(TEXTS), asked):
        expected, read = by_hand(model, speed, text)
        np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=2e-4)
        assert reads == read
        wanted = None if threshold is None else bool(expected.max() < threshold)
        assert prediction.abstains in (wanted, wanted if threshold is None else not wanted)
        if threshold is None or abs(expected.max() - threshold) > 1e-3:
            assert prediction.abstains == wanted


@pytest.mark.parametrize("speed", CASCADES)
def test_any_text_has_a_prediction_at_any_speed(model, speed):
    predictor = Predictor.load(model, "cpu", speed=speed)
    for text in ("a \ud83d film", "\x00", "a" * 50_000, "\u202e", "[CLS] [MASK]", "İ" * 100):
        try:
            assert 0.5 <= predictor(text).probability <= 1
        except InputError as e:
            assert "blank" in str(e)


def test_the_speeds_differ_in_what_the_encoder_reads(model):
    "Otherwise the other tests would show nothing."
    shares = [Predictor.load(model, "cpu", speed=s).asks(TEXTS).mean() for s in CASCADES]
    assert shares[0] == 1 > shares[1] > shares[2] == 0


@pytest.mark.parametrize("speed", CASCADES)
def test_explanations_add_up_to_the_prediction(model, speed):
    "The words weigh what the log odds differ from those of no words at all, if n-grams answer alone."
    predictor = Predictor.load(model, "cpu", speed=speed)
    why = predictor.explain("so wonderful and moving")
    assert [why["text"][p["start"] : p["end"]] for p in why["pieces"]]
    if not predictor.asks([why["text"]])[0]:
        p = np.array(list(why["prediction"].probabilities.values()))
        bias = float(predictor.ngrams.bias[0]) * CASCADES[speed].alone_weight
        sign = 1 if p[1] > p[0] else -1
        total = sign * np.log(p[1] / p[0])
        assert sum(piece["weight"] for piece in why["pieces"]) == pytest.approx(
            total - sign * bias, abs=1e-4
        )


def test_commands_take_a_speed(model, tmp_path):
    done = command("predict", "--model", model, "--speed", "fastest", "a wonderful film")
    assert f"{by_hand(model, 'fastest', 'a wonderful film')[0].max():.1%}" in done.stdout, (
        done.stderr
    )
    rows = pd.DataFrame(dict(text=[t for t in TEXTS if t.isprintable()]))
    rows.to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "out.csv"
    done = command(
        "predict",
        "--model",
        model,
        "--speed",
        "balanced",
        "--input",
        tmp_path / "rows.csv",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    for text, found in zip(rows.text, pd.read_csv(out).probability):
        assert found == pytest.approx(by_hand(model, "balanced", text)[0].max(), abs=2e-4)


def test_an_unknown_speed_is_one_sentence(model):
    failed_politely(
        command("predict", "--model", model, "--speed", "quick", "a film"), "choose one of encoder"
    )
    failed_politely(
        command("predict", "--model", model, "--speed", "fast", "a film"), "but encoder, accurate"
    )
    failed_politely(
        command("serve", "--model", model, "--speed", "", "--port", "0"), "choose one of encoder"
    )


def test_a_model_without_ngrams_says_so(tmp_path):
    plain = opinionated_model(tmp_path / "plain")
    failed_politely(
        command("predict", "--model", plain, "--speed", "fast", "a film"),
        "does not have it, but encoder",
    )


def test_damage_is_one_sentence(model, tmp_path):
    import shutil

    for name, content in (("ngrams.safetensors", b"x" * 100), ("speeds.json", b'{"balanced": 3}')):
        copy = tmp_path / name
        shutil.copytree(model, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(RunError, match="is damaged"):
            Predictor.load(copy, "cpu", speed="balanced")
        assert Predictor.load(copy, "cpu")(
            "a wonderful film"
        ).label  # the encoder alone needs neither


def test_a_file_resumes_at_its_own_speed_only(model, tmp_path):
    rows, out = tmp_path / "rows.txt", tmp_path / "out.jsonl"
    rows.write_text("a wonderful film\n" * 3000, encoding="utf-8")
    predictor = Predictor.load(model, "cpu", speed="fastest")
    whole, calls = predictor.predict, []

    def fail_later(texts):
        calls.append(len(texts))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return whole(texts)

    predictor.predict = fail_later
    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, rows, out)
    with pytest.raises(RunError, match="speed differs"):
        predict_file(Predictor.load(model, "cpu", speed="balanced"), rows, out)
    assert predict_file(Predictor.load(model, "cpu", speed="fastest"), rows, out)["resumed"] > 0


def test_a_folder_is_scored_at_a_speed(model, tmp_path):
    (tmp_path / "in").mkdir()
    texts = ["a wonderful film", "a dull film", "the plot"]
    pd.DataFrame(dict(text=texts)).to_parquet(tmp_path / "in" / "a.parquet")
    score_folder(model, tmp_path / "in", tmp_path / "out", device="cpu", speed="balanced")
    found = pd.read_parquet(tmp_path / "out" / "a.parquet").probability
    for text, probability in zip(texts, found):
        assert probability == pytest.approx(by_hand(model, "balanced", text)[0].max(), abs=2e-4)


def test_the_server_answers_at_a_speed(model):
    with Server(model, "--speed", "balanced") as server:
        found = httpx.post(f"{server.url}/predict", json=dict(texts=TEXTS[:7]), timeout=60).json()[
            "predictions"
        ]
        for text, prediction in zip(TEXTS, found):
            expected, _ = by_hand(model, "balanced", text)
            assert prediction["probability"] == pytest.approx(expected.max(), abs=2e-4)
        asked = dict(texts="so wonderful and moving", explain=True)
        why = httpx.post(f"{server.url}/predict", json=asked, timeout=60).json()["predictions"][0]
        assert "wonderful" in json.dumps(why)


def test_exported_forms_keep_the_speeds(model, tmp_path):
    pytest.importorskip("onnxruntime")
    done = command("export", "--model", model, "--out", tmp_path / "onnx", "--form", "onnx")
    assert done.returncode == 0, done.stderr
    predictor = Predictor.load(tmp_path / "onnx", speed="balanced")
    for text, prediction in zip(TEXTS, predictor(TEXTS)):
        expected = by_hand(model, "balanced", text)[0]
        assert prediction.probability == pytest.approx(expected.max(), abs=2e-3)
