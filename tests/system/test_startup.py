"""system.scripts and run_script: signals at any moment, and streams that are closed or full."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TIMEOUT

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
        time.sleep(float(sys.argv[2]))
    finally:
        print("cleaning", flush=True)
        time.sleep(float(sys.argv[3]))

scripts.run_script(main, "slow.py", "; hint")
"""


def start(script, *seconds) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


SIGNALS = pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")],
)


@SIGNALS
def test_a_signal_during_the_imports_gives_one_line(number, status, word):
    with start(SLOW, 60, 60, 0) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.communicate(timeout=TIMEOUT) == ("", f"slow.py: {word}\n")
    assert process.returncode == status


@SIGNALS
def test_a_second_signal_during_the_cleanup_ends_at_once(number, status, word):
    with start(SLOW, 0, 60, 60) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["importing\n", "working\n"]
        process.send_signal(number)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=TIMEOUT) == ("", "")
    assert process.returncode == 143


@SIGNALS
def test_a_signal_during_the_work_gives_one_line_with_the_hint(number, status, word):
    with start(SLOW, 0, 60, 0) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["importing\n", "working\n"]
        process.send_signal(number)
        assert process.communicate(timeout=TIMEOUT) == ("cleaning\n", f"slow.py: {word}; hint\n")
    assert process.returncode == status


@pytest.mark.parametrize(
    ("script", "seconds"),  # predict.py ends after a third of a second
    [("train.py", 0.3), ("train.py", 1.0), ("predict.py", 0.12), ("predict.py", 0.18)],
)
def test_the_scripts_end_with_one_line_during_their_imports(script, seconds):
    process = subprocess.Popen(
        [sys.executable, ROOT / script, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=TIMEOUT)
    if process.returncode == -signal.SIGTERM:
        assert (out, err) == ("", "")  # Python itself was not ready yet
    elif process.returncode:
        assert (process.returncode, out, err) == (143, "", f"{script}: terminated\n")


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


def test_what_is_printed_to_a_closed_stderr_is_not_in_a_file(trained, tmp_path):
    """The next file that is opened would get its number."""
    (tmp_path / "bad.jpg").write_text("no image")
    flags = f"--input {tmp_path} --checkpoint {trained.checkpoint} --format csv"
    done = shell(f"$PYTHON predict.py {flags} --output {tmp_path}/out.csv 2>&-")
    assert done.returncode == 1 and done.stderr == ""
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert done.stdout.splitlines() == lines and len(lines) == 2
    assert lines[1].startswith(f'{tmp_path}/bad.jpg,,,,,"not an image')


def test_torch_allocates_in_huge_pages_unless_the_user_says_otherwise():
    name = "THP_MEM_ALLOC_ENABLE"
    program = f'import os, system.scripts as s; s.prepare("x.py"); print(os.environ["{name}"])'
    for words, expected in ((f"-u {name}", "1"), (f"{name}=0", "0")):
        assert shell(f"env {words} $PYTHON -c '{program}'").stdout == f"{expected}\n"


# What is registered before `prepare` runs after what it registers.
GARBAGE = """
import atexit, gc
atexit.register(lambda: print("end", gc.get_freeze_count() > 0))
from system import scripts
scripts.prepare("script.py")
print("imports", gc.isenabled())
scripts.run_script(lambda: print("work", gc.isenabled()), "script.py")
"""


def test_garbage_is_searched_for_during_the_work_and_not_at_the_end():
    with start(GARBAGE) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert (out, err) == ("imports False\nwork True\nend True\n", "")


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


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path, closed):
    done = shell(f"$PYTHON -c '{PREPARED}' {tmp_path}/file {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "file").read_text() == "in the file\n"


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [(">&-", "standard output is closed"), ("> /dev/full", "cannot write to standard output: No")],
)
def test_a_closed_or_full_stdout_is_an_error(redirection, reason):
    done = shell(f"$PYTHON train.py --help {redirection}")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"train.py: error: {reason}")


def test_a_closed_stdin_is_an_error():
    done = shell("$PYTHON predict.py --input - --checkpoint x.pth --format csv <&-")
    assert done.returncode == 2
    assert done.stderr == "predict.py: error: --input -: standard input is closed\n"


def test_a_reader_that_leaves_ends_the_script_silently():
    done = shell("$PYTHON train.py --help | true; echo ${PIPESTATUS[0]}")
    assert done.stderr == "" and done.stdout.strip() in ("141", "0")


def test_the_scripts_find_their_modules_with_a_safe_path():
    done = shell("$PYTHON -P train.py --help")
    assert done.returncode == 0 and done.stderr == ""
