"The kit for a machine without internet: what is in it, and its script where nothing can be downloaded."
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from imdb_sentiment.config import RunError, read_json
from imdb_sentiment.kit import write_kit

ROOT = Path(__file__).parents[1]
PYTHON = f"3.{sys.version_info.minor}"
TINY = ["--set", "limit=60", "--set", "epochs=1", "--set", "max_length=16", "--set", "resamples=20"]
NOWHERE = "http://127.0.0.1:9"  # a proxy that does not answer


def without_network():
    "What to put before a command so that it has no network, as far as this machine allows."
    if shutil.which("unshare") and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0:
        return ["unshare", "-n"]
    return []


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "What `pip list --format=freeze` says of this environment."
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    path = tmp_path_factory.mktemp("installed") / "installed.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in found.items()))
    return path


@pytest.fixture(scope="module")
def kit(tmp_path_factory, installed):
    "A kit of the demo for a machine that has what this one has: only the project's own wheel is brought."
    folder, lines = tmp_path_factory.mktemp("kit") / "kit", []
    options = dict(name="carried", python=PYTHON, part_mib=0.25, installed=str(installed), say=lines.append)
    parts = write_kit(folder, "demo", {}, **options)
    return folder, parts, lines


@pytest.fixture
def script(kit, tmp_path):
    "A function that runs a copy of the kit's script: (exit status, output)."
    shutil.copytree(kit[0], tmp_path / "kit")
    (tmp_path / "bin").mkdir()
    # a link to it would not find its environment
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KIT_WORK", "RESULTS")}
    env = {**clean, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "http_proxy": NOWHERE, "https_proxy": NOWHERE}

    def run(*words):
        command = [*without_network(), "bash", "kit/run.sh", *words]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = subprocess.run(command, cwd=tmp_path, env=env, **streams)
        return done.returncode, done.stdout

    return run


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_parts_are_not_larger_than_asked(kit):
    folder, parts, lines = kit
    assert len(parts) > 1 and [p.name for p in parts] == [f"part-{i + 1}" for i in range(len(parts))]
    assert max(map(size, parts)) <= 2**18
    assert all(any(line.startswith(f"{part}: ") for line in lines) for part in parts)
    assert "bash kit/run.sh all" in lines[-1]


def test_manifest_names_every_piece(kit):
    folder, _, _ = kit
    manifest = read_json(folder / "manifest.json")
    pieces = {p["file"]: p["size"] for f in manifest["files"] for p in f["pieces"]}
    found = [p for p in folder.glob("part-*/**/*") if p.is_file()]
    assert pieces == {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
    assert any(len(f["pieces"]) > 1 for f in manifest["files"]), "no file was cut"
    assert manifest["settings"] == {"data": "embedded", "backbone": "tiny"} and manifest["python"] == PYTHON


def test_what_is_installed_there_is_not_brought(kit):
    paths = [f["path"] for f in read_json(kit[0] / "manifest.json")["files"]]
    assert [p.split("-")[0] for p in paths if p.startswith("wheels/")] == ["wheels/imdb_sentiment"]


def test_a_kit_is_replaced_and_nothing_else(kit, tmp_path, installed):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(RunError, match="is no kit"):
        write_kit(tmp_path / "thesis", "demo", python=PYTHON, installed=str(installed), say=str)
    shutil.copytree(kit[0], tmp_path / "kit")
    (tmp_path / "kit" / "part-99").mkdir()
    write_kit(tmp_path / "kit", "demo", python=PYTHON, installed=str(installed), say=str)
    assert sorted(p.name for p in (tmp_path / "kit").iterdir()) == ["manifest.json", "part-1", "run.sh"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_kit_installs_without_network(script, tmp_path):
    status, output = script("install")
    assert status == 0, output
    site, checkout = tmp_path / "kit-work" / "site-packages", tmp_path / "kit-work" / "checkout"
    assert (site / "imdb_sentiment" / "kit.py").exists() and (checkout / "nbs" / "01_data.ipynb").exists()
    stamp = tmp_path / "kit-work" / ".installed"
    before = stamp.stat().st_mtime_ns
    status, output = script("install")
    assert status == 0 and "files checked" not in output and stamp.stat().st_mtime_ns == before


def test_a_bad_part_is_told_in_a_sentence(script, tmp_path):
    piece = max((tmp_path / "kit").glob("part-*/**/*.*"), key=lambda p: p.stat().st_size)
    part = piece.relative_to(tmp_path / "kit").parts[0]
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status, output = script("install")
    assert status == 1 and output.startswith("kit: ") and len(output.splitlines()) == 1
    assert "is damaged" in output and f"Copy the folder {part} again" in output
    shutil.rmtree(tmp_path / "kit" / part)
    status, output = script("report")
    assert status == 1 and output == f"kit: {part} is missing. Copy the folder {part} to {tmp_path / 'kit'}.\n"


def test_parts_may_arrive_one_at_a_time(script, tmp_path):
    parts = sorted((tmp_path / "kit").glob("part-*"))
    for part in parts[1:]:
        part.rename(tmp_path / part.name)
    for part in parts:
        assert script("keep")[0] == 0
        shutil.rmtree(tmp_path / "kit" / part.name)
        if part is not parts[-1]:
            following = parts[parts.index(part) + 1]
            (tmp_path / following.name).rename(following)
    status, output = script("install")
    assert status == 0, output


MISTAKES = [((), "bash run.sh all"), (("fly",), "there is no step fly"), (("bench",), "say bench training")]


@pytest.mark.parametrize("words, said", MISTAKES)
def test_script_says_what_it_can_do(script, words, said):
    status, output = script(*words)
    assert said in output and status == (1 if words else 0)


def test_another_python_is_refused(script, tmp_path):
    path = tmp_path / "kit" / "manifest.json"
    path.write_text(path.read_text().replace(f'"python": "{PYTHON}"', '"python": "3.99"'))
    status, output = script("install")
    told = f"kit: python3 is {PYTHON} here, and this kit is for 3.99. Write one with --python {PYTHON}.\n"
    assert (status, output) == (1, told)


def test_results_are_packed_and_words_passed_on(script, tmp_path):
    "A step that fails at once: its log is there, and so is the sentence of the command."
    status, output = script("report", "--set", "epoch=1")
    log = (tmp_path / "kit-results" / "report.log").read_text()
    assert status == 1 and log in output
    assert "Did you mean 'epochs'?" in log and "== report: ended with status 1 after" in log
    assert [p.name for p in (tmp_path / "kit-results").iterdir()] == ["report.log"]


@pytest.mark.skipif(not os.environ.get("TEST_KIT_REPORT"), reason="minutes: set TEST_KIT_REPORT=1")
def test_report_is_carried_home(script, tmp_path):
    status, output = script("report", *TINY)
    assert status == 0, output
    with tarfile.open(tmp_path / "kit-results" / "report.tar.gz") as tar:
        tar.extractall(tmp_path / "home", **(dict(filter="data") if hasattr(tarfile, "data_filter") else {}))
    report = tmp_path / "home" / "carried"
    whole = {"metrics.json", "report.html", "predictions.parquet", "chapters", "figures"}
    assert whole <= {p.name for p in report.iterdir()}
    assert read_json(report / "metrics.json")["settings"]["limit"] == 60
    assert (tmp_path / "kit-results" / "report.tar.gz").stat().st_size < 16 * 2**20
