"""Each mistake in a TOML or an override has its place and plain words."""

# ruff: noqa: E501 - messages stand whole

from pathlib import Path

import pytest
from toy_sections import SHORTEST, messages_of


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


MISTAKES = [
    ("[training]\nlr_sheduler.name = 'sgd'", "x.toml:6: training.lr_sheduler: unknown table (did you mean lr_scheduler?)"),
    ("[training]\nbatchsize = 8", "x.toml:6: training.batchsize: unknown key (did you mean batch_size?)"),
    ("[training]\nlearning_rate = 8", "x.toml:6: training.learning_rate: unknown key (belongs in [training.optimizer] or [training.lr_scheduler])"),
    ("[training]\ndecay = 8", "x.toml:6: training.decay: unknown key (belongs in [training.ema])"),
    ("[training]\nfractionz = 8", "x.toml:6: training.fractionz: unknown key (did you mean fractions in [dataset]?)"),
    ("[training]\nqqq = 8", "x.toml:6: training.qqq: unknown key (modelforge describe training lists the keys)"),
    ("[trainin]\nqqq = 8", "x.toml:5: trainin: unknown table (did you mean training?)"),
    ("[training.optimizer]\nmomentum = 0.5", "x.toml:6: training.optimizer.momentum: unknown key (momentum belongs to sgd, not adamw)"),
    ("[training.optimizer]\nname = 'adam'", "x.toml:6: training.optimizer.name: unknown choice 'adam' (did you mean 'adamw'? choices: adamw, sgd)"),
    ("[training.optimizer]\nname = 'lbfgs'", "x.toml:6: training.optimizer.name: unknown choice 'lbfgs' (choices: adamw, sgd)"),
    ("[training.optimizer]\nname = 3", "x.toml:6: training.optimizer.name: unknown choice 3 (choices: adamw, sgd)"),
    ("[training.lr_scheduler]\nmomentum = 0.5", "x.toml: training.lr_scheduler.name: missing; choose one of: adamw, sgd"),
    ("[training]\nlr_scheduler = 'sgd'", "x.toml:6: training.lr_scheduler: must be a table (got 'sgd'); write [training.lr_scheduler] and below it name = \"sgd\""),
    ("[training]\noptimizer = 3", "x.toml:6: training.optimizer: must be a table (got 3); write [training.optimizer] and its keys below"),
    ("[[training]]\nbatch_size = 3", "x.toml:5: training: must be a table (got a list of tables); write [training] in single brackets"),
    ("[training.ema]\ndecay = 1", "x.toml:6: training.ema.decay: must be less than 1 (got 1)"),
    ("[training.ema]\ndekay = 1", "x.toml:6: training.ema.dekay: unknown key (did you mean decay?)"),
    ("[training]\nema = true", "x.toml:6: training.ema: must be a table or false (got true)"),
    ("[training]\nshuffle = 1", "x.toml:6: training.shuffle: must be true or false (got 1)"),
    ("[training]\nshuffle = 'True'", "x.toml:6: training.shuffle: must be true or false (got 'True'); write true"),
    ("[training]\nmax_time = 3", "x.toml:6: training.max_time: must be a text (got 3); as a text: \"3\" (in a shell '\"3\"')"),
    ("[training]\nmax_epochs = 1e3", "x.toml:6: training.max_epochs: must be a whole number of at least 1 (got 1000.0); write 1000"),
    ("[training]\nmax_epochs = 1.5", "x.toml:6: training.max_epochs: must be a whole number of at least 1 (got 1.5)"),
    ("[training]\nmax_epochs = '3'", "x.toml:6: training.max_epochs: must be a whole number of at least 1 (got '3'); drop the quotes"),
    ("[training]\nmax_epochs = true", "x.toml:6: training.max_epochs: must be a whole number of at least 1 (got true)"),
    ("[training]\nmax_epochs = 0", "x.toml:6: training.max_epochs: must be at least 1 (got 0)"),
    ("[training]\nmax_epochs.x = 0", "x.toml:6: training.max_epochs: must be a whole number of at least 1 (got a table)"),
    ("[runtime]\nlog_interval = -4.0", "x.toml:6: runtime.log_interval: must be greater than 0 (got -4.0)"),
    ("[runtime]\nlog_interval = true", "x.toml:6: runtime.log_interval: must be a number greater than 0 (got true)"),
    ("[runtime]\nlog_interval = inf", "x.toml:6: runtime.log_interval: must be a finite number (got inf)"),
    ("[runtime]\nlog_interval = nan", "x.toml:6: runtime.log_interval: must be a finite number (got nan)"),
    ("[runtime]\nlog_interval = [1.0]", "x.toml:6: runtime.log_interval: must be a number greater than 0 (got [1.0])"),
    ("[runtime]\ndevices = 'all'", "x.toml:6: runtime.devices: must be 'auto', a whole number of at least 1 or a list of whole numbers of at least 0 (got 'all')"),
    ("[runtime]\ndevices = [\n0,\ntrue]", "x.toml:8: runtime.devices[1]: must be a whole number of at least 0 (got true)"),
    ("elements = 8", "x.toml:5: dataset.elements: must be a list of whole numbers of at least 1 (got 8); write [8]"),
    ("[runtime]\ndevices = []", "x.toml:6: runtime.devices: must not be empty"),
    ("[runtime]\ndevices = [0, 0]", "x.toml:6: runtime.devices: must not name a device twice (got [0, 0])"),
    ("[runtime]\ncompile = 'yes'", "x.toml:6: runtime.compile: must be 'auto', true or false (got 'yes')"),
    ("[runtime]\nprecision = '32'", "x.toml:6: runtime.precision: unknown choice '32' (choices: 32-true, 64-true, bf16-mixed, 16-mixed)"),
    ("[runtime]\nprecision = 32", "x.toml:6: runtime.precision: must be '32-true', '64-true', 'bf16-mixed' or '16-mixed' (got 32)"),
    ("[runtime]\nrun_folder = ''", "x.toml:6: runtime.run_folder: must not be empty"),
    ("[runtime]\nrun_folder = 1979-05-27\nnum_nodes = 0", "x.toml:7: runtime.num_nodes: must be at least 1 (got 0)"),
    ("energy_unit = 'Ha'", "x.toml:5: dataset.energy_unit: unknown choice 'Ha' (choices: eV, kcal/mol, hartree)"),
    ("energy_key = 'my energy'", "x.toml:5: dataset.energy_key: must be one word (got 'my energy')"),
    ("fractions = [0.9, 0.1]", "x.toml:5: dataset.fractions: must be a list of 3 numbers (got [0.9, 0.1])"),
    ("fractions = [1, 2, 3, 4]", "x.toml:5: dataset.fractions: must be a list of 3 numbers (got [1, 2, 3, 4])"),
    ("fractions = [1, 2, '3']", "x.toml:5: dataset.fractions[2]: must be a number (got '3'); drop the quotes"),
    ("fractions = 1", "x.toml:5: dataset.fractions: must be a list of 3 numbers (got 1)"),
    ("elements = [1]", "x.toml:5: dataset.elements: must have at least 2 entries (got [1])"),
    ("elements = [1, 2, 3, 4]", "x.toml:5: dataset.elements: must have at most 3 entries (got [1, 2, 3, 4])"),
    ("test_paths = 'b.xyz'", "x.toml:5: dataset.test_paths: must be a table of paths or lists of paths (got 'b.xyz')"),
    ("test_paths.'300 K' = 3", "x.toml:5: dataset.test_paths.\"300 K\": must be a path or a list of paths (got 3); as a text: \"3\" (in a shell '\"3\"')"),
    ("values.H = 'x'", "x.toml:5: dataset.values.H: must be a number (got 'x')"),
    ("[dataset.split]\nstrategy = 'files'\nfiles = {train = 'a'}\nfractions = 3", "x.toml:8: dataset.split.fractions: unknown key (belongs in [dataset])"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_has_its_line_and_plain_words(text: str, message: str) -> None:
    assert messages_of(SHORTEST + text) == [message]


WHOLE_FILES = [
    (
        "[runtime]\nseed = 1",
        [
            'x.toml: potential: missing; add a table [potential] with name = "painn" or "schnet"',
            "x.toml: dataset: missing; add a table [dataset] with path",
        ],
    ),
    ("potential = 'painn'\n[dataset]\npath='a'", [
        "x.toml:1: potential: must be a table (got 'painn'); write [potential] and below it name = \"painn\""
    ]),
    ("dataset = 3\n[potential]\nname = 'painn'", [
        "x.toml:1: dataset: must be a table (got 3); write [dataset] and its keys below"
    ]),
    (
        "[potential]\nname = 'pain'\nnum_radials = 3\n[dataset]\n",
        [
            "x.toml:2: potential.name: unknown choice 'pain' (did you mean 'painn'? choices: painn, schnet)",
            "x.toml:3: potential.num_radials: unknown key (did you mean num_radial?)",
            "x.toml: dataset.path: missing; give the extended XYZ file(s)",
        ],
    ),
    (
        "[dataset]\npath = ['a', 3]\n[potential]\nname = 'painn'\nnum_filters = 8\ncutoff = -4.0\n[training]\nbatch_size = 0",
        [
            "x.toml:2: dataset.path[1]: must be a path (got 3); as a text: \"3\" (in a shell '\"3\"')",
            "x.toml:5: potential.num_filters: unknown key (num_filters belongs to schnet, not painn)",
            "x.toml:6: potential.cutoff: must be greater than 0 (got -4.0)",
            "x.toml:8: training.batch_size: must be at least 1 (got 0)",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages"), WHOLE_FILES)
def test_all_mistakes_come_together_sorted_by_line(text: str, messages: list[str]) -> None:
    assert messages_of(text) == messages


OVERRIDE_MISTAKES = [
    ("training.batchsize=8", "training.batchsize: unknown key (did you mean batch_size?)"),
    ("training.batch_size=x", "training.batch_size: must be a whole number of at least 1 (got 'x')"),
    ("training.ema={decay=2}", "training.ema.decay: must be less than 1 (got 2)"),
    ("potential={}", "potential.name: missing; choose one of: painn, schnet"),
    ("dataset.path.x=1", "dataset.path is a value, not a table"),
    ("dataset.energy_key=", "no value; for an empty text write --set 'dataset.energy_key=\"\"'"),
    ("training", "expected --set table.key=value, such as --set training.batch_size=8"),
    ("=3", "expected --set table.key=value, such as --set training.batch_size=8"),
    ("training.batch size=3", "expected --set table.key=value, such as --set training.batch_size=8"),
    ("training..x=3", "expected --set table.key=value, such as --set training.batch_size=8"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDE_MISTAKES)
def test_a_mistake_in_an_override_names_it(override: str, message: str) -> None:
    assert messages_of(SHORTEST, [override]) == [f"--set {override}: {message}"]


def test_overrides_are_reported_after_the_file_and_in_their_order() -> None:
    overrides = ["training.batch_size=x", "foo", "dataset.qqq=1"]
    assert [message.split(":")[0] for message in messages_of(SHORTEST + "[runtime]\nseed=-1", overrides)] == [
        "x.toml",
        *(f"--set {override}" for override in overrides),
    ]


def test_checks_of_several_sections_name_the_places_of_their_keys() -> None:
    assert messages_of(SHORTEST + "[training]\nmax_epochs = 5", ["training.batch_size=101"]) == [
        "x.toml:6: training.max_epochs: is too large for it",
        "--set training.batch_size=101: training.batch_size: must not exceed 100 (got 101)",
    ]
