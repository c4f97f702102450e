"""A machine that changes under a job: each function makes one thing happen and says what is wrong
with what came of it ("" if nothing is)."""

from __future__ import annotations

import errno
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from headrace.errors import HeadraceError
from tools.soak import rig as rigs
from tools.soak.kills import PATIENCE, command, difference
from tools.soak.rig import Rig, records

SLOW = "page.read@*=delay:0.002"
"""Makes a run long enough to do something to it."""


@dataclass(frozen=True)
class Stage:
    """What every change needs: the rig, its undisturbed result, a folder, and a way to fork."""

    rig: Rig
    undisturbed: Counter[str]
    folder: Path
    context: Any

    @property
    def output(self) -> Path:
        """Where the job writes."""
        return self.folder / "out.jsonl"

    def resumed(self, output: Path | None = None) -> str:
        """Do the rest, and compare."""
        rigs.run(self.rig, output or self.output)
        return difference(self.undisturbed, rigs.essence(output or self.output))


Change = Callable[[Stage], str]


# -- memory ----------------------------------------------------------------------------------


def less_memory_than_planned(stage: Stage) -> str:
    """The plan is refused before the first sweep, and nothing is begun."""
    with mock.patch("headrace.engine.llm.free_bytes", return_value=100_000):
        found = _failure(stage, "")
    if "less memory is free" not in found:
        return f"not refused: {found}"
    return "an output was begun" if stage.output.exists() else stage.resumed()


def no_address_space(stage: Stage) -> str:
    """The memory cannot be mapped: an error of the tree, and the job resumes."""

    def limited() -> None:
        def limit(point: str) -> None:
            if point == "start.plan":
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                now = pages * os.sysconf("SC_PAGE_SIZE")
                resource.setrlimit(resource.RLIMIT_AS, (now + 200_000, now + 200_000))

        _expect(stage, limit, "cannot map")

    return _forked(stage, limited) or stage.resumed()


# -- disks that are full -----------------------------------------------------------------------


def disk_full_of_results(stage: Stage) -> str:
    """A small file system, or (without the right to mount one) a limit on file size."""
    with _small_disk(stage.folder / "disk", 12 << 10) as disk:
        output = (disk or stage.folder) / "out.jsonl"

        def limited() -> None:
            if disk is None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (9 << 10, 9 << 10))
            _expect(replace(stage, folder=output.parent), "", "writing", "free some space")

        if fault := _forked(stage, limited):
            return fault
        if not 0 < len(records(output)) < sum(stage.undisturbed.values()):
            return "nothing was kept, or nothing was left to do"
        if disk is not None:
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        return stage.resumed(output)


def disk_full_at_any_write(stage: Stage) -> str:
    """ENOSPC at each kind of write, one after the other on one output."""
    for point in ("replace.write@1", "replace.fsync@2", "output.write@2", "output.chunk@1"):
        if "No space left" not in (found := _failure(stage, f"{point}=enospc")):
            return f"{point}: {found}"
    return stage.resumed()


def disk_full_of_trace_and_log(stage: Stage) -> str:
    """Both go to a full device; the answers are all there and the exit code is the usual one."""
    stage.output.with_name("out.jsonl.log").symlink_to("/dev/full")
    done = command(stage.rig, stage.output, "--trace", "/dev/full")
    if done.returncode != 1 or "no log" not in done.stderr:
        return f"exit {done.returncode}: {done.stderr[-300:]}"
    return _quiet(done) or difference(stage.undisturbed, rigs.essence(stage.output))


def disk_full_of_standard_output(stage: Stage) -> str:
    """The summary goes to a full device: said, exit code 1, and the answers are there."""
    with open("/dev/full", "w") as full:
        done = _command(stage, "--json", stdout=full)
    if done.returncode != 1 or "No space left" not in done.stderr:
        return f"exit {done.returncode}: {done.stderr[-300:]}"
    return _quiet(done) or difference(stage.undisturbed, rigs.essence(stage.output))


def disk_full_of_checkpoints(stage: Stage) -> str:
    """A download that fills the disk is refused, saying which disk."""
    from headrace.engine.hub import local_folder

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        mock.patch("huggingface_hub.snapshot_download", side_effect=full),
        mock.patch("headrace.engine.hub._check_disk"),
    ):
        try:
            local_folder("some/model")
        except HeadraceError as error:
            return "" if "HF_HUB_CACHE" in str(error) else f"said: {error}"
    return "nothing was refused"


# -- the checkpoint ----------------------------------------------------------------------------


def shard_truncated(stage: Stage) -> str:
    """In the middle of a run."""
    return _spoilt(stage, lambda shard: os.truncate(shard, 4096), "truncated", "ends early")


