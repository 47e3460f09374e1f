"""system.scripts: exit statuses, signals at any moment, closed and full streams, packages."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from conftest import ROOT, TIMEOUT

from system import scripts
from system.messages import UserError
from system.scripts import delayed_signals, import_optional, silenced

# ---------------------------------------------------------------- exit statuses


@pytest.fixture
def listens_to_sigint():
    """Python ignores Ctrl-C if a shell started it in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def stopped_by(error):
    """Return a `main` that ends with an error."""

    def main():
        raise error

    return main


def stopped_by_signal(number):
    """Return a `main` that is ended by a signal."""

    def main():
        os.kill(os.getpid(), number)
        time.sleep(TIMEOUT)

    return main


@pytest.mark.parametrize(
    ("main", "status", "line"),
    [
        (stopped_by(UserError("one\n\n   two")), 2, "train.py: error: one two"),
        (stopped_by(KeyboardInterrupt), 130, "train.py: stopped; see above"),
        (stopped_by_signal(signal.SIGINT), 130, "train.py: stopped; see above"),
        (stopped_by_signal(signal.SIGTERM), 143, "train.py: terminated; see above"),
    ],
    ids=["error", "interrupt", "SIGINT", "SIGTERM"],
)
def test_a_script_that_fails_ends_with_one_line_and_a_status(
    capsys, listens_to_sigint, main, status, line
):
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        scripts.run_script(main, "train.py", "; see above")
    assert stop.value.code == status
    assert capsys.readouterr() == ("", f"{line}\n")
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_script_that_succeeds_ends_normally(capsys):
    previous = signal.getsignal(signal.SIGTERM)
    scripts.run_script(lambda: print("done"), "train.py")
    assert capsys.readouterr() == ("done\n", "")
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_bug_is_raised_with_its_traceback():
    with pytest.raises(ZeroDivisionError):
        scripts.run_script(lambda: 1 / 0, "train.py")


def test_an_error_of_another_process_alone_is_printed_after_a_while(monkeypatch, capsys):
    """The first process of torchrun, which has most errors as well, is given time to print."""
    monkeypatch.setattr(scripts, "FIRST_SECONDS", 0.01)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        scripts.run_script(stopped_by(UserError("a full disk")), "train.py")
    assert capsys.readouterr().err == "train.py: error: a full disk\n"


# ---------------------------------------------------------------- signals

# The script of a program whose import takes long, and whose cleanup does.
SLOW = """
if __name__ == "__main__":
    from system import scripts
    scripts.prepare("slow.py")
print("importing", flush=True)
import sys, time
time.sleep(float(sys.argv[1]))

def main():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)

scripts.run_script(main, "slow.py", "; hint")
"""


def start(*command, **changes) -> subprocess.Popen:
    """Start Python; Ctrl-C reaches it as in a terminal."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, **changes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_a_signal_during_the_imports_gives_one_line():
    with start("-c", SLOW, 60) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=TIMEOUT) == ("", "slow.py: stopped\n")
    assert process.returncode == 130


def test_a_second_signal_during_the_cleanup_ends_at_once():
    with start("-c", SLOW, 0) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["importing\n", "working\n"]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIMEOUT) == ("", "")
    assert process.returncode == 143


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_the_scripts_listen_to_signals_before_their_imports(tmp_path, script):
    program = "import time\nprint('importing', flush=True)\ntime.sleep(60)"
    (tmp_path / "numpy.py").write_text(program)  # imported instead of the real one
    with start(script, "--help", PYTHONPATH=str(tmp_path)) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIMEOUT) == ("", f"{script}: terminated\n")
    assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_an_import_has_ended(number):
    events = []
    before = signal.signal(number, lambda *_: events.append("signal"))
    try:
        with delayed_signals():
            signal.raise_signal(number)
            signal.raise_signal(number)
            events.append("import")
        assert events == ["import", "signal"]
        signal.raise_signal(number)
        assert events == ["import", "signal", "signal"]  # the handler is back
    finally:
        signal.signal(number, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with delayed_signals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_do_not_change_handlers():
    """Python allows that to the main thread only."""
    events = []

    def work():
        with delayed_signals():
            events.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert events == [signal.getsignal(signal.SIGINT)]


# ---------------------------------------------------------------- streams


def shell(command: str, **changes) -> subprocess.CompletedProcess:
    """Run a command line, in which $PYTHON is this interpreter."""
    return subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, **changes},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


PREPARED = """
import os, sys
from system import scripts
scripts.prepare("x.py")
with open(sys.argv[1], "w") as file:
    print("in the file", file=file)
    os.write(1, b"of a library")
    os.write(2, b"of a library")
    print("a warning", file=sys.stderr)
