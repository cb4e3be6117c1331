"""JPEG, as a file and inside TIFF: a picture is refused if data is missing, and only then."""

import io
import struct

import pytest
from picture_files import KEPT, PHOTO, SECRET, cleaned, encoded, flat_jpeg, jpeg_tiff, refusal, segment, shown
from PIL import Image

CUT = {
    "baseline": {},
    "of full colour": {"subsampling": 0},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 20},
}


def cuts(content: bytes) -> dict[str, bytes]:
    """A JPEG without some of its data, but with its end mark."""
    start = content.index(b"\xff\xda")
    start += 2 + int.from_bytes(content[start + 2 : start + 4])
    half, quarter = (start + len(content)) // 2, (len(content) - start) // 4
    return {
        "no data": content[:start] + b"\xff\xd9",
        "half": content[:half] + b"\xff\xd9",
        "nearly all": content[:-40] + b"\xff\xd9",
        "a quarter zeroed": content[: half - quarter] + bytes(quarter) + content[half:],
        "the last quarter zeroed": content[: -2 - quarter] + bytes(quarter) + b"\xff\xd9",
    }


@pytest.mark.parametrize("what", cuts(KEPT["JPEG"]))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", CUT.values(), ids=CUT)
def test_a_jpeg_without_some_of_its_data_is_refused_though_its_end_mark_is_there(options, mode, what):
    content = encoded(PHOTO.convert(mode), "JPEG", **options)
    cut = cuts(content)[what]
    with Image.open(io.BytesIO(cut)) as image:
        image.load()  # grey, black or noise, and no word of it
    assert cleaned(content) == content
    assert "damaged" in refusal(cut)


def test_a_progressive_jpeg_that_was_cut_between_two_scans_is_refused():
    for mode in ("RGB", "L", "CMYK"):
        content = encoded(PHOTO.convert(mode), "JPEG", progressive=True)
        scans = [at for at in range(len(content)) if content[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
        for at in scans[1:]:
            assert "damaged" in refusal(content[:at] + b"\xff\xd9")


def test_every_coefficient_of_every_component_must_have_come_whole():
    whole = [(0, 0, 0, 1, 1, 2, 3), (0, 0, 1, 0, 1, 2, 3)]
    whole += [(1, 5, 0, 0, 1), (6, 63, 0, 1, 1), (6, 63, 1, 0, 1), (1, 63, 0, 0, 2), (1, 63, 0, 0, 3)]
    assert cleaned(flat_jpeg(whole, components=3))
    for lacking in range(1, len(whole)):
        assert "damaged" in refusal(flat_jpeg(whole[:lacking] + whole[lacking + 1 :], components=3))


def test_a_baseline_jpeg_may_have_a_scan_for_each_component_but_must_have_all():
    scans = [(0, 63, 0, 0, number) for number in (1, 2, 3)]
    for marker in (b"\xc0", b"\xc1"):
        content = flat_jpeg(scans, components=3, marker=marker)
        assert cleaned(content) == content
        assert "damaged" in refusal(flat_jpeg(scans[:2], components=3, marker=marker))


ADOBE = b"Adobe\0\x64\0\0\0\0"
UNUSUAL = {
    "YCCK": flat_jpeg([(0, 63, 0, 0, 1, 2, 3, 4)], components=4, marker=b"\xc0", app=segment(0xEE, ADOBE + b"\2")),
    "YCCK, progressive": flat_jpeg(
        [(0, 0, 0, 0, 1, 2, 3, 4), *[(1, 63, 0, 0, number) for number in (1, 2, 3, 4)]],
        components=4,
        app=segment(0xEE, ADOBE + b"\2"),
    ),
    "RGB": flat_jpeg([(0, 63, 0, 0, 1, 2, 3)], components=3, marker=b"\xc0", app=segment(0xEE, ADOBE + b"\0")),
    "4:2:2": encoded(PHOTO, "JPEG", subsampling="4:2:2"),
    "4:1:1": encoded(PHOTO, "JPEG", subsampling="4:1:1"),
    "optimised": encoded(PHOTO, "JPEG", optimize=True),
    "of the best quality": encoded(PHOTO, "JPEG", quality=100, subsampling=0),
    "of the worst quality": encoded(PHOTO, "JPEG", quality=1),
    "with DNL": KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23)) + b"\xff\xd9",
    "with fill bytes before its end": KEPT["JPEG"][:-2] + b"\xff\xff\xff\xff\xd9",
    "one pixel": encoded(Image.new("RGB", (1, 1)), "JPEG"),
    "one pixel high": encoded(Image.new("RGB", (2_000, 1)), "JPEG", progressive=True),
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=UNUSUAL)
def test_a_whole_jpeg_of_an_unusual_kind_is_taken(content):
    assert shown(cleaned(content)) == shown(content)


