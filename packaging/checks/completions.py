"""The shell completions, in the shells."""

import contextlib
import os
import pathlib
import pty
import re
import select
import subprocess
import tempfile
import time

from .tools import HERE, need, release, run

FOLDER = HERE / "completions"

BASH = (["bash", "--norc", "--noprofile", "-i"], f"source '{FOLDER}/echod.bash'; bind 'set bell-style none'")
# -u: the folder may belong to another user. The dump file would be written into the home directory.
ZSH = (["zsh", "-f", "-i"], f"fpath=('{FOLDER}' $fpath); autoload -U compinit; compinit -u -D; unsetopt beep")

PROMPT = "ready> "


class Terminal:
    """An interactive shell in a terminal and in an own directory."""

    def __init__(self, command, directory):
        environment = os.environ | {"TERM": "vt100", "PS1": PROMPT, "HISTFILE": "", "LC_ALL": "C.UTF-8"}
        self.controller, terminal = pty.openpty()
        options = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "cwd": directory, "env": environment}
        self.shell = subprocess.Popen(command, start_new_session=True, **options)
        os.close(terminal)

    def type(self, text):
        """Types the text, clears the line, and returns what the shell printed, up to its next prompt."""
        # The quotes keep the echoed command different from its output.
        os.write(self.controller, f"{text}\x15echo do''ne\n".encode())
        return self.read("done\r")

    def read(self, text):
        """Reads up to the text and the prompt after it. The shell reads keys only after it has printed its prompt."""
        output, deadline = "", time.monotonic() + 20
        while text not in output or PROMPT not in output[output.index(text) :]:
            remaining = deadline - time.monotonic()
            assert remaining > 0 and select.select([self.controller], [], [], remaining)[0], f"no answer: {output!r}"
            # zsh pads its escape sequences with NUL for terminals that need time.
            output += os.read(self.controller, 4096).decode(errors="replace").replace("\0", "")
        return output

    def close(self):
        self.shell.kill()
        self.shell.wait()
        os.close(self.controller)


def check_completions():
    """bash, zsh and fish complete every option, and offer no file names for numbers and addresses."""
    need("bash", "zsh", "fish")
    assert (FOLDER / "_echod").read_text().startswith("#compdef echod\n")
    text = run(release(), "--help")
    options = set(re.findall(r"(--[a-z-]+)", text))
    with_value = re.findall(r"(--[a-z-]+) <", text)
    assert len(options) > 10 and len(with_value) > 5, text
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        pathlib.Path(directory, "unrelated-file").touch()
        for command, setup in (BASH, ZSH):
            terminal = Terminal(command, directory)
            stack.callback(terminal.close)
            terminal.read("")
            terminal.type(setup + "\n")
            listed = terminal.type("echod --\t\t")
            assert not (missing := [option for option in options if option not in listed]), (command, missing, listed)
            assert "--reuse-port" in terminal.type("echod --reu\t"), command
            for option in with_value:
                output = terminal.type(f"echod {option} \t\t")
                assert "unrelated-file" not in output and "not found" not in output, (command, output)
        for option in options:
            output = run("fish", "--no-config", "-c", f"source {FOLDER}/echod.fish; complete -C 'echod {option}'")
            assert option in output, (option, output)
        for option in with_value:
            script = f"source {FOLDER}/echod.fish; complete -C 'echod {option} '"
            assert run("fish", "--no-config", "-c", script, cwd=directory) == "", option
    return f"{len(options)} options, {len(with_value)} with a value"
