"""Make .venv and install minik2 with the extras named: `python3 tools/bootstrap.py course test`.

Unusual here: the file must be readable by any Python, however old, since its first duty is to say
that a Python is too old: no f-strings, no annotations, only the standard library. Every failure
ends in one sentence. A stamp in .venv says what was installed from which pyproject.toml and lock,
so a second call returns at once, and extras add up: `make course`, then `make test`, keeps both.
An interrupted call leaves no stamp; the next one repairs what pip left half-written and goes on.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
GIGABYTES = 4.0  # wanted for a first set-up: 2 installed with PyTorch's CPU build, 1 of downloads
NEWER = ["python3.%d" % minor for minor in (13, 12, 11, 14)]  # looked for when this one is too old

# JupyterLab asks for leave to fetch news on its first start; a course should open with the lesson.
LAB_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false", "checkForUpdates": False
    }
}


class Sentence(Exception):
    """What went wrong, and what to do: printed as it is, without a traceback."""


def say(text):
    print("==> " + text)
    sys.stdout.flush()


# --- what can be checked before anything is written ---------------------------------------------

def works(*command):
    """True if this starts and ends well; a version manager's stand-in may only say it cannot."""
    try:
        with open(os.devnull, "w") as nowhere:
            return subprocess.call(command, stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False  # no such program, or a link to one that was removed


def check_python(version, executable):
    """Refuse a Python older than OLDEST, naming a newer one if there is one on the PATH."""
    if tuple(version[:2]) >= OLDEST:
        return
    newer = [name for name in NEWER if works(name, "--version")]
    advice = (
        "%s is there: add PYTHON=%s to the make command" % (newer[0], newer[0]) if newer
        else "install a newer one and name it in the make command, as PYTHON=/path/to/python3.12"
    )
    raise Sentence("minik2 needs Python %d.%d or newer, and %s is %d.%d; %s."
                   % (OLDEST + (executable,) + tuple(version[:2]) + (advice,)))


def check_venv_module():
    """Debian ships Python without the two modules that make a virtual environment."""
    import importlib.util
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return
    raise Sentence("This Python cannot make a virtual environment (%s): install its venv module "
                   "(Debian and Ubuntu: apt install python%d.%d-venv) and run the command again."
                   % ((sys.executable,) + tuple(sys.version_info[:2])))


def folder_bytes(folder):
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                pass  # a file that goes away while we count is no matter
    return total


def check_disk(venv):
    """Ask for the room that is still to be filled, not for what an earlier try filled already."""
    wanted = max(0.5, GIGABYTES - folder_bytes(venv) / 1e9)
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < wanted:
        raise Sentence("The set-up wants about %.1f GB of disk and %s has %.1f GB free: make room "
                       "and run the command again." % (wanted, ROOT, free))


# --- the virtual environment --------------------------------------------------------------------

def python_of(venv):
    return os.path.join(venv, "Scripts", "python.exe") if os.name == "nt" else os.path.join(
        venv, "bin", "python")


def has_pip(venv):
    return works(python_of(venv), "-c", "import pip")


def make_venv(venv):
    """Make the virtual environment, or make it anew if an interruption left it without pip."""
    if os.path.isdir(venv) and os.listdir(venv):
        if not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
            raise Sentence("%s is in the way and is no virtual environment: move it elsewhere and "
                           "run the command again." % venv)
        if has_pip(venv):
            return
    check_venv_module()
    say("making %s with Python %d.%d" % ((venv,) + tuple(sys.version_info[:2])))
    if subprocess.call([sys.executable, "-m", "venv", "--clear", venv]) != 0:
        raise Sentence("Python could not make %s; its message stands above." % venv)


def site_packages(venv):
    for path, folders, _ in os.walk(venv):
        if "site-packages" in folders:
            return os.path.join(path, "site-packages")
    return None


def repair(venv):
    """Forget packages that an interrupted pip wrote in part, so that pip installs them again.

    pip writes a package's RECORD last; until then it would count as installed, with its commands
    perhaps missing. Names that begin with ~ are what pip set aside while it replaced a package.
    """
    folder = site_packages(venv)
    for name in os.listdir(folder) if folder else []:
        path = os.path.join(folder, name)
        partial = name.endswith(".dist-info") and not os.path.exists(os.path.join(path, "RECORD"))
        if os.path.isdir(path) and (partial or name.startswith("~")):
            shutil.rmtree(path)


# --- pip ----------------------------------------------------------------------------------------

UNREACHED = ("NewConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "NameResolutionError",
             "ProxyError", "Connection broken", "Temporary failure", "Max retries")


def explain(errors, command):
    """One sentence for what pip wrote to its standard error."""
    again = " Run `%s` again afterwards: it goes on where it stopped." % command
    if "No space left on device" in errors:
        return "The disk is full: make room." + again
    missing = re.findall(r"No matching distribution found for ([^\s(]+)", errors)
    what = missing[-1] if missing else "a package"
    if any(word in errors for word in UNREACHED):
        return ("pip could not have %s because the package index was not reached: check the "
                "network." % what + again)
    if missing:
        return ("pip could not have %s from where it looked: check the network, and PIP_ARGS if "
                "you set it." % what + again)
    if "ResolutionImpossible" in errors or "conflict" in errors:
        return ("pip found no set of versions that fits requirements.lock on this machine; "
                "CONTRIBUTING.md (\"Dependencies\") says what to do.")
    return "pip failed; its message stands above." + again


def pip_install(venv, extras, pip_args, command):
    requirement = ".[%s]" % ",".join(extras) if extras else "."
    line = [python_of(venv), "-m", "pip", "install", "-e", requirement, "-c", "requirements.lock"]
    line += pip_args
    say("pip install -e '%s' -c requirements.lock %s" % (requirement, " ".join(pip_args)))
    # Standard output stays pip's own, so that its progress bars show; errors pass through here.
    pip = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, universal_newlines=True)
    errors = []
    try:
        for text in pip.stderr:
            sys.stderr.write(text)
            errors.append(text)
        status = pip.wait()
    except KeyboardInterrupt:
        pip.wait()  # pip got the same Ctrl-C; let it put things back before we leave
        raise
    if status != 0:
        raise Sentence(explain("".join(errors), command))


