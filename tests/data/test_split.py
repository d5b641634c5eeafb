"""Splits: sizes, groups, blocks, files, seeds, and the file that keeps them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from made_structures import structures_of
from pydantic import ValidationError

from modelforge.data.split import Split, SplitSection, load_split, origin_of_split, save_split, split
from modelforge.data.store.content_hash import content_hash
from modelforge.data.structures import Structures
from modelforge.errors import UserError


def structures(num: int, *, groups: list[int] | None = None) -> Structures:
    made = structures_of([Atoms("H", positions=[[place, 0, 0]], info={"energy": float(place)}) for place in range(num)])
    return made if groups is None else replace(made, group=np.array(groups))


def split_of(num: int, *, groups: list[int] | None = None, **options: object) -> Split:
    return split(SplitSection(**options), structures(num, groups=groups), np.arange(num))


def sizes(found: Split) -> list[int]:
    return [len(part) for part in found.sets().values()]


def assert_apart(found: Split, num: int) -> None:
    everything = np.concatenate(list(found.sets().values()))
    assert len(np.unique(everything)) == len(everything)
    assert set(everything.tolist()) <= set(range(num))
    for part in found.sets().values():
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize(
    ("fractions", "num", "expected"),
    [
        ((0.7, 0.2, 0.1), 10, [7, 2, 1]),  # their sum is not 1 in floating point
        ((0.6, 0.3, 0.1), 10, [6, 3, 1]),
        ((0.7, 0.2, 0.1), 1000, [700, 200, 100]),
        ((0.8, 0.1, 0.1), 11, [9, 1, 1]),
        ((0.9, 0.1, 0.0), 500, [450, 50, 0]),
        ((1 / 3, 1 / 3, 1 / 3), 10, [4, 3, 3]),
    ],
)
@pytest.mark.parametrize("strategy", ["random", "blocks"])
def test_fractions_give_their_sizes_and_leave_nothing_out(strategy, fractions, num, expected):
    found = split_of(num, strategy=strategy, fractions=fractions)
    assert sizes(found) == expected
    assert sum(expected) == num
    assert_apart(found, num)


def test_without_numbers_a_tenth_validates():
    assert sizes(split_of(480)) == [432, 48, 0]


def test_counts_are_taken_as_they_are():
    found = split_of(100, counts=(50, 20, 5))
    assert sizes(found) == [50, 20, 5]
    assert_apart(found, 100)


def test_more_than_there_are_is_a_mistake_that_names_the_key():
    with pytest.raises(UserError, match=r"dataset\.split\.counts: .* 10\b.*\[8, 2, 1\]"):
        split_of(10, counts=(8, 2, 1))


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    one, same, other = split_of(100, seed=3), split_of(100, seed=3), split_of(100, seed=4)
    assert one.train.tolist() == same.train.tolist()
    assert one.validation.tolist() != other.validation.tolist()


def test_a_random_split_is_spread_over_the_file():
    validation = split_of(10_000, fractions=(0.5, 0.5, 0.0)).validation
    assert abs(validation.mean() - 4999.5) < 200  # four standard deviations
    assert len(np.unique(np.diff(validation))) > 5


def test_a_split_leaves_the_random_numbers_of_others_alone():
    np.random.seed(0)  # noqa: NPY002 - the global stream is what must not be touched
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    split_of(100)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_blocks_follow_the_order_of_the_file():
    found = split_of(10, strategy="blocks", fractions=(0.6, 0.3, 0.1))
    assert [part.tolist() for part in found.sets().values()] == [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9]]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed: int):
    groups = np.random.default_rng(seed).integers(0, 30, size=300).tolist()
    found = split_of(300, groups=groups, strategy="group", fractions=(0.6, 0.2, 0.2), seed=seed)
    assert_apart(found, 300)
    assert sum(sizes(found)) == 300
    sets = [{groups[place] for place in part.tolist()} for part in found.sets().values()]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    largest = max(groups.count(group) for group in set(groups))
    assert np.abs(np.array(sizes(found)) - [180, 60, 60]).max() <= largest


def test_too_few_groups_are_a_mistake():
    with pytest.raises(UserError, match=r"dataset\.split.* .?validation"):
        split_of(10, groups=[0] * 10, strategy="group")


def test_only_usable_structures_are_shared_out():
    usable = np.array([1, 3, 5, 7, 9, 11, 13, 15, 17, 19])
    found = split(SplitSection(fractions=(0.7, 0.2, 0.1)), structures(20), usable)
    assert sorted(np.concatenate(list(found.sets().values())).tolist()) == usable.tolist()


def test_files_give_the_sets_that_are_named(tmp_path: Path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.xyz").write_text("")
    made = replace(
        structures(6),
        file=np.array([0, 0, 1, 1, 2, 2]),
        files=tuple(str(tmp_path / f"{name}.xyz") for name in ("a", "b", "c")),
    )
    section = SplitSection(
        strategy="files", validation_files=(str(tmp_path / "b*.xyz"),), test_files=(str(tmp_path / "c.xyz"),)
    )
    found = split(section, made, np.arange(6))
    assert [part.tolist() for part in found.sets().values()] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    "options",
    [
        {"fractions": (0.7, 0.2, 0.2)},
        {"fractions": (0.7, 0.2, 0.1), "counts": (7, 2, 1)},
        {"strategy": "files"},
        {"strategy": "files", "validation_files": ("a.xyz",), "counts": (7, 2, 1)},
        {"validation_files": ("a.xyz",)},
        {"fractions": (1.0, 0.0, 0.0)},
        {"fractions": (1.2, -0.2, 0.0)},
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_mistakes(options):
    with pytest.raises(ValidationError):
        SplitSection(**options)


# The file


def test_a_saved_split_is_the_same_when_read(tmp_path: Path):
    found = split_of(50, fractions=(0.7, 0.2, 0.1))
    save_split(tmp_path / "split.npz", found, data_hash=content_hash(structures(50)), origin="x")
    again = load_split(tmp_path / "split.npz", data_hash=content_hash(structures(50)), origin="x")
    for name, part in found.sets().items():
        np.testing.assert_array_equal(again.sets()[name], part)
    assert [path.name for path in tmp_path.iterdir()] == ["split.npz"]


def test_a_saved_split_refuses_other_data(tmp_path: Path):
    save_split(tmp_path / "split.npz", split_of(50), data_hash=content_hash(structures(50)), origin="x")
    with pytest.raises(UserError, match="the data files have changed") as caught:
        load_split(tmp_path / "split.npz", data_hash=content_hash(structures(51)), origin="x")
    assert "runtime.run_folder" in str(caught.value)


@pytest.mark.parametrize("name", ["positions", "energy", "atomic_numbers", "cell", "periodic", "forces", "stress"])
def test_the_hash_sees_each_column(name: str):
    made = structures_of([Atoms("H2", positions=[[0, 0, 0], [0, 0, 1]], info={"energy": -1.0})])
    column = getattr(made, name).copy()
    column.flat[0] = not column.flat[0] if column.dtype == bool else 7
    assert content_hash(replace(made, **{name: column})) != content_hash(made)


def test_a_random_split_leaves_no_element_out_of_training():
    atoms = [Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]])] * 30 + [Atoms("HAu", positions=[[0, 0, 0], [0, 0, 1.5]])]
    for seed in range(20):
        found = split(SplitSection(fractions=(0.5, 0.3, 0.2), seed=seed), structures_of(atoms), np.arange(31))
        assert 30 in found.train
        assert_apart(found, 31)


def test_a_split_is_not_used_for_other_choices(tmp_path: Path) -> None:
    data, section, usable = structures(50), SplitSection(), np.arange(50)
    origin = origin_of_split(section, data, usable)
    save_split(tmp_path / "split.npz", split_of(50), data_hash="x", origin=origin)
    assert load_split(tmp_path / "split.npz", data_hash="x", origin=origin).sets().keys() == {"train", "validation", "test"}
    others = [
        origin_of_split(SplitSection(seed=1), data, usable),
        origin_of_split(section, data, usable[1:]),
        origin_of_split(section, replace(data, group=np.arange(50) // 2), usable),
        origin_of_split(section, replace(data, subset=np.arange(50) % 2, subset_names=("a", "b")), usable),
    ]
    for other in others:
        with pytest.raises(UserError, match="have changed since this run drew its split"):
            load_split(tmp_path / "split.npz", data_hash="x", origin=other)


def test_subsets_are_told_apart_by_name_not_by_number() -> None:
    data, section, usable = structures(4), SplitSection(), np.arange(4)
    one = replace(data, subset=np.array([0, 0, 1, 1]), subset_names=("a", "b"))
    same = replace(data, subset=np.array([1, 1, 0, 0]), subset_names=("b", "a"))
    assert origin_of_split(section, one, usable) == origin_of_split(section, same, usable)
