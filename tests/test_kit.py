"The kit for a machine without internet: its content, and its script where nothing can be downloaded."

import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import distributions

import pytest

from imdb_sentiment.runs import RunError, read_json
from imdb_sentiment.kit import write_kit

PYTHON = f"3.{sys.version_info.minor}"
TINY = ["--set", "limit=60", "--set", "epochs=1", "--set", "max_length=16", "--set", "resamples=20"]
UNREACHABLE = "http://127.0.0.1:9"  # a proxy that does not answer


def without_network():
    "Words to put before a command so that it has no network; none if this machine does not allow that."
    if (
        shutil.which("unshare")
        and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
    ):
        return ["unshare", "-n"]
    return []


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "A file with the output of `pip list --format=freeze` for this environment."
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    path = tmp_path_factory.mktemp("installed") / "installed.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in found.items()))
    return path


@pytest.fixture(scope="module")
def kit(tmp_path_factory, installed):
    "A kit of the demo for a machine with the same packages as this one: its only wheel is the project's own."
    folder, lines = tmp_path_factory.mktemp("kit") / "kit", []
    options = dict(
        name="carried", python=PYTHON, part_mib=0.25, installed=str(installed), log=lines.append
    )
    parts = write_kit(folder, "demo", {}, **options)
    return folder, parts, lines


@pytest.fixture
def script(kit, tmp_path):
    "A function that runs the script of a copy of the kit; returns its exit status and output."
    shutil.copytree(kit[0], tmp_path / "kit")
    python3 = tmp_path / "bin" / "python3"
    python3.parent.mkdir()
    python3.write_text(
        f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    )  # a link would not find its environment
    python3.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "KIT_WORK", "RESULTS")}
    env |= {
        "PATH": f"{python3.parent}:{os.environ['PATH']}",
        "http_proxy": UNREACHABLE,
        "https_proxy": UNREACHABLE,
    }

    def run(*arguments):
        command = [*without_network(), "bash", "kit/run.sh", *arguments]
        streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        done = subprocess.run(command, cwd=tmp_path, env=env, **streams)
        return done.returncode, done.stdout

    return run


