"A folder scored by two workers of a local Ray cluster, one of which is killed in the middle."
import subprocess
import sys
import time

import pandas as pd
import psutil

from imdb_sentiment.config import Config
from imdb_sentiment.data import tiny_tokenizer
from imdb_sentiment.model import make_model, save_model


def command(*args):
    return [sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", "score", *map(str, args)]


def test_killed_worker_costs_no_row(tmp_path):
    texts = ["a wonderful film", "a dull film", "a film"]
    tokenizer = tiny_tokenizer(texts * 5)
    save_model(make_model(Config(max_length=64, label_names=("bad", "good")), tokenizer), tokenizer, tmp_path / "model")
    (tmp_path / "in").mkdir()
    for k in range(3):
        pd.DataFrame(dict(id=range(12_000), text=[f"{texts[i % 3]} number {i}" if i % 500 else "" for i in range(12_000)])).to_parquet(tmp_path / "in" / f"{k}.parquet")
    ends = ["--model", tmp_path / "model", "--input", tmp_path / "in", "--device", "cpu"]
    subprocess.run(command(*ends, "--out", tmp_path / "alone"), check=True, timeout=300)
    ray = subprocess.Popen(command(*ends, "--out", tmp_path / "ray", "--engine", "ray", "--workers", 2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    parts, victim = tmp_path / "ray.parts", None
    while victim is None and ray.poll() is None:
        time.sleep(0.05)
        workers = [p for p in psutil.Process(ray.pid).children(recursive=True) if any("MapWorker" in w for w in p.cmdline())] if len(list(parts.glob("*/*.parquet"))) > 3 else []
        victim = workers[0] if workers else None
    assert victim is not None, ray.communicate()[0]
    victim.kill()
    out, _ = ray.communicate(timeout=400)
    assert ray.returncode == 0, out
    for path in sorted((tmp_path / "alone").iterdir()):
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not parts.exists() and "72 rows" in out
