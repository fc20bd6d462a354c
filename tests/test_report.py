"The demo report from end to end, and what a second run does."

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
from tools import MAIN, ROOT, command, failed_politely, fresh_command

from imdb_sentiment.config import Config, make_config
from imdb_sentiment.runs import read_json, write_json
from imdb_sentiment.staleness import chapter_records, chapters_of, fingerprint, is_current
from imdb_sentiment.report import publish
from imdb_sentiment.evaluation import copy_seed_records

NAME = "demo-of-the-tests"
CHAPTERS = chapters_of(Config())


def report(run, *args):
    return command("report", "--name", NAME, "--run-dir", run, *args, cwd=ROOT, timeout=None)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "A published demo report whose first attempt was killed: (run folder, report folder, output)."
    run = tmp_path_factory.mktemp("demo") / "run"
    options = ["report", "--name", NAME, "--run-dir", str(run)]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    first = subprocess.Popen([*MAIN, *options], cwd=ROOT, **streams)
    while not {"00a_runs", "01c_data"} <= set(chapter_records(run)) and first.poll() is None:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = report(run)
    assert done.returncode == 0, done.stderr + done.stdout
    yield run, ROOT / "reports" / NAME, done.stdout
    shutil.rmtree(ROOT / "reports" / NAME)


@pytest.fixture
def metrics(demo):
    return read_json(demo[1] / "metrics.json")


def test_killed_run_goes_on_where_it_stopped(demo):
    _, _, output = demo
    assert "00a_runs: up to date" in output
    assert f"{CHAPTERS[-1].name}: done" in output


def test_report_is_complete(demo, metrics):
    _, report, output = demo
    assert "embedded demo corpus" in output
    assert str(report / "report.html") in output
    assert metrics["data_name"] == "embedded demo corpus"
    assert set(metrics["chapters"]) == {c.name for c in CHAPTERS}
    assert set(metrics["robustness"]) == {"perturbations", "pairs"}
    assert metrics["seeds"]["n"] == 1
    assert metrics["label_noise"] == {}
    assert set(metrics["selective"]) >= {"aurc", "coverage_at_99"}
    for c in CHAPTERS:
        cells = nbformat.read(report / "chapters" / f"{c.name}.ipynb", 4).cells
        assert any(cell.get("outputs") for cell in cells), c.name


def test_report_says_what_was_predicted(demo, metrics):
    _, report, _ = demo
    predictions = pd.read_parquet(report / "predictions.parquet")
    accuracy = ((predictions.prob_pos > 0.5) == predictions.label).mean()
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy)
    assert (
        metrics["accuracy"]["value"] > metrics["baselines"]["majority"]["accuracy"]["value"] + 0.1
    )  # it learns
    explanations = metrics["explanations"]
    assert explanations["comprehensiveness"] > explanations["random_comprehensiveness"]


def test_report_and_model_have_the_same_temperature(demo, metrics):
    decisions = read_json(demo[0] / "model" / "prediction.json")
    assert decisions["logit_temperature"] == metrics["calibration"]["temperature"] != 1
    assert set(metrics["calibration"]) >= {"ece_before", "ece_after", "brier", "nll"}


FIGURES = {
    *(
        "lengths",
        "stars",
        "telling_words",
        "training_curves",
        "confusion_matrix",
        "roc_pr",
        "comparison",
    ),
    *("representations", "slices", "reliability", "risk_coverage", "perturbations", "explanations"),
}


def test_report_has_its_figures(demo):
    assert {p.stem for p in (demo[1] / "figures").glob("*.png")} >= FIGURES


def test_the_second_page_has_no_code(demo):
    page = (demo[1] / "when-to-trust-it.html").read_text(encoding="utf-8")
    assert "Where to doubt it" in page
    assert "import " not in page


def test_second_run_skips_every_chapter(demo):
    run, _, _ = demo
    options = ["report", "--name", NAME, "--run-dir", run]
    before = os.times()
    done = fresh_command(*options, cwd=ROOT)
    after = os.times()
    assert done.stdout.count("up to date") == len(CHAPTERS)
    seconds = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    assert seconds < 30  # of the processor, which do not count other programs


PAGES = ("report.html", "when-to-trust-it.html")


def test_pages_are_written_again_from_what_is_published(demo):
    _, report, _ = demo
    before = [(report / page).read_bytes() for page in PAGES]
    for page in PAGES:
        (report / page).write_text("old")
    done = command("pages", NAME, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(report / "report.html")]
    assert [(report / page).read_bytes() for page in PAGES] == before


def test_run_of_a_gpu_is_published_elsewhere(demo, tmp_path):
    "The machine is the one that trained, not the one that publishes; chapters that ran here say so."
    run = tmp_path / "run"
    shutil.copytree(demo[0], run)
    training = read_json(run / "training.json")
    gpu = dict(training["machine"], device="cuda", gpu="NVIDIA T4", processor="Xeon", cores=16)
    there = dict(device="cuda", machine=gpu, versions={"torch": "2.11.0"})
    write_json(run / "training.json", training | there)
    target = publish("elsewhere", "demo", Config(), run, tmp_path / "reports")
    metrics, page = (
        read_json(target / "metrics.json"),
        (target / "report.html").read_text(encoding="utf-8"),
    )
    assert metrics["machine"] == gpu
    assert metrics["versions"] == {"torch": "2.11.0"}
    assert metrics["evaluation_machine"]["device"] == "cpu"
    assert "GPU: NVIDIA T4" in page
    assert "03d_training, 04f_decisions, 04h_speeds, 05b_evaluation" in page
    assert "ran with" in page


