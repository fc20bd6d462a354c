"The project as a whole: notebooks, library, README and published reports agree, and notebooks keep to the house style."

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import fastcore.test
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import LONGEST
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from tools import ROOT

from imdb_sentiment.config import EXECUTION, Config, make_config
from imdb_sentiment.metrics import confusion, scores
from imdb_sentiment.staleness import CHAPTER_LIST
from imdb_sentiment.leaderboard import leaderboard
from imdb_sentiment.readme import load_reports, render_readme

LIBRARY = ROOT / "imdb_sentiment"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
CHAPTERS = [ROOT / "nbs" / f"{c.name}.ipynb" for c in CHAPTER_LIST]
REPORTS = load_reports(ROOT / "reports")


def tracked():
    "Files under version control; all files of the project where there is no git."
    try:
        done = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [ROOT / f for f in done.stdout.splitlines() if (ROOT / f).is_file()]
    except (OSError, subprocess.CalledProcessError):
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", "runs"} & set(p.parts)]


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


# Notebooks, library and README agree


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the sources without the library, exported and cleaned anew."
    folder = tmp_path_factory.mktemp("copy")
    leave_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=leave_out)
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for command in (["nbdev_export"], ["nbdev_clean", "--fname", "nbs"]):
        command[0] = Path(sys.executable).with_name(
            command[0]
        )  # also where the environment is not activated
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def modules(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8")
        for p in folder.rglob("*.py")
    }


def test_library_is_what_the_notebooks_export(copy):
    ours, exported = modules(LIBRARY), modules(copy / "imdb_sentiment")
    assert set(ours) == set(exported)
    for name in ours:
        assert ours[name] == exported[name], f"{name} differs from its notebook: run `make export`"


def test_notebooks_are_clean(copy):
    assert len(NOTEBOOKS) > 15
    for path in NOTEBOOKS:
        cleaned = (copy / "nbs" / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == cleaned, (
            f"{path.name} has outputs or metadata: run `make export`"
        )


def test_the_leaderboard_is_that_of_the_reports():
    written = (ROOT / "reports" / "leaderboard.md").read_text(encoding="utf-8")
    assert written == leaderboard(), "run `make export`"


def test_readme_is_rendered_from_index():
    readme, rendered = (ROOT / "README.md").read_text(encoding="utf-8"), render_readme(ROOT / "nbs")
    assert readme == rendered, (
        "README.md differs from nbs/index.ipynb and reports/: run `make export`"
    )


class Bound(ast.NodeVisitor):
    "Names that a cell binds in the notebook, and not only within a function, a class or a comprehension."

    def __init__(self, source):
        self.names = set()
        self.visit(ast.parse(source))

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            self.names.add(node.id)

    def leave_out(self, node):
        pass

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = leave_out
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = leave_out


def test_all_names_exist_in_cells_that_only_a_run_executes(tmp_path):
    "The star import of fastcore hides a missing name from the linter."
    star, explicit = "from fastcore.test import *", ", ".join(fastcore.test.__all__)
    for path in NOTEBOOKS:
        source = path.read_text(encoding="utf-8").replace(
            star, f"from fastcore.test import {explicit}"
        )
        (tmp_path / path.name).write_text(source, encoding="utf-8")
    check = [
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F821",
        "--output-format",
        "concise",
        tmp_path,
    ]
    done = subprocess.run(check, capture_output=True, text=True)
    assert "Undefined name" not in done.stdout, done.stdout
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_settings_are_bound_by_the_parameters_cell_only(path):
    cells = code_cells(path)
    (tagged,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert {"preset", "run"} <= Bound(tagged.source).names
    settings = {f.name for f in fields(Config)}
    for cell in cells:
        bound = Bound(cell.source).names & settings
        assert not bound, (
            f"{path.name} binds {bound}, which the last section would take for a setting"
        )


# The house style


def lines_of_code(path):
    return [line for c in code_cells(path) for line in c.source.splitlines() if line.strip()]


WITH_SITE = sorted((ROOT / "nbs").rglob("*.ipynb"))


@pytest.mark.parametrize("path", WITH_SITE, ids=lambda p: p.stem)
def test_no_line_of_code_is_over_120_characters(path):
    assert [line for line in lines_of_code(path) if len(line) > 120] == []


@pytest.mark.parametrize("path", WITH_SITE, ids=lambda p: p.stem)
def test_few_lines_of_code_are_over_100_characters(path):
    lines = lines_of_code(path)
    assert sum(len(line) > 100 for line in lines) <= 0.05 * len(lines)


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("[!_]*.py")), ids=lambda p: p.stem)
def test_no_module_is_over_450_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


def exported(path):
    "The module that a notebook writes, such as `config`, and the sources of its exported cells."
    sources = [c.source for c in code_cells(path)]
    names = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(sources), re.M)
    return names[0] if names else None, [s for s in sources if re.search(r"^#\|\s*export", s, re.M)]


MODULES = {
    name: sources for name, sources in map(exported, NOTEBOOKS) if name
}  # in the order of the notebooks


