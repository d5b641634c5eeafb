"""The command line: parse, call, print. Torch is imported only inside a command."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from modelforge.errors import RunFailure, UserError

if TYPE_CHECKING:
    from modelforge.experiment import LoadedExperiment

FAILED, USER_MISTAKE, STOPPED_EARLY = 1, 2, 75

app = typer.Typer(
    help="Train neural network potentials: one TOML file in, a tested potential out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(help="Look at data, convert them, download registered data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Config = Annotated[Path, typer.Option("--config", "-c", help="The experiment, a TOML file.", metavar="TOML")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override a key, such as training.batch_size=8; repeatable.", metavar="KEY=VALUE"),
]
Files = Annotated[
    list[str], typer.Argument(help="Files, globs or folders with structures, all of one format.", metavar="FILE...")
]
DataSettings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help='A key of \\[dataset], such as energy_unit="kcal/mol"; repeatable.', metavar="KEY=VALUE"),
]
RunFolder = Annotated[Path | None, typer.Option(help="Where the run goes (runtime.run_folder).", metavar="DIR")]

# What a job asks of SLURM
Configs = Annotated[
    list[Path], typer.Option("--config", "-c", help="The experiment, a TOML file; several make an array job.", metavar="TOML")
]
Nodes = Annotated[int | None, typer.Option(help="Machines; by default runtime.num_nodes.", metavar="N")]
Gpus = Annotated[
    str | None, typer.Option("--gpus-per-node", help="GPUs of each node, such as 4 or a100:4; a process each.", metavar="G")
]
Tasks = Annotated[int | None, typer.Option("--tasks-per-node", help="Processes of each node, if not one a GPU.", metavar="N")]
Cpus = Annotated[int | None, typer.Option("--cpus-per-task", help="CPU cores of each process, and its threads.", metavar="N")]
Time = Annotated[str | None, typer.Option(help="Time limit: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS ...", metavar="T")]
Memory = Annotated[str | None, typer.Option(help="Memory of each node, such as 32G.", metavar="SIZE")]
Name = Annotated[str | None, typer.Option(help="As sbatch takes it.", metavar="NAME")]
SecondsToStop = Annotated[
    int | None, typer.Option(help="How long before the time limit the run saves and stops; usually 120.", metavar="SECONDS")
]
SbatchOptions = Annotated[
    list[str] | None, typer.Option("--sbatch-option", help="Another option, such as mail-type=END; repeatable.", metavar="TEXT")
]
Setup = Annotated[
    list[str] | None,
    typer.Option(help="A line before the run: 'module load cuda', 'source venv/bin/activate'; repeatable.", metavar="LINE"),
]
MaxAtOnce = Annotated[int | None, typer.Option(min=1, help="Tasks of the array that run at the same time.", metavar="K")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script; write and submit nothing.")]


@app.command()
def train(
    config: Config,
    settings: Settings = None,
    run_folder: RunFolder = None,
    skip_rehearsal: Annotated[bool, typer.Option("--skip-rehearsal", help="Start without trying out the whole run.")] = False,
) -> None:
    """Train, test and report. The same command starts a run, resumes it, or says that it is finished."""
    from pytorch_lightning.utilities import rank_zero_only

    from modelforge.experiment import load
    from modelforge.train import train as run
    from modelforge.training.stop_signal import Interrupted

    experiment = load(config, [*(settings or []), *_folder_setting(run_folder)])
    try:
        with _places_named(experiment):
            run(experiment, Console(), with_rehearsal=not skip_rehearsal)
    except Interrupted as stop:
        if not getattr(rank_zero_only, "rank", 0):  # one of several processes speaks for all
            typer.echo(f"stopped ({stop}); the same command goes on from there", err=True)
        raise typer.Exit(STOPPED_EARLY) from None


@app.command()
def check(config: Config, settings: Settings = None) -> None:
    """Find out, in seconds, everything about an experiment that can be known without training."""
    from modelforge.check import check as look
    from modelforge.experiment import load

    experiment = load(config, settings or [])
    with _places_named(experiment):
        for line in look(experiment):
            typer.echo(line)


@app.command()
def submit(
    configs: Configs,
    settings: Settings = None,
    run_folder: RunFolder = None,
    nodes: Nodes = None,
    gpus: Gpus = None,
    tasks: Tasks = None,
    cpus: Cpus = None,
    time: Time = None,
    memory: Memory = None,
    partition: Name = None,
    account: Name = None,
    qos: Name = None,
    constraint: Name = None,
    seconds_to_stop: SecondsToStop = None,
    sbatch_options: SbatchOptions = None,
    setup: Setup = None,
    max_at_once: MaxAtOnce = None,
    dry_run: DryRun = False,
) -> None:
    """Write a batch script into the run folder and submit it to SLURM; the job starts again until the run is finished."""
    from modelforge.slurm.resources import Resources
    from modelforge.slurm.submit import submit as hand_in

    resources = Resources(
        nodes=nodes,
        gpus_per_node=gpus,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        time=time,
        memory=memory,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        seconds_to_stop=seconds_to_stop,
        sbatch_options=tuple(sbatch_options or ()),
        setup=tuple(setup or ()),
    )
    overrides, say = [*(settings or []), *_folder_setting(run_folder)], partial(typer.echo, err=True)
    if told := hand_in(configs, overrides, resources, max_at_once=max_at_once, is_dry_run=dry_run, say=say):
        typer.echo(told)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option(help="A run folder or a potential.safetensors.", metavar="RUN")],
    data: Annotated[list[str], typer.Option(help="File or glob with structures; repeatable.", metavar="FILE")],
    settings: DataSettings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and predictions.extxyz.", metavar="DIR")] = None,
    device: Annotated[str, typer.Option(help="Device to run on, such as cpu or cuda.")] = "cpu",
) -> None:
    """Predict structures with a trained potential; errors where they carry labels."""
    from modelforge.evaluate import evaluate_files
    from modelforge.report import error_table

    results = evaluate_files(model, data, settings=settings or [], out=out, device=device)
    Console().print(error_table(results))
    for line in (*(f"note: {note}" for note in results["notes"]), f"written to {results['folder']}"):
        typer.echo(line)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An .npz with hyper (JSON) and weights as w/<name>.", metavar="FILE.npz")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="schnetpack, torchani, torchmdnet, aimnet, sake, nequip, allegro or mace.", metavar="FORMAT"
        ),
    ],
    out: Annotated[Path, typer.Option(help="The potential to write.", metavar="FILE.safetensors")],
    energy_unit: Annotated[str | None, typer.Option(help="Of its energies, if not as the file says.", metavar="UNIT")] = None,
    length_unit: Annotated[str | None, typer.Option(help="Of its positions, if not as the file says.", metavar="UNIT")] = None,
    elements: Annotated[str | None, typer.Option(help="Those that it is to know.", metavar="H,C,O")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or float64, if not that of the weights.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Bring a model along that another package has trained: to predict with it, or to train it further."""
    from modelforge.import_model import import_model

    options = {"energy_unit": energy_unit, "length_unit": length_unit, "elements": elements}
    for line in import_model(file, out, format_name=format_name, options=options, precision=precision, force=force):
        typer.echo(line)


