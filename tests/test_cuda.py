"""On an NVIDIA GPU: training, resuming, memory, the demo report, predictions. Run them with `pytest -m cuda`.
They are skipped on a machine without such a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imdb_sentiment.config import Config
from imdb_sentiment.runs import open_run, read_json
from imdb_sentiment.data import prepare_split
from imdb_sentiment.prediction import Predictor
from imdb_sentiment.devices import pick_precision
from imdb_sentiment.loop import Stopped, TrainingError, TrainingJob, train_epoch
from imdb_sentiment.training import train

ROOT = Path(__file__).parents[1]
MAIN = [sys.executable, "-c", "from imdb_sentiment.cli import main; main()"]
SMALL = dict(
    limit=400,
    epochs=2,
    warmup_steps=2,
    max_length=64,
    batch_size=16,
    token_dropout=0.1,
    device="cuda",
)
HAS_GPU = torch.cuda.is_available()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU")]


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
    assert summary["precision"] == pick_precision("auto", "cuda")
    assert summary["peak_memory_bytes"] > 0
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
    "With PyTorch's deterministic algorithms: otherwise sums on a GPU differ in the last digits."
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
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


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
    texts = [
        "A wonderful film, moving and warm.",
        "A dull film. Nothing in it works.",
        "It is fine.",
    ]
    on_gpu, on_cpu = (
        Predictor.load(run / "model", device)(20 * texts) for device in ("cuda", "cpu")
    )
    assert [p.label for p in on_gpu] == [p.label for p in on_cpu]
    assert max(abs(a.probability - b.probability) for a, b in zip(on_gpu, on_cpu)) < 0.02


def test_run_of_the_gpu_resumes_on_a_cpu(tmp_path):
    "The device does not identify a run, so its checkpoint can be loaded on another one."
    cfg = prepared(tmp_path / "run")
    with pytest.raises(Stopped):
        train_epoch(TrainingJob(cfg, tmp_path / "run", stop_asked=["now"]))
    on_cpu = Config(**{**vars(cfg), "device": "cpu"})
    summary = train(on_cpu, open_run(on_cpu, tmp_path / "run"))
    assert summary["sittings"] == 2
    assert summary["machine"]["device"] == "cpu"


def test_demo_report_by_papermill(tmp_path):
    command = [*MAIN, "report", "--name", "demo-of-cuda", "--run-dir", str(tmp_path / "run")]
    command += ["--set", "device=cuda"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
        report = ROOT / "reports" / "demo-of-cuda"
        metrics = read_json(report / "metrics.json")
        assert metrics["machine"]["gpu"] == torch.cuda.get_device_name()
        page = (report / "report.html").read_text(encoding="utf-8")
        assert f"GPU: {torch.cuda.get_device_name()}" in page
    finally:
        shutil.rmtree(ROOT / "reports" / "demo-of-cuda", ignore_errors=True)


def test_one_process_for_each_gpu(tmp_path):
    "Two at most. With a single GPU this is a run under torchrun with one process."
    n = min(2, torch.cuda.device_count())
    program = Path(sys.executable).with_name("imdb-sentiment")
    if not program.exists():
        program = tmp_path / "main.py"
        program.write_text("from imdb_sentiment.cli import main\nmain()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(n)]
    command += ["--master_port", "29531", str(program), "train", "--run-dir", str(tmp_path / "run")]
    for name, value in {**SMALL, "limit": 221, "micro_batch": 8}.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(tmp_path / "run" / "training.json")["processes"] == n
