"""Each file of tests runs in one process, since its tests share what takes long to make; the longest files begin, so
that no process waits for another at the end."""

from pathlib import Path

import pytest

LONGEST = "report targets site own_data server resume lab scale encoders doors hub guest package kit".split()
TOGETHER = dict(site="targets")  # files that share what they make


def place(item):
    "How early its file begins, and by what name it is known."
    name = Path(item.fspath).stem.removeprefix("test_")
    first = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return first, name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=place)
    for item in items:
        _, name = place(item)
        item.add_marker(pytest.mark.xdist_group(TOGETHER.get(name, name)))
