"""Several processes: who is there at the start, what they must agree on, and how they end when one of them fails."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from modelforge.errors import UserError
from modelforge.training import roll_call
from modelforge.training.processes import TrainingProcesses
from modelforge.training.roll_call import Meeting, Presence, call_roll, open_store
from modelforge.training.runtime import RuntimeSection
from modelforge.training.section import TrainingSection
from modelforge.training.trainer import build_trainer

SECONDS_TO_END = 20.0  # for processes whose neighbour failed, on a busy machine; a collective waits for half an hour

# The roll call


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def meeting(rank: int, num_processes: int, *, timeout: float = 20.0, port: int = 0) -> Meeting:
    return Meeting(host="127.0.0.1", port=port, rank=rank, num_processes=num_processes, timeout=timeout)


def answers(
    processes: list[Presence],
    num_processes: int,
    *,
    timeout: float = 20.0,
    say: Callable[[str], None] = print,
    ended: Callable[[], dict[int, int]] = dict,
) -> list[list[Presence] | str]:
    """What the roll call gives to each process, or the message of its error."""
    store = HashStore()

    def answer(process: Presence) -> list[Presence] | str:
        place = meeting(process.rank, num_processes, timeout=timeout)
        try:
            return call_roll(store, place, process, say=say, ended=ended)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(answer, processes))


def test_all_learn_who_is_there() -> None:
    everyone = [Presence(rank, {"split": "a1"}, host=f"node{rank}", pid=10 + rank) for rank in range(3)]
    assert answers(everyone, 3) == [everyone] * 3


def test_missing_processes_are_named_to_all_that_are_there() -> None:
    here = [Presence(0, host="red", pid=7), Presence(2, host="blue", pid=8)]
    first, other = answers(here, 4, timeout=0.3)
    assert first == other
    assert "processes 1 and 3 of 4 did not appear within 0.3 s" in first
    assert "here: process 0 on red (pid 7), process 2 on blue (pid 8)" in first


def test_processes_with_other_facts_are_named_to_all() -> None:
    facts = {"data set": "a1", "split": "b2"}
    others = [Presence(1, facts, host="red", pid=7), Presence(2, {**facts, "split": "b3"}, host="blue", pid=8)]
    messages = answers([Presence(0, facts, host="red", pid=6), *others], 3)
    assert len(set(map(str, messages))) == 1
    assert "process 2 on blue (pid 8) has another split than process 0 on red (pid 6): b3 instead of b2" in messages[0]
    assert "process 1" not in messages[0]
    assert "data set" not in messages[0]


def test_a_fact_that_only_one_process_knows_is_a_difference() -> None:
    messages = answers([Presence(0), Presence(1, {"split": "b2"})], 2)
    assert all("another split" in str(message) and "b2 instead of none" in str(message) for message in messages)


def test_two_processes_with_one_number_do_not_start() -> None:
    here = [Presence(0), Presence(1, host="red", pid=7), Presence(1, host="blue", pid=8)]
    messages = answers(here, 3, timeout=0.5)
    assert any("is the second one with this number" in str(message) for message in messages)
    assert all(isinstance(message, str) for message in messages)


def test_a_process_that_has_ended_is_not_waited_for() -> None:
    begun = time.monotonic()
    (message,) = answers([Presence(0)], 2, timeout=60.0, ended=lambda: {1: -9})
    assert "process 1 with exit code -9 ended before the start" in message
    assert time.monotonic() - begun < 30


def test_it_is_said_once_who_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "SECONDS_OF_SILENCE", 0.1)
    said: list[str] = []
    answers([Presence(0)], 3, timeout=0.6, say=said.append)
    assert said == ["waiting for processes 1 and 2 of 3, up to 0.6 s"]


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot open port {port}.*free port"):
            open_store(meeting(0, 2, port=port), alone=lambda: None)


def test_process_0_waits_for_nobody_when_it_opens_the_store() -> None:
    begun = time.monotonic()
    open_store(meeting(0, 5, port=free_port(), timeout=60.0), alone=lambda: None)
    assert time.monotonic() - begun < 30


def test_a_process_that_cannot_reach_process_0_says_where_it_looked() -> None:
    port = free_port()
    with pytest.raises(
        UserError, match=rf"process 1 of 2 on \S+ did not reach process 0 at 127.0.0.1 port {port} within 0.3 s"
    ):
        open_store(meeting(1, 2, port=port, timeout=0.3), alone=lambda: None)


def test_a_process_whose_launcher_is_gone_looks_no_further() -> None:
    with pytest.raises(UserError, match="process 0 ended"):
        open_store(meeting(1, 2, port=free_port(), timeout=60.0), alone=lambda: "process 0 ended")


def test_a_store_that_another_has_opened_is_found() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    place = Meeting("127.0.0.1", server.port, rank=0, num_processes=1, timeout=20.0, opened_elsewhere=True)
    assert call_roll(open_store(place, alone=lambda: None), place, Presence(0), say=print) == [Presence(0)]


# The trainer


@pytest.mark.parametrize(("devices", "is_several"), [("auto", False), (1, False), (2, True)])
def test_several_devices_are_trained_on_by_our_processes(tmp_path: Path, devices: int, is_several: bool) -> None:
    runtime = RuntimeSection(accelerator="cpu", devices=devices, startup_timeout=7.0)
    trainer = build_trainer(runtime, TrainingSection(), folder=str(tmp_path))
    assert isinstance(trainer.strategy, TrainingProcesses) == is_several
    assert trainer.world_size == (2 if is_several else 1)
    if isinstance(trainer.strategy, TrainingProcesses):
        assert trainer.strategy.startup_timeout == 7.0


# Real processes

SCRIPT = """\
import ctypes, os, signal, sys, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader
from modelforge.training import lifeline
from modelforge.training.stop_signal import Interrupted
from modelforge.training.processes import ProcessFailed, TrainingProcesses, introduce, kept_together

