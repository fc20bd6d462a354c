"What comes from elsewhere: pinned actions, one address for the project, and nothing as root without a yes."

import os
import re
import shutil
import subprocess

import pytest
from tools import ROOT

from imdb_sentiment.links import address_pattern, home, linking_files, stale_links

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
in_git = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout"
)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_actions_are_pinned_by_commit(path):
    used = [line.strip(" -") for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    assert [line for line in used if not PINNED.match(line)] == []


@in_git
def test_every_address_is_that_of_the_settings():
    assert stale_links(ROOT) == {}, "run `make links`"


@in_git
def test_every_notebook_is_fetched_from_that_address():
    there = home(ROOT)
    pattern = address_pattern({there["repo"]})
    notebooks = [p for p in linking_files(ROOT) if re.fullmatch(r"[0-9]\w+\.ipynb", p.name)]
    assert len(notebooks) > 50
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        assert "# On Colab" in text, path.name
        assert f"github.com/{there['user']}/{there['repo']}" in text, path.name
        assert pattern.search(text)


CALLS = [  # user id, arguments of make, and whether apt-get may be called
    (0, [], False),
    (0, ["APT=yes"], True),
    (0, ["APT=no"], False),
    (1000, ["APT=yes"], False),
]


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("user, args, allowed", CALLS)
def test_apt_runs_only_after_a_yes(tmp_path, user, args, allowed):
    "With a Python that lacks venv, and stand-ins for `id` and `apt-get`."
    programs = {
        "id": f"echo {user}",
        "apt-get": f'echo "$@" >> {tmp_path}/calls',
        "no-venv": "exit 1",
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("Makefile", "constraints.txt", "settings.ini", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    asked = ("APT", "MAKEFLAGS", "MAKEOVERRIDES")  # of the make that runs the tests
    outside = {k: v for k, v in os.environ.items() if k not in asked}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={tmp_path}/no-venv", *args],
        cwd=tmp_path,
        env={**outside, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said = "Running as root: apt-get update && apt-get install -y python3-venv" in done.stdout
    assert done.returncode != 0  # there still is no venv
    assert (tmp_path / "calls").exists() == allowed
    assert said == allowed
    if not allowed:
        assert "sudo apt-get install python3-venv" in done.stdout
