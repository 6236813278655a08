"""Programs that the checks run: required, started, stopped, and built."""

import contextlib
import http.client
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent.parent
ROOT = HERE.parent
REQUIRE = os.environ.get("ECHOD_REQUIRE_TOOLS") == "1"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
CARGO_DEB = "3.8.0"


class Skip(Exception):
    """The check cannot run here; the text is the reason."""


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def run(*command, timeout=570, **options):
    """Runs a command, waits for it, and returns its output. The error of a command that fails contains the output."""
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}"
    return done.stdout


def wait_for(what, fact, seconds=20):
    """Polls `fact` until it is true. The pause only limits the cost of polling."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answer := fact():
                return answer
            last = "not yet"
        except (OSError, AssertionError, http.client.HTTPException) as error:
            last = error
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {last}"
        time.sleep(0.02)


@contextlib.contextmanager
def process(*command, stop=signal.SIGTERM, **options):
    """A program that runs during the check and is stopped at its end."""
    child = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(stop)
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def readlink(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


def inside(function, *arguments):
    """Runs the function in new network and mount namespaces, where the only interface is loopback."""
    name = f"{function.__module__}.{function.__name__}"
    command = ["unshare", "--net", "--mount", sys.executable, HERE / "check", "--inside", name, *map(str, arguments)]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def unpacked(package, file):
    """Returns the path of a file from a Debian package. If the package is not installed it is only unpacked, because
    installing it would start a server.
    """
    if (installed := pathlib.Path("/", file)).exists():
        return installed
    folder = TARGET / "packaging/debian" / package
    if not (folder / file).exists():
        if not REQUIRE:
            raise Skip(f"Debian's package {package} is not installed")
        need("apt-get", "dpkg")
        folder.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", "--quiet", package, cwd=folder)
        run("dpkg", "--extract", next(folder.glob("*.deb")), folder)
    return folder / file


def cargo(*arguments, **environment):
    need("cargo")
    return run("cargo", *arguments, cwd=ROOT, env=os.environ | environment)


def release():
    """Builds the daemon that the package contains. Inside a namespace it is already built."""
    binary = TARGET / "release/echod"
    if "--inside" not in sys.argv:
        cargo("build", "--quiet", "--release", "--bin", "echod")
    return binary


def static():
    """Builds the daemon as a static binary."""
    host = re.search(r"^host: (.*)$", run("rustc", "-vV"), re.M)[1]
    if not host.endswith("-gnu"):
        raise Skip(f"{host} is not glibc")
    flags = os.environ.get("RUSTFLAGS", "") + " -C target-feature=+crt-static"
    cargo("build", "--quiet", "--release", "--bin", "echod", "--target", host, RUSTFLAGS=flags.strip())
    return TARGET / host / "release/echod"


def debian_package(revision=1):
    """Builds the package and its debug symbols with packaging/build-deb. Returns both files."""
    need("cargo", "dpkg", "objcopy")
    if subprocess.run(["cargo", "deb", "--version"], capture_output=True).returncode != 0:
        if not REQUIRE:
            raise Skip(f"cargo-deb is not installed: cargo install --locked cargo-deb@{CARGO_DEB}")
        # Unoptimized it builds in half the time and still packs echod in a second.
        cargo("install", "--quiet", "--debug", "--locked", f"cargo-deb@{CARGO_DEB}")
    # cargo-deb deletes the packages that it built before.
    output = TARGET / "package/debian"
    run(HERE / "build-deb", "--quiet", f"--deb-revision={revision}")
    kept = TARGET / f"packaging/revision-{revision}"
    kept.mkdir(parents=True, exist_ok=True)
    return [
        shutil.copy(next(output.glob(f"{name}_*-{revision}_*.{suffix}")), kept / f"{name}.deb")
        for name, suffix in (("echod", "deb"), ("echod-dbgsym", "ddeb"))
    ]