story, devices, nodes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.steps = torch.nn.Linear(2, 1, bias=False), 0
        torch.nn.init.zeros_(self.layer.weight)
        self.register_buffer("constant", torch.tensor(float(trainer.global_rank)))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1.0)
    def train_dataloader(self):
        return DataLoader([torch.tensor([1.0, 10.0 * self.global_rank])] * 3, batch_size=None)
    def val_dataloader(self):
        return DataLoader([torch.ones(2)] * (1 + 40 * self.global_rank), batch_size=None)
    def validation_step(self, batch, batch_idx):
        self.layer(batch)
    def training_step(self, batch, batch_idx):
        self.steps += 1
        if self.steps == 2:
            act(story, self.global_rank)
        return self.layer(batch).sum()
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.steps == 2 and story == "all stop on request":
            if self.global_rank == 0:
                lifeline.SECONDS_TO_LEAVE = 0.5
                time.sleep(3.0)
            raise Interrupted("as asked")
    def configure_gradient_clipping(self, optimizer, **options):
        torch._foreach_mul_([self.layer.weight.grad], torch.tensor(0.5))

def act(story, rank):
    if story == "process 1 is killed, process 2 hangs":
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 2:
            lifeline.SECONDS_TO_LEAVE = 0.5
            ctypes.CDLL(None).sleep(300)
    if story == "process 0 is killed" and rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if story == "process 0 fails" and rank == 0:
        raise ValueError("a made-up fault")

strategy = TrainingProcesses(startup_timeout=60.0)
trainer = pl.Trainer(
    accelerator="cpu", devices=devices, num_nodes=nodes, strategy=strategy, max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    use_distributed_sampler=False,
)
introduce(trainer, facts={}, say=print)
if story == "process 1 does not get ready" and trainer.global_rank == 1:
    sys.exit(3)
net = Net()
try:
    with kept_together(trainer):
        trainer.fit(net)
except Interrupted:
    sys.exit(75)
except Exception as error:
    sys.stdout.write(f"{trainer.global_rank}: {type(error).__name__}: {error}\\n")
    sys.exit(1)
