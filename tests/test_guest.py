"The library as a guest in another program: light to import, quiet, without asserts, the same answers in threads."
import ast
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imdb_sentiment.config import Config
from imdb_sentiment.data import tiny_tokenizer
from imdb_sentiment.inference import Predictor
from imdb_sentiment.model import make_model, save_model

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "imdb_sentiment").glob("[a-z]*.py"))
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "sklearn", "nbformat", "papermill", "nbconvert"}


def python(code, *options):
    "What a new interpreter prints, and the end of what it says on the side."
    done = subprocess.run([sys.executable, *options, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guest") / "tiny-model"
    tokenizer = tiny_tokenizer(["a wonderful film", "a dull film"] * 5)
    save_model(make_model(Config(max_length=32, label_names=("bad", "good")), tokenizer), tokenizer, folder)
    return folder


@pytest.mark.parametrize("what,allowed", [
    ("import imdb_sentiment", set()),
    ("import imdb_sentiment.config", set()),
    ("import imdb_sentiment.data", {"pandas"}),
    ("from imdb_sentiment.pipeline import main", set()), # what each command loads, also `--help`
])
def test_import_loads_only_what_it_needs(what, allowed):
    found = json.loads(python(f"import json, sys\n{what}\nprint(json.dumps(sorted({HEAVY} & set(sys.modules))))")[0])
    assert set(found) <= allowed


def test_import_leaves_the_environment_alone():
    names = [p.stem for p in MODULES]
    out, _ = python(f"""
import importlib, os
before = dict(os.environ)
for n in {names}: importlib.import_module(f"imdb_sentiment.{{n}}")
ours = ("OMP_", "GOMP_", "KMP_", "ONEDNN_", "CUBLAS_", "RAY_", "NNCF_", "IMDB_")
print([k for k in os.environ if k.startswith(ours) and before.get(k) != os.environ[k]])
""")
    assert out.strip() == "[]"


def test_command_lets_threads_sleep():
    out, _ = python("""
import os, sys
from imdb_sentiment.pipeline import main
from imdb_sentiment.runs import PASSIVE
for name in PASSIVE: os.environ.pop(name, None)
sys.argv = ["imdb-sentiment", "report", "--list-settings"]
try: main()
except SystemExit: pass
print({name: os.environ.get(name) for name in PASSIVE} == PASSIVE, "torch" in sys.modules)
""")
    assert out.splitlines()[-1] == "True False"


def test_import_takes_no_time():
    code = "import time; at = time.process_time(); import imdb_sentiment; print(time.process_time() - at)"
    assert min(float(python(code)[0]) for _ in range(3)) < 0.3 # of the processor, which does not count other programs


def test_import_and_predictions_are_quiet(model):
    names = [p.stem for p in MODULES]
    _, said = python(f"""
import contextlib, importlib, io, logging, sys, warnings
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    modules = [importlib.import_module(f"imdb_sentiment.{{n}}") for n in {names}]
missing = [f"{{m.__name__}}.{{n}}" for m in modules for n in m.__all__ if not hasattr(m, n)]
assert not missing, missing
predictor = importlib.import_module("imdb_sentiment.inference").Predictor.load({str(model)!r}, "cpu")
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
    warnings.simplefilter("error")
    predictor("a film"), predictor(["a dull film"] * 50), list(predictor(t for t in ["a film"])), predictor.explain("a wonderful film")
assert not out.getvalue(), out.getvalue()
assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING and not logging.root.manager.disable
assert not any(n.startswith("imdb_sentiment") and l.handlers for n, l in logging.root.manager.loggerDict.items() if isinstance(l, logging.Logger))
""")
    assert "imdb_sentiment" not in said


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_module_checks_without_assert_and_lists_its_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)], "python -O leaves asserts out: raise RunError"
    assert any(isinstance(n, ast.Assign) and n.targets[0].id == "__all__" for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name))
    calls = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    assert not [f.lineno for f in calls if isinstance(f, ast.Attribute) and f.attr == "basicConfig"], "the root logger is the program's"


def test_bad_settings_are_refused_under_O():
    out, _ = python("""
from imdb_sentiment.config import SettingError, make_config
for bad in (dict(epochs="many"), dict(dropout=1.5), dict(droput=0.1)):
    try: make_config("demo", **bad)
    except SettingError: print("refused")
""", "-O")
    assert out.split() == ["refused"] * 3


@pytest.mark.parametrize("long_texts", ["cut", "windows"])
def test_threads_get_the_answers_of_one(model, long_texts):
    predictor, draw = Predictor.load(model, "cpu", long_texts=long_texts), random.Random(0)
    texts = [[" ".join(draw.choices(["a", "wonderful", "dull", "film"], k=draw.randint(1, 60))) for _ in range(8)] for _ in range(12)]
    alone, before = [predictor(t) for t in texts], sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5) # threads take turns as often as they can
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(predictor, texts)) == alone
    finally:
        sys.setswitchinterval(before)