def shard_overwritten(stage: Stage) -> str:
    """In place, its size kept."""

    def overwrite(shard: Path) -> None:
        with shard.open("r+b") as file:
            file.seek(shard.stat().st_size // 2)
            file.write(bytes(8192))

    return _spoilt(stage, overwrite, "was written to")


def shard_replaced(stage: Stage) -> str:
    """By another file of the same name."""

    def swap(shard: Path) -> None:
        shutil.copyfile(shard, shard.with_suffix(".new"))
        shard.with_suffix(".new").replace(shard)

    return _spoilt(stage, swap, "was replaced")


def shard_removed(stage: Stage) -> str:
    """While the run still holds it open."""
    return _spoilt(stage, Path.unlink, "was removed")


def read_error(stage: Stage) -> str:
    """EIO while a page is read, in the middle of the run."""
    if "Input/output error" not in (found := _failure(stage, "page.read@400=eio")):
        return f"said: {found}"
    return "the file is not named" if "safetensors" not in found else stage.resumed()


def write_error(stage: Stage) -> str:
    """EIO when results are synced."""
    if "Input/output error" not in (found := _failure(stage, "output.fsync@4=eio")):
        return f"said: {found}"
    return stage.resumed()


def disk_ten_times_slower(stage: Stage) -> str:
    """Every read takes what ten took; the answers are the same."""
    began = time.monotonic()
    rigs.run(stage.rig, stage.folder / "usual.jsonl")
    usual = time.monotonic() - began
    reads = rigs.passings(stage.rig, stage.folder / "counted.jsonl")["page.read"]
    delay = 20 * usual / reads  # two lanes share it
    began = time.monotonic()
    rigs.run(stage.rig, stage.output, f"page.read@*=delay:{delay:.6f}")
    if time.monotonic() - began < 5 * usual:
        return "it was not slower"
    return difference(stage.undisturbed, rigs.essence(stage.output))


# -- signals -----------------------------------------------------------------------------------


def sigint(stage: Stage) -> str:
    """Ctrl-C."""
    return _signalled(stage, signal.SIGINT)


def sigterm(stage: Stage) -> str:
    """What service managers send."""
    return _signalled(stage, signal.SIGTERM)


def sighup(stage: Stage) -> str:
    """What a closed terminal sends."""
    return _signalled(stage, signal.SIGHUP)


def suspended(stage: Stage) -> str:
    """Stopped in the middle, continued two seconds later."""
    process = _started(stage)
    _await_lines(process, stage.output)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.0)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=PATIENCE)
    if process.returncode != 1:
        return f"exit {process.returncode}: {said[-300:]}"
    return difference(stage.undisturbed, rigs.essence(stage.output))


def clock_jumps(stage: Stage) -> str:
    """The wall clock leaps a day forth and back at every look."""
    leaps = iter(range(1 << 30))

    def leaping() -> float:
        return 1.8e9 + 86_400.0 * (-1) ** next(leaps)

    with mock.patch("time.time", leaping):
        rigs.run(stage.rig, stage.output, now=leaping)
    return difference(stage.undisturbed, rigs.essence(stage.output))


# -- terminals, pipes and homes -------------------------------------------------------------------


def reader_gone(stage: Stage) -> str:
    """``2>&1 | head -n 1``, and a reader of the summary that leaves at once."""
    for number, pipe in enumerate(("2>&1 | head -n 1", "--json 2>errors | true")):
        output = stage.folder / f"out{number}.jsonl"
        line = " ".join(_headrace(stage, output)) + f" {pipe}; exit ${{PIPESTATUS[0]}}"
        done = _shell(stage, line)
        errors = stage.folder / "errors"
        if "Traceback" in done.stdout + (errors.read_text() if errors.exists() else ""):
            return f"{pipe}: a traceback"
        if done.returncode != 1:
            return f"{pipe}: exit {done.returncode}"
        if fault := difference(stage.undisturbed, rigs.essence(output)):
            return f"{pipe}: {fault}"
    return ""


def streams_closed(stage: Stage) -> str:
    """No stdin, stdout or stderr at all."""
    done = _shell(stage, " ".join(_headrace(stage, stage.output)) + " <&- >&- 2>&-")
    if done.returncode != 1:
        return f"exit {done.returncode}"
    return difference(stage.undisturbed, rigs.essence(stage.output))


def no_terminal(stage: Stage) -> str:
    """In a session of its own, everything redirected."""
    done = _command(stage, start_new_session=True, stdin=subprocess.DEVNULL)
    if done.returncode != 1 or "\x1b" in done.stderr:
        return f"exit {done.returncode}: {done.stderr[-300:]}"
    return difference(stage.undisturbed, rigs.essence(stage.output))


