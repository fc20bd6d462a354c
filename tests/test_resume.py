"Training that is killed, and training by several processes."

import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tools import MAIN, Command

from imdb_sentiment.benches.scaling import kill_and_resume
from imdb_sentiment.config import Config
from imdb_sentiment.runs import RunError, open_run, read_json
from imdb_sentiment.checkpoints import read_log
from imdb_sentiment.data import load_reviews
from imdb_sentiment.training import train, training_lock

SMALL = dict(limit=1000, epochs=3, warmup_steps=2, max_length=48, batch_size=16, token_dropout=0.1)
SMALL |= dict(checkpoint_minutes=0.0, device="cpu", precision="fp32")
WITHOUT_DROPOUT = dict(token_dropout=0, dropout=0, hidden_dropout=0, attention_dropout=0)


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def test_killed_training_ends_with_the_same_weights(tmp_path):
    found = kill_and_resume(SMALL, tmp_path, kills=3)
    assert found["in_a_write"] == 2
    assert found["sittings"] > 1
    assert found["bit_identical"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    a, b = weights(whole), weights(killed)
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    epochs = [read_json(run / "training.json")["epochs"] for run in (whole, killed)]
    assert [e["train_loss"] for e in epochs[0]] == [e["train_loss"] for e in epochs[1]]
    left = [p for pattern in ("**/.*.tmp", "**/.*.old") for p in killed.glob(pattern)]
    assert left == []


@pytest.mark.parametrize(
    "kind", [dict(long_texts="windows", max_length=24), dict(task="stars"), dict(task="multilabel")]
)
def test_other_trainings_resume_with_the_same_weights(tmp_path, kind):
    settings = {**SMALL, "epochs": 1, "limit": 300, **kind}
    found = kill_and_resume(settings, tmp_path, kills=1)
    assert found["sittings"] > 1
    assert found["bit_identical"]


def test_training_on_soft_labels_resumes_with_the_same_weights(tmp_path):
    settings = {**SMALL, "epochs": 1, "limit": 300}
    reviews, _, _ = load_reviews(Config(**settings))
    train = reviews[reviews.part == "train"]
    texts = [*train.text, *(f"A film like no other, number {i}." for i in range(40))]
    soft = pd.DataFrame(dict(text=texts, logit_neg=0.0))
    soft["part"] = ["train"] * len(train) + ["unlabelled"] * 40
    soft["logit_pos"] = [*(4.0 * train.label - 2.0), *[0.5] * 40]
    soft.to_parquet(tmp_path / "soft.parquet")
    settings["soft_labels"] = str(tmp_path / "soft.parquet")
    found = kill_and_resume(settings, tmp_path / "runs", kills=1)
    assert found["sittings"] > 1
    assert found["bit_identical"]


def test_log_of_a_resumed_run_has_each_step_once(tmp_path):
    settings = {**SMALL, "epochs": 2}
    first = train_command(tmp_path, **settings)
    wait_for_a_checkpoint(tmp_path, first)
    first.kill()
    first.wait()
    steps = read_log(tmp_path / "log.jsonl").step.tolist()
    with open(
        tmp_path / "log.jsonl", "a"
    ) as f:  # what was done after the last checkpoint will be done again
        f.write('{"step": 1000000, "loss": 0.0}\n')
    assert train_command(tmp_path, **settings).wait() == 0
    log = read_log(tmp_path / "log.jsonl")
    assert len(steps) >= 1
    assert log.step.is_unique
    assert log.step.is_monotonic_increasing
    assert log.step.max() == read_json(tmp_path / "training.json")["steps"] // 10 * 10
    assert len(log) == log.step.max() // 10


def arguments(run, **settings):
    "Of `imdb-sentiment train` in a run folder."
    sets = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    return ["train", "--run-dir", str(run), *sets]


def train_command(run, **settings):
    "The training as a process."
    return Command(*arguments(run, **settings), merged=True)


def by_torchrun(run, **settings):
    "The training as two processes, started by PyTorch's own launcher."
    options = ["--nproc_per_node=2", "--master_port=29517", "--no-python"]
    launch = [sys.executable, "-m", "torch.distributed.run", *options]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*launch, *MAIN, *arguments(run, **settings)], **streams)