def test_padding_before_the_end_of_a_jpeg_is_cut():
    for content in (KEPT["JPEG"], encoded(PHOTO, "JPEG"), encoded(PHOTO, "JPEG", progressive=True)):
        for padding in (bytes(1), bytes(4), bytes(8), bytes(16), b"\xff\0" * 8):
            clean = cleaned(content[:-2] + padding + b"\xff\xd9")
            assert shown(clean) == shown(content)
            assert len(clean) <= len(content) + 8  # so much a decoder reads ahead
        for surplus in (bytes(32), SECRET, SECRET[:16], bytes(8) + SECRET[:8]):
            assert "damaged" in refusal(content[:-2] + surplus + b"\xff\xd9")


def test_a_jpeg_header_at_which_decoders_only_warn_is_put_right():
    jfif = KEPT["JPEG"].replace(b"JFIF\0\1\1", b"JFIF\0\2\1")
    start = KEPT["JPEG"].index(b"\xff\xda") + 11
    scan = KEPT["JPEG"][:start] + b"\0\0\0" + KEPT["JPEG"][start + 3 :]
    for content in (jfif, scan):
        assert content != KEPT["JPEG"]
        assert cleaned(content) == KEPT["JPEG"]


def test_components_of_a_jpeg_may_have_the_same_identifier():
    content = KEPT["JPEG"].replace(b"\1\x22\0\2\x11\1\3\x11\1", b"\0\x22\0\0\x11\1\0\x11\1")
    start = content.index(b"\xff\xda") + 5
    content = content[:start] + bytes((0, content[start + 1], 0, content[start + 3], 0)) + content[start + 5 :]
    assert cleaned(content) == content


def test_a_jpeg_of_a_subsampling_that_we_cannot_check_is_refused_with_a_word_on_what_to_send():
    content = KEPT["JPEG"].replace(b"\1\x22\0\2\x11\1\3\x11\1", b"\1\x42\0\2\x11\1\3\x11\1")
    assert "rare kind of JPEG" in refusal(content)


STRIPS = [encoded(PHOTO.convert("L").crop((0, top, 320, top + 80)), "JPEG") for top in (0, 80, 160)]
TILES = [
    encoded(PHOTO.convert("L").crop((left, top, left + 176, top + 128)), "JPEG")
    for top in (0, 128)
    for left in (0, 176)
]


@pytest.mark.parametrize(("parts", "tile"), [(STRIPS, None), (TILES, (176, 128))], ids=["strips", "tiles"])
def test_a_tiff_whose_jpeg_strips_or_tiles_lack_data_is_refused(parts, tile):
    with Image.open(io.BytesIO(cleaned(jpeg_tiff(*parts, tile=tile)))) as image:
        assert image.size == PHOTO.size
    for number in range(len(parts)):
        for cut in cuts(parts[number]).values():
            assert "damaged" in refusal(jpeg_tiff(*parts[:number], cut, *parts[number + 1 :], tile=tile))
    small = encoded(Image.new("L", (320, 16)), "JPEG")
    assert "damaged" in refusal(jpeg_tiff(*parts[:-1], small, tile=tile))


def test_the_tables_of_jpeg_strips_may_stand_apart():
    start, end = STRIPS[0].index(b"\xff\xdb"), STRIPS[0].index(b"\xff\xc0")
    tables = STRIPS[0][start:end]
    parts = [part.replace(tables, b"") for part in STRIPS]
    content = jpeg_tiff(*parts, tables=b"\xff\xd8" + tables + b"\xff\xd9")
    assert len(content) < len(jpeg_tiff(*STRIPS))
    assert cleaned(content) == cleaned(jpeg_tiff(*STRIPS))
    assert "damaged" in refusal(jpeg_tiff(*parts))


def test_a_coloured_tiff_in_jpeg_with_a_cut_strip_is_refused():
    content = encoded(PHOTO, "TIFF", compression="jpeg", quality=80)
    with Image.open(io.BytesIO(content)) as image:
        [*starts], [*sizes] = image.tag_v2[273], image.tag_v2[279]
    assert len(starts) > 1
    assert cleaned(content)
    start, end = starts[1], starts[1] + sizes[1]
    for cut in cuts(content[start:end]).values():
        assert "damaged" in refusal(content[:start] + cut.ljust(sizes[1], b"\0") + content[end:])


def test_a_tiff_in_the_old_kind_of_jpeg_is_refused_with_a_word_on_what_to_send():
    assert "rare kind of TIFF" in refusal(jpeg_tiff(*STRIPS, compression=6))


def test_jpeg_strips_that_lie_in_the_same_place_are_refused():
    content = jpeg_tiff(*STRIPS)
    sizes = struct.pack("<III", *map(len, STRIPS))
    assert "damaged" in refusal(content.replace(sizes, struct.pack("<III", *[len(content)] * 3)))
