"""Several processes that train one model: started, called together, and ended together, each knowing why.

`TrainingProcesses` is Lightning's DDP with a start that cannot hang in silence; its `ProcessLauncher` starts the processes of
a node where no cluster does so, and sees to it that all learn of the failure of one.
"""

import atexit
import gc
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.distributed import _destroy_dist_connection, _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

from modelforge.errors import RunFailure, UserError
from modelforge.training.connections import Connection, open_connections
from modelforge.training.lifeline import Lifeline
from modelforge.training.roll_call import Meeting, Presence, Say, call_roll, open_store
from modelforge.training.stop_signal import Interrupted

LAUNCHED_BY = "MODELFORGE_LAUNCHED_BY"  # the process that started this one
SECONDS_TO_END = 25.0  # for children, before process 0 ends them: longer than they need to end where they hang (lifeline.py)
LONGEST_WAIT = timedelta(minutes=30)  # in a collective, for a process that is alive
FAILED, USER_MISTAKE = 1, 2  # exit codes


def _keyword_of_buffers() -> str:
    """What DDP calls its sending of buffers at each step: torch 2.13 has given it another name."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"


class ProcessFailed(RunFailure):
    """Another process of this run failed or was killed; the message says which and why."""


class TrainingProcesses(DDPStrategy):
    """Processes that average their gradients, one a device."""

    def __init__(self, *, startup_timeout: float) -> None:
        """`startup_timeout`: seconds that the first process waits for the last one."""
        buffers: dict[str, Any] = {_keyword_of_buffers(): False}  # they are constants, which would be sent at each step
        super().__init__(
            timeout=LONGEST_WAIT,
            **buffers,
            gradient_as_bucket_view=True,
            find_unused_parameters=False,  # all take part in each loss, see `EagerStep`
        )
        self.startup_timeout = startup_timeout
        self.facts: Mapping[str, str] = {}
        self.say: Say = print

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher: ProcessLauncher = ProcessLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_distributed(self) -> None:
        """Open the store, call the roll, tie the lifelines, and only then form the process group."""
        if torch.distributed.is_initialized():
            return
        self.set_world_ranks()
        meeting, me = self._meeting(), Presence(self.global_rank, self.facts)
        store = PrefixStore(f"modelforge/{_attempt()}", open_store(meeting, alone=_launcher_gone))
        everyone = call_roll(store, meeting, me, say=self.say, ended=self._ended)
        self._launcher.lifeline = Lifeline(store, everyone, me, host=meeting.host)
        backend = self._process_group_backend = self._get_process_group_backend()
        others = open_connections()
        torch.distributed.init_process_group(
            backend,
            store=PrefixStore("group", store),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self._timeout,
            device_id=self.root_device if self.root_device.type != "cpu" else None,
        )
        if backend == "gloo":
            self._launcher.connections = sorted(open_connections() - others)
        if backend == "nccl":
            atexit.register(_destroy_dist_connection)

    def _meeting(self) -> Meeting:
        assert self.cluster_environment is not None
        return Meeting(
            host=self.cluster_environment.main_address,
            port=self.cluster_environment.main_port,
            rank=self.global_rank,
            num_processes=self.world_size,
            timeout=self.startup_timeout,
            opened_elsewhere=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def _ended(self) -> dict[int, int]:
        return self._launcher.exit_codes(first_rank=self.node_rank * self.num_processes)


class ProcessLauncher(_SubprocessScriptLauncher):
    """Starts the other processes of a node where no cluster does so, and lets all of a run know why one fails.

    Lightning's own one lets a thread kill process 0 within 5 s of any exit code but 0, also where all stop on request.
    """

    lifeline: Lifeline | None = None
    connections: Sequence[Connection] = ()  # of gloo

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,  # noqa: ARG002 - the arguments are Lightning's
        **kwargs: Any,
    ) -> Any:
        """Call the function in each process; `ProcessFailed` where its error is but the consequence of another's failure."""
        try:
            self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        except ValueError as error:
            raise UserError(f"runtime.devices: does not fit to how this process was started: {error}") from error
        if not self.cluster_environment.creates_processes_externally:
            os.environ[LAUNCHED_BY] = str(os.getpid())
            self._call_children_scripts()
            atexit.register(self._end_children)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            return function(*args, **kwargs)
        except Interrupted:  # on which all have agreed
            raise
        except BaseException as error:
            self.break_off(error)
            raise

    def leave(self) -> None:
        """Nothing that happens to other processes matters any more, nor do they miss this one."""
        if self.lifeline is not None:
            self.lifeline.leave()
            self.lifeline = None

    def exit_codes(self, *, first_rank: int) -> dict[int, int]:
        """The exit codes of those that have ended, by rank."""
        codes = {first_rank + number: process.poll() for number, process in enumerate(self.procs, start=1)}
        return {rank: code for rank, code in codes.items() if code is not None}

    def break_off(self, error: BaseException) -> None:
        """Let nobody wait for a process that has failed, this one or another."""
        if self.lifeline is None:  # the roll call has failed, alike for all
            return
        news = self.lifeline.news() if isinstance(error, RuntimeError) else None  # what collectives raise
        if news is None:
            self.lifeline.report(f"{type(error).__name__}: {error}")
            self.lifeline = None
        self.leave()
        # What others wait for ends at once. The end of the group would close its connections, too, but it waits, with the
        # interpreter in its hands, for a thread that may want the interpreter to give back the tensors of a failed collective.
        for connection in self.connections:
            connection.shut_down()
        # The usual end would wait for collectives that never end, or abort in the midst of them.
        atexit.register(self._end_at_once, USER_MISTAKE if isinstance(error, UserError) else FAILED)
        if news is not None:
            raise ProcessFailed(news) from error

    def _end_at_once(self, code: int) -> None:
        self._end_children()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _end_children(self) -> None:
        for process in self.procs:
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def kept_together(trainer: pl.Trainer) -> Iterator[None]:
    """Until the end of this the processes of a trainer wait for each other: a failure of one, also after the fit, ends all."""
    launcher = trainer.strategy.launcher
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        if isinstance(launcher, ProcessLauncher):
            launcher.break_off(error)
        raise
    finally:
        if isinstance(launcher, ProcessLauncher) and launcher.lifeline is not None:  # not broken off
            launcher.leave()
            _end_threads_of_gloo()


def _end_threads_of_gloo() -> None:
    """Wait for what gloo's threads still have to do.

    They give back the tensors of the last collectives, for which they need the interpreter: if that is ending, the process is
    aborted (SIGABRT), however well all went.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        gc.collect()  # the model wrapped for DDP, which keeps the group alive
        torch.distributed.destroy_process_group()


def introduce(trainer: pl.Trainer, *, facts: Mapping[str, str], say: Say) -> None:
    """What the processes of a trainer compare at their start, named in words, and where the first one speaks."""
    if isinstance(trainer.strategy, TrainingProcesses):
        trainer.strategy.facts, trainer.strategy.say = facts, say


def _launcher_gone() -> str | None:
    launcher = os.environ.get(LAUNCHED_BY)
    if launcher is None or int(launcher) in (os.getpid(), os.getppid()):
        return None
    return f"process 0 (pid {launcher}) ended before the start; look at its output"


def _attempt() -> str:
    """Of a launcher that starts again what failed, in the same store."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
