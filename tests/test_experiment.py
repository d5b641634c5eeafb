"""From TOML and overrides to sections: values, paths, origins, and the resolved TOML.

Toy sections show the machinery; the real ones are loaded at the end.
"""

import math
from pathlib import Path

import pytest
import tomli
from toy_sections import SGD, SHORTEST, AdamW, Dataset, Ema, PaiNN, SchNet, Toy, Training, load_toy

from modelforge.configuration.writing import resolved_toml, toml_value
from modelforge.experiment import ConfigurationError, load
from modelforge.training.runtime import RuntimeSection


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_two_tables_are_a_complete_experiment() -> None:
    toy = load_toy(SHORTEST).section
    assert toy.potential == PaiNN(name="painn")
    assert toy.training == Training()


VALUES = [
    ("potential.num_radial=8", ("potential", "num_radial"), 8),
    ("potential.name=schnet", ("potential", "name"), "schnet"),
    ('dataset."energy_key"=E', ("dataset", "energy_key"), "E"),
    ("dataset.energy_key=a=b", ("dataset", "energy_key"), "a=b"),
    ("dataset.energy_key=1979-05-27", ("dataset", "energy_key"), "1979-05-27"),
    ('dataset.energy_key="3"', ("dataset", "energy_key"), "3"),
    ("dataset.fractions=[1, 0, 0]", ("dataset", "fractions"), (1.0, 0.0, 0.0)),
    ("training.shuffle=false", ("training", "shuffle"), False),
    ("training.ema.decay=0.5", ("training", "ema"), Ema(decay=0.5)),
    ("training.lr_scheduler={name='sgd'}", ("training", "lr_scheduler"), SGD()),
    ("training.optimizer.learning_rate=1e-5", ("training", "optimizer"), AdamW(learning_rate=1e-5)),
]


@pytest.mark.parametrize(("override", "key", "value"), VALUES)
def test_an_override_is_read_as_toml_or_text(override: str, key: tuple[str, str], value: object) -> None:
    loaded = load_toy(SHORTEST, [override])
    assert getattr(getattr(loaded.section, key[0]), key[1]) == value


def test_the_last_override_counts() -> None:
    assert load_toy(SHORTEST, ["runtime.seed=1", "runtime.seed=2"]).section.runtime.seed == 2


def test_paths_are_relative_to_where_they_are_written(tmp_path: Path) -> None:
    text = '[potential]\nname = "painn"\n[dataset]\npath = ["a/*.xyz", "/b.xyz"]\n[dataset.split.files]\ntrain = "../c"\n'
    toy = load_toy(text, ["dataset.test_paths.hot=d.xyz"], path=Path("sub/x.toml")).section
    assert toy.dataset.path == (str(tmp_path / "sub/a/*.xyz"), "/b.xyz")
    assert toy.dataset.split.files == {"train": str(tmp_path / "c")}
    assert toy.dataset.test_paths == {"hot": str(tmp_path / "d.xyz")}


