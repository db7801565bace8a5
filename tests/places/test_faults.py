"""An unexpected exception is a fault of skblab: one line says so, and its report is kept."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from skblab.cli import outcome
from skblab.errors import CallbackFailed, MissingPrerequisite, UsageError


def stopped_by(error: Exception) -> int:
    def step() -> None:
        raise error

    return outcome.status_of(step)


def test_a_fault_is_one_line_and_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert stopped_by(KeyError("x")) == outcome.FAULT
    (report,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"skblab: a fault of skblab itself: KeyError: 'x'\n  report it with {report}\n"
    assert "Traceback" in report.read_text()
    assert "in stopped_by" not in report.read_text().splitlines()[0]


def test_a_report_that_cannot_be_kept_is_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert stopped_by(ZeroDivisionError()) == outcome.FAULT
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EPIPE, errno.ECHILD])
def test_errors_that_no_machine_causes_are_faults(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert stopped_by(OSError(number, os.strerror(number))) == outcome.FAULT


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError("so", found="found", hint="hint"), 2, "skblab: so\n  found\n  hint: hint\n"),
        (MemoryError(), 3, "this process gets no more memory"),
        (ImportError("x.so: cannot allocate memory in static TLS block"), 3, "this process gets no more memory"),
        (RuntimeError("can't start new thread"), 3, "this user may have no more processes here"),
        (OSError(errno.EMFILE, "Too many", "/x"), 3, "/x: Too many"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "cannot use /x\n  Permission denied"),
        (
            OSError(errno.ENOSPC, "No space", "/x/y"),
            1,
            "cannot write /x/y\n  No space\n  hint: make room there",
        ),
    ],
)
def test_what_a_machine_refuses_is_a_sentence(
    error: Exception, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped_by(error) == status
    assert said in capsys.readouterr().err


def test_a_callback_of_ours_is_judged_by_what_it_raised(capsys: pytest.CaptureFixture[str]) -> None:
    cause = OSError(errno.EMFILE, "Too many open files")
    error = CallbackFailed("a rule", cause)
    error.__cause__ = cause
    assert stopped_by(error) == MissingPrerequisite.exit_status
    assert "ulimit -n" in capsys.readouterr().err


def test_a_thread_that_ends_so_is_told_and_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    threads = outcome.Threads()
    assert threads.status() == 0
    thread = threading.Thread(target=stopped_by_error)
    thread.start()
    thread.join()
    assert threads.status() == MissingPrerequisite.exit_status
    assert "gets no more memory" in capsys.readouterr().err


def stopped_by_error() -> None:
    raise MemoryError