@app.command()
def describe(
    section: Annotated[str | None, typer.Argument(help="A section, such as training.loss.")] = None,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="Print the JSON schema for editors.")] = False,
) -> None:
    """The reference of every key: type, default, unit and meaning."""
    from modelforge import describe as reference

    if json_schema:
        typer.echo(reference.json_schema_text())
    else:
        Console().print(reference.describe(section))


@data_app.command()
def inspect(
    files: Files,
    settings: DataSettings = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page with plots, too.", metavar="PAGE.html")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead.")] = False,
) -> None:
    """Look at files before an experiment is written: labels, units, distributions, what is odd, and what the TOML needs."""
    from modelforge.inspection.showing import show

    show(files, settings or [], Console(), say=lambda text: typer.echo(text, err=True), html=html, as_json=as_json)


@data_app.command()
def convert(
    files: Files,
    out: Annotated[Path, typer.Option(help="Where to: NAME.xyz for extended XYZ, any other name for a store.", metavar="PATH")],
    settings: DataSettings = None,
) -> None:
    """Write structures of any format as extended XYZ or as a store, in eV and angstrom."""
    from modelforge.convert import convert as write
    from modelforge.data.detection import load_data

    for line in write(load_data(files, settings or []).section.dataset, out):
        typer.echo(line)


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A registered data set, such as spice2 or rmd17.")],
    version: Annotated[str | None, typer.Option(help="Version; by default the newest.")] = None,
    molecule: Annotated[str | None, typer.Option(help="One molecule of rmd17 or md22; by default all.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to; by default modelforge's cache.", metavar="DIR")] = None,
) -> None:
    """Download a registered data set: resumed where it broke off, checked against its checksum, kept for all runs."""
    from modelforge.data.fetching.fetch import fetch as download

    for path in download(name, version=version, molecule=molecule, folder=folder, progress=Console(stderr=True)):
        typer.echo(path)


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 2, a run that cannot go on one message and exit code 1."""
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(USER_MISTAKE)
    except RunFailure as failure:
        typer.echo(f"stopped: {failure}", err=True)
        sys.exit(FAILED)


@contextmanager
def _places_named(experiment: "LoadedExperiment") -> Iterator[None]:
    """What turns out to be wrong with a key only once the data are read gets the key's place too."""
    try:
        yield
    except UserError as error:
        raise UserError(experiment.with_places(str(error))) from error


def _folder_setting(run_folder: Path | None) -> list[str]:
    return [f'runtime.run_folder="{run_folder}"'] if run_folder else []


if __name__ == "__main__":
    main()
