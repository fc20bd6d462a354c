"The demo report from end to end, and what a second run does."
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from imdb_sentiment.config import Config, make_config, read_json, write_json
from imdb_sentiment.pipeline import CHAPTER_LIST, fingerprint, is_current, publish, take_seeds

ROOT = Path(__file__).parents[1]
NAME = "demo-of-the-tests"
COMMAND = [sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", "report", "--name", NAME]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "A published demo report whose first attempt was killed: (run folder, report folder, output)."
    run = tmp_path_factory.mktemp("demo") / "run"
    first = subprocess.Popen([*COMMAND, "--run-dir", str(run)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    while not (run / "chapters" / "01_data.ipynb").exists() and first.poll() is None:
        time.sleep(0.2)
    import os
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run([*COMMAND, "--run-dir", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    yield run, ROOT / "reports" / NAME, done.stdout
    shutil.rmtree(ROOT / "reports" / NAME)


def test_killed_run_goes_on_where_it_stopped(demo):
    _, _, output = demo
    assert "00_config: up to date" in output and "05_analysis: done" in output


def test_report_is_complete(demo):
    run, report, output = demo
    metrics = read_json(report / "metrics.json")
    assert metrics["data_name"] == "embedded demo corpus" and "imdb" not in metrics["data_name"].lower()
    assert "embedded demo corpus" in output and str(report / "report.html") in output
    predictions = pd.read_parquet(report / "predictions.parquet")
    assert ((predictions.prob_pos > 0.5) == predictions.label).mean() == pytest.approx(metrics["accuracy"]["value"])
    assert metrics["accuracy"]["value"] > metrics["baselines"]["majority"]["accuracy"]["value"] + 0.1 # it learns
    assert set(metrics["chapters"]) == {c.name for c in CHAPTER_LIST}
    assert set(metrics["calibration"]) >= {"ece_before", "ece_after", "brier", "nll", "temperature"} and set(metrics["selective"]) >= {"aurc", "coverage_at_99"}
    assert set(metrics["robustness"]) == {"perturbations", "pairs"} and metrics["seeds"]["n"] == 1 and metrics["label_noise"] == {}
    assert metrics["explanations"]["comprehensiveness"] > metrics["explanations"]["random_comprehensiveness"]
    assert read_json(run / "model" / "config.json")["logit_temperature"] == metrics["calibration"]["temperature"]
    page = (report / "when-to-believe-it.html").read_text()
    assert "Doubt it when" in page and "import " not in page
    assert {p.stem for p in (report / "figures").glob("*.png")} >= {"lengths", "stars", "telling_words", "training_curves", "confusion_matrix", "roc_pr", "comparison", "representations", "slices", "reliability", "risk_coverage", "perturbations", "explanations"}
    for c in CHAPTER_LIST:
        cells = nbformat.read(report / "chapters" / f"{c.name}.ipynb", 4).cells
        assert any(cell.get("outputs") for cell in cells)


def test_second_run_skips_every_chapter(demo):
    run, _, _ = demo
    started = time.monotonic()
    done = subprocess.run([*COMMAND, "--run-dir", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("up to date") == len(CHAPTER_LIST) and time.monotonic() - started < 30


def test_pages_are_written_again_from_what_is_published(demo):
    _, report, _ = demo
    before = [(report / page).read_bytes() for page in ("report.html", "when-to-believe-it.html")]
    (report / "report.html").write_text("old")
    done = subprocess.run([*COMMAND[:3], "pages", NAME], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [str(report / "report.html")], done.stderr
    assert [(report / page).read_bytes() for page in ("report.html", "when-to-believe-it.html")] == before


def test_run_of_a_gpu_is_published_elsewhere(demo, tmp_path):
    "The machine is the one that trained, not the one that publishes; chapters that ran here say so."
    run, _, _ = demo
    shutil.copytree(run, tmp_path / "run")
    training = read_json(tmp_path / "run" / "training.json")
    gpu = dict(training["machine"], device="cuda", gpu="NVIDIA T4", processor="Xeon", cores=16)
    write_json(tmp_path / "run" / "training.json", dict(training, device="cuda", machine=gpu, versions={"torch": "2.11.0"}))
    target = publish("elsewhere", "demo", Config(), tmp_path / "run", tmp_path / "reports")
    metrics, page = read_json(target / "metrics.json"), (target / "report.html").read_text(encoding="utf-8")
    assert metrics["machine"] == gpu and metrics["versions"] == {"torch": "2.11.0"}
    assert metrics["evaluation_machine"]["device"] == "cpu" and "GPU: NVIDIA T4" in page
    assert "03_training, 04_evaluation" in page and "ran with" in page


def test_execution_does_not_make_chapters_stale(demo):
    run, _, _ = demo
    changed = Config(micro_batch=8, device="cpu", eval_batch_size=16, checkpoint_minutes=1)
    current = {c.name: is_current(c, changed, run, ROOT / "nbs") for c in CHAPTER_LIST}
    assert not current.pop("00_config") and all(current.values()), current # which shows the settings


def test_changed_learning_rate_makes_training_and_what_follows_stale(demo):
    run, _, _ = demo
    changed = Config(learning_rate=1e-3)
    current = {c.name: is_current(c, changed, run, ROOT / "nbs") for c in CHAPTER_LIST}
    assert current["01_data"] and current["02_model"] and not current["03_training"]
    assert fingerprint(CHAPTER_LIST[4], changed, run, ROOT / "nbs") != fingerprint(CHAPTER_LIST[4], Config(), run, ROOT / "nbs")


def test_two_runs_in_one_folder_are_refused(demo):
    from filelock import FileLock
    run, _, _ = demo
    with FileLock(run / ".lock"):
        done = subprocess.run([*COMMAND, "--run-dir", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Another run is working" in done.stderr


def test_a_chapter_runs_alone_under_papermill(demo, tmp_path):
    run, _, _ = demo
    alone = lambda *p: subprocess.run([sys.executable, "-m", "papermill", "nbs/02_model.ipynb", str(tmp_path / "out.ipynb"), "-p", "preset", "demo", "-p", "run", str(run), *p], cwd=ROOT, capture_output=True, text=True)
    assert alone().returncode == 0
    wrong = alone("-p", "droput", "0.1")
    assert wrong.returncode != 0 and "Did you mean 'dropout'" in wrong.stderr
    other = alone("-p", "dropout", "0.1")
    assert other.returncode != 0 and "belongs to another configuration" in other.stderr


def test_suites_run_on_a_saved_model(demo, tmp_path):
    run, _, _ = demo
    suite = tmp_path / "pairs.tsv"
    suite.write_text("original\tedited\tlabel\nA great film.\tAn awful film.\tpos\nIt is dull.\tIt is a joy.\tneg\n")
    command = [*COMMAND[:3], "evaluate", "--model", str(run / "model"), "--out", str(tmp_path / "found.json"), "--suite"]
    done = subprocess.run([*command, str(suite)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "found.json")["robustness"]["pairs"]["pairs"]["consistency"]["n"] == 2
    for content, said in (("original\tedited\tlabel\na\tb\tperhaps\n", "perhaps"), ("text\na\n", "no suite"), ("", "cannot be read")):
        suite.write_text(content)
        wrong = subprocess.run([*command, str(suite)], cwd=ROOT, capture_output=True, text=True)
        assert wrong.returncode == 1 and said in wrong.stderr and "Traceback" not in wrong.stderr
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "work.txt").write_text("mine")
    folder = subprocess.run([*COMMAND[:3], "evaluate", "--model", str(run / "model"), "--suite", str(suite), "--out", str(tmp_path / "kept")], cwd=ROOT, capture_output=True, text=True)
    assert folder.returncode == 1 and "is a folder" in folder.stderr and (tmp_path / "kept" / "work.txt").exists()


def test_further_seeds_join_the_report(demo): # last, since it publishes the report again
    run, report, _ = demo
    seeds = [*COMMAND[:3], "seeds", "1", "--name", NAME, "--run-dir", str(run)]
    for said in ("seed 1: validation accuracy", "seed 1: validation accuracy"): # the second time nothing is left to do
        done = subprocess.run(seeds, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    done = subprocess.run([*COMMAND, "--run-dir", str(run)], cwd=ROOT, capture_output=True, text=True)
    assert "03_training: up to date" in done.stdout and "04_evaluation: done" in done.stdout, done.stderr
    metrics = read_json(report / "metrics.json")
    assert metrics["seeds"]["n"] == 2 and set(metrics["seeds"]["each"]) == {"42", "1"} and metrics["seeds"]["sd"] >= 0
    other = make_config("demo")
    for settings, taken in ((other, ["1.json"]), (replace(other, epochs=9), [])): # a run elsewhere takes the report's seeds over, if they are of its settings
        elsewhere = run.parent / f"elsewhere-{settings.epochs}"
        take_seeds(settings, report, elsewhere)
        assert [p.name for p in elsewhere.glob("seeds/*")] == taken