def terminal_lost(stage: Stage) -> str:
    """The terminal that a run draws its progress on hangs up."""
    ours, theirs = pty.openpty()
    process = _started(
        stage, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, text=False,
        preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(theirs)
    _await_lines(process, stage.output, ours)
    os.close(ours)
    code = process.wait(PATIENCE)
    if code != 128 + signal.SIGHUP:
        return f"exit {code}"
    return stage_resumed_by_command(stage)


def read_only_home(stage: Stage) -> str:
    """No home and no cache that could be written."""
    nowhere = {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "HF_HOME": "/proc/x"}
    done = _command(stage, env={**os.environ, **nowhere})
    if done.returncode != 1:
        return f"exit {done.returncode}: {done.stderr[-300:]}"
    return _quiet(done) or difference(stage.undisturbed, rigs.essence(stage.output))


CHANGES: tuple[Change, ...] = (
    less_memory_than_planned,
    no_address_space,
    disk_full_of_results,
    disk_full_at_any_write,
    disk_full_of_trace_and_log,
    disk_full_of_standard_output,
    disk_full_of_checkpoints,
    shard_truncated,
    shard_overwritten,
    shard_replaced,
    shard_removed,
    read_error,
    write_error,
    disk_ten_times_slower,
    sigint,
    sigterm,
    sighup,
    suspended,
    clock_jumps,
    reader_gone,
    streams_closed,
    no_terminal,
    terminal_lost,
    read_only_home,
)


# -- how it is done ------------------------------------------------------------------------------


def _failure(stage: Stage, faults: str) -> str:
    """What a run was ended by; "" if nothing ended it."""
    try:
        rigs.run(stage.rig, stage.output, faults)
    except HeadraceError as error:
        return str(error)
    return ""


def _expect(stage: Stage, faults: Any, *parts: str) -> None:
    """Run; exit with 3 unless it fails and says all ``parts``."""
    try:
        rigs.run(stage.rig, stage.output, faults)
    except HeadraceError as error:
        os._exit(0 if all(part in str(error) for part in parts) else 3)
    os._exit(4)


def _forked(stage: Stage, act: Callable[[], None]) -> str:
    """``act`` in a process of its own, forked from this one before it computed anything."""
    pid = os.fork()
    if not pid:
        try:
            act()
        finally:
            os._exit(5)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else f"the run ended otherwise than expected ({code})"


def _spoilt(stage: Stage, spoil: Callable[[Path], object], *says: str) -> str:
    """Spoil the largest shard of a copy while a run reads it; mend it, resume, compare."""
    copy = replace(stage.rig, model=stage.folder / "model")
    shutil.copytree(stage.rig.model, copy.model)
    shard = max(copy.model.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    process = _started(replace(stage, rig=copy))
    _await_lines(process, stage.output)
    spoil(shard)
    _, said = process.communicate(timeout=PATIENCE)
    shutil.copyfile(stage.rig.model / shard.name, shard)
    if process.returncode != 1 or shard.name not in said or not any(s in said for s in says):
        return f"exit {process.returncode}: {said[-400:]}"
    if "Traceback" in said:
        return "a traceback"
    saved = len(records(stage.output))
    if not 0 < saved < sum(stage.undisturbed.values()):
        return f"{saved} lines saved"
    done = command(copy, stage.output)
    if done.returncode != 1:
        return f"resumed: exit {done.returncode}: {done.stderr[-300:]}"
    return difference(stage.undisturbed, rigs.essence(stage.output))


def _signalled(stage: Stage, number: signal.Signals) -> str:
    process = _started(stage)
    _await_lines(process, stage.output)
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    seconds = time.monotonic() - began
    if process.returncode != 128 + number or "Traceback" in said or "interrupted" not in said:
        return f"exit {process.returncode}: {said[-300:]}"
    if seconds > 2.0:
        return f"it took {seconds:.2f} s"
    if not 0 < len(records(stage.output)) < sum(stage.undisturbed.values()):
        return "nothing was saved, or nothing was left to do"
    return stage_resumed_by_command(stage)


def stage_resumed_by_command(stage: Stage) -> str:
    """The rest by the command line, compared."""
    done = command(stage.rig, stage.output)
    if done.returncode != 1:
        return f"resumed: exit {done.returncode}: {done.stderr[-300:]}"
    return difference(stage.undisturbed, rigs.essence(stage.output))


def _started(stage: Stage, **how: Any) -> subprocess.Popen[Any]:
    """The command, slowed down, on its way."""
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(_headrace(stage, stage.output, "--faults", SLOW), **{**usual, **how})


def _command(stage: Stage, *more: str, **how: Any) -> subprocess.CompletedProcess[str]:
    usual: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = _headrace(stage, stage.output, *more)
    return subprocess.run(words, timeout=PATIENCE, check=False, **{**usual, **how})


def _shell(stage: Stage, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=stage.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def _headrace(stage: Stage, output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "headrace", *stage.rig.arguments(output, *more)]


def _await_lines(
    process: subprocess.Popen[Any], output: Path, terminal: int | None = None, lines: int = 6
) -> None:
    """Until the output has so many lines; what comes on ``terminal`` is read meanwhile."""
    if terminal is not None:
        os.set_blocking(terminal, False)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if output.exists() and output.read_bytes().count(b"\n") >= lines:
            return
        if terminal is not None:
            with suppress(BlockingIOError):
                os.read(terminal, 1 << 16)
        time.sleep(0.005)


def _take_terminal() -> None:
    """Make the standard input the controlling terminal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _quiet(done: subprocess.CompletedProcess[str]) -> str:
    return "a traceback" if "Traceback" in done.stderr else ""


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """A file system of ``size`` bytes; None where we may not mount one."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(words, capture_output=True).returncode
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
