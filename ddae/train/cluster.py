"""Several processes as one run: how they start, stop and fail together."""

import contextlib
import faulthandler
import os
import random
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import jax
import psutil
from etils import epath

from ddae.settings import UserError
from ddae.storage import StorageError
from ddae.train.processes import agree, of_all
from ddae.train.signals import Signals
from ddae.train.state import NonFiniteError

HEARTBEAT_SECONDS = 30
"""A process that is silent for so long is taken for dead by the others."""

ENDING_SECONDS = 600
"""How long a process that is done waits for others, as one that uploads its log still;
one that died in it is missed after `HEARTBEAT_SECONDS`."""

START_SECONDS = 3600.0
"""How long a run may take to read its config and to find its data."""

POLL_SECONDS = 2.0
"""How often a process looks whether another has failed."""

FAILURE = "first_failure.txt"

SHARED_SECONDS = 20.0
"""How long a process looks for what another has written into the workdir."""

_attempt = ""
"""Names this run of all processes; one of another attempt may write there too."""


class PreemptedError(RuntimeError):
    """The run was asked to stop, has saved, and is to be run again (exit code 75)."""


def start(
    mode: Literal["auto", "on", "off"],
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout_seconds: int,
) -> None:
    """Joins the processes of a cluster; before anything else touches a device.

    auto: where jax finds one (Cloud TPU, SLURM, Kubernetes, Open MPI), or where the
    coordinator is given as HOST:PORT of process 0; on: there must be one. Raises
    `UserError` for flags that do not fit, and ends the process with exit code 1 where
    the others have not come after `timeout_seconds`.
    """
    given = (coordinator, num_processes, process_id)
    if mode == "off" or num_processes == 1:
        return
    if any(x is not None for x in given) and any(x is None for x in given):
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together"
        )
    if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT of process 0")
    # SIGTERM is ours: `Signals` notes it, and the train step agrees on where to stop.
    jax.config.update("jax_enable_preemption_service", False)
    arrived = threading.Event()
    threading.Thread(
        target=_wait, args=(arrived, *given, timeout_seconds), daemon=True
    ).start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # Later than our own limit, since jax aborts with a core dump.
            initialization_timeout=timeout_seconds + 30,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=ENDING_SECONDS,
        )
    except ValueError as error:
        if mode == "on" or coordinator:
            raise UserError(
                f"no cluster to join: {error} Give --coordinator=HOST:PORT, or"
                " --distributed=off for this process alone"
            ) from error
    except jax.errors.JaxRuntimeError as error:  # as where the port is another's
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the cluster at {coordinator or 'its coordinator'} cannot be joined:"
            f" {said}; is its port free?"
        ) from error
    finally:
        arrived.set()


def _wait(
    arrived: threading.Event,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout_seconds: int,
) -> None:
    """Says whom it waits for, and gives up in time."""
    begun = time.monotonic()
    while not arrived.wait(min(10.0, timeout_seconds / 3)):
        missing = "the other processes"
        if coordinator and num_processes and process_id == 0:
            here = _connected(int(coordinator.rpartition(":")[2]))
            missing = f"{num_processes - here} of {num_processes} processes"
        elif coordinator:
            missing = f"process 0 and the others at {coordinator}"
        waited = time.monotonic() - begun
        print(f"waiting for {missing}, {waited:.0f} s", file=sys.stderr, flush=True)
        if waited > timeout_seconds:
            print(
                f"error: gave up waiting for {missing} after {waited:.0f} s; see that"
                " all were started, with the same --coordinator and --num_processes",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)


def _connected(port: int) -> int:
    """How many processes have come to the coordinator, which is this process."""
    connections = psutil.Process().net_connections("tcp")
    return len(
        {
            c.raddr
            for c in connections
            if c.status == psutil.CONN_ESTABLISHED and c.laddr.port == port
        }
    )


def check_together(config: Mapping[str, Any], workdir: str) -> None:
    """A first collective: every process is there, and has the same config and workdir.

    Raises `UserError` naming the process that has not what process 0 has.
    """
    global _attempt
    if jax.process_count() == 1:
        _attempt = f"{random.getrandbits(31):08x}"
        return
    agree(config, "another config than process 0; start all with the same command")
    answered = of_all(jax.local_device_count()).sum()
    if answered != jax.device_count():
        raise UserError(f"{answered} devices answered, not {jax.device_count()}")
    _attempt = f"{of_all(random.getrandbits(31))[0]:08x}"
    agree(
        _sees(epath.Path(workdir) / ".attempt"),
        f"a {workdir} of its own; it must be one folder for all processes",
    )


def _sees(path: epath.Path) -> bool:
    """Whether this process sees what process 0 writes there; True in all where that
    cannot write, which it says itself later."""
    wrote = True
    if jax.process_index() == 0:
        try:
            path.write_text(_attempt)
        except Exception:  # a bucket's are TensorFlow's own
            wrote = False
    if not of_all(wrote)[0]:
        return True
    until = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < until:  # a network's folder may lag
        with contextlib.suppress(Exception):
            if path.read_text() == _attempt:
                return True
        time.sleep(0.5)
    return False


