"""Thousands of damaged HDF5 and npz files: each gives all structures, or one error that names the file.

The old HDF5 format, which h5py writes by default, has no checksums, the newest has; npz files have one for each array. All
texts here have a fixed length: on damaged texts of variable length libhdf5 itself may take gigabytes, or not come to an end.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from modelforge.data.sources.gather import read
from modelforge.data.sources.hdf5 import HDF5
from modelforge.data.sources.npz import Npz
from modelforge.errors import UserError

Arrays = dict[str, Any]
NUM = 4  # structures of each group
NUM_FLIPPED, NUM_CHANGED = 600, 270  # files of each layout and format


def spice() -> Arrays:
    rng = np.random.default_rng(1)
    return {
        "atomic_numbers": np.array([6, 8], np.int16),
        "conformations": rng.normal(size=(NUM, 2, 3)).astype(np.float32),
        "dft_total_energy": rng.normal(size=NUM),
        "dft_total_gradient": rng.normal(size=(NUM, 2, 3)).astype(np.float32),
        "subset": np.array([b"a set"]),
    }


def ani() -> Arrays:
    rng = np.random.default_rng(2)
    return {
        "species": np.tile([8, 1, 1], (NUM, 1)),
        "coordinates": rng.normal(size=(NUM, 3, 3)).astype(np.float32),
        "energies": rng.normal(size=NUM),
        "forces": rng.normal(size=(NUM, 3, 3)),
    }


def record() -> Arrays:
    rng = np.random.default_rng(3)
    return {
        "n_configs": np.array(NUM),
        "atomic_numbers": np.array([[[6], [8]], [[7], [7]]]),
        "grouped_names": np.array([b"CO", b"N2"]),
        "grouped_n_configs": np.array([1, NUM - 1]),
        "grouped_indices": np.array([0, 1, 1, 1]),
        "positions": rng.normal(size=(NUM, 2, 3)),
        "energies": rng.normal(size=(NUM, 1)),
    }


def rmd17() -> Arrays:
    rng = np.random.default_rng(4)
    return {
        "nuclear_charges": np.array([8, 1, 1], np.uint8),
        "coords": rng.normal(size=(NUM, 3, 3)),
        "energies": rng.normal(size=NUM),
        "forces": rng.normal(size=(NUM, 3, 3)),
        "old_indices": np.arange(NUM),
    }


def sgdml() -> Arrays:
    old = rmd17()
    names = {
        "z": np.array([[8, 1, 1]] * 3 + [[1, 1, 0]]),
        "name": np.array("x"),
        "e_unit": np.array(b"eV"),
        "r_unit": np.array("Ang"),
    }
    return {"R": old["coords"].astype(np.float32), "E": old["energies"][:, None], "F": old["forces"], **names}


HDF5_LAYOUTS: dict[str, tuple[Callable[[], Arrays], str]] = {
    "spice": (spice, "units"),
    "ani": (ani, "units"),
    "modelforge": (record, "u"),
}
UNITS = {"conformations": "bohr", "dft_total_energy": "hartree", "positions": "nanometer", "energies": "kilojoule_per_mole"}


def hdf5_image(layout: str, changes: Arrays, *, libver: str = "earliest", packed: bool = False) -> bytes:
    """The bytes of a file with two groups, the second of them with changes."""
    make, attribute = HDF5_LAYOUTS[layout]
    with h5py.File("x", "w", driver="core", backing_store=False, libver=libver) as file:
        for name, arrays in (("a", make()), ("b", changes or make())):
            group = file.create_group(name)
            for key, values in arrays.items():
                options = {"chunks": True, "compression": "gzip"} if packed and values.size > 1 else {}
                dataset = group.create_dataset(key, data=values, **options)
                if layout != "ani" and key in UNITS:
                    dataset.attrs[attribute] = np.bytes_(UNITS[key])
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def npz_image(arrays: Arrays, *, packed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)
    return stream.getvalue()


def damaged(image: bytes, num: int, seed: int) -> Iterator[bytes]:
    """The bytes cut off somewhere, or with a few of them changed."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        if rng.random() < 0.1:
            yield image[: rng.integers(0, len(image))]
        else:
            data = bytearray(image)
            for place in rng.integers(0, len(image), rng.integers(1, 4)):
                data[place] = rng.integers(0, 256) if rng.random() < 0.5 else data[place] ^ (1 << rng.integers(0, 8))
            yield bytes(data)


VALUES = [np.nan, np.inf, -np.inf, 1e300, -1e38, 1e31, -1, 0, 119, 2**31, 2**62, 1e-320]
TYPES = ["f2", "f4", ">f8", "f16", "i1", "u1", ">i4", "u8", "i8", "?", "c16", "S3", "V4"]
SHAPES: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda old: old[:-1],
    lambda old: old[:0],
    lambda old: np.concatenate([old, old]),
    lambda old: np.concatenate([old, old[:1]]),
    lambda old: old.T,
    lambda old: old.ravel(),
    lambda old: old[None],
    lambda old: old[..., None],
    lambda old: old[..., :-1],
    lambda old: old[..., :0],
    lambda old: old.ravel()[0],
]


