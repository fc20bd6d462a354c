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
from tools import ROOT, failed_politely, opinionated_model

import imdb_sentiment

# What only running and publishing notebooks needs, and the site; a server that predicts has no use for it.
NOTEBOOK_TOOLS = {
    *("papermill", "nbformat", "nbclient", "nbconvert", "nbdev", "execnb", "fastcore"),
    *(
        "ipykernel",
        "ipywidgets",
        "ipython",
        "jupyter-client",
        "jupyter-core",
        "jupyterlab",
        "notebook",
        "traitlets",
    ),
    *("sphinx", "myst-nb", "myst-parser", "furo", "pytest", "ruff", "mypy"),
}
BLOCK = """
import importlib.util, sys
blocked = {blocked!r}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split(".")[0] in blocked else find(name, *args)
"""
LIBRARY_FILES = {".py", ".json", ".jsonl", ".tsv", ".html", ".sh"}
TEMPLATES = {".txt", ".md", ".css", ".html"}
NOT_SOURCE = {"__pycache__", "reports", "dist", "build", "runs"}


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def not_source(folder, names):
    "Names in a folder that a copy of the project leaves out."
    hidden = {n for n in names if n.startswith((".", "_site")) and Path(folder) == ROOT}
    return hidden | {n for n in names if n in NOT_SOURCE or n.endswith((".parquet", ".egg-info"))}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "Names in the sdist, and in the wheel built from it and not from the checkout, and the metadata of the wheel."
    folder, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=not_source)
    command = [sys.executable, "-m", "build", "--no-isolation", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as s, zipfile.ZipFile(wheel) as w:
        (metadata,) = [w.read(n).decode() for n in w.namelist() if n.endswith("/METADATA")]
        return [n.split("/", 1)[1] for n in s.getnames() if "/" in n], w.namelist(), metadata


def test_wheel_holds_library_and_data_only(built):
    _, wheel, metadata = built
    found = [
        p
        for p in (ROOT / "imdb_sentiment").rglob("*")
        if p.is_file() and not {"__pycache__", "benches"} & set(p.parts)
    ]
    ours = {p.relative_to(ROOT).as_posix() for p in found}
    assert {n for n in wheel if ".dist-info/" not in n} == ours
    assert {Path(n).suffix for n in ours if "/templates/" not in n} == LIBRARY_FILES
    assert {Path(n).suffix for n in ours if "/templates/" in n} == TEMPLATES
    assert any(n.endswith("licenses/LICENSE") for n in wheel)
    assert "\nLicense: Apache-2.0\n" in metadata


def test_sdist_holds_what_the_wheel_is_built_from(built):
    sdist, _, _ = built
    assert {"setup.py", "pyproject.toml", "settings.ini", "README.md", "LICENSE"} <= set(sdist)
    assert not [n for n in sdist if n.split("/")[0] in ("nbs", "tests", "reports")]


def test_version_is_said_in_one_place(built):
    version = settings()["version"]
    assert imdb_sentiment.__version__ == version
    assert f"\nVersion: {version}\n" in built[2]
    text = lambda name: (ROOT / name).read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(version)}\]", text("CHANGELOG.md"), re.M)
    assert not re.search(r"^version:", text("CITATION.cff"), re.M)


def brought(name, extras=(), seen=None):
    "Canonical names of all that a package brings, as it is installed here."
    seen = set() if seen is None else seen
    key = canonicalize_name(name), tuple(sorted(extras))
    if key in seen:
        return {k[0] for k in seen}
    seen.add(key)
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        requires = []
    for r in map(Requirement, requires):
        if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in ("", *extras)):
            brought(r.name, r.extras, seen)
    return {k[0] for k in seen}


EXTRAS = {  # settings.ini's name of an extra: the packages that it asks for
    "analysis_requirements": {"seaborn", "vaderSentiment", "captum", "cleanlab"},
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_asks_for_its_packages(extra):
    assert {r.name for r in packages(extra)} == EXTRAS[extra]


def packages(setting):
    return [Requirement(r) for r in shlex.split(settings()[setting])]


def test_core_brings_no_notebook_tools():
    found = {r.name: brought(r.name, r.extras) for r in packages("requirements")}
    assert "tokenizers" in found["transformers"]  # so it is seen what they bring
    tools = {name: names & NOTEBOOK_TOOLS for name, names in found.items()}
    assert not any(tools.values()), tools


def test_pipeline_extra_brings_what_the_command_asks_for():
    found = set().union(*(brought(r.name) for r in packages("pipeline_requirements")))
    assert {
        "nbformat",
        "nbclient",
        "nbconvert",
        "ipykernel",
        "papermill",
        "jupyter-client",
    } <= found


def without(blocked, code):
    "What Python does with this code where some packages are not installed."
    command = [sys.executable, "-c", BLOCK.format(blocked=blocked) + code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


JUPYTER = {
    "nbformat",
    "nbclient",
    "nbconvert",
    "ipykernel",
    "papermill",
    "jupyter_client",
    "jupyter_core",
    "IPython",
    "ipywidgets",
    "traitlets",
    "nbdev",
    "fastcore",
    "execnb",
}
FOR_NOTEBOOKS = {"site"}  # modules that need notebook tools when they are imported
LIBRARY = sorted(
    p.stem for p in (ROOT / "imdb_sentiment").glob("[a-z]*.py") if p.stem not in FOR_NOTEBOOKS
)


def test_library_works_without_notebook_tools(tmp_path):
    folder = opinionated_model(tmp_path / "model")
    done = without(
        JUPYTER,
        f"""
import importlib
for name in {LIBRARY}: importlib.import_module(f"imdb_sentiment.{{name}}")
from imdb_sentiment.cli import app
from typer.testing import CliRunner
found = CliRunner().invoke(app, ["predict", "--model", {str(folder)!r}, "a wonderful film"])
print(found.exit_code, found.output)
""",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.match(r"0 good \d", done.stdout)


@pytest.mark.parametrize("command", ["report", "readme", "bench training", "docs"])
def test_command_names_the_extra_that_is_missing(command, tmp_path):
    args = command.split() + (["--run-dir", str(tmp_path / "run")] if command == "report" else [])
    done = without(
        JUPYTER, f"import sys\nsys.argv[1:] = {args}\nfrom imdb_sentiment.cli import main\nmain()"
    )
    failed_politely(done, "Install: pip install 'imdb_sentiment[pipeline]'")
