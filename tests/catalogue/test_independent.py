"""The second opinion, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pulls
import pytest
from independent import (
    EPIX10KA_RANGES,
    Calibrated,
    agipd,
    cspad,
    daq_rec_high_gain,
    epix10ka,
    gotthard2,
    jungfrau,
    jungfrau_cells,
    jungfrau_hg0,
    jungfrau_split,
    linear,
    lpd,
    moench,
    mpccd,
    percival,
    storage_cell,
    variance,
)

NAN = np.nan
Uint16s = npt.NDArray[np.uint16]


def words(*values: int) -> Uint16s:
    """One frame of one row."""
    return np.array([[values]], dtype=np.uint16)


def row(*stages: float, width: int) -> npt.NDArray[np.float64]:
    """Constants (stage, 1, width), the same for all pixels."""
    return np.broadcast_to(np.reshape(stages, (-1, 1, 1)), (len(stages), 1, width)).astype(np.float64)


def check(result: Calibrated, value: list[float], stage: list[int], **bad: list[int]) -> None:
    """Compare, flat; of `bad` the places where a reason holds, nowhere for those not given."""
    np.testing.assert_allclose(result.value.ravel(), value, rtol=1e-14)
    assert result.value.dtype == np.float64
    assert result.stage.ravel().tolist() == stage
    found = {reason: np.flatnonzero(where).tolist() for reason, where in result.bad.items()}
    assert found == {reason: bad.get(reason, []) for reason in found}
    assert set(bad) <= set(found)


def test_jungfrau() -> None:
    raw = words(
        0x0000 | 5000,  # G0: (5000 - 2950) / 41 = 2050 / 41 = 50
        0x4000 | 14856,  # G1: (14856 - 15000) / -1.44 = -144 / -1.44 = 100
        0xC000 | 12710,  # G2: (12710 - 15000) / -0.1145 = -2290 / -0.1145 = 20000
        0x8123,  # code 2
        0xC000,  # saturated
        0xFFFF,  # error
        0x4000,  # error
        0x3FFF,  # G0, a number like any other: (16383 - 2950) / 41 = 13433 / 41
        0x0000,  # G0: (0 - 2950) / 41
    )
    check(
        jungfrau(raw, row(2950, 15000, 15000, width=9), row(41, -1.44, -0.1145, width=9)),
        [50, 100, 20000, NAN, NAN, NAN, NAN, 13433 / 41, -2950 / 41],
        [0, 1, 2, -1, 2, -1, -1, 0, 0],
        invalid_gain=[3],
        saturated=[4],
        error_word=[5, 6],
    )


def test_a_word_of_the_page() -> None:
    # The page: what G2 would make of the adc of 0x8123, 291: (291 - 14936) / -0.1145 = 127,903.9 keV ("127,904")
    result = jungfrau(words(0xC123), row(2900, 15000, 14936, width=1), row(41, -1.44, -0.1145, width=1))
    assert round(float(result.value[0, 0, 0])) == 127_904


def test_constants_of_other_stages_do_not_matter() -> None:
    pedestal, gain = row(1000, 2000, 3000, width=4), row(2, -2, -4, width=4)
    pedestal[0, 0, 0] = NAN
    pedestal[1, 0, 1] = NAN
    gain[0, 0, 2] = 0
    pedestal[0, 0, 3] = gain[0, 0, 3] = np.inf
    # second: (1500 - 1000) / 2 = 250
    check(
        jungfrau(words(1500, 1500, 1500, 1500), pedestal, gain), [NAN, 250, NAN, NAN], [0] * 4, no_calibration=[0, 2, 3]
    )


def test_every_pixel_has_its_own_constants() -> None:
    raw = np.array([[[10, 10], [10, 10]], [[20, 20], [20, 20]]], dtype=np.uint16)
    pedestal = np.zeros((3, 2, 2))
    pedestal[0] = [[1, 2], [3, 4]]
    gain = np.full((3, 2, 2), 1.0)
    gain[0] = [[1, 2], [1, 4]]
    # frame 1: 9/1, 8/2, 7/1, 6/4; frame 2: 19/1, 18/2, 17/1, 16/4
    check(jungfrau(raw, pedestal, gain), [9, 4, 7, 1.5, 19, 9, 17, 4], [0] * 8)


def test_high_gain_is_chosen_frame_by_frame() -> None:
    raw = np.broadcast_to(words(1100, 0x4000 | 900), (2, 1, 2))
    flags = daq_rec_high_gain(np.array([0b110000, 0b110001]))
    # G0: (1100 - 1000) / 2 = 50; HG0: (1100 - 600) / 5 = 100; G1 in both: (900 - 1000) / -1 = 100
    check(
        jungfrau_hg0(raw, flags, row(1000, 1000, 0, 600, width=2), row(2, -1, -1, 5, width=2)),
        [50, 100, 100, 100],
        [0, 1, 3, 1],
    )


def test_jungfrau_cells_go_by_label() -> None:
    cells = storage_cell(np.array([0x0F00, 0x0305, 0x0400, 0xF300]))
    assert cells.tolist() == [15, 3, 4, 3]
    raw = np.full((5, 1, 1), 1000, dtype=np.uint16)
    pedestal = np.zeros((4, 2, 1, 1))
    pedestal[:, 0], pedestal[:, 1] = 100, 300  # cells 15 and 3
    pedestal[3] = 0
    gain = np.full((4, 2, 1, 1), 2.0)
    # 15: (1000-100)/2 = 450; 3: (1000-300)/2 = 350; 4: no constants; 3 in high gain: 1000/2 = 500; 255: missing
    check(
        jungfrau_cells(raw, np.array([*cells, 255]), np.array([0, 0, 0, 1, 0]), pedestal, gain, np.array([15, 3])),
        [450, 350, NAN, 500, NAN],
        [0, 0, 0, 3, -1],
        no_calibration=[2],
        missing_cell=[4],
    )


def test_jungfrau_split() -> None:
    adc = np.array([[[[500, 500, 500, 500, 0, 0, 0x3FFF]], [[500, 500, 500, 500, 500, 500, 500]]]], dtype=np.uint16)
    code = np.array([[[[0, 1, 3, 2, 3, 1, 3]], [[0, 0, 0, 0, 0, 0, 7]]]], dtype=np.uint8)
    pedestal = np.broadcast_to(np.reshape([100, 1000, 900], (3, 1, 1, 1)), (3, 1, 1, 7))
    gain = np.broadcast_to(np.reshape([4, -5, -0.5], (3, 1, 1, 1)), (3, 1, 1, 7))
    # 400/4 = 100; -500/-5 = 100; -400/-0.5 = 800; code 2; saturated; two errors
    check(
        jungfrau_split(adc, code, np.array([[7, 255]], dtype=np.uint8), pedestal, gain, np.array([7])),
        [100, 100, 800] + [NAN] * 11,
        [0, 1, 2, -1, 2, -1, -1] + [-1] * 7,
        invalid_gain=[3],
        saturated=[4],
        error_word=[5, 6],
        missing_cell=[7, 8, 9, 10, 11, 12, 13],
    )


def test_agipd() -> None:
    # two frames of two modules of 1 x 3 pixels; constants of cells 8 and 30
    analog = np.full((2, 2, 1, 3), 1000, dtype=np.uint16)
    digital = np.broadcast_to(np.array([50, 51, 81], dtype=np.uint16), (2, 2, 1, 3))
    cell = np.array([[8, 30], [9, 8]])
    thresholds = np.zeros((2, 2, 2, 1, 3))  # stage, cell, module, y, x
    thresholds[:, 0] = np.reshape([50, 80], (2, 1, 1, 1))  # cell 8: 50 is not > 50, 51 is, 81 is > 80 too
    thresholds[:, 1] = np.reshape([49, 81], (2, 1, 1, 1))  # cell 30: 50 is, 51 is, 81 is not > 81
    thresholds[1, 1, 1, 0, 2] = NAN
    offset = np.zeros((3, 2, 2, 1, 3))
    offset += np.reshape([100, 200, 300], (3, 1, 1, 1, 1)) + np.reshape([0, 1000], (2, 1, 1))  # module 1: 1000 more
    gain = np.broadcast_to(np.reshape([1, 10, 100], (3, 1, 1, 1, 1)), (3, 2, 2, 1, 3))
    check(
        agipd(analog, digital, cell, thresholds, offset, gain, np.array([8, 30])),
        # cell 8, module 0: 900 * 1, 800 * 10, 700 * 100; cell 30, module 1: -200 * 10 twice, then no threshold;
        # cell 9 has no constants; cell 8, module 1: -100 * 1, -200 * 10, -300 * 100
        [900, 8000, 70000, -2000, -2000, NAN, NAN, NAN, NAN, -100, -2000, -30000],
        [0, 1, 2, 1, 1, -1, -1, -1, -1, 0, 1, 2],
        no_calibration=[5, 6, 7, 8],
    )


def test_lpd() -> None:
    raw = words(100, 0x1000 | 100, 0x2000 | 100, 0x3000 | 100, 0x4000 | 100, 0x8000, 0xF000)
    offset, gain = row(10, 20, 30, width=7)[:, np.newaxis], row(1, 10, 100, width=7)[:, np.newaxis]
    check(
        lpd(raw, np.array([511]), offset, gain, np.array([511])),
        [90, 800, 7000, NAN, NAN, NAN, NAN],
        [0, 1, 2, -1, -1, -1, -1],
        invalid_gain=[3],
        error_word=[4, 5, 6],
    )
    missing = lpd(raw, np.array([0]), offset, gain, np.array([511]))
    check(
        missing, [NAN] * 7, [0, 1, 2, -1, -1, -1, -1], invalid_gain=[3], error_word=[4, 5, 6], no_calibration=[0, 1, 2]
    )


def test_epix10ka() -> None:
    # config bits 3 and 2, trbit, switched:      FH       FM      FL    AHL_H    AML_M    AHL_L    AML_L   none
    config = np.array([[0b1100, 0b1100, 0b1000, 0b0000, 0b0000, 0b0000, 0b0000, 0b0100]])
    trbit = np.array([[1, 0, 0, 1, 0, 1, 0, 1]])
    low = 0x4000
    raw = words(1000, 1000, 1000, 1000, 1000, low | 1000, low | 1000, 1000)
    gain = row(16, 5, 0.16, 16, 5, 0.16, 0.16, width=8)
    check(
        epix10ka(raw, config, trbit, row(200, 500, 840, 360, 750, 920, 680, width=8), gain),
        [50, 100, 1000, 40, 50, 500, 2000, NAN],  # 800/16, 500/5, 160/.16, 640/16, 250/5, 80/.16, 320/.16
        [0, 1, 2, 3, 4, 5, 6, -1],
        invalid_gain=[7],
    )


def test_epix10ka_has_16_codes_of_no_range() -> None:
    codes = np.arange(64)
    raw = ((codes >> 5) << 14).reshape(1, 1, 64)
    flat = row(*[0] * 7, width=64), row(*[1] * 7, width=64)
    result = epix10ka(raw, (codes & 15).reshape(1, 64), ((codes >> 4) & 1).reshape(1, 64), *flat)
    assert np.count_nonzero(result.bad["invalid_gain"]) == 16
    # FH: 8 codes (bits 0, 1 and 5 free), FM 8, FL 16 (bits 0, 1, 4, 5 free), the others 4 (bits 0 and 1)
    assert np.bincount(result.stage.ravel() + 1).tolist() == [16, 8, 8, 16, 4, 4, 4, 4]
    assert [name for name, _, _ in EPIX10KA_RANGES] == ["FH", "FM", "FL", "AHL_H", "AML_M", "AHL_L", "AML_L"]


def test_gotthard2() -> None:
    raw = np.array([[1000, 0x1000 | 1000, 0x3000 | 1000, 0x2000 | 1000, 0xC000 | 1000]], dtype=np.uint16)
    pedestal = np.broadcast_to(np.reshape([200, 2000, 3000], (3, 1)), (3, 5))
    gain = np.broadcast_to(np.reshape([8, -10, -1], (3, 1)), (3, 5))
    # 800/8, -1000/-10, -2000/-1, invalid, and bits 14 and 15 that do not matter
    check(gotthard2(raw, pedestal, gain), [100, 100, 2000, NAN, 100], [0, 1, 2, -1, 0], invalid_gain=[3])
    literal = gotthard2(raw, pedestal, gain, codes=(0, 1, 2))
    check(literal, [100, 100, NAN, 2000, 100], [0, 1, -1, 2, 0], invalid_gain=[2])


@pytest.mark.parametrize("family", [moench, cspad])
def test_one_gain(family: type) -> None:
    raw = words(0, 0x3FFF, 0x4000, 0x8000, 1100)
    pedestal = np.array([[383.0, 383, 383, 383, NAN]])
    # (0 - 383) / 8 = -47.875; (16383 - 383) / 8 = 2000
    result = family(raw, pedestal, np.array(8.0)[np.newaxis, np.newaxis].repeat(5, axis=1))
    check(result, [-47.875, 2000, NAN, NAN, NAN], [0, 0, -1, -1, 0], error_word=[2, 3], no_calibration=[4])


def test_percival() -> None:
    raw = words(
        10 << 10 | 100 << 2 | 1,  # 8/4 * 2047.5 - 80/40 * 2047.5 + 4095 = 4095; (4095 - 95) / 2 = 2000
        2 << 10 | 20 << 2 | 0,  # 0 - 0 + 4095; (4095 - 4000) / 10 = 9.5
        31 << 10 | 255 << 2 | 2,  # 29/4 * 2047.5 - 235/40 * 2047.5 + 4095 = 1.375 * 2047.5 + 4095 = 6910.3125; / 1
        2 << 10 | 20 << 2 | 3,  # code 3
        2 << 10 | 20 << 2 | 0x8000,  # bit 15 does not matter: 9.5
    )
    adc = np.array(2.0), np.array(-4.0), np.array(20.0), np.array(40.0)
    check(
        percival(raw, *adc, row(4000, 95, 0, width=5), row(10, 2, 1, width=5)),
        [2000, 9.5, 6910.3125, NAN, 9.5],
        [1, 0, 2, -1, 0],
        invalid_gain=[3],
    )
    slope = np.array([[40.0, 0, NAN, 0, -40]])  # the sign of the fine slope counts, that of the coarse does not
    check(
        percival(raw, *adc[:3], slope, row(4000, 95, 0, width=5), row(10, 2, 1, width=5)),
        [2000, NAN, NAN, NAN, 9.5],
        [1, 0, 2, -1, 0],
        invalid_gain=[3],
        no_calibration=[1, 2],
    )


def test_linear_and_mpccd() -> None:
    raw = words(10, 20, 30)
    factor = np.array([[0.5, 2, NAN]])
    # (10 - 4) * 0.5, (20 - 4) * 2
    check(linear(raw, np.array(-4.0), factor), [3, 32, NAN], [0, 0, 0], no_calibration=[2])
    check(mpccd(raw, factor), [5, 40, NAN], [0, 0, 0], no_calibration=[2])
    check(mpccd(words(65535), np.array(2.0), 1.0), [131072], [0])
    check(linear(np.array([[-1.5]]), np.array(1.0), np.array(4.0)), [-2], [0])


def test_variance() -> None:
    value, stage = np.array([[[10.0, -10, 200, NAN, 5]]]), np.array([[[0, 0, 1, 1, -1]]])
    gain, noise, pedestal = row(40, -2, width=5), row(20, 4, width=5), row(8, 1, width=5)
    gain_error = row(4, 0.02, width=5)
    # stage 0: (20/40)^2 + (8/40)^2 + (10 * 4/40)^2 = 0.25 + 0.04 + 1 = 1.29, + 10 * 12 = 121.29; below 0 no shot noise
    # stage 1: (4/2)^2 + (1/2)^2 + (200 * 0.02/2)^2 = 4 + 0.25 + 4 = 8.25, + 200 * 12 = 2408.25
    every = variance(value, stage, gain, noise, pedestal, gain_error, 12.0)
    np.testing.assert_allclose(every.ravel(), [121.29, 1.29, 2408.25, NAN, NAN], rtol=1e-14)
    some = variance(value, stage, gain, noise, photon_energy=12.0)
    np.testing.assert_allclose(some.ravel(), [120.25, 0.25, 2404, NAN, NAN], rtol=1e-14)
    cells = np.stack([gain * 2, gain], axis=1)
    of_cell = variance(value, stage, cells, np.stack([noise, noise], axis=1), position=np.array([[[0, 1, 0, 0, 0]]]))
    np.testing.assert_allclose(of_cell.ravel(), [0.0625, 0.25, 1, NAN, NAN], rtol=1e-14)


def test_what_is_no_word_is_refused() -> None:
    constants = row(0, 0, 0, width=1), row(1, 1, 1, width=1)
    with pytest.raises(TypeError, match="integers"):
        jungfrau(np.array([[[1.0]]]), *constants)
    with pytest.raises(ValueError, match="16 bits"):
        jungfrau(np.array([[[1 << 16]]]), *constants)
    with pytest.raises(ValueError, match="do not fit"):
        jungfrau(words(1, 2), *constants)
    with pytest.raises(ValueError, match="same cell label"):
        lpd(words(1), np.array([1]), constants[0][:, np.newaxis], constants[1][:, np.newaxis], np.array([1, 1]))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_pulls(stage: int) -> None:
    simulation = pulls.simulate(stage)
    found = pulls.definitions(simulation)
    assert simulation.clipped == 0
    for definition in ("known N", "expected", "together"):
        mean, width = found[definition]
        assert abs(mean) < 0.01, definition
        assert abs(width - 1) < 0.01, definition
    assert np.array_equal(simulation.raw, pulls.simulate(stage).raw)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_pulls_see_every_term(stage: int) -> None:
    lit = pulls.simulate(stage, shape=(300, 300), seed=2)
    bright = pulls.simulate(stage, (pulls.PHOTONS[stage][1],) * 2, shape=(300, 300), seed=2)
    dark = pulls.simulate(stage, (0, 0), shape=(300, 300), pedestal_error=pulls.NOISES[stage], seed=2)
    zero = np.zeros((3, 300, 300))

    def width(s: pulls.Simulation) -> float:
        result = jungfrau(s.raw, s.pedestal, s.gain)
        var = variance(result.value, result.stage, s.gain, s.noise, s.pedestal_error, s.gain_error)
        return pulls.pull(result.value - s.actual, var)[1]

    assert width(dark) == pytest.approx(1, abs=0.015)
    assert width(replace(dark, noise=zero)) > 1.3
    assert width(replace(dark, pedestal_error=zero)) > 1.3
    assert width(replace(bright, gain_error=zero)) > 1.1
    result = jungfrau(lit.raw, lit.pedestal, lit.gain)
    no_shot = variance(result.value, result.stage, lit.gain, lit.noise, lit.pedestal_error, lit.gain_error)
    assert pulls.pull_together(result.value - lit.expected, no_shot)[1] > 2
