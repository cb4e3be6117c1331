"""Pictures lose their metadata, except the orientation and the colour profile."""

import io
import struct
import zlib

import pytest
from picture_files import (
    KEPT,
    LONG_PROFILE,
    LONGEST_PROFILE,
    PROFILE,
    SECRET,
    SIZE,
    XMP,
    animated,
    bmp,
    cleaned,
    encoded,
    exif,
    gif_blocks,
    gif_with,
    icc_chunk,
    jpeg_with,
    png_chunk,
    png_kinds,
    png_with,
    refusal,
    scene,
    segment,
    shown,
    tiff,
    webp,
    webp_canvas,
    webp_chunk,
    webp_image,
)
from PIL import Image, ImageOps, TiffImagePlugin


def secrets_in(kind: str) -> bytes:
    """A picture with a name and a birthday wherever they fit."""
    content = KEPT[kind]
    if kind.endswith("JPEG"):
        thumbnail = b"JFIF\0\1\1\0\0\1\0\1" + bytes((3, 3)) + (SECRET + bytes(2))
        apps = [segment(marker, SECRET) for marker in (*range(0xE0, 0xF0), 0xFE)]
        named = [(0xE0, b"JFXX\0\x10"), (0xE1, XMP), (0xE2, b"MPF\0"), (0xE2, b"FPXR\0")]
        apps += [segment(marker, name + SECRET) for marker, name in (*named, (0xED, b"Photoshop 3.0\0"))]
        apps = [segment(0xE0, thumbnail), segment(0xE1, b"Exif\0\0" + exif(1)), *apps]
        return content[:2] + b"".join(apps) + content[20:] + SECRET
    if kind.endswith("PNG"):
        texts = [png_chunk(b"tEXt", b"Author\0" + SECRET), png_chunk(b"zTXt", b"Author\0\0" + zlib.compress(SECRET, 0))]
        texts += [png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + SECRET), png_chunk(b"eXIf", exif(1))]
        texts += [png_chunk(b"tIME", bytes(7)), png_chunk(b"prVt", SECRET)]
        return png_with(content, *texts)[:-12] + texts[0] + png_chunk(b"IEND") + SECRET
    if kind.endswith("WebP"):
        chunks = [webp_chunk(b"EXIF", exif(1)), webp_chunk(b"XMP ", SECRET), webp_chunk(b"prvt", SECRET)]
        body = content[12:] if content[12:16] == b"VP8X" else webp_canvas(*SIZE) + content[12:]
        return webp(body[:8] + bytes((body[8] | 0x0C,)) + body[9:], *chunks) + SECRET
    xmp = b"!\xff" + gif_blocks(b"XMP DataXMP", SECRET)
    plain = b"!\x01" + gif_blocks(bytes(12), SECRET)
    return gif_with(content, b"!\xfe" + gif_blocks(SECRET, SECRET), plain, xmp, b"!\x99" + gif_blocks(SECRET)) + SECRET


@pytest.mark.parametrize(
    "kind", ["JPEG", "progressive JPEG", "PNG", "animated PNG", "WebP", "animated WebP", "GIF", "animated GIF"]
)
def test_metadata_and_what_follows_the_end_are_cut_and_the_picture_stays(kind):
    content = secrets_in(kind)
    assert SECRET in content
    clean = cleaned(content)
    assert SECRET not in clean
    assert shown(clean) == shown(KEPT[kind])
    if kind != "WebP":  # which went in with a VP8X chunk, and keeps it
        assert clean == KEPT[kind].replace(b"\0\0\0\1\0\1\0\0", b"\0\0\0\1\0\1\0\0")


def test_a_webp_of_the_simple_format_is_a_single_chunk():
    assert (
        cleaned(webp(webp_image(KEPT["WebP"]), webp_chunk(b"EXIF", exif(6)), webp_chunk(b"ICCP", SECRET)))
        == KEPT["WebP"]
    )