finally:
    for thread in Path("/proc/self/task").glob("*/comm"):
        if "gloo" in (name := thread.read_text()):
            sys.stdout.write(f"still there: {name}")
sys.stdout.write(f"{trainer.global_rank}: {net.layer.weight.tolist()} {net.constant}\\n")
"""

Ends = tuple[list[int], str]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Ends]:
    """Lets processes act out a story: gives their exit codes, and what they said."""
    script = tmp_path / "story.py"
    script.write_text(SCRIPT)
    output = tmp_path / "output"

    def started(*arguments: object, **variables: str) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
        environment = {**kept, "OMP_NUM_THREADS": "1", **variables}
        with output.open("ab") as file:
            command = [sys.executable, str(script), *map(str, arguments)]
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def play(story: str, *, by_hand: int = 0, devices: int = 1) -> Ends:
        """`by_hand` processes as on as many nodes; or one, which starts the others itself."""
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_RANK": "0"}
        if by_hand:
            processes = [started(story, 1, by_hand, **place, NODE_RANK=str(number)) for number in range(by_hand)]
        else:
            processes = [started(story, devices, 1)]
        try:
            codes = [process.wait(60) for process in processes]
            wait_for_end_of_sessions([process.pid for process in processes])
        finally:
            for process in processes:
                with_session(process.pid, signal.SIGKILL)
        return codes, output.read_text()

    return play


def with_session(leader: int, number: int) -> bool:
    """Whether there is a process left that got the signal."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    return True


def wait_for_end_of_sessions(leaders: list[int]) -> None:
    end = time.monotonic() + SECONDS_TO_END
    while any(with_session(leader, 0) for leader in leaders):
        assert time.monotonic() < end, "a process is left behind"
        time.sleep(0.05)


def test_processes_average_gradients(play: Callable[..., Ends]) -> None:
    """By hand: the mean gradient is (1, 5), scaled in place by a half; one process validates 41 batches, the other 1."""
    codes, said = play("all goes well", by_hand=2)
    assert codes == [0, 0], said
    assert "0: [[-1.5, -7.5]] 0.0" in said
    assert "1: [[-1.5, -7.5]] " in said
    assert "still there" not in said  # a thread of gloo, which can abort the process at the end of the interpreter


def test_others_end_with_the_reason_when_a_process_is_killed(play: Callable[..., Ends]) -> None:
    """One of them in a collective, the other in a call that nothing ends."""
    codes, said = play("process 1 is killed, process 2 hangs", by_hand=3)
    assert codes == [1, -signal.SIGKILL, 1], said
    assert "0: ProcessFailed: process 1 on" in said
    assert "stopped: process 1 on" in said
    assert said.count("ended without a word") == 2


def test_children_end_with_the_reason_when_process_0_fails(play: Callable[..., Ends]) -> None:
    codes, said = play("process 0 fails", devices=2)
    assert codes == [1], said
    assert "0: ValueError: a made-up fault" in said, said
    assert "1: ProcessFailed: process 0 on" in said, said
    assert "failed: ValueError: a made-up fault" in said, said


def test_no_child_is_left_when_process_0_is_killed(play: Callable[..., Ends]) -> None:
    codes, said = play("process 0 is killed", devices=2)
    assert codes == [-signal.SIGKILL], said
    assert "1: ProcessFailed: process 0 on" in said


def test_processes_that_stop_on_request_do_not_hurry_each_other(play: Callable[..., Ends]) -> None:
    """Process 0 takes 3 s longer, as when it writes a checkpoint."""
    codes, said = play("all stop on request", devices=2)
    assert codes == [75], said
    assert "still there" not in said


def test_process_0_does_not_wait_for_a_child_that_ended(play: Callable[..., Ends]) -> None:
    codes, said = play("process 1 does not get ready", devices=2)
    assert codes == [1], said
    assert "0: UserError: the run cannot start: process 1 with exit code 3 ended before the start" in said
