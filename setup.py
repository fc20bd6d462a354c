"Packaging: everything it says is read from settings.ini, nbdev's one place for it."

import os
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
lib, readme = cfg["lib_path"], Path("README.md")
extras = {
    key.removesuffix("_requirements"): value
    for key, value in cfg.items()
    if key.endswith("_requirements")
}
# Users of the library have no use for the benchmarks, so an installation leaves them out. A kit sets the variable:
# it takes them to another machine, where they run.
left_out = (
    []
    if os.environ.get("IMDB_SENTIMENT_BENCHES") == "1"
    else [f"{lib}.benches", f"{lib}.benches.*"]
)

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    license="Apache-2.0",
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=[lib, f"{lib}.*"], exclude=left_out),
    package_data={lib: ["*.json", "*.jsonl", "*.tsv", "*.html", "*.sh", "templates/*"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={extra: shlex.split(value) for extra, value in extras.items()},
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    zip_safe=False,
)