"""


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, closed):
    done = shell(f"$PYTHON -c '{PREPARED}' {tmp_path}/file {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "in the file\n"


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "standard output is closed"), ("> /dev/full", "cannot write to standard output: No")],
)
def test_a_closed_or_full_stdout_is_an_error(redirection, reason):
    """Python's option -P keeps the script's folder out of the modules' path."""
    done = shell(f"$PYTHON -P predict.py --help {redirection}")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"predict.py: error: {reason}")


PROGRAM = """
import sys
from system.scripts import run_script
run_script(lambda: [print(sys.argv[1], flush=True) for _ in range(int(sys.argv[2]))], "train.py")
"""


def test_a_script_whose_output_nobody_reads_ends_silently():
    """A pipe holds less than the 2 MB that it writes."""
    with start("-c", PROGRAM, "x" * 1000, 2000, PYTHONUNBUFFERED="") as process:
        assert process.stdout.readline() == "x" * 1000 + "\n"
        process.stdout.close()
        assert process.wait(TIMEOUT) == 141
        assert process.stderr.read() == ""


def test_letters_that_the_terminal_lacks_are_escaped():
    done = shell(f"$PYTHON -c '{PROGRAM}' Gänseblümchen 1", PYTHONIOENCODING="ascii")
    assert (done.stdout, done.stderr) == ("G\\xe4nsebl\\xfcmchen\n", "")


# ---------------------------------------------------------------- settings and packages

# What is registered before `prepare` runs after what it registers.
SETTINGS = """
import atexit, gc, os
atexit.register(lambda: print("end", gc.get_freeze_count() > 0))
from system import scripts
scripts.prepare("script.py")
print("imports", gc.isenabled(), os.environ["THP_MEM_ALLOC_ENABLE"])
scripts.run_script(lambda: print("work", gc.isenabled()), "script.py")
"""


def test_garbage_is_searched_for_during_the_work_only_and_arrays_are_in_huge_pages():
    done = shell(f"$PYTHON -c '{SETTINGS}'")
    assert (done.stdout, done.stderr) == ("imports False 1\nwork True\nend True\n", "")


@pytest.mark.parametrize(
    ("packages", "text"),
    [
        (["json", "no_such_package"], "a test needs the packages json and no_such_package: pip"),
        (["no_such_package"], "a test needs the package no_such_package: pip install no_such_pack"),
    ],
)
def test_a_missing_package_is_named(packages, text):
    assert import_optional("a test", "json", "logging") == [sys.modules["json"], logging]
    with pytest.raises(UserError, match=f"^{text}"):
        import_optional("a test", *packages)


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_a_package_that_a_script_itself_needs_is_named(tmp_path, script):
    """As without the virtual environment."""
    (tmp_path / "PIL.py").write_text("import no_such_package")  # imported instead of the real one
    done = shell(f"$PYTHON {script} --help", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    error = "No module named 'no_such_package': activate the virtual environment, or pip install"
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: {error} -r requirements")


def test_nothing_of_a_silenced_library_is_seen(capsys, caplog, recwarn):
    with silenced():
        print("output")
        print("error", file=sys.stderr)
        logging.error("log")
        warnings.warn("warning", stacklevel=1)
    assert capsys.readouterr() == ("", "") and not caplog.records and not recwarn.list
    logging.error("after it")
    assert [record.message for record in caplog.records] == ["after it"]


@pytest.mark.parametrize("script", ["train.py", "predict.py"])
def test_through_a_link_a_script_imports_its_own_modules(tmp_path, script):
    (tmp_path / "utils.py").write_text("raise SystemExit('another utils.py')")
    (tmp_path / "link.py").symlink_to(ROOT / script)
    done = subprocess.run(
        [sys.executable, tmp_path / "link.py", "--no_such_flag"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert f"{script}: error: " in done.stderr and "another utils.py" not in done.stderr
