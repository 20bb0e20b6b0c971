"""The report: what it says of healthy and broken runs, and that it stands alone and fits on screens."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_runs import FRAMES, MODULES, ODD, SHAPE, make_run
from conftest import Command, build_run, make_constants, write_raw

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from gaincal.report import command
from gaincal.report.command import report
from gaincal.verbs.embed import embed

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WORDS_OF_WEB = ("http:", "https:", "//", "<script", "<link", "<iframe", "@import", "url(")


class Parser(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that are not closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a healthy run, compared with another set, and of one with a broken module."""
    directory = tmp_path_factory.mktemp("reports")
    mask = np.zeros((MODULES, *SHAPE), np.uint32)
    mask[0, 0, :20], mask[2, 4, :5] = 1 << 1, 1 << 4
    healthy = make_run(directory, "healthy", mask=mask)
    broken = make_run(
        directory,
        "broken",
        spoil=lambda w, r: np.where(r.random(w.shape) < 0.5, 0x8000 | w & 0x3FFF, w),
        missing=lambda frame, module: module == 2 and frame == 7,
    )
    report(healthy, directory / "healthy.html", previous=broken)
    report(broken, directory / "broken.html", frames=5)
    return {name: directory / f"{name}.html" for name in ("healthy", "broken")}


def document(page: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(page.with_suffix(".json").read_text("utf-8"), parse_constant=refuse)
    assert isinstance(found, dict)
    return found


def test_the_verdict_changes_for_a_broken_module(reports: dict[str, Path]) -> None:
    assert document(reports["healthy"])["verdict"] == "good"
    found = document(reports["broken"])
    assert found["verdict"] == "bad"
    rule = next(r for r in found["rules"] if r["name"] == "no-stage")
    assert (rule["state"], rule["where"]) == ("bad", f"module {ODD}")
    for name, verdict in (("healthy", "good"), ("broken", "bad")):
        content = reports[name].read_text("utf-8")
        assert f'<div class="verdict {verdict}">\n<b>{verdict}</b>' in content
        assert f"<title>{name}.nxs: {verdict}</title>" in content
    assert f"(module {ODD})" in "".join(Parser(reports["broken"].read_text("utf-8")).text)


def test_the_first_screen_has_six_numbers(reports: dict[str, Path]) -> None:
    for page in reports.values():
        tags = Parser(page.read_text("utf-8")).tags
        assert sum(a.get("class") == "number" for _, a in tags) == 6
        assert len(document(page)["numbers"]) == 6


def test_the_page_states_rules_limits_and_the_sample(reports: dict[str, Path]) -> None:
    text = "".join(Parser(reports["broken"].read_text("utf-8")).text)
    for rule in document(reports["broken"])["rules"]:
        assert rule["text"] in text
    assert "doubtful above" in text
    assert f"5 of {FRAMES} frames, evenly spread" in text
    assert document(reports["broken"])["frames"] == [0, 2, 5, 8, 11]


def test_the_page_stands_alone(reports: dict[str, Path]) -> None:
    for page in reports.values():
        content = page.read_text("utf-8")
        assert page.stat().st_size < 5_000_000
        assert not [w for w in WORDS_OF_WEB if w in re.sub(r"base64,[A-Za-z0-9+/=]+", "", content)]
        images = [a for tag, a in Parser(content).tags if tag == "img"]
        assert len(images) > 10
        assert all((a["src"] or "").startswith("data:image/png;base64,") and a["alt"] for a in images)


def test_every_section_is_there(reports: dict[str, Path]) -> None:
    captions = re.findall(r"<figcaption><b>(.*?)\.</b>", reports["healthy"].read_text("utf-8"))
    for title in (
        ["Calibrated", "Raw", "Gain stage", "Flags", "Photon spectrum", "Pedestal drift", "Pixels per gain stage"]
        + ["Frames of each module", "Bad pixels", "Mean image"]
        + [f"{c}, stage {s}{d}" for c in ("pedestal", "gain") for s in range(3) for d in ("", ": change")]
    ):
        assert title in captions
    assert "change" not in "".join(re.findall(r"<b>(.*?)\.</b>", reports["broken"].read_text("utf-8")))


def test_the_json_says_what_the_page_says(reports: dict[str, Path]) -> None:
    found = document(reports["healthy"])
    assert [m["name"] for m in found["modules"]] == [f"module {k}" for k in range(MODULES)]
    assert sum(found["spectrum"]["pixels"]) + sum(sum(m["outside_spectrum"]) for m in found["modules"]) == sum(
        m["pixels_valid"] for m in found["modules"]
    )
    assert {b["reason"]: b["pixels"] for b in found["bad_pixels"]}["dead"] == 20
    assert found["all"]["photon_peak"]["centre"] == pytest.approx(12.4, rel=0.005)
    broken = document(reports["broken"])
    assert [m["frames_missing"] for m in broken["modules"]] == [0, 0, 1]


@pytest.mark.slow
def test_names_from_files_are_text(tmp_path: Path) -> None:
    """Everything in a file is untrusted, and so is its name."""
    master = make_run(tmp_path, "<img src=x onerror=alert(1)>$\\frac{1}{2}$")
    report(master, tmp_path / "r.html", frames=2)
    content = (tmp_path / "r.html").read_text("utf-8")
    assert "<img src=x" not in content
    assert "&lt;img src=x onerror" in content
    assert all((a.get("src") or "").startswith("data:") for tag, a in Parser(content).tags if tag == "img")


@pytest.mark.slow
def test_runs_of_other_kinds_are_reported(tmp_path: Path) -> None:
    """One module without a photon energy and with hardly any value; strips; integers without stages."""
    run = build_run(tmp_path / "module", (3, 8, 16))
    report(run.master, tmp_path / "a.html")
    strip = tmp_path / "strip.h5"
    random = np.random.default_rng(0)
    write_raw(strip, (random.normal(1000, 10, (4, 1280))).astype(np.uint16))
    constants = {"pedestal": np.full((3, 1280), 1000.0), "gain": np.full((3, 1280), 20.0)}
    embed(strip, tmp_path / "strip.nxs", formula="gotthard2", constants=constants, settings={"photon_energy": 12.4})
    report(tmp_path / "strip.nxs", tmp_path / "b.html")
    write_raw(tmp_path / "flat.h5", random.poisson(3, (4, 8, 16)).astype(np.uint16))
    constants = {"scaling_factor": np.ones((8, 16)), "offset": np.zeros((8, 16))}
    embed(tmp_path / "flat.h5", tmp_path / "flat.nxs", formula="linear", constants=constants)
    done = report(tmp_path / "flat.nxs", tmp_path / "c.html")
    assert done.numbers["first_stage"] == "none"
    pedestal, gain = make_constants((8, 16))
    embed(tmp_path / "flat.h5", tmp_path / "d.nxs", formula="jungfrau", constants={"pedestal": pedestal, "gain": gain})
    assert report(tmp_path / "d.nxs", tmp_path / "d.html", inputs={"photon_energy": 6.2}).frames == 4


# --- the command ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[int, str]] = {
    "report {d}/m.nxs -o {d}/r.txt": (2, "call it .html"),
    "report {d}/raw.h5 -o {d}/r.html": (4, "has no calibration"),
    "report {d}/m.nxs -o {d}/r.html --previous {d}/none.nxs": (4, "none.nxs"),
    "report {d}/m.nxs -o {d}/there.html": (7, "exists already"),
    "report {d}/m.nxs -o {d}/json.html": (7, "json.json: exists already"),
    "report {d}/m.nxs -o {d}/nowhere/r.html": (7, "cannot be written"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(tmp_path: Path, gaincal: Command, command: str) -> None:
    run = build_run(tmp_path, (2, 8, 16))
    run.master.rename(tmp_path / "m.nxs")
    for name in ("there.html", "json.json"):
        (tmp_path / name).write_bytes(b"precious")
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    code, words = REFUSED[command]
    shown = gaincal(*command.format(d=tmp_path).split())
    assert shown.code == code
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_the_command_prints_the_verdict(tmp_path: Path, gaincal: Command) -> None:
    run = build_run(tmp_path, (3, 8, 16))
    arguments = ("report", run.master, "-o", tmp_path / "r.html")
    shown = gaincal(*arguments, "--frames", "2")
    assert shown.code == 0
    assert re.match(r".*r\.html: (good|doubtful|bad|not judged)\. ", shown.out)
    found = gaincal(*arguments, "--frames", "all", "--overwrite", "--json").json
    assert set(found) == {"path", "json_path", "verdict", "reason", "numbers", "frames"}
    assert found["frames"] == 3
    for wrong in ("0", "-1", "some"):
        assert gaincal(*arguments, "--frames", wrong).code == 2


@pytest.mark.slow
def test_a_page_beyond_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_run(tmp_path, (2, 8, 16))
    monkeypatch.setattr(command, "MAX_BYTES", 1000)
    with pytest.raises(command.OutputError, match="bytes"):
        report(run.master, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    assert not (tmp_path / "r.json").exists()


# --- in a browser ---------------------------------------------------------------------------

MEASURE = """
<script>
addEventListener("load", () => {
  const root = document.documentElement, wide = [];
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.right > root.clientWidth + 0.5 || box.left < -0.5) wide.push(e.tagName);
  }
  const images = [...document.images];
  document.title = JSON.stringify({
    scroll: root.scrollWidth, client: root.clientWidth, wide: wide, images: images.length,
    broken: images.filter(i => !i.complete || i.naturalWidth === 0).length,
    stretched: images.filter(i => Math.abs(i.width / i.height / (i.naturalWidth / i.naturalHeight) - 1) > 0.02).length,
    screen: Math.max(...[...document.querySelectorAll(".number")].map(e => e.getBoundingClientRect().bottom)),
    violations: window.violations || 0,
  });
});
</script>
"""


def browse(page: Path, width: int, directory: Path) -> dict[str, Any]:
    """What a headless browser makes of a page, measured by a script that the page itself does not have."""
    assert CHROMIUM is not None
    content = page.read_text("utf-8")
    measured = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", content).replace(
        "</body>", MEASURE + "</body>"
    )
    assert measured.count("<script>") == 1
    (directory / "measured.html").write_text(measured, "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options += [f"--user-data-dir={directory / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *options, (directory / "measured.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    found = json.loads(title[1])
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1400, 800])
@pytest.mark.parametrize("name", ["healthy", "broken"])
def test_nothing_overflows_in_a_browser(reports: dict[str, Path], tmp_path: Path, name: str, width: int) -> None:
    found = browse(reports[name], width, tmp_path)
    assert found["client"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["images"] > 10
    assert (found["broken"], found["stretched"]) == (0, 0)
    assert found["screen"] < 900, "verdict and six numbers are on the first screen"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_page_that_is_too_wide_would_be_noticed(reports: dict[str, Path], tmp_path: Path) -> None:
    wide = tmp_path / "wide.html"
    content = reports["healthy"].read_text("utf-8")
    wide.write_text(content.replace("</h1>", '</h1><div style="width:1700px">x</div>'), "utf-8")
    found = browse(wide, 1400, tmp_path)
    assert found["scroll"] > 1400
    assert "DIV" in found["wide"]
