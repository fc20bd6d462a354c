"Errors at the command line: a sentence for whoever uses the program, the traceback on request, the cause always kept."

import ast
import os

import pytest
from tools import ROOT, command, failed_politely

LIBRARY = sorted((ROOT / "imdb_sentiment").rglob("*.py"))


def without_cause(source):
    "Lines where one exception is turned into another without `from e`."
    found = []

    class Raises(ast.NodeVisitor):
        handlers = 0

        def visit_FunctionDef(self, node):
            outside, self.handlers = self.handlers, 0
            self.generic_visit(node)
            self.handlers = outside

        visit_Lambda = visit_AsyncFunctionDef = visit_FunctionDef

        def visit_ExceptHandler(self, node):
            self.handlers += 1
            self.generic_visit(node)
            self.handlers -= 1

        def visit_Raise(self, node):
            dropped = node.cause is None or getattr(node.cause, "value", "") is None
            if self.handlers and node.exc is not None and dropped:
                found.append(node.lineno)

    Raises().visit(ast.parse(source))
    return found


CAUSES = [  # what stands in the handler, and whether the cause is lost
    ("raise", False),
    ("raise OSError(1) from e", False),
    ("raise OSError(1)", True),
    ("raise OSError(1) from None", True),
    ("if e.args:\n        raise OSError(1)", True),
    ("def later():\n        raise OSError(1)", False),
]


@pytest.mark.parametrize("raised, lost", CAUSES)
def test_lost_causes_are_found(raised, lost):
    source = f"try:\n    pass\nexcept ValueError as e:\n    {raised}\n"
    assert bool(without_cause(source)) == lost


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: p.stem)
def test_an_error_keeps_its_cause(path):
    assert without_cause(path.read_text(encoding="utf-8")) == []


# A program in which one thing goes wrong that nobody has thought of

WRONG = """
import sys
from imdb_sentiment import {module}
def wrong(*args, **kwargs):
    try:
        return {{}}["the cause"]
    except KeyError as e:
        raise {error} from e
{module}.{name} = wrong
"""
PLACES = [  # what goes wrong, and the command that does it
    ("check", "source_facts", ["check", "x.csv"]),
    ("config", "make_config", ["report"]),
    ("config", "make_config", ["train"]),
    ("devices", "pick_device", ["bench", "training"]),
    ("site", "build_site", ["docs"]),
    ("runs", "project_root", ["readme"]),
    ("prediction", "Predictor.load", ["predict", "--model", "m", "fine"]),
    ("prediction", "Predictor.load", ["serve", "--model", "m"]),
    ("prediction", "Predictor.load", ["evaluate", "--model", "m", "--suite", "."]),
    ("export", "export_form", ["export", "--model", "m", "--out", "o"]),
    ("model_card", "push", ["push", "m", "--to", "me/m"]),
]
ERRORS = [  # the exception, the type that is named, and whether it is to be reported
    ('AttributeError("no such thing")', "AttributeError: no such thing.", True),
    ('ValueError("two\\nlines")', "ValueError: two lines.", True),
    ('PermissionError(13, "Permission denied", "x")', "PermissionError: [Errno 13]", False),
]


def surprised(place, error, *before, **environment):
    "The command, in a program where this raises the exception."
    module, name, args = place
    code = WRONG.format(module=module, name=name, error=error)
    variables = {k: v for k, v in os.environ.items() if k != "IMDB_SENTIMENT_DEBUG"}
    return command(*before, *args, before=code, cwd=ROOT, env={**variables, **environment})


@pytest.mark.parametrize("error, said, reported", ERRORS, ids=[e[:10] for e, _, _ in ERRORS])
def test_a_surprise_is_one_sentence(error, said, reported):
    done = surprised(PLACES[0], error)
    failed_politely(done, f"imdb-sentiment: {said}")
    assert len(done.stderr.splitlines()) == 1
    assert "--debug" in done.stderr
    assert ("/issues" in done.stderr) == reported


@pytest.mark.parametrize("place", PLACES, ids=lambda p: " ".join(p[2][:2]))
def test_no_command_ends_in_a_traceback(place):
    done = surprised(place, 'AttributeError("no such thing")')
    failed_politely(done, "AttributeError: no such thing. This was not expected")


DEBUG = [(["--debug"], {}), ([], dict(IMDB_SENTIMENT_DEBUG="1"))]


@pytest.mark.parametrize("before, environment", DEBUG, ids=["option", "variable"])
def test_debug_shows_the_causes(before, environment):
    done = surprised(PLACES[0], ERRORS[0][0], *before, **environment)
    assert done.returncode == 1
    for part in ("Traceback", "KeyError: 'the cause'", "direct cause", "in wrong", "in check"):
        assert part in done.stderr, part
    assert done.stderr.splitlines()[-1].startswith("imdb-sentiment: AttributeError")


def test_debug_is_off_when_it_is_0():
    done = surprised(PLACES[0], ERRORS[0][0], IMDB_SENTIMENT_DEBUG="0")
    failed_politely(done, "AttributeError")


def test_a_known_mistake_also_has_a_traceback_on_request(tmp_path):
    args = ["report", "--set", "epochs=many", "--run-dir", tmp_path]
    assert len(command(*args, cwd=ROOT).stderr.splitlines()) == 1
    done = command("--debug", *args, cwd=ROOT)
    assert "ValueError: invalid literal" in done.stderr  # the cause
    assert done.stderr.splitlines()[-1].startswith("imdb-sentiment: epochs='many'")


def test_a_failing_chapter_is_named_and_kept(tmp_path):
    "A file in the way of the figures, which no check before the first chapter looks for."
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").write_text("")
    args = ["report", "--run-dir", tmp_path / "run", "--name", "never-published"]
    done = command("--debug", *args, "--set", "limit=60", cwd=ROOT)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert last.startswith("imdb-sentiment: 01e_exploration failed in cell "), last
    assert "figures" in last
    assert "PapermillExecutionError" in "\n".join(before)  # with the traceback of the cell
    kept = (tmp_path / "run" / "failed" / "01e_exploration.ipynb").read_text(encoding="utf-8")
    assert '"output_type": "error"' in kept
    assert not (ROOT / "reports" / "never-published").exists()