def current(cfg, run):
    "For each chapter, whether it is up to date with these settings."
    return {c.name: is_current(c, cfg, run, ROOT / "nbs") for c in CHAPTERS}


def test_execution_does_not_make_chapters_stale(demo):
    found = current(
        Config(micro_batch=8, device="cpu", eval_batch_size=16, checkpoint_minutes=1), demo[0]
    )
    assert not found.pop("00a_runs")  # which shows the settings
    assert all(found.values()), found


def test_changed_learning_rate_makes_training_and_what_follows_stale(demo):
    run, _, _ = demo
    changed = Config(learning_rate=1e-3)
    found = current(changed, run)
    assert found["01c_data"]
    assert found["02_model"]
    assert not found["03d_training"]
    evaluation = next(c for c in CHAPTERS if c.name == "05b_evaluation")
    prints = [fingerprint(evaluation, cfg, run, ROOT / "nbs") for cfg in (changed, Config())]
    assert prints[0] != prints[1]


def test_two_runs_in_one_folder_are_refused(demo):
    from filelock import FileLock

    run, _, _ = demo
    with FileLock(run / ".lock"):
        done = report(run)
    failed_politely(done, "Another run is working")


def test_a_chapter_runs_alone_under_papermill(demo, tmp_path):
    run, _, _ = demo
    first = [
        "nbs/02_model.ipynb",
        str(tmp_path / "out.ipynb"),
        "-p",
        "preset",
        "demo",
        "-p",
        "run",
        str(run),
    ]

    def alone(*parameters):
        papermill = [sys.executable, "-m", "papermill", *first, *parameters]
        return subprocess.run(papermill, cwd=ROOT, capture_output=True, text=True)

    assert alone().returncode == 0
    wrong = alone("-p", "droput", "0.1")
    assert wrong.returncode != 0
    assert "Did you mean 'dropout'" in wrong.stderr
    other = alone("-p", "dropout", "0.1")
    assert other.returncode != 0
    assert "belongs to another configuration" in other.stderr


HEAD = "original\tedited\tlabel\n"
NO_SUITES = [  # the content of the file, and what the refusal says
    (HEAD + "a\tb\tperhaps\n", "perhaps"),
    ("text\na\n", "no suite"),
    ("", "cannot be read"),
]


def test_suites_run_on_a_saved_model(demo, tmp_path):
    model, suite, out = demo[0] / "model", tmp_path / "pairs.tsv", tmp_path / "found.json"
    suite.write_text(HEAD + "A great film.\tAn awful film.\tpos\nIt is dull.\tIt is a joy.\tneg\n")
    done = command("evaluate", "--model", model, "--suite", suite, "--out", out)
    assert done.returncode == 0, done.stderr
    assert read_json(out)["robustness"]["pairs"]["pairs"]["consistency"]["n"] == 2


@pytest.mark.parametrize("content, said", NO_SUITES)
def test_what_is_no_suite_is_refused(demo, tmp_path, content, said):
    suite = tmp_path / "pairs.tsv"
    suite.write_text(content)
    out = tmp_path / "found.json"
    failed_politely(
        command("evaluate", "--model", demo[0] / "model", "--suite", suite, "--out", out), said
    )
    assert not out.exists()


def test_results_of_suites_replace_no_folder(demo, tmp_path):
    suite, kept = tmp_path / "pairs.tsv", tmp_path / "kept"
    suite.write_text(HEAD + "A great film.\tAn awful film.\tpos\n")
    kept.mkdir()
    (kept / "work.txt").write_text("mine")
    done = command("evaluate", "--model", demo[0] / "model", "--suite", suite, "--out", kept)
    failed_politely(done, "is a folder")
    assert [p.name for p in kept.iterdir()] == ["work.txt"]


def test_further_seeds_join_the_report(demo):  # last but one, since it publishes the report again
    run, folder, _ = demo
    for _ in range(2):  # the second time nothing is left to do
        done = command("seeds", "1", "--name", NAME, "--run-dir", run, cwd=ROOT, timeout=None)
        assert done.returncode == 0, done.stderr
        assert "Seed 1. Validation accuracy" in done.stdout
    done = report(run)
    assert "03d_training: up to date" in done.stdout, done.stderr
    assert "05b_evaluation: done" in done.stdout, done.stderr
    seeds = read_json(folder / "metrics.json")["seeds"]
    assert set(seeds["each"]) == {"42", "1"}
    first, second = seeds["each"].values()  # equal by chance on one machine
    ours, theirs = (pd.read_parquet(f / "predictions.parquet") for f in (run, run / "seeds" / "1"))
    assert not ours.equals(theirs)
    assert seeds["n"] == 2
    assert seeds["mean"] == pytest.approx((first + second) / 2)
    assert seeds["sd"] == pytest.approx(abs(first - second) / 2**0.5)


TAKEN = [  # settings of a run elsewhere, and the records that it takes over
    (make_config("demo"), ["1.json"]),
    (replace(make_config("demo"), epochs=9), []),
]


@pytest.mark.parametrize("settings, taken", TAKEN, ids=["same", "other"])
def test_a_run_elsewhere_takes_over_seeds_of_its_settings(demo, tmp_path, settings, taken):
    copy_seed_records(settings, demo[1], tmp_path)
    assert [p.name for p in tmp_path.glob("seeds/*")] == taken
