"A folder scored by the workers of a Ray cluster: one is killed in the middle, and each has a GPU that is simulated."

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time

import pandas as pd
import psutil
import pytest
import torch
from tools import MAIN, opinionated_model, probabilities_by_hand

from imdb_sentiment.runs import RunError
from imdb_sentiment.config import SettingError
from imdb_sentiment.scale import ray_cluster, run_ray, score_folder

TEXTS = ["a wonderful film", "a dull film", "a film"]


def score(*args):
    return [*MAIN, "score", *map(str, args)]


def reviews(folder, files, rows):
    folder.mkdir()
    for k in range(files):
        texts = [f"{TEXTS[(i + k) % 3]} number {i}" if i % 500 else "" for i in range(rows)]
        pd.DataFrame(dict(id=range(rows), text=texts)).to_parquet(folder / f"{k}.parquet")
    return folder


def busy_worker(ray, parts):
    "One of Ray's workers, as soon as a few parts are done."
    while ray.poll() is None:
        time.sleep(0.05)
        if len(list(parts.glob("*/*.parquet"))) <= 3:
            continue
        for process in psutil.Process(ray.pid).children(recursive=True):
            if any("MapWorker" in word for word in process.cmdline()):
                return process
    raise AssertionError(ray.communicate()[0])


def test_killed_worker_costs_no_row(tmp_path):
    model = opinionated_model(tmp_path / "model", max_length=64)
    reviews(tmp_path / "in", files=3, rows=12_000)
    ends = ["--model", model, "--input", tmp_path / "in", "--device", "cpu"]
    subprocess.run(score(*ends, "--out", tmp_path / "alone"), check=True, timeout=300)
    by_ray = score(*ends, "--out", tmp_path / "ray", "--engine", "ray", "--workers", 2)
    ray = subprocess.Popen(by_ray, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    busy_worker(ray, tmp_path / "ray.parts").kill()
    out, _ = ray.communicate(timeout=400)
    assert ray.returncode == 0, out
    assert "72 rows" in out
    assert not (tmp_path / "ray.parts").exists()
    files = sorted((tmp_path / "alone").iterdir())
    assert len(files) == 6  # with the rows that could not be scored
    for path in files:
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes(), path.name
    for k in range(3):
        found = pd.read_parquet(tmp_path / "ray" / f"{k}.parquet")
        assert found.id.tolist() == [i for i in range(12_000) if i % 500]
        some = found.iloc[::1000]
        expected = probabilities_by_hand(model, some.text)[:, 1]
        assert abs(some.probability_good - expected).max() < 0.02


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    "The address of a cluster of one machine with three CPU cores and two GPUs, which are simulated."
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path must be short
    port = 20_000 + os.getpid() % 10_000
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
    resources = ["--num-cpus=3", "--num-gpus=2", "--include-dashboard=false"]
    place = f"--temp-dir={folder}"  # the default folder is where Ray looks for a cluster that nobody named
    head = ["start", "--head", "--block", *resources, f"--port={port}", place]
    log = tmp_path / "head.log"
    with open(log, "w") as f:
        process = subprocess.Popen([*ray, *head], stdout=f, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if "Ray runtime started" in log.read_text() or process.poll() is not None:
                break
            time.sleep(0.1)
        found = [line for line in log.read_text().splitlines() if "Local node IP:" in line]
        assert process.poll() is None, log.read_text()
        assert found, log.read_text()
        yield f"{found[0].split()[-1]}:{port}"
    finally:
        for p in [*psutil.Process(process.pid).children(recursive=True), process]:
            p.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def gpus_seen(folder, address):
    "What CUDA_VISIBLE_DEVICES says in each of two workers with a GPU each."
    folder.mkdir()

    def make_probe():
        def probe(batch):
            time.sleep(0.2)
            (folder / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
            return dict(rows=batch["rows"])

        return probe

    units = [dict(file="a.parquet", first=i, last=i + 1, rows=1) for i in range(8)]
    with ray_cluster(2, address) as machines:
        assert [m["GPU"] for m in machines] == [2]
        assert sum(run_ray(units, make_probe, workers=2, worker_gpus=1)) == 8
    return sorted(p.read_text() for p in folder.iterdir())


def test_workers_and_simulated_gpus(tmp_path, simulated):
    assert gpus_seen(tmp_path / "seen", simulated) == ["0", "1"]
    source = reviews(tmp_path / "in", files=1, rows=100)
    job = dict(model=opinionated_model(tmp_path / "model"), source=source, out=tmp_path / "out")
    job |= dict(engine="ray", address=simulated)
    with pytest.raises(SettingError, match="workers=3: Ray has room for 2"):
        score_folder(**job, workers=3, device="cuda")
    with pytest.raises(SettingError, match="workers=4: Ray has room for 3"):
        score_folder(**job, workers=4, device="cpu")
    assert not (tmp_path / "out.parts").exists()
    if (
        not torch.cuda.is_available()
    ):  # this process needs none, and the workers say what is missing
        with pytest.raises(RunError, match="cannot use a GPU"):
            score_folder(**job, workers=1)
        with pytest.raises(RunError, match="another job .device differs"):
            score_folder(**job, workers=1, device="cpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_processes_on_gpus(tmp_path):
    source = reviews(tmp_path / "in", files=2, rows=20_000)
    job = dict(
        model=opinionated_model(tmp_path / "model", max_length=64), source=source, device="cuda"
    )
    score_folder(**job, out=tmp_path / "alone")
    share = 1 if torch.cuda.device_count() > 1 else 0.5
    score_folder(**job, out=tmp_path / "ray", engine="ray", workers=2, worker_gpus=share)
    files = sorted((tmp_path / "alone").glob("*.parquet"))
    assert len(files) == 2
    for path in files:
        alone, ray = pd.read_parquet(path), pd.read_parquet(tmp_path / "ray" / path.name)
        pd.testing.assert_frame_equal(alone, ray, check_exact=False, atol=1e-3)
