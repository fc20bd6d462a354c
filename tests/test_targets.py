"""No target of the Makefile spoils the checkout for another one. TARGETS=all runs the real targets, in orders in which
people call them: the better part of an hour."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tools import MADE, MAIN, ROOT

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git checkout"
)


def git(folder, *args):
    name = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(
        ["git", *name, *args], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def checkout_in(folder):
    "A fresh checkout with what the working tree holds, changes that are not committed included."
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "as it is")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return checkout_in(tmp_path_factory.mktemp("checkout"))


def changes(folder):
    "What `git status` lists: nothing in a checkout that was left alone."
    return git(folder, "status", "--porcelain").splitlines()


def run(folder, command):
    "What a command reports when it fails; it uses the library of the checkout."
    env = {**os.environ, "PYTHONPATH": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}"}
    env["MYPY_CACHE_DIR"] = str(ROOT / ".mypy_cache")  # the types of the same files
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True
    )
    return (done.stdout + done.stderr)[-4000:] if done.returncode else ""


EXPORT = [["nbdev_export"], ["nbdev_clean", "--fname", "nbs"], [*MAIN, "readme"]]
DOCS = [[*MAIN, "docs", "--quick"]]  # without the examples, which take minutes
FORMAT = ["ruff", "format", "--check", "-q", "nbs", "tests", "setup.py"]
LINT = [["ruff", "check", "-q"], FORMAT, ["codespell"], ["mypy", "--no-error-summary"]]
STEPS = {"export": EXPORT, "docs": DOCS, "lint after docs": LINT, "export after docs": EXPORT}


@pytest.fixture(scope="module")
def outcomes(checkout):
    "The steps in this order, each in what the one before it left: what failed, and what changed in the checkout."
    found = {}
    for step, commands in STEPS.items():
        before = changes(checkout)
        failed = [said for command in commands if (said := run(checkout, command))]
        found[step] = failed, [line for line in changes(checkout) if line not in before]
    MADE["site"] = checkout
    return found


def test_docs_write_two_folders_that_git_ignores(checkout, outcomes):
    "And nothing beside them: Sphinx and its extensions would, if they were let."
    ignored = git(checkout, "status", "--porcelain", "--ignored").splitlines()
    top = {line.removeprefix("!! ").split("/")[0] for line in ignored}
    assert {"_docs", "_site"} <= top
    assert top <= {"_docs", "_site", "imdb_sentiment", ".ruff_cache", ".mypy_cache"}, top


def test_changes_are_seen(checkout):
    assert changes(checkout) == []
    (checkout / "made-up.txt").write_text("new")
    assert changes(checkout) == ["?? made-up.txt"]
    (checkout / "made-up.txt").unlink()


@pytest.mark.parametrize("step", STEPS)
def test_steps_pass(outcomes, step):
    failed, _ = outcomes[step]
    assert failed == []


@pytest.mark.parametrize("step", STEPS)
def test_steps_leave_the_checkout_as_it_was(outcomes, step):
    _, changed = outcomes[step]
    assert changed == []


ORDERS = [
    ["report", "docs", "lint", "export"],
    ["docs", "export", "lint", "report", "lint"],
]


@pytest.mark.skipif(os.environ.get("TARGETS") != "all", reason="long: set TARGETS=all")
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_targets_leave_the_checkout_as_it_was(tmp_path, order):
    checkout_in(tmp_path)
    (tmp_path / ".venv").symlink_to(
        sys.prefix
    )  # these packages, and no further ones from the network
    (tmp_path / ".git" / "info" / "exclude").write_text(".venv\n")
    for target in order:
        assert run(tmp_path, ["make", "--old-file=.venv/.ready", target]) == ""
        assert changes(tmp_path) == [], target
