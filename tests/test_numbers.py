"""What the published figures rest on: intervals of the level that they state, and a test part on which nothing was
fitted or chosen."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from imdb_sentiment.config import Config
from imdb_sentiment.runs import open_run
from imdb_sentiment.data import prepare_split, with_labels
from imdb_sentiment.baselines import baseline_predictions
from imdb_sentiment.metrics import bootstrap_intervals, compare_pairs
from imdb_sentiment.checkpoints import run_identity
from imdb_sentiment.loop import read_data


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_is_of_its_level(level):
    "By the normal approximation, which is good for a thousand reviews."
    found = bootstrap_intervals([[440, 60], [50, 450]], resamples=20_000, level=level)["accuracy"]
    half = norm.ppf((1 + level) / 2) * np.sqrt(0.89 * 0.11 / 1000)
    assert found["value"] == pytest.approx(0.89)
    assert found["ci_low"] == pytest.approx(0.89 - half, abs=0.002)
    assert found["ci_high"] == pytest.approx(0.89 + half, abs=0.002)


def test_interval_is_of_95_percent_if_nothing_is_said():
    table = [[440, 60], [50, 450]]
    assert bootstrap_intervals(table) == bootstrap_intervals(table, level=0.95)


def test_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for seed in range(400):
        right = draw.binomial(500, 0.9, size=2)
        table = [[right[0], 500 - right[0]], [500 - right[1], right[1]]]
        found = bootstrap_intervals(table, resamples=300, seed=seed)["accuracy"]
        hits += found["ci_low"] <= 0.9 <= found["ci_high"]
    assert 0.92 <= hits / 400 <= 0.98


def test_interval_of_a_difference_is_of_95_percent():
    right = np.repeat([1, 1, 0, 0], [800, 100, 60, 40])
    other = np.repeat([1, 0, 1, 0], [800, 100, 60, 40])
    found = compare_pairs(right, other, resamples=20_000)
    half = norm.ppf(0.975) * np.sqrt((0.16 - 0.04**2) / 1000)
    assert found["difference"] == pytest.approx(0.04)
    assert found["ci_low"] == pytest.approx(0.04 - half, abs=0.002)
    assert found["ci_high"] == pytest.approx(0.04 + half, abs=0.002)


def reviews(n=120):
    "A split whose reviews tell their label by one word of four, now and then wrongly."
    draw, rows = np.random.default_rng(0), []
    for i in range(n):
        label = i % 2
        shown = label if draw.random() < 0.8 else 1 - label
        said = draw.choice((["dull", "weak"], ["great", "fine"])[shown], 2)
        words = [*draw.choice(["plot", "scene", "actor", "music"], 6), *said]
        part = ("train", "train", "val", "test")[i // 2 % 4]
        rows.append(dict(id=str(i), part=part, text=" ".join(draw.permutation(words)), label=label))
    return pd.DataFrame(rows)


def test_baselines_know_nothing_of_the_test_part():
    "Other labels there change no prediction and no choice."
    split = reviews()
    test = split.part == "test"
    turned = split.assign(label=split.label.where(~test, 1 - split.label))
    found, chosen = baseline_predictions(split)
    again, chosen_again = baseline_predictions(turned)
    pd.testing.assert_frame_equal(found, again)
    assert chosen == chosen_again
    assert found.nbsvm.nunique() == 2


def test_baselines_learn_from_the_training_part():
    "Other labels there do change predictions: the test above would notice it."
    split = reviews()
    turned = split.assign(label=split.label.where(split.part != "train", 1 - split.label))
    found, again = (baseline_predictions(s)[0] for s in (split, turned))
    assert (found.nbsvm != again.nbsvm).mean() > 0.5


def test_baselines_know_nothing_of_the_calibration_part():
    split = reviews(160)
    split.loc[(split.part == "train") & (split.index % 3 == 0), "part"] = "calibration"
    held = split.part == "calibration"
    assert held.sum() > 20
    turned = split.assign(label=split.label.where(~held, 1 - split.label))
    found, again = (baseline_predictions(s)[0] for s in (split, turned))
    pd.testing.assert_frame_equal(found, again)


def test_training_does_not_see_the_calibration_part(tmp_path):
    "Neither its steps nor the choice of the epoch; and what is held out for it is not lost to both."
    cfg = Config(limit=200, max_length=32)
    split = prepare_split(cfg, open_run(cfg, tmp_path / "run"))
    counts = split.part.value_counts()
    data = read_data(with_labels(cfg, tmp_path / "run"), tmp_path / "run")
    seen = {part: len(data.tokens[part]) for part in ("train", "val")}
    assert seen == {part: counts[part] for part in seen}
    assert counts["calibration"] > 10
    assert set(data.tokens) == {"train", "val", "train sample"}


CHANGES = {  # of a split or the settings: each makes another run of it
    "another text": lambda cfg, split: (
        cfg,
        split.assign(text=split.text.where(split.index != 0, "other")),
    ),
    "another label": lambda cfg, split: (
        cfg,
        split.assign(label=split.label.where(split.index != 0, 1)),
    ),
    "another part": lambda cfg, split: (
        cfg,
        split.assign(part=split.part.where(split.index != 0, "val")),
    ),
    "another rate": lambda cfg, split: (Config(learning_rate=0.001), split),
    "another seed": lambda cfg, split: (Config(seed=1), split),
    "another truncation": lambda cfg, split: (Config(truncation="tail"), split),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_experiment_is_another_run(change):
    "Or a checkpoint of one would be taken up by the other."
    first = Config(), reviews()
    assert run_identity(*CHANGES[change](*first)) != run_identity(*first)


def test_another_execution_is_the_same_run():
    changed = Config(
        micro_batch=8, device="cpu", checkpoint_minutes=1, eval_batch_size=8, resamples=20
    )
    assert run_identity(changed, reviews()) == run_identity(Config(), reviews())