def size(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_parts_are_not_larger_than_requested(kit):
    folder, parts, lines = kit
    assert len(parts) > 1
    assert [p.name for p in parts] == [f"part-{i + 1}" for i in range(len(parts))]
    assert max(map(size, parts)) <= 2**18
    for part in parts:
        assert any(line.startswith(f"{part}: ") for line in lines), part
    assert "bash kit/run.sh all" in lines[-1]


def test_manifest_lists_every_piece(kit):
    folder, _, _ = kit
    manifest = read_json(folder / "manifest.json")
    pieces = {p["file"]: p["size"] for f in manifest["files"] for p in f["pieces"]}
    found = [p for p in folder.glob("part-*/**/*") if p.is_file()]
    assert pieces == {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
    assert any(len(f["pieces"]) > 1 for f in manifest["files"]), "no file was divided"
    assert manifest["settings"] == {"data": "embedded", "backbone": "tiny"}
    assert manifest["python"] == PYTHON


def test_installed_packages_are_not_included(kit):
    paths = [f["path"] for f in read_json(kit[0] / "manifest.json")["files"]]
    assert [p.split("-")[0] for p in paths if p.startswith("wheels/")] == ["wheels/imdb_sentiment"]


def test_only_a_kit_is_replaced(kit, tmp_path, installed):
    options = dict(python=PYTHON, installed=str(installed), log=str)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a kit"):
        write_kit(tmp_path / "thesis", "demo", **options)
    shutil.copytree(kit[0], tmp_path / "kit")
    (tmp_path / "kit" / "part-99").mkdir()
    write_kit(tmp_path / "kit", "demo", **options)
    assert sorted(p.name for p in (tmp_path / "kit").iterdir()) == [
        "manifest.json",
        "part-1",
        "run.sh",
    ]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_kit_installs_without_network(script, tmp_path):
    status, output = script("install")
    assert status == 0, output
    work = tmp_path / "kit-work"
    assert (work / "site-packages" / "imdb_sentiment" / "kit.py").exists()
    assert (work / "checkout" / "nbs" / "00_config.ipynb").exists()
    before = (work / ".installed").stat().st_mtime_ns
    status, output = script("install")
    assert status == 0, output
    assert "files checked" not in output
    assert (work / ".installed").stat().st_mtime_ns == before


def test_damaged_part_is_reported_in_one_line(script, tmp_path):
    piece = max((tmp_path / "kit").glob("part-*/**/*.*"), key=lambda p: p.stat().st_size)
    part = piece.relative_to(tmp_path / "kit").parts[0]
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    status, output = script("install")
    assert status == 1
    assert len(output.splitlines()) == 1
    assert output.startswith("kit: ")
    assert f"is damaged ({len(content):,} bytes, " in output
    assert f"Copy the folder {part} again" in output


def test_missing_part_is_reported_in_one_line(script, tmp_path):
    shutil.rmtree(tmp_path / "kit" / "part-1")
    message = f"kit: part-1 is missing. Copy the folder part-1 to {tmp_path / 'kit'}.\n"
    assert script("report") == (1, message)


def test_parts_may_arrive_one_at_a_time(script, tmp_path):
    parts = sorted((tmp_path / "kit").glob("part-*"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for part in parts:
        part.rename(elsewhere / part.name)
    for part in parts:
        (elsewhere / part.name).rename(part)
        status, output = script("keep")
        assert status == 0, output
        shutil.rmtree(part)
    status, output = script("install")
    assert status == 0, output


CALLS = (
    ([], 0, "bash run.sh all"),
    (["fly"], 1, "there is no step fly"),
    (["bench"], 1, "use bench training or bench inference"),
    (["bench", "fly"], 1, "use bench training or bench inference"),
)


@pytest.mark.parametrize("arguments, expected, message", CALLS)
def test_script_explains_its_steps(script, arguments, expected, message):
    status, output = script(*arguments)
    assert status == expected
    assert message in output


def test_another_python_is_refused(script, tmp_path):
    path = tmp_path / "kit" / "manifest.json"
    path.write_text(path.read_text().replace(f'"python": "{PYTHON}"', '"python": "3.99"'))
    message = (
        f"kit: python3 is {PYTHON}, but this kit is for 3.99. Write one with --python {PYTHON}.\n"
    )
    assert script("install") == (1, message)


def test_failed_step_leaves_its_log(script, tmp_path):
    "The arguments reach the command, which refuses them, and its message is in the log."
    status, output = script("report", "--set", "epoch=1")
    log = (tmp_path / "kit-results" / "report.log").read_text()
    assert status == 1
    assert log in output
    assert "Did you mean 'epochs'?" in log
    assert "== report: ended with status 1 after" in log
    assert [p.name for p in (tmp_path / "kit-results").iterdir()] == ["report.log"]


@pytest.mark.skipif(not os.environ.get("TEST_KIT_REPORT"), reason="minutes: set TEST_KIT_REPORT=1")
def test_report_is_packed_and_opens_at_home(script, tmp_path):
    status, output = script("report", *TINY)
    assert status == 0, output
    archive = tmp_path / "kit-results" / "report.tar.gz"
    assert archive.stat().st_size < 16 * 2**20
    with tarfile.open(archive) as tar:
        tar.extractall(
            tmp_path / "home", **(dict(filter="data") if hasattr(tarfile, "data_filter") else {})
        )
    report = tmp_path / "home" / "carried"
    for name in ("metrics.json", "report.html", "predictions.parquet", "chapters", "figures"):
        assert (report / name).exists(), name
    assert read_json(report / "metrics.json")["settings"]["limit"] == 60
