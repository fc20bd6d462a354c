"Bad input at the doors that the notebooks' own asserts do not reach."
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from imdb_sentiment import config
from imdb_sentiment.config import Config, RunError, open_run, write_json
from imdb_sentiment.data import DataError, load_reviews

ROOT = Path(__file__).parents[1]


def command(*args, timeout=120):
    return subprocess.run([sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()", "report", *args], cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def test_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")
    write_json(tmp_path / "kept.json", {"a": 1})
    monkeypatch.setattr(config.json, "dumps", lambda *a, **k: "{}")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        write_json(tmp_path / "kept.json", {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["kept.json"] and '"a": 1' in (tmp_path / "kept.json").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="No space left"):
        open_run(Config(), tmp_path / "run")


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere.tar.gz", "~/missing.csv"])
def test_missing_source(source):
    with pytest.raises(DataError, match="no such file or folder"):
        load_reviews(Config(data=source))


@pytest.mark.parametrize("args,said", [
    (["--set", "learningrate=1"], "Did you mean 'learning_rate'"),
    (["--set", "epochs=many"], "expected int"),
    (["--set", "dropout=1.5"], "between 0 and 0.99"),
    (["--preset", "demos"], "Did you mean 'demo'"),
    (["--name", "a/b"], "names a folder"),
])
def test_command_line_mistakes_are_one_sentence(args, said, tmp_path):
    done = command(*args, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_failing_chapter_is_kept_and_told(tmp_path):
    done = command("--run-dir", str(tmp_path / "run"), "--name", "never-published", "--set", "data=/no/such/folder")
    assert done.returncode == 1 and "no such file or folder" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "failed" / "01_data.ipynb").exists() and not (ROOT / "reports" / "never-published").exists()