def test_nothing_unknown_is_kept_inside_a_frame_of_an_animated_webp():
    content = KEPT["animated WebP"]
    at = content.index(b"ANMF")
    size = int.from_bytes(content[at + 4 : at + 8], "little")
    frame = webp_chunk(b"ANMF", content[at + 8 : at + 8 + size] + webp_chunk(b"prvt", SECRET))
    assert cleaned(webp(content[12:at], frame, content[at + 8 + size :])) == content


def test_metadata_of_a_tiff_and_a_bmp_do_not_reach_the_png():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in (270, 305, 315, 700, 33432, 33723, 37724):
        tags[tag] = SECRET.decode() if tag < 700 or tag == 33432 else SECRET
    content = encoded(scene(), "TIFF", tiffinfo=tags, exif=exif(1), dpi=(300, 300))
    assert content.count(SECRET) >= 7
    assert png_kinds(cleaned(content)) == [b"IHDR", b"IDAT", b"IEND"]
    assert png_kinds(cleaned(encoded(scene(), "BMP", dpi=(300, 300)) + SECRET)) == [b"IHDR", b"IDAT", b"IEND"]


def test_of_a_phone_picture_of_several_images_only_the_main_one_is_kept():
    content = encoded(scene(), "MPO", save_all=True, append_images=[scene(turn=400)])
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert cleaned(content) == KEPT["JPEG"]
    assert cleaned(content.replace(b"MPF\0II", b"MPF\0XX")) == KEPT["JPEG"]  # its index is broken


def test_the_segments_between_the_scans_of_a_progressive_jpeg_survive_except_comments():
    content = KEPT["progressive JPEG"]
    last = content.rindex(b"\xff\xc4")
    assert content.index(b"\xff\xda") < last < content.rindex(b"\xff\xda")
    commented = content[:last] + segment(0xFE, SECRET) + segment(0xE1, b"Exif\0\0" + exif(1)) + content[last:]
    assert cleaned(commented) == content


def test_a_jpeg_may_have_fill_bytes_and_no_jfif():
    content = KEPT["JPEG"][:2] + b"\xff\xff\xff" + KEPT["JPEG"][20:]
    assert shown(cleaned(content)) == shown(content)


def test_colour_information_of_a_png_is_kept():
    chunks = [
        png_chunk(b"gAMA", struct.pack(">I", 45_455)),
        png_chunk(b"cHRM", struct.pack(">8I", *range(1, 9))),
        png_chunk(b"sBIT", b"\5\6\5"),
        png_chunk(b"cICP", b"\x09\x10\0\1"),
        png_chunk(b"mDCV", bytes(24)),
        png_chunk(b"cLLI", bytes(8)),
        png_chunk(b"bKGD", bytes(6)),
        png_chunk(b"pHYs", struct.pack(">IIB", 3_000, 3_000, 1)),
    ]
    for chunk in [*chunks, png_chunk(b"sRGB", b"\0"), png_chunk(b"tRNS", bytes(6))]:
        assert cleaned(png_with(KEPT["PNG"], chunk)) == png_with(KEPT["PNG"], chunk)


def test_the_loop_and_the_profile_of_a_gif_are_kept():
    profile = b"!\xff" + gif_blocks(b"ICCRGBG1012", *(PROFILE[at : at + 255] for at in range(0, len(PROFILE), 255)))
    again = b"!\xff" + gif_blocks(b"ANIMEXTS1.0", b"\1\7\0")
    content = gif_with(KEPT["animated GIF"], profile, again)
    assert b"NETSCAPE2.0" in content
    assert cleaned(content) == content


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [PROFILE, LONG_PROFILE, LONGEST_PROFILE], ids=["short", "long", "over 1 MB"])
def test_the_colour_profile_is_kept(format, profile):
    content = encoded(scene(), format, icc_profile=profile)
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert image.info["icc_profile"] == profile
    assert format == "TIFF" or cleaned(content) == content


def bmp_with_profile(profile: bytes, kind: bytes = b"DEBM") -> bytes:
    content = encoded(scene(), "BMP")
    header = bytearray(struct.pack("<I", 124) + content[18:54].ljust(120, b"\0"))
    struct.pack_into("<II", header, 112, 124 + len(content) - 54, len(profile))
    header[56:60] = kind
    return content[:10] + struct.pack("<I", 14 + 124) + bytes(header) + content[54:] + profile