def changed(arrays: Arrays, num: int, seed: int, types: list[str]) -> Iterator[Arrays]:
    """One array of another shape, type or value, or left out."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        key = str(rng.choice(list(arrays)))
        other = changed_array(arrays[key], rng, types)
        yield {name: values for name, values in arrays.items() if name != key} | ({} if other is None else {key: other})


def changed_array(values: np.ndarray, rng: np.random.Generator, types: list[str]) -> np.ndarray | None:
    """An array with one thing wrong, None for one that is missing."""
    kind = rng.choice(["shape", "type", "value", "missing"], p=[0.35, 0.25, 0.35, 0.05])
    if kind == "missing":
        return None
    if kind == "shape":
        return np.asarray(SHAPES[rng.integers(len(SHAPES))](values if values.ndim else values[None]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what becomes of numbers that do not fit
        if kind == "type":
            return converted(values, str(rng.choice(types)))
        copy = values.copy()
        value = np.array(VALUES[rng.integers(len(VALUES))])
        copy.reshape(-1)[rng.integers(copy.size)] = value.astype(copy.dtype)
    return copy


def converted(values: np.ndarray, dtype: str) -> np.ndarray:
    """The array with values of another type; texts become zeros."""
    numbers = values if values.dtype.kind in "fiu" else np.zeros(values.shape)
    return numbers.astype(dtype) if not dtype.startswith("V") else np.zeros(values.shape, dtype)


def outcome(section: HDF5 | Npz, path: Path, num: int) -> bool:
    """Whether a file is read; if so with all structures, otherwise with an error that names it in one line."""
    try:
        structures, message = read([section.files([path])]).structures, ""
    except UserError as error:
        structures, message = None, str(error)
    if structures is None:
        assert str(path) in message
        assert "\n" not in message
        return False
    assert len(structures) == num
    assert np.isfinite(structures.positions).all()
    assert ((structures.atomic_numbers > 0) & (structures.atomic_numbers < 119)).all()
    return True


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("layout", HDF5_LAYOUTS)
def test_damaged_bytes_of_hdf5_files_give_all_structures_or_one_error(tmp_path: Path, layout: str, libver: str) -> None:
    path = tmp_path / "x.hdf5"
    section = HDF5(name="hdf5", path=str(path))
    image = hdf5_image(layout, {}, libver=libver, packed=layout == "ani")
    path.write_bytes(image)
    assert outcome(section, path, 2 * NUM)
    read_well = 0
    for data in damaged(image, NUM_FLIPPED, seed=len(layout)):
        path.write_bytes(data)
        read_well += outcome(section, path, 2 * NUM)
    assert 0 < read_well < NUM_FLIPPED


@pytest.mark.parametrize("layout", HDF5_LAYOUTS)
def test_other_shapes_types_and_values_in_hdf5_files_give_all_structures_or_one_error(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "x.hdf5"
    keys = {"subset_key": "subset"} if layout == "spice" else {}
    section = HDF5(name="hdf5", path=str(path), **keys)
    read_well = 0
    for arrays in changed(HDF5_LAYOUTS[layout][0](), 2 * NUM_CHANGED, len(layout), TYPES):
        path.write_bytes(hdf5_image(layout, arrays))
        read_well += outcome(section, path, 2 * NUM)
    assert 0 < read_well < 2 * NUM_CHANGED


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("make", [rmd17, sgdml])
def test_damaged_bytes_of_npz_files_give_all_structures_or_one_error(
    tmp_path: Path, make: Callable[[], Arrays], packed: bool
) -> None:
    path = tmp_path / "x.npz"
    section = npz_section(path, make)
    image = npz_image(make(), packed=packed)
    path.write_bytes(image)
    assert outcome(section, path, NUM)
    read_well = 0
    for data in damaged(image, 1000, seed=packed):
        path.write_bytes(data)
        read_well += outcome(section, path, NUM)
    assert 0 < read_well < 1000


@pytest.mark.parametrize("make", [rmd17, sgdml])
def test_other_shapes_types_and_values_in_npz_files_give_all_structures_or_one_error(
    tmp_path: Path, make: Callable[[], Arrays]
) -> None:
    path = tmp_path / "x.npz"
    section = npz_section(path, make)
    read_well = 0
    for arrays in changed(make(), 600, 5, [*TYPES, "O", "U2"]):
        path.write_bytes(npz_image(arrays, packed=False))
        read_well += outcome(section, path, NUM)
    assert 0 < read_well < 600


def npz_section(path: Path, make: Callable[[], Arrays]) -> Npz:
    """A section that gives the units which the file does not state."""
    return Npz(name="npz", path=str(path), **({"energy_unit": "eV", "length_unit": "angstrom"} if make is rmd17 else {}))