class Both:
    "The training as two processes that know each other by the variables that the launcher sets."

    def __init__(self, run, **settings):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        self.ranks = [
            Command(
                *arguments(run, **settings),
                env={**os.environ, **place, "RANK": rank, "LOCAL_RANK": rank},
                merged=True,
            )
            for rank in "01"
        ]

    def communicate(self, timeout):
        said = [rank.communicate(timeout)[0] for rank in self.ranks]
        return "".join(said), ""

    @property
    def returncode(self):
        return max(abs(rank.returncode) for rank in self.ranks)


def wait_for_a_checkpoint(run, process):
    while not list((run / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.05)


def finished(process, timeout=240):
    "Wait for a training that ends well; its output."
    output = process.communicate(timeout=timeout)[0]
    assert process.returncode == 0, output
    return output


def test_two_processes_learn_what_one_learns(tmp_path):
    settings = {**SMALL, **WITHOUT_DROPOUT, "epochs": 1, "batch_size": 15}
    for n in (1, 2):
        start = train_command if n == 1 else Both
        output = finished(start(tmp_path / str(n), **settings))
        assert output.count("Validation accuracy") == 1
    one, two = (read_log(tmp_path / str(n) / "log.jsonl") for n in (1, 2))
    assert read_json(tmp_path / "2" / "training.json")["processes"] == 2
    assert one.step.tolist() == two.step.tolist()
    assert len(one) >= 2
    assert abs(one.loss - two.loss).max() < 1e-4
    a, b = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert max(abs(a[name] - b[name]).max() for name in a) < 1e-2


def test_two_processes_with_uneven_parts_do_not_wait_for_each_other(tmp_path):
    "Of the last batch one process has two parts and the other one: gradients are exchanged once all the same."
    settings = {**SMALL, "epochs": 1, "limit": 221, "micro_batch": 8, "batch_size": 32}
    finished(Both(tmp_path / "run", **settings), timeout=120)
    assert read_json(tmp_path / "run" / "training.json")["processes"] == 2


def test_stopped_run_goes_on_with_smaller_parts(tmp_path):
    "What the advice on memory says to do: the same run with another micro_batch."
    run, settings = tmp_path / "run", {**SMALL, "epochs": 2}
    first = train_command(run, **settings)
    wait_for_a_checkpoint(run, first)
    first.kill()
    first.wait()
    finished(train_command(run, **{**settings, "micro_batch": 8, "eval_batch_size": 16}))
    summary = read_json(run / "training.json")
    assert summary["sittings"] == 2
    assert summary["versions"]["torch"]
    assert summary["machine"]["device"] == "cpu"
    other = train_command(run, **{**settings, "learning_rate": 0.001})
    said = other.communicate(timeout=120)[0]
    assert other.returncode == 1
    assert "belongs to another configuration: learning_rate" in said


def test_killed_worker_fails_the_run_which_then_goes_on(tmp_path):
    run, settings = tmp_path / "run", {**SMALL, "epochs": 1, "limit": 2000}
    first = by_torchrun(run, **settings)
    wait_for_a_checkpoint(run, first)
    workers = [
        p for p in psutil.Process(first.pid).children(recursive=True) if "train" in p.cmdline()
    ]
    max(workers, key=lambda p: p.create_time()).kill()
    said = first.communicate(timeout=120)[0]
    assert first.returncode not in (0, None), said
    assert not (run / "training.json").exists(), said
    finished(Both(run, **settings))
    assert read_json(run / "training.json")["sittings"] == 2


def test_stopped_command_saves_and_goes_on(tmp_path):
    run, settings = tmp_path / "run", {**SMALL, "epochs": 30}
    first = train_command(run, **settings)
    wait_for_a_checkpoint(run, first)
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130, said
    assert "a checkpoint was saved. Run the same command again to resume." in " ".join(said.split())
    step = int(said.split("Stopped after step ")[1].split()[0])
    assert [p for p in (run / "checkpoints").iterdir() if p.name.startswith(f"step-{step:08d}")]


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    open_run(Config(**SMALL), tmp_path)
    with training_lock(tmp_path), pytest.raises(RunError, match="Another training"):
        train(Config(**SMALL), tmp_path)
