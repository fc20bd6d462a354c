"Training that is killed, and training by several processes."
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from imdb_sentiment.benchmarks import kill_and_resume
from imdb_sentiment.config import Config, RunError, open_run, read_json
from imdb_sentiment.training import read_log

SMALL = dict(limit=1000, epochs=3, warmup_steps=2, max_length=48, batch_size=16, token_dropout=0.1, checkpoint_minutes=0.0, device="cpu", precision="fp32")
COMMAND = Path(sys.executable).with_name("imdb-sentiment")


def test_killed_training_ends_with_the_same_weights(tmp_path):
    found = kill_and_resume(SMALL, tmp_path, kills=3)
    assert found["bit_identical"] and found["in_a_write"] == 2 and found["sittings"] > 1
    a, b = (read_json(tmp_path / name / "training.json")["epochs"] for name in ("whole", "killed"))
    assert [e["train_loss"] for e in a] == [e["train_loss"] for e in b]
    assert not list((tmp_path / "killed").glob("**/.*.tmp")) and not list((tmp_path / "killed").glob("**/.*.old"))


def train_command(run, processes=1, **settings):
    "The output of `imdb-sentiment train` in a run folder."
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29517"] if processes > 1 else []
    command = [*launch, str(COMMAND), "train", "--run-dir", str(run), *[x for k, v in settings.items() for x in ("--set", f"{k}={v}")]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_learn_what_one_learns(tmp_path):
    settings = {**SMALL, "epochs": 1, "token_dropout": 0, "dropout": 0, "hidden_dropout": 0, "attention_dropout": 0, "batch_size": 15}
    curves = []
    for n in (1, 2):
        done = train_command(tmp_path / str(n), n, **settings)
        output = done.communicate(timeout=240)[0]
        assert done.returncode == 0, output
        assert output.count("Validation accuracy") == 1
        curves.append(read_log(tmp_path / str(n) / "log.jsonl"))
    assert read_json(tmp_path / "2" / "training.json")["processes"] == 2
    assert (curves[0].step == curves[1].step).all() and len(curves[0]) >= 2
    assert (curves[0].loss - curves[1].loss).abs().max() < 1e-4


def test_two_processes_with_uneven_parts_do_not_wait_for_each_other(tmp_path):
    "Of the last batch one process has two parts and the other one: gradients are exchanged once all the same."
    settings = {**SMALL, "epochs": 1, "limit": 221, "micro_batch": 8, "batch_size": 32}
    done = train_command(tmp_path / "run", 2, **settings)
    output = done.communicate(timeout=120)[0]
    assert done.returncode == 0, output
    assert read_json(tmp_path / "run" / "training.json")["processes"] == 2


def test_stopped_run_goes_on_with_smaller_parts(tmp_path):
    "What the advice on memory says to do: the same run with another micro_batch."
    settings = {**SMALL, "epochs": 2}
    first = train_command(tmp_path / "run", **settings)
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.wait()
    again = train_command(tmp_path / "run", **{**settings, "micro_batch": 8, "eval_batch_size": 16})
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    summary = read_json(tmp_path / "run" / "training.json")
    assert summary["sittings"] == 2 and summary["versions"]["torch"] and summary["machine"]["device"] == "cpu"
    other = train_command(tmp_path / "run", **{**settings, "learning_rate": 0.001})
    said = other.communicate(timeout=120)[0]
    assert other.returncode == 1 and "belongs to another configuration: learning_rate" in said


def test_killed_worker_fails_the_run_which_then_goes_on(tmp_path):
    run, settings = tmp_path / "run", {**SMALL, "epochs": 1, "limit": 2000}
    first = train_command(run, 2, **settings)
    while not list((run / "checkpoints").glob("step-*")) and first.poll() is None:
        time.sleep(0.05)
    workers = [p for p in psutil.Process(first.pid).children(recursive=True) if "train" in p.cmdline()]
    max(workers, key=lambda p: p.create_time()).kill()
    said = first.communicate(timeout=120)[0]
    assert first.returncode not in (0, None) and not (run / "training.json").exists(), said
    again = train_command(run, 2, **settings)
    said = again.communicate(timeout=240)[0]
    assert again.returncode == 0, said
    assert read_json(run / "training.json")["sittings"] == 2


def test_stopped_command_saves_and_goes_on(tmp_path):
    settings = {**SMALL, "epochs": 30}
    first = train_command(tmp_path / "run", **settings)
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and "The same command goes on from there" in said, said
    step = int(said.split("Stopped after step ")[1].split()[0])
    assert any(p.name.startswith(f"step-{step:08d}") for p in (tmp_path / "run" / "checkpoints").iterdir())


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    from imdb_sentiment.training import train, working_alone
    open_run(Config(**SMALL), tmp_path)
    with working_alone(tmp_path), pytest.raises(RunError, match="Another training"):
        train(Config(**SMALL), tmp_path)
