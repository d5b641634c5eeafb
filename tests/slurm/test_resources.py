"""What may be asked of SLURM, and the nodes, tasks and GPUs that follow."""

import pytest

from modelforge.errors import UserError
from modelforge.slurm.resources import Layout, Resources, layout_of, settings_of
from modelforge.slurm.time_limit import seconds_of
from modelforge.training.runtime import RuntimeSection


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("100:00:00", 360000),
        ("1-12", 129600),
        ("0-0:5", 300),
        ("2-03:04", 183840),
        ("2-03:04:05", 183845),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "2h", "1:2:3:4", "-5", "1-", "1 12", "1.5"])
def test_any_other_time_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"^--time: must be more than 0 .*\(got .*a day and a half is 1-12$"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nodes": 0}, r"--nodes: must be at least 1 \(got 0\)"),
        ({"cpus_per_task": -1}, r"--cpus-per-task: must be at least 1"),
        ({"gpus_per_node": "four"}, r"--gpus-per-node: must be a number or KIND:NUMBER, such as 4 or a100:4 \(got 'four'\)"),
        ({"memory": "32 GB"}, r"--memory: must be a number with K, M, G or T"),
        ({"time": "10", "seconds_to_stop": 600}, r"--seconds-to-stop: must be less than --time 10 \(got 600\)"),
        ({"time": "soon"}, r"--time: "),
        ({"sbatch_options": ("--signal=USR2@5",)}, r"--sbatch-option: signal is set by --seconds-to-stop"),
        ({"sbatch_options": ("mail-type=END\n#SBATCH --x",)}, r"one line each"),
        ({"partition": "--"}, r"not empty"),
    ],
)
def test_what_slurm_would_misread_is_refused(asked: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Resources(**asked)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        Resources(nodes=0, memory="much")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ({}, 120),
        ({"time": "1-0"}, 120),
        ({"time": "5"}, 60),
        ({"time": "1"}, 12),
        ({"time": "0:04"}, 1),
        ({"time": "60", "seconds_to_stop": 300}, 300),
    ],
)
def test_a_run_is_told_to_stop_two_minutes_before_the_end_or_less_where_time_is_short(asked: dict, seconds: int) -> None:
    assert Resources(**asked).seconds_before_the_end == seconds


@pytest.mark.parametrize(
    ("asked", "runtime", "layout"),
    [
        ({}, {}, Layout(1, 1, 0)),
        ({}, {"accelerator": "cpu", "devices": 3, "num_nodes": 2}, Layout(2, 3, 0)),
        ({"nodes": 2, "gpus_per_node": "4"}, {}, Layout(2, 4, 4)),
        ({"gpus_per_node": "a100:4"}, {"devices": 1}, Layout(1, 4, 4, "a100")),
        ({"gpus_per_node": "4", "tasks_per_node": 2}, {}, Layout(1, 2, 4)),
        ({}, {"accelerator": "gpu", "devices": [0, 1]}, Layout(1, 2, 2)),
        ({"tasks_per_node": 2}, {"accelerator": "cuda"}, Layout(1, 2, 2)),
        ({"gpus_per_node": "4"}, {"accelerator": "cpu", "devices": 2}, Layout(1, 2, 4)),
    ],
)
def test_what_is_not_asked_for_follows_from_the_experiment(asked: dict, runtime: dict, layout: Layout) -> None:
    """A process for each GPU, and a GPU for each process."""
    assert layout_of(Resources(**asked), RuntimeSection(**runtime)) == layout


def test_a_gpu_run_without_gpus_is_refused() -> None:
    with pytest.raises(UserError, match=r'--gpus-per-node: must be at least 1, as runtime.accelerator is "gpu" \(got 0\)'):
        layout_of(Resources(gpus_per_node="0"), RuntimeSection(accelerator="gpu"))


def test_the_settings_say_what_the_experiment_does_not() -> None:
    assert settings_of(Layout(1, 2, 0), RuntimeSection(accelerator="cpu", devices=2)) == ()
    assert settings_of(Layout(2, 4, 4), RuntimeSection()) == (
        "runtime.num_nodes=2",
        "runtime.devices=4",
        "runtime.accelerator=gpu",
    )
