"""A virtual dataset is read from its sources, box by box; where one lacks, its pixels are missing, and no others."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hostile.harness import (
    FRAME,
    FRAMES,
    SHAPE,
    STORED,
    WORDS,
    Case,
    Gone,
    Refused,
    Right,
    Run,
    Worker,
    X,
    Y,
    commanded_once,
    put,
    put_mapping,
    put_mappings,
    run_case,
    words,
)

DIFFERS = Refused("FileError", "source-differs")
CYCLE = Refused("TrustError", "virtual-cycle")
LAYOUT = Refused("FileError", "odd-layout")
HALF, REST = slice(0, 3), slice(3, FRAMES)


def source(run: Run, data: object, name: str = "source.h5") -> None:
    with h5py.File(run.home / name, "w") as file:
        file.create_dataset(STORED, data=data)


def low_level(run: Run, selections: list[tuple[h5py.h5s.SpaceID, str]], source_space: object = None) -> None:
    """Mappings that h5py's own interface does not make."""

    def make(group: h5py.Group) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        extent = h5py.h5s.create_simple(SHAPE)
        for space, file in selections:
            plist.set_virtual(space, file.encode(), STORED.encode(), source_space or space)
        h5py.h5d.create(group.id, b"data", h5py.h5t.STD_U16LE, extent, dcpl=plist)

    put(run.master, make)


def box(start: tuple[int, ...], count: tuple[int, ...]) -> h5py.h5s.SpaceID:
    space = h5py.h5s.create_simple(SHAPE)
    space.select_hyperslab(start, (1, 1, 1), block=count)
    return space


def whole(run: Run) -> None:
    put_mapping(run.master, "raw.h5")


def whole_in_two_halves(run: Run) -> None:
    put_mappings(run.master, (REST, "raw.h5", STORED, SHAPE, REST), (HALF, "raw.h5", STORED, SHAPE, HALF))


def source_with_a_dim_of_length_one(run: Run) -> None:
    source(run, words()[:, None])
    put_mapping(run.master, "source.h5", shape=(FRAMES, 1, Y, X), part=None)


def file_is_gone(run: Run) -> None:
    put_mapping(run.master, "gone.h5")


def dataset_is_gone(run: Run) -> None:
    put_mappings(run.master, (HALF, "raw.h5", STORED, SHAPE, HALF), (REST, "raw.h5", "/gone", SHAPE, REST))


def link_in_the_source_is_gone(run: Run) -> None:
    with h5py.File(run.home / "source.h5", "w") as file:
        file[STORED] = h5py.ExternalLink("gone.h5", "/x")
    put_mapping(run.master, "source.h5")


