"""Ways to break the library, each with the check that notices it. For people, not for pytest:

    python tests/mutants.py              # all of them, in a copy of the project
    python tests/mutants.py split key    # those whose names hold one of these words

A mutant is a text that occurs exactly once in the library, in whatever module, and what to put in its place. The check
is a test of pytest, a notebook, or `asserts` for the notebook that the text is written in. Each check has to pass
before anything is broken."""

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "runs", "_site", "_docs", "__pycache__", ".*_cache"
)
QUIET = dict(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")


class Mutant(NamedTuple):
    name: str
    old: str
    new: str
    check: str


MUTANTS = [
    Mutant(
        "files: written in place",
        "try:\n        yield tmp",
        "try:\n        yield path; return",
        "tests/test_bad_input.py::test_full_disk_leaves_no_half_file",
    ),
    Mutant(
        "files: a last row is lost",
        "    if chunk:\n        yield chunk",
        "    if len(chunk) > 1:\n        yield chunk",
        "asserts",
    ),
    Mutant(
        "files: rejected rows vanish",
        'encoded(rejected, "jsonl")',
        'b""',
        "tests/test_doors.py::test_command_jsonl",
    ),
    Mutant("files: rows of another job are taken", "if before != job:", "if False:", "asserts"),
    Mutant(
        "data: copies cross the split",
        "keys = df.text.map(text_key)",
        "keys = df.index.to_series().astype(str)",
        "asserts",
    ),
    Mutant(
        "data: unusable rows vanish",
        "table.reject(row.number, str(e), row.values or row.raw)",
        "continue",
        "asserts",
    ),
    Mutant(
        "data: a bad row takes others with it",
        "ahead.extendleft(reversed(record[1:]))",
        "pass",
        "asserts",
    ),
    Mutant(
        "private texts: pieces of long texts are published",
        "found |= windows.get(letters[i : i + WIDTH], set())",
        "pass",
        "asserts",
    ),
    Mutant(
        "data: an archive may point outside", '".." in Path(member.name).parts', "False", "asserts"
    ),
    Mutant(
        "data: head+tail reads the head",
        '"head+tail": room // 2}',
        '"head+tail": room}',
        "tests/test_doors.py::test_function",
    ),
    Mutant(
        "model: padding is pooled",
        "(hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)",
        "hidden.float().mean(1)",
        "asserts",
    ),
    Mutant(
        "model: missing weights are overlooked",
        'missing := sorted(info["missing_keys"])',
        "missing := []",
        "asserts",
    ),
    Mutant(
        "training: parts of a batch weigh alike",
        "job.task.loss(logits, labels) * (weight * share)",
        "job.task.loss(logits, labels) * weight",
        "nbs/03d_training.ipynb",
    ),
    Mutant("training: a damaged checkpoint is loaded", "!= digest:", "== '':", "asserts"),
    Mutant(
        "training: a checkpoint is not read back",
        'raise OSError(f"{path} reads back',
        'OSError(f"{path} reads back',
        "tests/test_bad_input.py::test_disk_that_keeps_something_else",
    ),
    Mutant(
        "training: the optimizer begins anew",
        'restore_optimizer(self.optimizer, tensors["optimizer"])',
        "pass",
        "nbs/03d_training.ipynb",
    ),
    Mutant(
        "training: the log is not trimmed",
        "log[log.step <= step]",
        "log",
        "tests/test_resume.py::test_log_of_a_resumed_run_has_each_step_once",
    ),
    Mutant(
        "training: another split is the same run",
        "        reviews.part.tolist(),\n",
        "",
        "tests/test_numbers.py::test_another_experiment_is_another_run",
    ),
    Mutant(
        "numbers: an interval of another level",
        "(50 * (1 - level), 50 * (1 + level))",
        "(25 * (1 - level), 75 + 25 * level)",
        "tests/test_numbers.py::test_interval_is_of_its_level",
    ),
    Mutant(
        "numbers: baselines see the test part",
        "train, val, rows = (reviews[reviews.part == p] for p in (",
        "train, val, rows = (reviews if p == 'train' else reviews[reviews.part == p] for p in (",
        "tests/test_numbers.py::test_baselines_know_nothing_of_the_test_part",
    ),
    Mutant(
        "numbers: the temperature is fitted on test",
        'reviews := reviews_of(run, "calibration")',
        'reviews := reviews_of(run, "test")',
        "nbs/04f_decisions.ipynb",
    ),
    Mutant(
        "numbers: calibration is part of validation",
        'cfg.seed, "calibration", names)',
        'cfg.seed, "val", names)',
        "nbs/01b_splits.ipynb",
    ),
    Mutant(
        "predictions: without temperature",
        "logits / self.config.logit_temperature",
        "logits",
        "tests/test_guest.py::test_predictions_are_those_of_plain_bert",
    ),
    Mutant(
        "predictions: in the order of length",
        "logits[batch] = score(",
        "logits[start : start + len(batch)] = score(",
        "tests/test_guest.py::test_predictions_are_those_of_plain_bert",
    ),
    Mutant(
        "predictions: windows weigh alike",
        "total = np.bincount(owner, sizes)",
        "sizes = np.ones(len(owner)); total = np.bincount(owner, sizes)",
        "asserts",
    ),
    Mutant(
        "predictions: it abstains where it is sure",
        "bool(probabilities[predicted] < abstain_below)",
        "bool(probabilities[predicted] > abstain_below)",
        "asserts",
    ),
    Mutant(
        "foreign code is trusted",
        "output_loading_info=True, trust_remote_code=False",
        "output_loading_info=True, trust_remote_code=True",
        "tests/test_remote_code.py::test_every_load_says_that_it_trusts_no_code",
    ),
    Mutant(
        "foreign text: markup in an explained text",
        'title="{score:+.3f}">{html.escape(text)}</span>',
        'title="{score:+.3f}">{text}</span>',
        "tests/test_foreign_text.py::test_an_explained_text",
    ),
    Mutant(
        "foreign text: templates escape nothing",
        'name.endswith(".html")',
        "False",
        "tests/test_foreign_text.py::test_a_table",
    ),
    Mutant(
        "foreign text: markup in the output of a chapter",
        "attributes=allowed_attribute",
        "attributes=lambda *_: True",
        "tests/test_foreign_text.py::test_output_of_a_chapter",
    ),
    Mutant(
        "foreign text: a page that mentions policies has none",
        "'<meta http-equiv=\"Content-Security-Policy\"' in head",
        "'Content-Security-Policy' in page",
        "asserts",
    ),
    Mutant(
        "foreign text: names of headings in a table",
        "html.escape(str(name))",
        "str(name)",
        "asserts",
    ),
    Mutant(
        "foreign text: a dollar in a figure",
        '"text.parse_math": False',
        '"text.parse_math": True',
        "tests/test_foreign_text.py::test_labels_in_a_figure",
    ),
    Mutant(
        "foreign text: a column with the name of a formula",
        "[spreadsheet_safe(name) for name in names]",
        "names",
        "tests/test_foreign_text.py::test_a_spreadsheet",
    ),
    Mutant(
        "server: any key will do",
        "if not secrets.compare_digest(",
        "if not given and not secrets.compare_digest(",
        "tests/test_server.py::test_key_from_the_environment",
    ),
    Mutant(
        "server: work goes on past its deadline",
        "raise Stopped\n        return",
        "pass\n        return",
        "tests/test_server.py::test_work_stops_at_its_deadline",
    ),
    Mutant(
        "server: any number of texts",
        "max_length=max_texts",
        "max_length=10_000",
        "tests/test_doors.py::test_server_bodies",
    ),
    Mutant(
        "runs: two may use one folder",
        'FileLock(Path(run) / ".lock", timeout=0)',
        "FileLock(tempfile.mktemp(), timeout=0)",
        "asserts",
    ),
    Mutant(
        "runs: settings may change",
        "changed := changed_settings(cfg, path, recorded)",
        "changed := {}",
        "asserts",
    ),
]


def occurrences(project, text):
    "Files of the library that hold the text, once for each time; and those of the notebooks that export it."
    modules = [
        p for p in sorted((project / "imdb_sentiment").rglob("*.py")) if p.name != "_modidx.py"
    ]
    code = [p for p in modules for _ in range(p.read_text(encoding="utf-8").count(text))]
    notebooks = []
    for path in sorted((project / "nbs").glob("*.ipynb")):
        sources = [
            "".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
        ]
        notebooks += [path] * sum(s.count(text) for s in sources if "#| export" in s)
    return code, notebooks


def replace_in_notebook(path, old, new):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if "#| export" in source and old in source:
            cell["source"] = source.replace(old, new).splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_check(project, check):
    "Whether the check passes."
    env = {**os.environ, **QUIET, "PYTHONPATH": str(project)}
    nbdev_test = str(Path(sys.executable).with_name("nbdev_test"))
    asserts = check.endswith(".ipynb")
    command = (
        [nbdev_test, "--path", check] if asserts else [sys.executable, "-m", "pytest", "-qx", check]
    )
    return subprocess.run(command, cwd=project, env=env, capture_output=True).returncode == 0


def try_mutant(project, mutant, passes):
    "What became of it: `noticed`, or what is wrong. `passes` says whether a check passes before anything is broken."
    code, notebooks = occurrences(project, mutant.old)
    if len(code) != 1 or len(notebooks) != 1:
        return f"its text occurs {len(code)} times in the library, {len(notebooks)} times in notebooks: update the list"
    module, notebook = code[0], notebooks[0]
    check = mutant.check if mutant.check != "asserts" else notebook.relative_to(project).as_posix()
    if not passes(check):
        return f"{check} fails with the library as it is"
    before = [(p, p.read_bytes()) for p in (module, notebook)]
    broken = module.read_text(encoding="utf-8").replace(mutant.old, mutant.new)
    ast.parse(broken)  # what is no Python is noticed by everything
    module.write_text(broken, encoding="utf-8")
    replace_in_notebook(notebook, mutant.old, mutant.new)
    try:
        passed = run_check(project, check)
    finally:
        for path, content in before:
            path.write_bytes(content)
    return f"NOT noticed by {check}" if passed else f"noticed by {check}"


def main(words):
    chosen = [m for m in MUTANTS if not words or any(w in m.name for w in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(ROOT, project, ignore=LEFT_OUT)
        passes = functools.lru_cache(maxsize=None)(lambda check: run_check(project, check))
        for mutant in chosen:
            started = time.monotonic()
            found = try_mutant(project, mutant, passes)
            missed += not found.startswith("noticed")
            print(f"{mutant.name}: {found} ({time.monotonic() - started:.0f} s)", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