# --- the reference's loops ----------------------------------------------------------------------

class Loops:
    """Numba compiling them beside pip, which it would else do while somebody waits for a cell."""

    def __init__(self, venv):
        say("compiling the reference's loops meanwhile, once on this machine")
        # A session of its own: Ctrl-C is for us, and we end it.
        self.process = subprocess.Popen([python_of(venv), "-m", "minik2.reference.prepare"],
                                        cwd=ROOT, start_new_session=True)

    def wait(self):
        if self.process.poll() is None:
            say("waiting for the loops")
        if self.process.wait() != 0:
            say("they failed, see above; each is compiled when it is first used instead")

    def end(self):
        if self.process.poll() is not None:
            return
        if hasattr(os, "killpg"):
            os.killpg(self.process.pid, signal.SIGTERM)
        else:
            self.process.terminate()
        self.process.wait()


# --- the stamp ----------------------------------------------------------------------------------

def content_key():
    """Changes when the dependencies or their pins do, and when the clone moves (an editable
    install and the commands in .venv hold its path)."""
    digest = hashlib.sha256(ROOT.encode("utf-8"))
    for name in ("pyproject.toml", "requirements.lock"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp(venv):
    try:
        with open(os.path.join(venv, "minik2-stamp.json")) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_atomically(path, value):
    if not os.path.isdir(os.path.dirname(path)):
        os.makedirs(os.path.dirname(path))
    with open(path + ".new", "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)


def set_up(extras, pip_args, venv=None, command="make"):
    """Bring the virtual environment to hold `extras` and what it held before. True if it worked."""
    venv = venv or os.path.join(ROOT, ".venv")
    stamp, key = read_stamp(venv), content_key()
    wanted = sorted(set(extras) | set(stamp.get("extras", [])))
    pip_args = pip_args or stamp.get("pip_args", [])
    current = stamp == {"key": key, "extras": wanted, "pip_args": pip_args}
    if current and os.path.exists(python_of(venv)):
        return False
    say("setting minik2 up for: " + ", ".join(wanted)
        + " (the first time takes some minutes; Ctrl-C and running it again are safe)")
    check_disk(venv)
    make_venv(venv)
    repair(venv)
    pip_install(venv, [], pip_args, command)
    loops = Loops(venv)
    try:
        pip_install(venv, wanted, pip_args, command)
        loops.wait()
    finally:
        loops.end()
    write_atomically(os.path.join(venv, "share/jupyter/lab/settings/overrides.json"), LAB_SETTINGS)
    write_atomically(os.path.join(venv, "minik2-stamp.json"),
                     {"key": key, "extras": wanted, "pip_args": pip_args})
    say("the set-up is complete")
    return True


def main(arguments):
    try:
        check_python(sys.version_info, sys.executable)
        set_up(arguments, shlex.split(os.environ.get("PIP_ARGS", "")),
               command=os.environ.get("MINIK2_COMMAND", "make"))
    except Sentence as sentence:
        sys.stderr.write("\n" + str(sentence) + "\n")
        return 1
    except OSError as error:
        sys.stderr.write("\nThe set-up could not go on (%s): mend that and run the command "
                         "again.\n" % error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted: run the same command again and it goes on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