def library_imports(sources):
    "Modules of the library that these sources import, at the top or within a function."
    found = set()
    for node in (n for s in sources for n in ast.walk(ast.parse(s))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = "imdb_sentiment." if node.level else ""
            whole = f"{start}{node.module or ''}".rstrip(".")
            found |= {whole, *(f"{whole}.{a.name}" for a in node.names)}
    ours = {
        name.removeprefix("imdb_sentiment.") for name in found if name.startswith("imdb_sentiment.")
    }
    return ours & set(MODULES)


IMPORTS = [  # statements, and the modules that they import
    ("from imdb_sentiment.config import Config", {"config"}),
    ("from imdb_sentiment import data, nothing", {"data"}),
    ("import imdb_sentiment.data", {"data"}),
    ("from .config import Config", {"config"}),
    ("from . import data", {"data"}),
    ("def f():\n    from imdb_sentiment.data import load_split", {"data"}),
    ("import numpy as np, torch.data", set()),
]


@pytest.mark.parametrize("source, found", IMPORTS)
def test_imports_are_found(source, found):
    assert library_imports([source]) & {"config", "data"} == found


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_only_earlier_ones(name):
    order = list(MODULES)
    earlier = set(order[: order.index(name)])
    assert library_imports(MODULES[name]) <= earlier


NOT_BENCHES = [p for p in sorted(LIBRARY.rglob("*.py")) if p.parent.name != "benches"]


def names_benches(source):
    "Imports of the benches in this source, relative ones included: a wheel is built without them."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{a.name}" for a in node.names]
        else:
            continue
        found += [n for n in names if "benches" in n.split(".")]
    return found


BENCHES = [  # statements that import them
    "from imdb_sentiment.benches.scaling import kill_and_resume",
    "from imdb_sentiment import benches",
    "import imdb_sentiment.benches.training",
    "def f():\n    from .benches import scaling",
]


@pytest.mark.parametrize("source", BENCHES)
def test_imports_of_benches_are_found(source):
    assert len(names_benches(source)) == 1


@pytest.mark.parametrize("path", NOT_BENCHES, ids=lambda p: p.stem)
def test_no_module_outside_benches_imports_them(path):
    assert names_benches(path.read_text(encoding="utf-8")) == []


def found_by_ruff(name, source):
    "Codes of what ruff finds in a file of this name."
    if name.endswith(".ipynb"):
        source = nbformat.writes(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        )
    program = Path(sys.executable).with_name("ruff")
    command = [program, "check", "--output-format", "json", "--stdin-filename", ROOT / name, "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert not done.stderr, done.stderr
    return {f["code"] for f in json.loads(done.stdout)}


STYLE = [  # a rule, and a cell or a file that breaks it
    ("E501", f'x = "{"a" * 115}"'),
    ("E702", "x = 1; y = 2"),
    ("E703", "x = 1;\nx"),
]


@pytest.mark.parametrize("name", ["nbs/made_up.ipynb", "tests/made_up.py"])
@pytest.mark.parametrize("code, source", STYLE, ids=[code for code, _ in STYLE])
def test_ruff_sees_to_the_style(code, source, name):
    assert code in found_by_ruff(name, source)


@pytest.mark.parametrize(
    "name", ["imdb_sentiment/made_up.py", "nbs/made_up.ipynb", "tests/made_up.py"]
)
def test_ruff_allows_lines_of_120_characters_and_a_quiet_plot(name):
    source = f'import seaborn\nx = "{"a" * 114}"\nseaborn.lineplot(x){";" if name.endswith("ipynb") else ""}'
    assert found_by_ruff(name, source) == set()


# The published reports and benches


def test_reports_are_published():
    assert {m["preset"] for m in REPORTS.values()} == {"paper", "best"}


def published(name):
    return json.loads((ROOT / "reports" / name / "metrics.json").read_text(encoding="utf-8"))


def test_published_bench_of_training_is_whole():
    m = published("bench-training")
    first, second = m["cases"].values()
    summary = m["gpu" if m["machine"]["device"] == "cuda" else "cpu"]
    assert summary["speedup_vs_trainer"] == first["speedup"]["median"]
    assert summary["speedup_vs_configured_trainer"] == first["speedup_configured"]["median"]
    assert (
        summary["peak_memory_ratio"]
        == first["peak_memory"]["ours"] / first["peak_memory"]["trainer"]
    )
    assert min(c["speedup"]["rounds"] for c in (first, second)) >= 5
    assert all(r["agrees"] for kinds in m.get("repeated", {}).values() for r in kinds.values())


def test_published_training_resumes_with_the_same_bits():
    resume = published("bench-training")["resume"]
    assert resume["kills"] >= 20
    assert resume["bit_identical"] is True


def test_published_training_shares_the_machine():
    beside = published("bench-training")["beside"]
    quiet, busy = (min(beside["seconds"]["sleeping"][k]) for k in ("quiet", "beside"))
    assert quiet < busy
    assert beside["ratio"] >= 0.45
    assert beside["quiet_speed"] > 0.97  # threads that sleep cost at most 3% of the speed


def test_published_bench_of_inference_is_whole():
    m = published("bench-inference")
    first, second = m["cases"].values()
    assert m["cpu"]["speedup_vs_hf_pipeline"] == first["speedup"][m["cpu"]["form"]]["median"]
    assert m["cpu"]["speedup_vs_hf_pipeline"] >= 5
    assert min(s["speedup"]["int8"]["rounds"] for s in (first, second)) >= 5
    assert max(m["onnx_largest_difference"].values()) < 1e-4


@pytest.mark.parametrize("form", ["int8", "openvino_int8"])
def test_published_int8_keeps_its_promise(form):
    small = published("bench-inference")[form]
    drop = 100 * (small["accuracy_before"] - small["accuracy"])
    assert small["accuracy_drop_points"] == pytest.approx(drop, abs=1e-9)
    assert small["test_reviews"] == 25_000
    assert small["accuracy_drop_points"] <= 0.3
    assert small["size_ratio"] <= 0.3


def test_published_server_answered_every_request():
    server = published("bench-inference")["server"]
    assert server["requests"] == 10_000
    assert sum(c["requests"] for c in server["by_clients"]) == 10_000
    assert server["errors"] == 0


def test_published_file_was_answered_in_constant_memory():
    rows = published("bench-inference")["rows"]
    assert rows["rows"] == 1_000_000
    assert rows["answered"] + rows["rejected"] == 1_000_000
    assert rows["peak_memory_bytes"] < 1.5e9


SCORES = {  # name in metrics.json: the same by scikit-learn
    "accuracy": accuracy_score,
    "f1_macro": lambda labels, answers: f1_score(labels, answers, average="macro"),
    "precision_weighted": lambda labels, answers: precision_score(
        labels, answers, average="weighted"
    ),
    "recall_neg": lambda labels, answers: recall_score(labels, answers, pos_label=0),
}


@pytest.mark.parametrize("name", REPORTS)
def test_published_scores_follow_from_the_published_predictions(name):
    metrics = REPORTS[name]
    predictions = pd.read_parquet(ROOT / "reports" / name / "predictions.parquet")
    assert list(predictions.columns) == [
        "id",
        "label",
        "rating",
        "prob_pos",
        "logit_neg",
        "logit_pos",
    ]
    assert len(predictions) == metrics["test_reviews"]
    assert predictions.id.is_unique
    answers = predictions.prob_pos > 0.5
    ours = scores(confusion(predictions.label, answers))
    for score, compute in SCORES.items():
        value = compute(predictions.label, answers)
        assert metrics[score]["value"] == pytest.approx(value, abs=1e-12), score
        assert ours[score] == pytest.approx(value, abs=1e-12), score
        assert metrics[score]["ci_low"] < value < metrics[score]["ci_high"], score


@pytest.mark.parametrize("name", REPORTS)
def test_published_probabilities_follow_from_the_logits(name):
    rows = pd.read_parquet(ROOT / "reports" / name / "predictions.parquet")
    temperature = (
        REPORTS[name].get("calibration", {}).get("temperature", 1)
    )  # older reports have none
    expected = 1 / (1 + np.exp((rows.logit_neg - rows.logit_pos) / temperature))
    assert abs(rows.prob_pos - expected).max() < 1e-6


@pytest.mark.parametrize("name", REPORTS)
def test_published_report_has_its_files(name):
    for part in ["report.html", *(f"chapters/{c}.ipynb" for c in REPORTS[name]["chapters"])]:
        assert (ROOT / "reports" / name / part).exists(), part


@pytest.mark.parametrize("name", REPORTS)
def test_published_page_opens_by_itself(name):
    page = (ROOT / "reports" / name / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css|png)""", page)
    assert "<script" not in page
    assert "data:image/png;base64" in page


def texts_of(folder):
    return [
        p
        for p in (ROOT / "reports" / folder).rglob("*.*")
        if p.suffix in (".json", ".ipynb", ".html")
    ]


@pytest.mark.parametrize("name", [*REPORTS, "bench-training", "bench-inference"])
def test_published_files_show_no_local_path(name):
    assert len(texts_of(name)) >= 2
    for path in texts_of(name):
        found = re.search(
            r"(?<![\w.])/(?:home|root|work|tmp|Users)/\w", path.read_text(encoding="utf-8")
        )
        assert not found, f"{path} names a path of the machine it was made on"


@pytest.mark.parametrize("name", REPORTS)
def test_published_settings_are_those_of_the_preset(name):
    metrics = REPORTS[name]
    preset = json.loads(json.dumps(asdict(make_config(metrics["preset"]))))
    changed = {k for k, v in metrics["settings"].items() if v != preset.get(k)}
    allowed = {"data", "backbone", "suites", "label_names", *EXECUTION}
    if "calibration_share" not in metrics["settings"]:  # made when validation did both
        allowed.add("val_share")
    assert changed <= allowed, (
        f"{name} was not made with the preset {metrics['preset']} as it is now"
    )


def test_files_of_tests_that_begin_are_there():
    found = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    assert set(LONGEST) <= found


def test_every_tracked_data_file_is_ours():
    assert len(tracked()) > 100
    for path in tracked():
        assert path.suffix not in (".safetensors", ".bin", ".pkl", ".pt"), path
        assert path.stat().st_size < 20e6, path
