"""The systemd units, verified but not run, and the times of all service managers."""

import pathlib
import re
import shutil
import tempfile

from .tools import HERE, need, run


def check_units():
    """systemd verifies every unit without a warning, in a separate root so that this machine has no influence."""
    need("systemd-analyze")
    with tempfile.TemporaryDirectory() as root:
        units = pathlib.Path(root, "usr/lib/systemd/system")
        units.mkdir(parents=True)
        for system in ("/usr/lib/systemd/system", "/lib/systemd/system"):
            for target in pathlib.Path(system).glob("*.target"):
                shutil.copy(target, units)
        for unit in (HERE / "systemd").iterdir():
            shutil.copy(unit, units)
        program = pathlib.Path(root, "usr/bin/echod")
        program.parent.mkdir()
        program.touch(0o755)
        names = ["echod.service", "echod.socket", "echod@3.service", "echod@3.socket"]
        output = run("systemd-analyze", f"--root={root}", "--man=no", "verify", *names)
        assert output == "", output
        # The exposure ranges from 0 to 10. packaging/README.md gives the reason for what remains.
        scores = []
        for name in names[::2]:
            table = run("systemd-analyze", f"--root={root}", "--offline=true", "--threshold=12", "security", name)
            scores.append(table.strip().splitlines()[-1].strip("→ \n"))
    return "; ".join(scores)


def check_times():
    """Every service manager waits longer for the daemon to stop than its drain takes."""
    for unit in ("echod.service", "echod@.service"):
        text = (HERE / "systemd" / unit).read_text()
        assert int(re.search(r"^TimeoutStopSec=(\d+)s$", text, re.M)[1]) > 5, unit
        options = [line for line in text.splitlines() if not line.startswith("#")]
        options += (HERE / "default/echod").read_text().splitlines()
        assert not [line for line in options if "--drain-timeout" in line], "the default of 5 s no longer applies"
    text = (HERE / "kubernetes.yaml").read_text()
    grace, pre_stop, drain, period, failures = (
        int(re.search(pattern, text)[1])
        for pattern in (
            r"terminationGracePeriodSeconds: (\d+)",
            r"sleep: \{seconds: (\d+)\}",
            r"--drain-timeout=(\d+)s",
            r"livenessProbe:[^-]*periodSeconds: (\d+)",
            r"livenessProbe:[^-]*failureThreshold: (\d+)",
        )
    )
    assert grace > pre_stop + drain, "the grace period ends before the drain"
    assert period * failures > drain, "the liveness probe ends the drain"