def source_is_junk(run: Run) -> None:
    (run.home / "source.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 8)
    put_mapping(run.master, "source.h5")


def source_is_cut_off(run: Run) -> None:
    (run.home / "source.h5").write_bytes(run.raw.read_bytes()[:3000])
    put_mapping(run.master, "source.h5")


def nothing_is_mapped_on_one_frame(run: Run) -> None:
    part = slice(0, 5)
    put_mappings(run.master, (part, "raw.h5", STORED, SHAPE, part))


def half_a_frame_is_mapped(run: Run) -> None:
    low_level(run, [(box((0, 0, 0), (FRAMES, 8, X)), "raw.h5")])


def source_is_too_short(run: Run) -> None:
    source(run, words()[:5])
    put_mappings(
        run.master,
        (HALF, "raw.h5", STORED, SHAPE, HALF),
        (REST, "source.h5", STORED, (FRAMES, Y, X), REST),
    )


def source_is_shorter_than_the_whole(run: Run) -> None:
    source(run, words()[:4])
    put_mapping(run.master, "source.h5")


def source_of_floats(run: Run) -> None:
    source(run, words().astype(np.float32) + 0.7)
    put_mapping(run.master, "source.h5")


def source_of_signed_integers(run: Run) -> None:
    source(run, words().astype(np.int16))
    put_mapping(run.master, "source.h5")


def source_of_wider_integers(run: Run) -> None:
    source(run, words().astype(np.uint32))
    put_mapping(run.master, "source.h5")


def source_of_big_endian_words(run: Run) -> None:
    source(run, words().astype(">u2"))
    put_mapping(run.master, "source.h5")


def source_of_rank_one(run: Run) -> None:
    source(run, words().ravel())
    put_mapping(run.master, "source.h5", part=slice(0, FRAMES))


def source_of_rank_four(run: Run) -> None:
    source(run, np.stack([words(), words()], axis=-1))
    put_mapping(run.master, "source.h5", part=slice(0, FRAMES))


def source_is_a_group(run: Run) -> None:
    put_mapping(run.master, "raw.h5", "/data")


def leads_to_itself(run: Run) -> None:
    put_mapping(run.master, ".", WORDS)


def leads_to_itself_by_name(run: Run) -> None:
    put_mapping(run.master, "master.nxs", WORDS)


def leads_to_itself_by_a_symlink(run: Run) -> None:
    (run.home / "alias.h5").symlink_to("master.nxs")
    put_mapping(run.master, "alias.h5", WORDS)


def two_files_lead_to_each_other(run: Run) -> None:
    (run.home / "other.h5").write_bytes(run.master.read_bytes())
    put_mapping(run.home / "other.h5", "master.nxs", WORDS)
    put_mapping(run.master, "other.h5", WORDS)


def nested(run: Run, levels: int) -> None:
    with h5py.File(run.raw, "r+") as file:
        for level in range(levels):
            layout = h5py.VirtualLayout(SHAPE, np.uint16)
            layout[...] = h5py.VirtualSource(".", f"/level{level - 1}" if level else STORED, SHAPE)
            file.create_virtual_dataset(f"level{level}", layout)
    put_mapping(run.master, "raw.h5", f"/level{levels - 1}")


def nested_thrice(run: Run) -> None:
    nested(run, 3)


def nested_too_deep(run: Run) -> None:
    nested(run, 200)


def numbered_names(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        unlimited = h5py.h5s.UNLIMITED
        plist, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((0, Y, X), (unlimited, Y, X))
        space.select_hyperslab((0, 0, 0), (unlimited, 1, 1), stride=(1, 1, 1), block=(1, Y, X))
        plist.set_virtual(space, b"part_%b.h5", STORED.encode(), h5py.h5s.create_simple((1, Y, X)))
        h5py.h5d.create(group.id, b"data", h5py.h5t.STD_U16LE, space, dcpl=plist)

    put(run.master, make)


def per_cent_sign_in_a_name(run: Run) -> None:
    source(run, words(), "50%.h5")
    put_mapping(run.master, "50%%.h5")


def mapping_that_is_no_box(run: Run) -> None:
    space = box((0, 0, 0), (1, 5, 5))
    space.select_hyperslab((2, 9, 9), (1, 1, 1), block=(1, 5, 7), op=h5py.h5s.SELECT_OR)
    low_level(run, [(space, "raw.h5")])


def mapping_with_gaps(run: Run) -> None:
    space = h5py.h5s.create_simple(SHAPE)
    space.select_hyperslab((0, 0, 0), (3, 1, 1), stride=(2, 1, 1), block=(1, Y, X))
    low_level(run, [(space, "raw.h5")])


def mapping_of_another_size(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        turned = h5py.h5s.create_simple((FRAMES, X, Y))
        turned.select_hyperslab((0, 0, 0), (1, 1, 1), block=(FRAMES, X, Y))
        plist.set_virtual(h5py.h5s.create_simple(SHAPE), b"raw.h5", STORED.encode(), turned)
        h5py.h5d.create(group.id, b"data", h5py.h5t.STD_U16LE, h5py.h5s.create_simple(SHAPE), dcpl=plist)

    put(run.master, make)


def the_last_of_overlapping_mappings_holds(run: Run) -> None:
    source(run, words(7))
    everything = box((0, 0, 0), SHAPE)
    low_level(run, [(everything, "source.h5"), (everything, "raw.h5")])


def a_gap_on_top_of_words_is_a_gap(run: Run) -> None:
    low_level(run, [(box((0, 0, 0), SHAPE), "raw.h5"), (box((1, 0, 0), (2, Y, X)), "gone.h5")])


def words_on_top_of_a_gap_are_words(run: Run) -> None:
    low_level(run, [(box((0, 0, 0), SHAPE), "gone.h5"), (box((1, 0, 0), (2, Y, X)), "raw.h5")])


def huge_extent_over_a_small_source(run: Run) -> None:
    layout = h5py.VirtualLayout((100_000_000, Y, X), np.uint16)
    layout[:FRAMES] = h5py.VirtualSource("raw.h5", STORED, SHAPE)
    put(run.master, lambda group: group.create_virtual_dataset("data", layout))


def thousands_of_gaps(run: Run) -> None:
    def make(group: h5py.Group) -> None:
        plist, extent = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple(SHAPE)
        for k in range(FRAMES * Y):
            space = box((k // Y, k % Y, 0), (1, 1, X))
            plist.set_virtual(space, b"raw.h5" if k % 2 else b"gone.h5", STORED.encode(), space)
        h5py.h5d.create(group.id, b"data", h5py.h5t.STD_U16LE, extent, dcpl=plist)

    put(run.master, make)


CASES = [
    *(
        Case(build, Right())
        for build in (
            whole,
            whole_in_two_halves,
            source_with_a_dim_of_length_one,
            source_of_big_endian_words,
            nested_thrice,
            per_cent_sign_in_a_name,
            the_last_of_overlapping_mappings_holds,
        )
    ),
    Case(file_is_gone, Gone(FRAMES * FRAME)),
    Case(dataset_is_gone, Gone(3 * FRAME)),
    Case(link_in_the_source_is_gone, Gone(FRAMES * FRAME)),
    Case(source_is_junk, Gone(FRAMES * FRAME)),
    Case(source_is_cut_off, Gone(FRAMES * FRAME)),
    Case(nothing_is_mapped_on_one_frame, Gone(FRAME)),
    Case(half_a_frame_is_mapped, Gone(FRAMES * FRAME // 2)),
    Case(source_is_too_short, Gone(FRAME)),
    Case(a_gap_on_top_of_words_is_a_gap, Gone(2 * FRAME)),
    Case(words_on_top_of_a_gap_are_words, Gone(4 * FRAME)),
    Case(thousands_of_gaps, Gone(FRAMES * FRAME // 2)),
    *(
        Case(build, DIFFERS)
        for build in (
            source_is_shorter_than_the_whole,
            source_of_floats,
            source_of_signed_integers,
            source_of_wider_integers,
            source_of_rank_one,
            source_of_rank_four,
            mapping_of_another_size,
        )
    ),
    *(
        Case(build, CYCLE)
        for build in (
            leads_to_itself,
            leads_to_itself_by_name,
            leads_to_itself_by_a_symlink,
            two_files_lead_to_each_other,
            nested_too_deep,
        )
    ),
    *(Case(build, LAYOUT) for build in (numbered_names, mapping_that_is_no_box, mapping_with_gaps)),
    Case(source_is_a_group, Refused("FileError", "not-a-dataset")),
    Case(huge_extent_over_a_small_source, Refused("TrustError", "over-budget")),
]


@pytest.mark.parametrize("case", commanded_once(CASES), ids=str)
def test_virtual_words_are_right_or_missing_or_refused(
    case: Case, worker: Worker, unharmed: Run, tmp_path: Path
) -> None:
    run_case(worker, unharmed, tmp_path, case)
