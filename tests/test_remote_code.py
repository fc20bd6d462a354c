"Code that comes with a downloaded model is never run, whatever is answered to a prompt."
import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imdb_sentiment.config import Config
from imdb_sentiment.data import tiny_tokenizer
from imdb_sentiment.model import make_model, save_model

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "imdb_sentiment").glob("[a-z]*.py"))
AUTO = {"AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = tiny_tokenizer(["a wonderful film", "a dull film"] * 5)
    save_model(make_model(Config(max_length=32), tokenizer), tokenizer, folder)
    return folder


def hostile(saved, folder, kind):
    "A copy of the model with Python code that leaves a mark when it runs; the folder and the mark."
    folder.mkdir()
    mark = folder / "CODE-RAN"
    for f in saved.iterdir():
        (folder / f.name).write_bytes(f.read_bytes())
    code = f"open({str(mark)!r}, 'a').write(__name__)\n"
    (folder / "conf.py").write_text(code + "from transformers import PretrainedConfig\nclass C(PretrainedConfig): model_type = 'own'\n")
    (folder / "modl.py").write_text(code + "from transformers import PreTrainedModel\nfrom .conf import C\nclass M(PreTrainedModel): config_class = C\n")
    (folder / "tok.py").write_text(code + "from transformers import BertTokenizer\nclass T(BertTokenizer): pass\n")
    name = "tokenizer_config.json" if kind == "tokenizer" else "config.json"
    settings = json.loads((folder / name).read_text())
    if kind == "tokenizer":
        settings |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tok.T", None]}}
    else:
        classes = ("AutoModel", "AutoModelForSequenceClassification")
        settings |= {"auto_map": {"AutoConfig": "conf.C", **{c: "modl.M" for c in classes}}}
    if kind == "unknown": settings["model_type"] = "own"
    (folder / name).write_text(json.dumps(settings))
    return folder, mark


@pytest.mark.parametrize("kind", ["unknown", "known", "tokenizer"])
def test_code_of_a_model_folder_is_not_run(saved, tmp_path, kind):
    folder, mark = hostile(saved, tmp_path / kind, kind)
    main = [sys.executable, "-c", "from imdb_sentiment.pipeline import main; main()"]
    command = [*main, "predict", "--model", str(folder)]
    done = subprocess.run(command, input="y\n1\n", capture_output=True, text=True, timeout=120)
    assert not mark.exists(), done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    if kind == "unknown":
        assert done.returncode == 1 and "runs no downloaded code" in done.stderr, done.stderr
    command = [*main, "train", "--run-dir", str(tmp_path / "run"), "--set", f"backbone={folder}", "--set", "limit=40"]
    done = subprocess.run(command, input="y\n1\n", capture_output=True, text=True, timeout=120)
    assert not mark.exists(), done.stdout + done.stderr
    assert done.returncode == 1 and "[y/N]" not in done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_every_load_says_that_it_trusts_no_code(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call): continue
        f = node.func
        loads = isinstance(f, ast.Name) and f.id == "pipeline"
        if isinstance(f, ast.Attribute) and f.attr in ("from_pretrained", "from_config"):
            loads |= isinstance(f.value, ast.Name) and f.value.id in AUTO
        if loads:
            trust = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
            assert trust and isinstance(trust[0], ast.Constant) and trust[0].value is False, f"{path.name}:{node.lineno}"
