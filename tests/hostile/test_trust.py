"""Each way to trust a directory opens exactly that directory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import pytest
import xarray as xr

from gaincal import cli
from gaincal.errors import TrustError
from gaincal.lazy import open_calibrated
from gaincal.nexus.read import open_master
from gaincal.verbs.inspect import info, validate
from hostile.harness import STORED, WORDS, Run, put


@pytest.fixture
def scattered(unharmed: Run, tmp_path: Path) -> tuple[Run, Path]:
    """A run whose words lie in ``a/bc``, while people trust ``a/b``."""
    run = unharmed.copy(tmp_path)
    home = tmp_path / "a" / "bc"
    home.mkdir(parents=True)
    (tmp_path / "a" / "b").mkdir()
    run.raw.rename(home / "raw.h5")
    put(run.master, lambda group: group.__setitem__("data", h5py.ExternalLink(str(home / "raw.h5"), STORED)))
    return run, home


def opens(run: Run, trust: list[Path]) -> None:
    open_master(run.master, trust=trust).resolver.close()


def test_the_error_names_the_place_and_every_remedy(scattered: tuple[Run, Path]) -> None:
    run, home = scattered
    with pytest.raises(TrustError) as caught:
        opens(run, [])
    assert caught.value.code == "foreign-file"
    assert caught.value.place == WORDS
    assert str(home / "raw.h5") in caught.value.problem
    for remedy in (f"--trust-dir {home}", "trust=", "GAINCAL_TRUST_DIRS"):
        assert remedy in caught.value.remedy


def test_the_named_directory_and_those_above_it_are_enough(scattered: tuple[Run, Path]) -> None:
    run, home = scattered
    opens(run, [home])
    opens(run, [home.parent])
    opens(run, [home.parent / "b", home])


def test_a_relative_or_linked_name_is_enough(scattered: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, home = scattered
    monkeypatch.chdir(home.parent)
    opens(run, [Path("bc")])
    (home.parent / "link").symlink_to(home)
    opens(run, [home.parent / "link"])


@pytest.mark.parametrize("other", ["b", "bc/deeper", "bcd", "c", "bc/raw"])
def test_siblings_and_directories_below_are_not_enough(other: str, scattered: tuple[Run, Path]) -> None:
    run, home = scattered
    with pytest.raises(TrustError, match="--trust-dir"):
        opens(run, [home.parent / other])


@pytest.mark.parametrize("kind", [str, Path])
def test_one_directory_is_not_its_letters(kind: Callable[[Path], str | Path], scattered: tuple[Run, Path]) -> None:
    run, home = scattered
    opened = (info, open_calibrated, partial(xr.open_dataset, engine="gaincal"))
    for verb in opened:
        verb(run.master, trust=kind(home.parent / "bc"))
        with pytest.raises(TrustError):
            verb(run.master, trust=kind(home.parent / "b"))


@pytest.mark.parametrize(("other", "enough"), [("bc", True), ("b", False), ("bcd", False)])
def test_all_verbs_trust_what_they_are_told(other: str, enough: bool, scattered: tuple[Run, Path]) -> None:
    run, home = scattered
    trust = [home.parent / other]
    if enough:
        assert info(run.master, trust=trust)["raw"]
        assert open_calibrated(run.master, trust=trust).values.shape[0] == 6
        assert [f for f in validate(run.master, trust=trust) if f.severity == "error"] == []
        return
    for verb in (info, open_calibrated):
        with pytest.raises(TrustError):
            verb(run.master, trust=trust)
    assert [f.code for f in validate(run.master, trust=trust)] == ["foreign-file"]


@pytest.mark.parametrize(("listed", "enough"), [
    ("{a}/bc", True), ("{a}/b:{a}/bc", True), ("{a}/bc:", True), ("{a}/b", False), ("", False), (":", False),
    ("{a}/bcd", False),
])  # fmt: skip
def test_the_environment_is_a_list_of_directories(
    listed: str, enough: bool, scattered: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, home = scattered
    monkeypatch.setenv("GAINCAL_TRUST_DIRS", listed.format(a=home.parent))
    if enough:
        opens(run, [])
    else:
        with pytest.raises(TrustError):
            opens(run, [])


@pytest.mark.parametrize("verb", ["info", "validate", "apply"])
@pytest.mark.parametrize(("other", "code"), [("bc", 0), ("b", 5)])
def test_the_option_is_known_to_every_command(
    verb: str, other: str, code: int, scattered: tuple[Run, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, home = scattered
    with pytest.raises(SystemExit) as end:
        cli.main([verb, str(run.master), "--trust-dir", str(home.parent / other)])
    wanted = 8 if verb == "validate" and code else code
    assert (end.value.code or 0) == wanted
    printed = capsys.readouterr()
    assert bool(code) == ("--trust-dir" in printed.out + printed.err)


def test_a_master_in_a_linked_directory_is_at_home_where_it_really_lies(unharmed: Run, tmp_path: Path) -> None:
    run = unharmed.copy(tmp_path)
    (tmp_path / "link").symlink_to(run.home)
    open_master(tmp_path / "link" / "master.nxs").resolver.close()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "master.nxs").symlink_to(run.master)
    open_master(tmp_path / "alone" / "master.nxs").resolver.close()
