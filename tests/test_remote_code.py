"Code that comes with a downloaded model is never run, whatever is answered to a prompt."

import ast
import json
import shutil

import pytest
from tools import ROOT, command, opinionated_model

MODULES = sorted((ROOT / "imdb_sentiment").rglob("[a-z]*.py"))
OURS = {
    "TransformerClassifier",
    "TransformerClassifierConfig",
}  # classes of this library, which load no others


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("saved") / "model")


CODE = {  # modules of a model folder, besides the line that leaves a mark
    "conf.py": """from transformers import PretrainedConfig
class C(PretrainedConfig): model_type = 'own'
""",
    "modl.py": """from transformers import PreTrainedModel
from .conf import C
class M(PreTrainedModel): config_class = C
""",
    "tok.py": """from transformers import BertTokenizer
class T(BertTokenizer): pass
""",
}
CLASSES = {
    "AutoConfig": "conf.C",
    "AutoModel": "modl.M",
    "AutoModelForSequenceClassification": "modl.M",
}
KINDS = {  # which file of the folder asks for that code, and how
    "known": ("config.json", {"auto_map": CLASSES}),
    "unknown": ("config.json", {"auto_map": CLASSES, "model_type": "own"}),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tok.T", None]}},
    ),
}


@pytest.fixture
def hostile(saved, tmp_path):
    "A function that makes a copy of the model whose Python code leaves a mark when it runs: the folder and the mark."

    def make(kind):
        folder, mark = tmp_path / kind, tmp_path / "CODE-RAN"
        shutil.copytree(saved, folder)
        for name, code in CODE.items():
            (folder / name).write_text(f"open({str(mark)!r}, 'a').write(__name__)\n{code}")
        name, settings = KINDS[kind]
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder, mark

    return make


def test_the_mark_is_left_where_code_is_trusted(hostile):
    "Otherwise its absence would prove nothing."
    from transformers import AutoConfig

    folder, mark = hostile("unknown")
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_code_of_a_model_folder_is_not_run(hostile, kind):
    folder, mark = hostile(kind)
    done = command("predict", "--model", folder, input="y\n1\n")
    assert not mark.exists(), done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    if kind == "unknown":
        assert done.returncode == 1
        assert "runs no downloaded code" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_code_of_a_backbone_is_not_run(hostile, tmp_path, kind):
    folder, mark = hostile(kind)
    settings = ["--set", f"backbone={folder}", "--set", "limit=40"]
    done = command("train", "--run-dir", tmp_path / "run", *settings, input="y\n1\n")
    assert not mark.exists(), done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert done.returncode == (0 if kind == "known" else 1)  # a known one is built without its code


def loads_foreign_things(call):
    "Whether a call loads a model, a tokenizer or their settings by way of transformers."
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "pipeline":
        return True
    if name not in ("from_pretrained", "from_config") or not isinstance(call.func, ast.Attribute):
        return False
    owner = call.func.value
    of_an_object = (
        isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "type"
    )  # a class that is loaded
    return not of_an_object and getattr(owner, "id", "") not in OURS


def calls_in(path):
    return [
        n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_every_load_says_that_it_trusts_no_code(path):
    for call in calls_in(path):
        trust = [ast.unparse(k.value) for k in call.keywords if k.arg == "trust_remote_code"]
        expected = ["False"] if loads_foreign_things(call) or trust else []
        assert trust == expected, f"{path.name}:{call.lineno}"


def test_loads_are_found():
    loads = [call for path in MODULES for call in calls_in(path) if loads_foreign_things(call)]
    assert len(loads) > 8
