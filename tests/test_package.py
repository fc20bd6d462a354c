"The package: what the wheel holds, what it asks for, and what it says when an extra is missing."
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import imdb_sentiment

ROOT = Path(__file__).parents[1]
# What only running and publishing notebooks needs, and the site; a server that predicts has no use for it.
NOTEBOOK_TOOLS = {"papermill", "nbformat", "nbclient", "nbconvert", "ipykernel", "ipywidgets", "ipython", "jupyter-client", "jupyter-core", "jupyterlab", "notebook", "nbdev", "execnb", "fastcore",
                  "traitlets", "sphinx", "myst-nb", "myst-parser", "furo", "pytest", "ruff", "mypy"}
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found, importlib.util.find_spec = importlib.util.find_spec, lambda name, *a: None if name.split(".")[0] in {blocked!r} else found(name, *a)
"""


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Names in the sdist, and in the wheel built from it and not from the checkout."
    folder, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=lambda at, names: {n for n in names if n in ("__pycache__", "reports", "dist", "build", "runs") or (n[0] == "." and Path(at) == ROOT) or n.startswith("_site") or n.endswith((".parquet", ".egg-info"))})
    done = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as s, zipfile.ZipFile(wheel) as w:
        (metadata,) = [w.read(n).decode() for n in w.namelist() if n.endswith("/METADATA")]
        return [n.split("/", 1)[1] for n in s.getnames() if "/" in n], w.namelist(), metadata


def test_wheel_holds_library_and_data_only(built):
    _, wheel, metadata = built
    ours = {str(p.relative_to(ROOT)) for p in (ROOT / "imdb_sentiment").iterdir() if p.is_file()}
    assert {n for n in wheel if ".dist-info/" not in n} == ours
    assert {Path(n).suffix for n in ours} == {".py", ".json", ".jsonl", ".tsv", ".html"}
    assert any(n.endswith("licenses/LICENSE") for n in wheel) and "\nLicense: Apache-2.0\n" in metadata


def test_sdist_holds_what_the_wheel_is_built_from(built):
    sdist, _, _ = built
    assert {"setup.py", "pyproject.toml", "settings.ini", "README.md", "LICENSE"} <= set(sdist)
    assert not [n for n in sdist if n.split("/")[0] in ("nbs", "tests", "reports")]


def test_version_is_said_in_one_place(built):
    version = settings()["version"]
    assert imdb_sentiment.__version__ == version and f"\nVersion: {version}\n" in built[2]
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)


def brought(name, extras=(), seen=None):
    "Canonical names of all that a package brings, as it is installed here."
    seen = set() if seen is None else seen
    if (key := (canonicalize_name(name), tuple(sorted(extras)))) in seen: return {k[0] for k in seen}
    seen.add(key)
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        requires = []
    for r in map(Requirement, requires):
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", *extras)):
            brought(r.name, r.extras, seen)
    return {k[0] for k in seen}


def test_core_brings_no_notebook_tools():
    core = [Requirement(r) for r in shlex.split(settings()["requirements"])]
    found = {r.name: brought(r.name, r.extras) & NOTEBOOK_TOOLS for r in core}
    assert not any(found.values()), found


def test_pipeline_extra_brings_what_the_command_asks_for():
    found = set().union(*(brought(Requirement(r).name) for r in shlex.split(settings()["pipeline_requirements"])))
    assert {"nbformat", "nbclient", "nbconvert", "ipykernel", "papermill", "jupyter-client"} <= found


def without(blocked, code):
    return subprocess.run([sys.executable, "-c", BLOCK.format(blocked=blocked) + code], cwd=ROOT, capture_output=True, text=True, timeout=120)


JUPYTER = {"nbformat", "nbclient", "nbconvert", "ipykernel", "papermill", "jupyter_client", "jupyter_core", "IPython", "ipywidgets", "traitlets", "nbdev", "fastcore", "execnb"}


def test_library_works_without_notebook_tools(tmp_path):
    done = without(JUPYTER, f"""
from imdb_sentiment import analysis, believe, calibration, config, data, deployment, evaluation, explanations, files, inference, model, robustness, scale, server, training
tokenizer = data.tiny_tokenizer(["a wonderful film", "a dull film"] * 5)
model.save_model(model.make_model(config.Config(max_length=32, label_names=("bad", "good")), tokenizer), tokenizer, {str(tmp_path / "m")!r})
from imdb_sentiment.pipeline import app
from typer.testing import CliRunner
found = CliRunner().invoke(app, ["predict", "--model", {str(tmp_path / "m")!r}, "a film"])
print(found.exit_code, found.output)
""")
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.match(r"0 (bad|good) \d", done.stdout)


@pytest.mark.parametrize("command", [["report"], ["readme"], ["bench", "training"], ["docs"]], ids=" ".join)
def test_command_names_the_extra_that_is_missing(command, tmp_path):
    done = without(JUPYTER, f"import sys; sys.argv[1:] = {command + (['--run-dir', str(tmp_path / 'run')] if command == ['report'] else [])!r}\nfrom imdb_sentiment.pipeline import main; main()")
    assert done.returncode == 1 and "Install: pip install 'imdb_sentiment[pipeline]'" in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
