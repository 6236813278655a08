"""The Kubernetes manifest."""

import shutil
import sys

from .tools import HERE, REQUIRE, TARGET, Skip, run


def check_kubernetes():
    """The manifest is valid for the oldest version that it supports and for a current one."""
    validate = shutil.which("kubernetes-validate")
    if validate is None:
        if not REQUIRE:
            raise Skip("kubernetes-validate is not installed (from PyPI)")
        venv = TARGET / "packaging-venv"
        validate = venv / "bin/kubernetes-validate"
        if not validate.exists():
            run(sys.executable, "-m", "venv", venv)
            run(venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "kubernetes-validate==1.37.0")
    # 1.30 is the first version with preStop.sleep.
    for version in ("1.30", "1.37"):
        output = run(validate, "--strict", "-k", version, HERE / "kubernetes.yaml")
        for kind in ("deployment", "service", "poddisruptionbudget", "networkpolicy"):
            assert f"{kind}/echod" in output, output
