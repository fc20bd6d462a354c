"""On an NVIDIA GPU: training, resuming, memory, the demo report, predictions. Run them with `pytest -m cuda`; without a GPU
they are skipped."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imdb_sentiment.config import Config, open_run, read_json
from imdb_sentiment.data import prepare_split
from imdb_sentiment.inference import Predictor
from imdb_sentiment.runs import pick_precision
from imdb_sentiment.training import Stopped, TrainingError, TrainingJob, train, train_epoch

ROOT = Path(__file__).parents[1]
MAIN = [sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()"]
SMALL = dict(limit=400, epochs=2, warmup_steps=2, max_length=64, batch_size=16, token_dropout=0.1, device="cuda")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


def prepared(run, **settings):
    cfg = Config(**{**SMALL, **settings})
    prepare_split(cfg, open_run(cfg, run))
    return cfg


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("cuda") / "run"
    return run, train(prepared(run, epochs=4), run)


def test_training_learns_and_names_the_gpu(trained):
    _, summary = trained
    first, last = summary["epochs"][0], summary["epochs"][-1]
    assert last["train_loss"] < first["train_loss"]
    assert summary["machine"]["gpu"] == torch.cuda.get_device_name()
    assert summary["precision"] == pick_precision("auto", "cuda") and summary["peak_memory_bytes"] > 0
    assert last["data_seconds"] < 0.2 * last["seconds"], "the GPU waits for data"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_each_precision_learns(tmp_path, precision):
    epochs = train(prepared(tmp_path, precision=precision), tmp_path)["epochs"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]


def test_attention_and_optimizer_are_fused(tmp_path):
    job = TrainingJob(prepared(tmp_path), tmp_path)
    assert job.plain_model().encoder.config._attn_implementation == "sdpa"
    assert all(group["fused"] for group in job.optimizer.param_groups)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_resumed_run_ends_with_the_same_bits(tmp_path, precision):
    "With PyTorch's deterministic algorithms; without them, sums on a GPU differ in the last digits."
    settings = dict(determinism="strict", precision=precision, attention_dropout=0.0)
    cfg = prepared(tmp_path / "whole", **settings)
    train(cfg, tmp_path / "whole")
    prepared(tmp_path / "twice", **settings)
    job = TrainingJob(cfg, tmp_path / "twice", stop_asked=["now"])
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(Stopped):
            train_epoch(job)
    finally:
        torch.use_deterministic_algorithms(False)
    assert train(cfg, tmp_path / "twice")["sittings"] == 2
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "twice")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_out_of_memory_says_what_to_set(tmp_path):
    cfg = prepared(tmp_path, batch_size=64, max_length=128)
    job = TrainingJob(cfg, tmp_path)
    taken = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, taken + 1e-4))
    try:
        with pytest.raises(TrainingError, match="Set micro_batch="):
            train_epoch(job)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert train(Config(**{**vars(cfg), "micro_batch": 8}), tmp_path)["epochs"]


def test_predictor_gives_the_labels_of_the_cpu(trained):
    run, _ = trained
    texts = ["A wonderful film, moving and warm.", "A dull film. Nothing in it works.", "It is fine."] * 20
    here, there = (Predictor.load(run / "model", device)(texts) for device in ("cuda", "cpu"))
    assert [p.label for p in here] == [p.label for p in there]
    assert max(abs(a.probability - b.probability) for a, b in zip(here, there)) < 0.02


def test_run_of_the_gpu_goes_on_on_a_cpu(trained, tmp_path):
    "The device is no part of what a run is: its checkpoint is taken up elsewhere."
    cfg = prepared(tmp_path / "run")
    with pytest.raises(Stopped):
        train_epoch(TrainingJob(cfg, tmp_path / "run", stop_asked=["now"]))
    on_cpu = Config(**{**vars(cfg), "device": "cpu"})
    summary = train(on_cpu, open_run(on_cpu, tmp_path / "run"))
    assert summary["sittings"] == 2 and summary["machine"]["device"] == "cpu"


def test_demo_report_by_papermill(tmp_path):
    command = [*MAIN, "report", "--name", "demo-of-cuda", "--run-dir", str(tmp_path / "run"), "--set", "device=cuda"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        metrics = read_json(ROOT / "reports" / "demo-of-cuda" / "metrics.json")
        assert metrics["machine"]["gpu"] == torch.cuda.get_device_name()
        page = (ROOT / "reports" / "demo-of-cuda" / "report.html").read_text(encoding="utf-8")
        assert f"GPU: {torch.cuda.get_device_name()}" in page
    finally:
        shutil.rmtree(ROOT / "reports" / "demo-of-cuda", ignore_errors=True)


def test_two_processes_on_the_gpus_there_are(tmp_path):
    "One process for each GPU, two at most; with one GPU this is a run under torchrun with one."
    n = min(2, torch.cuda.device_count())
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n), "--master_port", "29531"]
    command = [*launch, str(Path(sys.executable).with_name("imdb-sentiment"))]
    if not Path(command[-1]).exists():
        (tmp_path / "main.py").write_text("from imdb_sentiment.pipeline import main; main()")
        command[-1] = str(tmp_path / "main.py")
    command += ["train", "--run-dir", str(tmp_path / "run")]
    command += [x for k, v in {**SMALL, "limit": 221, "micro_batch": 8}.items() for x in ("--set", f"{k}={v}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(tmp_path / "run" / "training.json")["processes"] == n