def test_the_colour_profile_of_a_bmp_is_kept():
    for kind, profile in ((b"DEBM", PROFILE), (b"DEBM", LONGEST_PROFILE), (b"BGRs", None)):
        with Image.open(io.BytesIO(cleaned(bmp_with_profile(profile or PROFILE, kind)))) as image:
            assert image.info.get("icc_profile") == profile
            assert image.tobytes() == scene().tobytes()


def with_profile(format: str, profile: bytes) -> bytes:
    """A picture with what it says is a profile."""
    if format == "PNG":
        return png_with(KEPT["PNG"], icc_chunk(zlib.compress(profile, 0)))
    if format == "GIF":
        blocks = [profile[at : at + 255] for at in range(0, len(profile), 255)]
        return gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"ICCRGBG1012", *blocks))
    return bmp_with_profile(profile) if format == "BMP" else encoded(scene(), format, icc_profile=profile)


NO_PROFILES = {
    "text": SECRET * 9,
    "a header too short": (struct.pack(">I", 99) + PROFILE[4:74] + SECRET),
    "another signature": PROFILE[:36] + b"ACSP" + PROFILE[40:-25] + SECRET,
    "a profile cut short": struct.pack(">I", len(PROFILE) + 1) + PROFILE[4:-25] + SECRET,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("profile", NO_PROFILES.values(), ids=NO_PROFILES)
def test_what_is_no_colour_profile_is_cut(format, profile):
    content = with_profile(format, profile)
    assert SECRET in content
    with Image.open(io.BytesIO(cleaned(content))) as image:
        assert "icc_profile" not in image.info
    assert SECRET not in cleaned(content)
    assert cleaned(cleaned(content)) == cleaned(content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_what_follows_a_colour_profile_is_cut(format):
    content = with_profile(format, PROFILE + SECRET)
    assert SECRET in content
    clean = cleaned(content)
    with Image.open(io.BytesIO(clean)) as image:
        assert image.info.get("icc_profile", PROFILE) == PROFILE
    assert SECRET not in clean
    assert (format == "PNG" and b"iCCP" in clean) or clean == cleaned(with_profile(format, PROFILE))


def test_a_webp_whose_profile_is_cut_does_not_promise_one():
    assert cleaned(with_profile("WEBP", SECRET))[20] & 0x20 == 0
    assert cleaned(with_profile("WEBP", PROFILE))[20] & 0x20


@pytest.mark.parametrize(
    "parts",
    [
        [(1, 2, PROFILE[:300]), (2, 2, PROFILE[300:]), (3, 3, SECRET)],
        [(1, 1, PROFILE), (2, 2, SECRET)],
        [(1, 1, PROFILE), (1, 1, SECRET)],
        [(1, 2, PROFILE + SECRET)],
        [(0, 1, PROFILE + SECRET)],
        [(0, 0, SECRET)],
    ],
    ids=["three of two", "two firsts", "the same twice", "the second is missing", "none is the first", "none of none"],
)
def test_a_colour_profile_of_a_jpeg_whose_parts_do_not_fit_together_is_cut(parts):
    segments = [segment(0xE2, b"ICC_PROFILE\0" + bytes(numbers) + part) for *numbers, part in parts]
    assert cleaned(jpeg_with(KEPT["JPEG"], *segments, segment(0xE2, b"ICC_PROFILE\0" + SECRET))) == KEPT["JPEG"]
    assert cleaned(jpeg_with(KEPT["JPEG"], *segments)) == KEPT["JPEG"]


def test_the_parts_of_a_colour_profile_of_a_jpeg_may_come_in_any_order():
    parts = [segment(0xE2, b"ICC_PROFILE\0\2\2" + PROFILE[300:]), segment(0xE2, b"ICC_PROFILE\0\1\2" + PROFILE[:300])]
    assert cleaned(jpeg_with(KEPT["JPEG"], *parts)) == encoded(scene(), "JPEG", icc_profile=PROFILE)


def test_of_an_adobe_segment_only_its_twelve_bytes_are_kept():
    content = KEPT["CMYK JPEG"]
    start = content.index(b"\xff\xee\0\x0eAdobe")
    before, adobe, after = content[:start], content[start + 4 : start + 16], content[start + 16 :]
    other = segment(0xEE, b"Adobe  " + SECRET)  # the last of several counts
    assert cleaned(before + other + segment(0xEE, adobe + SECRET) + after) == content
    assert cleaned(jpeg_with(KEPT["JPEG"], segment(0xEE, b"Adobe" + SECRET[:6]))) == KEPT["JPEG"]


def test_adobe_and_colour_profile_are_cut_where_a_jpeg_decoder_does_not_look_for_them():
    content = KEPT["progressive JPEG"]
    last = content.rindex(b"\xff\xda")
    for extra in (segment(0xEE, b"Adobe\0\x64\0\0\0\0\1"), segment(0xE2, b"ICC_PROFILE\0\1\1" + PROFILE)):
        assert cleaned(content[:last] + extra + content[last:]) == content


def test_text_in_a_segment_of_a_jpeg_that_decoders_skip_is_refused():
    end = KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23)) + b"\xff\xd9"
    assert cleaned(end) == end
    assert "damaged" in refusal(KEPT["JPEG"][:-2] + segment(0xDC, struct.pack(">H", 23) + SECRET) + b"\xff\xd9")


