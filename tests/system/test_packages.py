"""system.scripts: optional packages are named, and signals wait while they are imported."""

import logging
import signal
import sys
import threading
import warnings

import pytest

from system.messages import UserError
from system.scripts import delayed_signals, import_optional, silenced


def test_packages_are_imported_in_their_order():
    assert import_optional("a test", "json", "logging") == [sys.modules["json"], logging]


@pytest.mark.parametrize(
    ("packages", "text"),
    [
        (["json", "no_such_package"], "a test needs the packages json and no_such_package: pip"),
        (["no_such_package"], "a test needs the package no_such_package: pip install no_such_pack"),
    ],
)
def test_a_missing_package_is_named(packages, text):
    with pytest.raises(UserError, match=f"^{text}"):
        import_optional("a test", *packages)


def test_nothing_of_a_silenced_library_is_seen(capsys, caplog, recwarn):
    with silenced():
        print("output")
        print("error", file=sys.stderr)
        logging.error("log")
        warnings.warn("warning", stacklevel=1)
    assert capsys.readouterr() == ("", "") and not caplog.records and not recwarn.list
    logging.error("after it")
    assert [record.message for record in caplog.records] == ["after it"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_until_the_end(number):
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
