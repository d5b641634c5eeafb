"""C sources are compiled where they run and kept; where that fails, a warning says why and torch does the work. About 2 s."""

from pathlib import Path

import pytest
import torch

from modelforge.nn.equivariant.native_edges import SOURCE
from modelforge.nn.native import library

SIZES = {"LANES": 1, "VECTORS": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(library.SWITCH, raising=False)
    library._library.cache_clear()
    return tmp_path / "cache"


def compiled_files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.so"))


@pytest.fixture
def compiler() -> str:
    found = library.shutil.which("cc") or library.shutil.which("gcc") or library.shutil.which("clang")
    if found is None:
        pytest.skip("there is no C compiler here")
    return found


@pytest.mark.usefixtures("compiler")
def test_a_source_is_compiled_once_and_kept(cache: Path) -> None:
    assert library.native(SOURCE, torch.float32, **SIZES) is not None
    kept = compiled_files(cache)
    assert len(kept) == 1
    library._library.cache_clear()
    before = (cache / "modelforge" / "native" / kept[0]).stat().st_mtime_ns
    assert library.native(SOURCE, torch.float32, **SIZES) is not None
    assert compiled_files(cache) == kept
    assert (cache / "modelforge" / "native" / kept[0]).stat().st_mtime_ns == before


@pytest.mark.usefixtures("compiler")
def test_another_processor_has_a_library_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.native(SOURCE, torch.float32, **SIZES)
    library._library.cache_clear()
    monkeypatch.setattr(library, "_cpu", lambda: "another one")
    library.native(SOURCE, torch.float32, **SIZES)
    assert len(compiled_files(cache)) == 2


def test_a_compiler_may_come_with_options(cache: Path, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{compiler} -DUNUSED=1")
    assert library.native(SOURCE, torch.float64, **SIZES) is not None
    assert len(compiled_files(cache)) == 1


@pytest.mark.parametrize(
    "command", ["no-such-compiler-anywhere", "false", "gcc -DNAME='a"], ids=["missing", "failing", "unreadable"]
)
def test_without_a_compiler_a_warning_says_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", command)
    with pytest.warns(UserWarning, match=r"edge_products\.c is not used, torch does its work, slower: "):
        assert library.native(SOURCE, torch.float32, **SIZES) is None


def test_no_compiler_at_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    with pytest.warns(UserWarning, match="there is no C compiler"):
        assert library.native(SOURCE, torch.float32, **SIZES) is None


@pytest.mark.usefixtures("compiler")
def test_a_cache_that_cannot_be_made_is_no_crash(cache: Path) -> None:
    cache.write_text("a file in the place of the folder")
    with pytest.warns(UserWarning, match="is not used"):
        assert library.native(SOURCE, torch.float32, **SIZES) is None


def test_half_precision_and_the_switch_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.native(SOURCE, torch.bfloat16, **SIZES) is None
    monkeypatch.setenv(library.SWITCH, "0")
    assert library.native(SOURCE, torch.float32, **SIZES) is None
