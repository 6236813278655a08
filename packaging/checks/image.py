"""The container image."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import tempfile

from .peers import echo, get
from .tools import HERE, inside, need, need_root, process, readlink, run, static, wait_for


def check_image():
    """Builds the image of the Containerfile with buildah and runs it as an unprivileged user, with no other file."""
    need_root()
    need("buildah", "unshare", "ip")
    return inside(inside_image, static())


def inside_image(binary):
    with tempfile.TemporaryDirectory() as folder:
        buildah = ("buildah", "--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs")
        context = pathlib.Path(folder, "context")
        context.mkdir()
        shutil.copy(binary, context)
        options = (
            "--isolation",
            "chroot",
            "--format",
            "docker",
            "--tag",
            "echod:check",
            "--file",
            HERE / "Containerfile",
        )
        run(*buildah, "build", *options, context)
        image = json.loads(run(*buildah, "inspect", "--type", "image", "echod:check"))["Docker"]["config"]
        words = image["Entrypoint"] + image["Cmd"]
        version = run(binary, "--version").split()[1]
        assert image["Labels"]["org.opencontainers.image.version"] == version, image["Labels"]
        assert image["User"] == "65532:65532" and len(image["ExposedPorts"]) == 2, image
        container = run(*buildah, "from", "--pull-never", "--isolation", "chroot", "echod:check").strip()
        run_in_it = (*buildah, "run", "--isolation", "chroot", container, "--")
        with process(*run_in_it, *words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            address = ("127.0.0.1", 9999)
            wait_for("the image to echo", lambda: echo(address, b"from scratch\n"))
            echo(address, random.Random(11).randbytes(4 << 20))
            for host in ("127.0.0.1", "::1"):
                assert get((host, 9007), "/healthz")[0] == 200
            kind, *health_check = image["Healthcheck"]["Test"]
            assert kind == "CMD", image
            run(*run_in_it, *health_check)
            namespace = os.readlink("/proc/self/ns/net")
            users = [
                re.search(r"^Uid:\t(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]
                for pid in filter(str.isdigit, os.listdir("/proc"))
                if readlink(f"/proc/{pid}/exe").endswith("/echod") and readlink(f"/proc/{pid}/ns/net") == namespace
            ]
            assert users == ["65532"], users
        # The static C library itself resolves names from /etc/hosts and DNS.
        empty = pathlib.Path(folder, "empty")
        (empty / "etc").mkdir(parents=True)
        (empty / "etc/hosts").write_text("127.0.0.1 echo.example\n")
        shutil.copy(binary, empty)
        with process(
            "chroot",
            empty,
            "/echod",
            "--listen",
            "echo.example:9998",
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ):
            wait_for("a name to be resolved", lambda: echo(("127.0.0.1", 9998), b"by name\n"))
        # Nothing listens on the port any more.
        assert subprocess.run([*run_in_it, *health_check], capture_output=True).returncode != 0
    return f"{pathlib.Path(binary).stat().st_size / 1e6:.1f} MB, {' '.join(words)}"
