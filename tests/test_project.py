"The project as a whole: notebooks, library, README and published reports say the same."
import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from imdb_sentiment.config import EXECUTION, Config, make_config
from imdb_sentiment.evaluation import confusion, scores
from imdb_sentiment.pipeline import load_reports, render_readme

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
REPORTS = load_reports(ROOT / "reports")


def tracked():
    "Files under version control; all files of the project where there is no git."
    try:
        out = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / f for f in out.splitlines() if (ROOT / f).is_file()]
    except (OSError, subprocess.CalledProcessError):
        return [p for p in ROOT.rglob("*") if p.is_file() and not {".venv", "runs"} & set(p.parts)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the sources, exported and cleaned anew."
    folder = tmp_path_factory.mktemp("copy")
    for name in ("nbs", "imdb_sentiment"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for command in (["nbdev_export"], ["nbdev_clean", "--fname", "nbs"]):
        command[0] = Path(sys.executable).with_name(command[0])  # also where the environment is not activated
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_library_is_what_the_notebooks_export(copy):
    names = lambda folder: {p.name for p in (folder / "imdb_sentiment").glob("*.py")}
    assert names(copy) == names(ROOT)
    for name in names(copy):
        assert (copy / "imdb_sentiment" / name).read_text() == (ROOT / "imdb_sentiment" / name).read_text(), f"{name} differs from its notebook: run `make export`"


def test_notebooks_are_clean(copy):
    for path in NOTEBOOKS:
        assert (copy / "nbs" / path.name).read_text() == path.read_text(), f"{path.name} has outputs or metadata: run `make export`"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if re.match(r"0[0-7](?!a_runs|a_files|b_scale|a_server)", p.name)], ids=lambda p: p.stem)
def test_settings_are_bound_by_the_parameters_cell_only(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and {"preset", "run"} <= {t.id for n in ast.parse(tagged[0].source).body for t in n.targets}
    plain = {f.name for f in fields(Config)}
    for cell in cells:
        bound = {t.id for n in ast.parse(cell.source).body if isinstance(n, ast.Assign) for t in ast.walk(n) if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)}
        bound |= {t.id for n in ast.parse(cell.source).body if isinstance(n, ast.For) for t in ast.walk(n.target) if isinstance(t, ast.Name)}
        assert not bound & plain, f"{path.name} binds {bound & plain}, which the last section would take for a setting"


def test_published_bench_of_training_is_whole():
    m = json.loads((ROOT / "reports" / "bench-training" / "metrics.json").read_text(encoding="utf-8"))
    device = "gpu" if m["machine"]["device"] == "cuda" else "cpu"
    first, *others = m["cases"].values()
    assert m[device]["speedup_vs_trainer"] == first["speedup"]["median"]
    assert m[device]["speedup_vs_configured_trainer"] == first["speedup_configured"]["median"]
    assert min(c["speedup"]["rounds"] for c in (first, *others)) >= 5
    assert m[device]["peak_memory_ratio"] == first["peak_memory"]["ours"] / first["peak_memory"]["trainer"]
    assert m["resume"]["kills"] >= 20 and m["resume"]["bit_identical"] and len(others) == 1
    assert all(r["agrees"] for kinds in m.get("repeated", {}).values() for r in kinds.values())
    quiet, busy = (sorted(m["beside"]["seconds"]["sleeping"][k]) for k in ("quiet", "beside"))
    assert m["beside"]["ratio"] >= 0.45 and quiet[0] < busy[0]
    assert m["beside"]["quiet_speed"] > 0.97 # threads that sleep cost at most 3% of the speed


@pytest.mark.parametrize("path", sorted((ROOT / "reports").glob("bench-inference/metrics.json")), ids=lambda p: p.parent.name)
def test_published_bench_of_inference_is_whole(path):
    m = json.loads(path.read_text(encoding="utf-8"))
    first, *others = m["cases"].values()
    assert m["cpu"]["speedup_vs_hf_pipeline"] == first["speedup"][m["cpu"]["form"]]["median"] and min(s["speedup"]["int8"]["rounds"] for s in (first, *others)) >= 5 and len(others) == 1
    for small in (m["int8"], m["openvino_int8"]):
        assert abs(100 * (small["accuracy_before"] - small["accuracy"]) - small["accuracy_drop_points"]) < 1e-9 and small["test_reviews"] == 25_000
    assert m["server"]["requests"] == 10_000 == sum(c["requests"] for c in m["server"]["by_clients"]) and m["rows"]["answered"] + m["rows"]["rejected"] == m["rows"]["rows"] == 1_000_000
    assert max(m["onnx_largest_difference"].values()) < 1e-4
    # what the project promises of answers on a CPU
    assert all(small["accuracy_drop_points"] <= 0.3 and small["size_ratio"] <= 0.3 for small in (m["int8"], m["openvino_int8"]))
    assert m["cpu"]["speedup_vs_hf_pipeline"] >= 5 and m["server"]["errors"] == 0 and m["rows"]["peak_memory_bytes"] < 1.5e9


def test_readme_is_rendered_from_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render_readme(ROOT / "nbs"), "README.md differs from nbs/index.ipynb and reports/: run `make export`"


@pytest.mark.parametrize("name", REPORTS)
def test_published_scores_follow_from_the_published_predictions(name):
    metrics, folder = REPORTS[name], ROOT / "reports" / name
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert list(predictions.columns) == ["id", "label", "rating", "prob_pos", "logit_neg", "logit_pos"]
    assert len(predictions) == metrics["test_reviews"] and predictions.id.is_unique
    found = scores(confusion(predictions.label, predictions.prob_pos > 0.5))
    for score in ("accuracy", "f1_macro", "precision_weighted", "recall_neg"):
        assert found[score] == pytest.approx(metrics[score]["value"], abs=1e-12)
    for part in ["report.html", *[f"chapters/{c}.ipynb" for c in metrics["chapters"]]]:
        assert (folder / part).exists()


@pytest.mark.parametrize("name", REPORTS)
def test_published_page_opens_by_itself_and_shows_no_local_path(name):
    page = (ROOT / "reports" / name / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["']https?://[^"']+\.(?:js|css|png)""", page) and "<script" not in page
    assert "data:image/png;base64" in page
    for path in (ROOT / "reports" / name).rglob("*.*"):
        if path.suffix in (".json", ".ipynb", ".html"):
            assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/\w", path.read_text(encoding="utf-8")), f"{path} names a path of the machine it was made on"


@pytest.mark.parametrize("name", REPORTS)
def test_published_settings_are_those_of_the_preset(name):
    metrics = REPORTS[name]
    preset = json.loads(json.dumps(asdict(make_config(metrics["preset"]))))
    changed = {k for k, v in metrics["settings"].items() if v != preset.get(k)}
    assert changed - set(EXECUTION) <= {"data", "backbone", "suites", "label_names"}, f"{name} was not made with the preset {metrics['preset']} as it is now"


def test_every_tracked_data_file_is_ours():
    for path in tracked():
        assert path.suffix not in (".safetensors", ".bin", ".pkl", ".pt") and path.stat().st_size < 20e6, path