def test_links_on_the_way_to_a_file_stay(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    toy = load_toy(SHORTEST, path=Path("link/x.toml")).section
    assert toy.dataset.path == str(tmp_path / "link/a.xyz")


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_toy(SHORTEST, ["dataset.path=~/a.xyz"]).section.dataset.path == str(tmp_path / "a.xyz")


@pytest.mark.parametrize("extra", ["", "[runtime]\nseed = 1\n"])
def test_the_run_folder_is_named_like_the_toml(tmp_path: Path, extra: str) -> None:
    loaded = load_toy(SHORTEST + extra, path=Path("sub/aspirin.toml"))
    assert loaded.section.runtime.run_folder == str(tmp_path / "sub/runs/aspirin")
    assert loaded.origins["runtime.run_folder"] == "derived"


def test_each_value_has_its_origin() -> None:
    text = SHORTEST + '[dataset.test_paths]\n"300 K" = "b.xyz"\n[training.optimizer]\nlearning_rate = 1e-5\n'
    origins = load_toy(text, ["training.ema={decay=0.5}", "potential.cutoff=4"]).origins
    expected = {
        "potential.name": "x.toml:2",
        "potential.cutoff": "--set",
        "potential.num_radial": "default",
        "dataset.path": "x.toml:4",
        'dataset.test_paths."300 K"': "x.toml:6",
        "dataset.values": "default",
        "training.batch_size": "default",
        "training.optimizer.name": "default",
        "training.optimizer.learning_rate": "x.toml:8",
        "training.ema.decay": "--set",
        "training.lr_scheduler": "default",
        "runtime.seed": "default",
        "runtime.run_folder": "derived",
    }
    assert {key: origins[key] for key in expected} == expected


def test_the_resolved_toml_shows_units_origins_and_what_is_not_set() -> None:
    loaded = load_toy(SHORTEST + "[training]\nema.decay = 0.5\n")
    lines = resolved_toml(loaded.section, loaded.origins).splitlines()
    assert lines[:5] == [
        "[potential]",
        'name = "painn"  # x.toml:2',
        "cutoff = 5.0  # angstrom, default",
        "num_radial = 20  # default",
        "",
    ]
    assert "# max_time: not set" in lines
    assert "values = {}  # default" in lines
    assert lines[lines.index("[training.ema]") + 1] == "decay = 0.5  # x.toml:6"


NASTY = [
    "",
    "plain",
    'quote " and \\ backslash \\n',
    "new\nline\r\n\ttab",
    "\x00\x01\x1f\x7f\x80",
    "# no comment",
    "'''\"\"\"",
    "ångström ❤ \U0001f600 \u2028",
    "{a} <name> [b]",
]


@pytest.mark.parametrize("text", NASTY)
def test_the_resolved_toml_gives_the_same_experiment_again(tmp_path: Path, text: str) -> None:
    dataset = Dataset(
        path=(f"/a{text}", "/b"),
        energy_key=text.replace(" ", ""),
        fractions=(1e-5, 0.1 + 0.2, 1e22),
        elements=(1, 8),
        values={text: -math.pi},
        test_paths={f"x {text}.y": f"/c{text}", "z": ("/d",)},
    )
    training = Training(max_time=text, lr_scheduler=SGD(momentum=0.5), ema=Ema(), shuffle=False)
    runtime = RuntimeSection(devices=(0, 1), run_folder=f"/r{text}")
    toy = Toy(potential=SchNet(name="schnet"), dataset=dataset, training=training, runtime=runtime)
    again = load_toy(resolved_toml(toy, {}), path=tmp_path / "elsewhere" / "y.toml")
    assert again.section == toy


@pytest.mark.parametrize("value", [1e-5, 1e22, 0.1, -0.0, 5.0, 3, True, False, [], [1, [2.5]], {"a b": {"c": "d"}}])
def test_a_written_value_is_read_as_the_same(value: object) -> None:
    read = tomli.loads(f"x = {toml_value(value)}")["x"]
    assert read == value
    assert type(read) is type(value)


EXAMPLE = """\
[potential]
name = "painn"
cutoff = 5.0                      # angstrom
num_features = 64
num_layers = 3

[dataset]
name = "extxyz"
path = "train_300K.xyz"           # one or several, globs
energy_key = "energy"
forces_key = "forces"
energy_unit = "eV"
length_unit = "angstrom"
[dataset.test_paths]
test_MD_300K = "test_MD_300K.xyz"
[dataset.split]
strategy = "random"
fractions = [0.9, 0.1, 0.0]
seed = 0
[dataset.self_energies]
source = "regression"

[training]
max_epochs = 200
batch_size = 8
[training.loss]
energy_weight = 1.0
forces_weight = 100.0
[training.optimizer]
name = "adamw"
learning_rate = 1e-3
[training.lr_scheduler]
name = "reduce_lr_on_plateau"
[training.ema]
decay = 0.999

[runtime]
seed = 0
run_folder = "runs/acac"
accelerator = "auto"
devices = "auto"
num_nodes = 1
precision = "32-true"
"""
REAL_SHORTEST = '[potential]\nname = "painn"\n[dataset]\nname = "extxyz"\npath = "a.xyz"\n'


@pytest.mark.parametrize("text", [EXAMPLE, REAL_SHORTEST])
def test_a_real_experiment_survives_its_resolved_toml(text: str) -> None:
    Path("x.toml").write_text(text)
    loaded = load(Path("x.toml"))
    Path("resolved.toml").write_text(resolved_toml(loaded.experiment, loaded.origins))
    assert load(Path("resolved.toml")).experiment == loaded.experiment


def test_each_value_of_a_real_experiment_has_an_origin(tmp_path: Path) -> None:
    Path("x.toml").write_text(EXAMPLE)
    loaded = load(Path("x.toml"), ["training.batch_size=4"])
    assert loaded.experiment.training.batch_size == 4
    assert loaded.experiment.runtime.run_folder == str(tmp_path / "runs/acac")
    assert loaded.origins["training.batch_size"] == "--set"
    assert loaded.origins["potential.num_features"] == "x.toml:4"
    assert set(loaded.origins.values()) == {"--set", "default"} | {
        f"x.toml:{number}" for number, line in enumerate(EXAMPLE.splitlines(), 1) if " = " in line and "batch" not in line
    }


def test_all_mistakes_of_a_real_experiment_come_together() -> None:
    Path("x.toml").write_text(EXAMPLE.replace("batch_size", "batchsize").replace("cutoff = 5.0", "cutoff = -4.0"))
    with pytest.raises(ConfigurationError) as caught:
        load(Path("x.toml"), ["training.lr_sheduler.name=cosine"])
    assert caught.value.messages == [
        "x.toml:3: potential.cutoff: must be greater than 0 (got -4.0)",
        "x.toml:25: training.batchsize: unknown key (did you mean batch_size?)",
        "--set training.lr_sheduler.name=cosine: training.lr_sheduler: unknown table (did you mean lr_scheduler?)",
    ]