def test_text_in_and_behind_the_profile_of_a_png_is_cut():
    clean = png_with(KEPT["PNG"], icc_chunk(zlib.compress(PROFILE)))
    for chunk in (icc_chunk(zlib.compress(PROFILE), SECRET), icc_chunk(zlib.compress(PROFILE) + SECRET)):
        assert cleaned(png_with(KEPT["PNG"], chunk)) == clean
    for chunk in (
        png_chunk(b"iCCP", SECRET),
        png_chunk(b"iCCP", b"icc\0\1" + zlib.compress(PROFILE)),
        icc_chunk(SECRET),
        icc_chunk(b""),
    ):
        assert cleaned(png_with(KEPT["PNG"], chunk)) == KEPT["PNG"]


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"cICP", b"mDCV", b"cLLI"])
def test_text_in_a_png_chunk_that_is_too_long_is_cut(kind):
    assert cleaned(png_with(KEPT["PNG"], png_chunk(kind, bytes(32) + SECRET))) == KEPT["PNG"]


def test_text_in_a_png_chunk_that_the_pixels_need_is_refused():
    for kind in (b"tRNS", b"PLTE", b"acTL", b"fcTL"):
        assert "damaged" in refusal(png_with(KEPT["PNG"], png_chunk(kind, bytes(768) + SECRET)))
    assert "damaged" in refusal(KEPT["PNG"][:-12] + png_chunk(b"IEND", SECRET))


def test_text_in_the_chunks_of_a_webp_is_cut():
    content = KEPT["animated WebP"]
    assert content[12:20] == b"VP8X\n\0\0\0"
    at = content.index(b"ANIM")
    longer = (webp_chunk(b"VP8X", content[20:30] + SECRET), webp_chunk(b"ANIM", content[at + 8 : at + 14] + SECRET))
    assert cleaned(webp(longer[0], content[30:at], longer[1], longer[1], content[at + 14 :])) == content
    image, canvas = webp_image(KEPT["WebP"]), webp_canvas(*SIZE)
    assert cleaned(webp(canvas, image, webp_chunk(b"VP8 ", SECRET))) == webp(canvas, image)
    profiles = [webp_chunk(b"ICCP", profile) for profile in (PROFILE, PROFILE[:-25] + SECRET)]
    canvas = webp_canvas(*SIZE, flags=0x20)
    assert cleaned(webp(canvas, *profiles, image)) == webp(canvas, profiles[0], image)


