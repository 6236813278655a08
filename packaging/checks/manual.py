"""The manual page."""

import os
import re
import subprocess

from .tools import HERE, need, release, run


def check_manual():
    need("mandoc", "man")
    # The page has no date: it would make two builds of the same version differ.
    page = HERE / "echod.1"
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], text=True, capture_output=True).stdout
    lint = [line for line in lint.splitlines() if "missing date" not in line]
    assert not lint, lint
    text = run("man", "--local-file", page, env=os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
    options = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", run(release(), "--help"), re.M))
    missing = [option for option in options if option not in text]
    assert len(options) > 10 and not missing, missing
