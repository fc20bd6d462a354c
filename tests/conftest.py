"""Each file of tests runs in one process, since its tests share what takes long to make; the longest files begin, so
that no process waits for another at the end."""

from pathlib import Path

LONGEST = "report targets site own_data server resume lab scale encoders doors hub guest package kit".split()


def place(item):
    "How early its file begins, and by what name it is known."
    name = Path(item.fspath).stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST), name


def pytest_collection_modifyitems(items):
    items.sort(key=place)