def test_text_in_the_extensions_of_a_gif_is_cut_or_refused():
    content = KEPT["animated GIF"]
    loop = b"!\xff" + gif_blocks(b"NETSCAPE2.0", b"\1\3\0")
    assert loop in content
    for wordy in (
        gif_blocks(b"NETSCAPE2.0", b"\1\3\0", SECRET),
        gif_blocks(b"NETSCAPE2.0", SECRET, b"\1\3\0", b"\1ab"),
        gif_blocks(b"NETSCAPE2.0", b"\1\3\0") + b"!\xff" + gif_blocks(b"NETSCAPE2.0", b"\1ab"),
    ):
        assert cleaned(content.replace(loop, b"!\xff" + wordy)) == content
    assert cleaned(gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"NETSCAPE2.0", SECRET))) == KEPT["GIF"]
    assert cleaned(gif_with(KEPT["GIF"], b"!\xff" + gif_blocks(b"NETSCAPE2.0" + SECRET, b"\1\3\0"))) == KEPT["GIF"]
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"!\xf9" + gif_blocks(bytes(4), SECRET)))
    assert "damaged" in refusal(gif_with(KEPT["GIF"], b"!\xf9" + gif_blocks(bytes(4) + SECRET)))


def test_pixels_are_not_taken_for_a_colour_profile():
    pixels = (bytes(16) + b"DEBM" + bytes(52) + struct.pack("<II", 0, 50)).ljust(192, b"\0")  # as in a longer header
    for content in (bmp(8, 8, pixels, bits=24), tiff(1, 1, b"\0", t34675=(3, 7))):
        with Image.open(io.BytesIO(cleaned(content))) as image:
            assert "icc_profile" not in image.info


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "animated WEBP"])
def test_of_exif_only_the_orientation_is_kept(format, orientation, order):
    content = exif_in(format, exif(orientation, order))
    clean = cleaned(content)
    assert SECRET in content
    assert SECRET not in clean
    with Image.open(io.BytesIO(clean)) as image, Image.open(io.BytesIO(content)) as original:
        assert dict(image.getexif()) == {0x0112: orientation}
        assert image.size == original.size == SIZE
        assert ImageOps.exif_transpose(image).tobytes() == ImageOps.exif_transpose(original).tobytes()
    assert len(clean) < len(exif_in(format, exif(orientation, order)))
    assert cleaned(clean) == clean


def test_the_first_exif_of_a_jpeg_counts():
    others = [segment(0xE1, XMP), segment(0xE5, b"Exif\0\0" + exif(3)), segment(0xE1, b"JFIF\0")]
    exifs = [segment(0xE1, b"Exif\0\0" + exif(orientation)) for orientation in (6, 3)]
    clean = cleaned(jpeg_with(KEPT["JPEG"], *others, *exifs))
    assert clean == cleaned(jpeg_with(KEPT["JPEG"], exifs[0]))
    with Image.open(io.BytesIO(clean)) as image:
        assert image.getexif()[0x0112] == 6


def exif_in(format: str, content: bytes) -> bytes:
    if format == "JPEG":
        return encoded(scene(), format, exif=b"Exif\0\0" + content)
    if format.startswith("animated"):
        return animated(format.split()[1], exif=content)
    return encoded(scene(), format, exif=content)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "broken",
    [
        exif(None),
        exif(0),
        exif(1),
        exif(9),
        exif(6)[:20],
        b"",
        b"II",
        b"nonsense" * 9,
        b"MM\0*\xff\xff\xff\xff" + bytes(40),
    ],
    ids=str,
)
def test_exif_without_a_sensible_orientation_is_dropped(format, broken):
    content = {
        "JPEG": lambda: jpeg_with(KEPT["JPEG"], segment(0xE1, b"Exif\0\0" + broken)),
        "PNG": lambda: png_with(KEPT["PNG"], png_chunk(b"eXIf", broken)),
        "WEBP": lambda: webp(webp_canvas(*SIZE, flags=8), webp_image(KEPT["WebP"]), webp_chunk(b"EXIF", broken)),
    }[format]()
    plain = webp(webp_canvas(*SIZE), webp_image(KEPT["WebP"]))
    assert cleaned(content) == {"JPEG": KEPT["JPEG"], "PNG": KEPT["PNG"], "WEBP": plain}[format]
