"""The library inside another program: light to import, quiet, without asserts, with the same predictions in threads."""

import ast
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tools import ROOT, WORDS, opinionated_model, probabilities_by_hand

from imdb_sentiment.prediction import Predictor

MODULES = sorted((ROOT / "imdb_sentiment").rglob("[a-z]*.py"))
NAMES = [".".join(p.relative_to(ROOT / "imdb_sentiment").with_suffix("").parts) for p in MODULES]
HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "matplotlib",
    "sklearn",
    "nbformat",
    "papermill",
    "nbconvert",
}
FOR_TRAINING = {"accelerate", "sklearn", "datasets", "matplotlib", "seaborn", "captum", "papermill"}
BEYOND_PANDAS = FOR_TRAINING | {"torch", "transformers", "onnxruntime", "openvino"}


def python(code, *options):
    "What a new interpreter prints, and what it writes to standard error."
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def loaded_by(statement, names):
    "Which of these packages the statement loads."
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted({names} & set(sys.modules))))"
    return set(json.loads(python(code)[0]))


def import_seconds(statement):
    "Seconds of the processor, which do not count other programs; the least of three, as a busy machine adds to them."
    code = f"import time; at = time.process_time(); {statement}; print(time.process_time() - at)"
    return min(float(python(code)[0]) for _ in range(3))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("guest") / "model")


IMPORTS = [
    ("import imdb_sentiment", set()),
    ("import imdb_sentiment.config", set()),
    ("import imdb_sentiment.data", {"pandas"}),
    ("from imdb_sentiment.cli import main", set()),  # what each command loads, also `--help`
]


@pytest.mark.parametrize("what, allowed", IMPORTS)
def test_import_loads_only_what_it_needs(what, allowed):
    assert loaded_by(what, HEAVY) <= allowed


LIGHT = [
    "from imdb_sentiment.prediction import Predictor",
    "from imdb_sentiment.cli import main",  # which lists all commands
]


@pytest.mark.parametrize("what", LIGHT)
def test_import_loads_nothing_heavier_than_pandas(what):
    assert loaded_by(what, BEYOND_PANDAS) == set()


def test_loaded_by_sees_what_a_module_imports():
    assert loaded_by("import imdb_sentiment.data", HEAVY) == {"pandas"}


def test_import_takes_no_time():
    assert import_seconds("import imdb_sentiment") < 0.3


def test_import_of_the_predictor_takes_two_seconds():
    assert import_seconds("from imdb_sentiment.prediction import Predictor") < 2


def test_command_lets_threads_sleep():
    out, _ = python("""
import os, sys
from imdb_sentiment.cli import main
from imdb_sentiment.devices import PASSIVE
for name in PASSIVE: os.environ.pop(name, None)
sys.argv = ["imdb-sentiment", "report", "--list-settings"]
try: main()
except SystemExit: pass
print({name: os.environ.get(name) for name in PASSIVE} == PASSIVE, "torch" in sys.modules)
""")
    assert out.splitlines()[-1] == "True False"


EVERYTHING = """
import contextlib, importlib, io, json, logging, os, warnings
before = dict(os.environ)
out = io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    modules = [importlib.import_module(f"imdb_sentiment.{{n}}") for n in {names}]
ours = ("OMP_", "GOMP_", "KMP_", "ONEDNN_", "CUBLAS_", "RAY_", "NNCF_", "IMDB_")
changed = [k for k in os.environ if k.startswith(ours) and before.get(k) != os.environ[k]]
missing = [f"{{m.__name__}}.{{n}}" for m in modules for n in m.__all__ if not hasattr(m, n)]
Predictor = importlib.import_module("imdb_sentiment.prediction").Predictor
predictor = Predictor.load({model!r}, "cpu")
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
    warnings.simplefilter("error")
    predictor("a film")
    predictor(["a dull film"] * 50)
    list(predictor(t for t in ["a film"]))
    predictor.explain("a wonderful film")
root = logging.root
loggers = [l for l in root.manager.loggerDict.values() if isinstance(l, logging.Logger)]
found = dict(changed=changed, missing=missing, said=out.getvalue())
found["root"] = [root.handlers, root.level == logging.WARNING, root.manager.disable]
found["handlers"] = [l.name for l in loggers if l.name.startswith("imdb_sentiment") and l.handlers]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def everything(model):
    "What a new interpreter finds that imports every module and predicts, and what it writes to standard error."
    out, told = python(EVERYTHING.format(names=NAMES, model=str(model)))
    (line,) = out.splitlines()
    return json.loads(line), told


def test_import_leaves_the_environment_alone(everything):
    assert everything[0]["changed"] == []


def test_all_names_are_there(everything):
    assert everything[0]["missing"] == []


def test_import_and_predictions_are_quiet(everything):
    found, told = everything
    assert found["said"] == ""
    assert found["root"] == [[], True, 0]
    assert found["handlers"] == []
    assert "imdb_sentiment" not in told


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_module_checks_without_assert_and_lists_its_names(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asserts = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not asserts, "python -O leaves asserts out: raise RunError"
    targets = [t for n in tree.body if isinstance(n, ast.Assign) for t in n.targets]
    assert "__all__" in [t.id for t in targets if isinstance(t, ast.Name)]
    called = [n.func for n in ast.walk(tree) if isinstance(n, ast.Call)]
    settings = [
        f.lineno for f in called if isinstance(f, ast.Attribute) and f.attr == "basicConfig"
    ]
    assert not settings, "the root logger is the program's"


def test_bad_settings_are_refused_under_O():
    out, _ = python(
        """
from imdb_sentiment.config import SettingError, make_config
for bad in (dict(epochs="many"), dict(dropout=1.5), dict(droput=0.1)):
    try: make_config("demo", **bad)
    except SettingError: print("refused")
""",
        "-O",
    )
    assert out.split() == ["refused"] * 3


def random_texts(n, longest, seed):
    draw = random.Random(seed)
    words = (*WORDS, "wonderful", "great", "dull", "awful")
    return [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(n)]


@pytest.mark.parametrize("long_texts", ["truncate", "windows"])
def test_threads_get_the_answers_of_one(model, long_texts):
    predictor = Predictor.load(model, "cpu", long_texts=long_texts)
    texts = [random_texts(8, 60, seed) for seed in range(12)]
    alone, before = [predictor(t) for t in texts], sys.getswitchinterval()
    assert (
        len({p.probability for answers in alone for p in answers}) > 80
    )  # another text would not do as well
    try:
        sys.setswitchinterval(1e-5)  # threads take turns as often as they can
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(predictor, texts)) == alone
    finally:
        sys.setswitchinterval(before)


def test_predictions_are_those_of_plain_bert(model):
    texts = random_texts(50, 60, seed=1)
    expected = probabilities_by_hand(model, texts)
    predictions = Predictor.load(model, "cpu")(texts)
    assert [list(p.probabilities) for p in predictions] == [["bad", "good"]] * 50
    found = [list(p.probabilities.values()) for p in predictions]
    assert abs(expected - found).max() < 0.02