class Watchdog:
    """A thread that ends this process when the run hangs or another process failed.

    After START_SECONDS without a beat of `signals`, then after what `allow` says, the
    stacks of all threads are printed and the process ends with exit code 1. A process
    that finds another's failure while it stands still itself prints its stacks too: it
    may be the one that hangs, and the other only waited for it.
    """

    def __init__(self, workdir: str, signals: Signals):
        self._workdir, self._signals = workdir, signals
        self._ended = threading.Event()
        self.allow(START_SECONDS)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def allow(self, seconds: float) -> None:
        """From now on, `seconds` from beat to beat; 0 is no limit."""
        self._signals.beat()  # what came before may have taken long
        self._seconds = seconds

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(POLL_SECONDS, self._seconds or POLL_SECONDS)):
            silent = time.monotonic() - self._signals.last_beat
            if jax.process_count() > 1 and (word := _word(self._workdir)):
                if 0 < self._seconds / 2 < silent:
                    faulthandler.dump_traceback(all_threads=True)
                say_first_failure(self._workdir, word)
                _end(1)
            if 0 < self._seconds < silent:
                faulthandler.dump_traceback(all_threads=True)
                reason = f"nothing was done in {self._seconds:g} s (watchdog_seconds)"
                note_failure(self._workdir, reason)
                say_first_failure(self._workdir, reason)
                _end(1)


def run_to_end(
    run: Callable[[Mapping[str, Any], str], None],
    config: Mapping[str, Any],
    workdir: str,
) -> int:
    """Calls `run(config, workdir)`; every way it can end is one exit code.

    0 done; 2 wrong config or data; 3 not finite; 75 preempted and saved; 1 a crash. One
    of several processes that fails takes the others with it.
    """
    try:
        run(config, workdir)
        forget_failure(workdir)  # of a start that was refused while this run was on
        return 0
    except PreemptedError as error:
        print(f"stopped: {error}", file=sys.stderr, flush=True)
        return 75
    except UserError as error:
        code, reason = 2, f"error: {error}"
    except NonFiniteError as error:
        code, reason = 3, f"stopped: {error}"
    except StorageError as error:
        code, reason = 1, f"error: {error}"
    except BaseException as error:
        first = str(error).partition("\n")[0]
        named = str(error.filename) if isinstance(error, OSError) else ""
        of_workdir = f"{named}/".startswith(f"{os.path.abspath(workdir)}/")
        if of_workdir or re.search("No space left on dev|Disk quota exceeded", first):
            first = re.sub("{{.*?}} ", "", first)  # TensorFlow's
            mend = f"give the same command again when {workdir} can be written"
            code, reason = 1, f"error: {first}; {mend}"
        elif jax.process_count() == 1:
            raise
        else:
            traceback.print_exc()
            code, reason = 1, f"{type(error).__name__}: {first}"
    print(reason, file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        note_failure(workdir, reason)
        say_first_failure(workdir, reason)
        _end(code)
    return code


def _end(code: int) -> NoReturn:
    """Ends this process at once: a proper end would wait for all the others.

    The first process stays a little: without it the others are aborted by jax before
    they have said why.
    """
    sys.stdout.flush()
    if jax.process_index() == 0 and jax.process_count() > 1:
        time.sleep(3 * POLL_SECONDS)
    os._exit(code)


def forget_failure(workdir: str) -> None:
    """Removes what an earlier attempt noted."""
    if jax.process_index() == 0 and not _word(workdir):
        with contextlib.suppress(Exception):
            _path(workdir).unlink(missing_ok=True)


def note_failure(workdir: str, reason: str) -> None:
    """Leaves word of why this process ends, unless another of this attempt was first.

    Before the processes have met there is none: those that wait for this one are ended
    by jax.
    """
    # A bucket's errors are TensorFlow's own; whatever they are, the end goes on.
    with contextlib.suppress(Exception):
        if _attempt and not _word(workdir):
            said = f"process {jax.process_index()}: {reason}"
            _path(workdir).write_text(f"{said}\nattempt {_attempt}\n")


def say_first_failure(workdir: str, reason: str) -> None:
    """Prints what ended the run, as the last line of this process."""
    first = _word(workdir) or f"process {jax.process_index()}: {reason}"
    print(f"first failure: {first}", file=sys.stderr, flush=True)


def _word(workdir: str) -> str:
    """What a process of this attempt has left; a look that fails is no word."""
    with contextlib.suppress(Exception):
        said, _, attempt = _path(workdir).read_text().strip().rpartition("\n")
        return said if _attempt and attempt == f"attempt {_attempt}" else ""
    return ""


def _path(workdir: str) -> epath.Path:
    return epath.Path(workdir) / FAILURE
