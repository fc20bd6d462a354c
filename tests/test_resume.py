"Training that is killed, and training by several processes."
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from imdb_sentiment.config import Config, RunError, open_run, read_json
from imdb_sentiment.data import prepare_split
from imdb_sentiment.training import read_log

KILLS = int(os.environ.get("KILLS", 3))
SMALL = dict(limit=1000, epochs=max(2, KILLS // 3), warmup_steps=2, max_length=48, batch_size=16, token_dropout=0.1, checkpoint_minutes=0.0, device="cpu", precision="fp32")
COMMAND = Path(sys.executable).with_name("imdb-sentiment")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train_until(run, seconds, die_in_write):
    "Train in this process, and kill it some seconds after its first step, or inside the writing of a checkpoint, counted from 1; 0 does neither."
    from imdb_sentiment import training
    torch.set_num_threads(1)
    written, write, first_step = [], training.write_tensors, training.train_step
    def step(job, batch):
        training.train_step = first_step
        if seconds: threading.Timer(seconds, die).start()
        first_step(job, batch)
    def writing(path, tensors):
        written.append(path)
        if len(written) == 2 * die_in_write:  # the second of two files
            Path(path).write_bytes(b"half")
            die()
        return write(path, tensors)
    training.write_tensors, training.train_step = writing, step
    training.train(Config(**SMALL), run)


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imdb_sentiment.training"])
    return context


def trained(processes, run, seconds=0, die_in_write=0):
    "Exit code of a training."
    process = processes.Process(target=train_until, args=(run, seconds, die_in_write))
    process.start()
    process.join()
    return process.exitcode


def test_killed_training_ends_with_the_same_weights(processes, tmp_path):
    for name in ("whole", "killed"):
        prepare_split(Config(**SMALL), open_run(Config(**SMALL), tmp_path / name))
    assert trained(processes, tmp_path / "whole") == 0
    kills, rng = 0, random.Random(0)
    while kills < KILLS and not (tmp_path / "killed" / "training.json").exists():
        where = dict(die_in_write=1 + kills % 3) if kills % 2 == 0 else dict(seconds=rng.uniform(0.05, 0.6))
        kills += trained(processes, tmp_path / "killed", **where) == -signal.SIGKILL
    assert kills >= min(KILLS, 3)
    assert trained(processes, tmp_path / "killed") == 0
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    a, b = (read_json(tmp_path / name / "training.json") for name in ("whole", "killed"))
    assert b["sittings"] > 1 and [e["train_loss"] for e in a["epochs"]] == [e["train_loss"] for e in b["epochs"]]
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
