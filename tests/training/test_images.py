"""Reading, converting, padding and saving images."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from fastsketch.errors import FastsketchError
from fastsketch.files import written_whole
from fastsketch.training.images import (
    crop_back,
    fit_within,
    pad_to,
    picture_size,
    read_mask,
    read_photo,
    read_sketch,
    save_image,
    to_image,
    to_signed_tensor,
)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_without_pixels(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.radial_gradient("L").resize((60, 40)).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif)
    size = picture_size(tmp_path / f"a.{suffix}")
    assert size == read_photo(tmp_path / f"a.{suffix}").size == ((40, 60) if orientation == 6 else (60, 40))
    with pytest.raises(FastsketchError, match="is a folder"):
        picture_size(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    with pytest.raises(FastsketchError, match=r"torn\.png: unreadable"):
        picture_size(tmp_path / "torn.png")


@pytest.fixture
def rgb() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 10, 3), dtype=np.uint8))


def test_rgb_and_grey(tmp_path, rgb):
    rgb.save(tmp_path / "a.png")
    rgb.convert("L").save(tmp_path / "g.png")
    assert np.array_equal(read_photo(tmp_path / "a.png"), rgb)
    grey = read_photo(str(tmp_path / "g.png"))
    assert grey.mode == "RGB"
    assert np.array_equal(np.asarray(grey)[..., 0], rgb.convert("L"))
    assert read_sketch(tmp_path / "a.png").mode == read_mask(tmp_path / "a.png").mode == "L"
    assert read_sketch(tmp_path / "a.png", channels=3).mode == "RGB"
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 2"):
        read_sketch(tmp_path / "a.png", channels=2)


def test_transparency_is_white_paper(tmp_path):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[..., 3] = [0, 255, 128]  # black ink: absent, full, half
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.asarray(read_photo(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0, 127]
    Image.fromarray(pixels[..., 2:], "LA").save(tmp_path / "la.png")
    assert np.asarray(read_photo(tmp_path / "la.png"))[0, :, 0].tolist() == [255, 0, 127]


def test_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png")
    assert np.asarray(read_photo(tmp_path / "p.png")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    image.save(tmp_path / "t.png", transparency=1)
    assert np.asarray(read_photo(tmp_path / "t.png")).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    values = np.array([[0, 257 * 7 + 128, 257 * 7 + 129, 65535, 257 * 100]], np.uint16)  # rounded to the nearest
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read_photo(tmp_path / f"a.{suffix}"))[0, :, 1].tolist() == [0, 7, 8, 255, 100]


def test_float_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(FastsketchError, match=r"f\.tif: floating-point"):
        read_photo(tmp_path / "f.tif")


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert np.asarray(read_photo(tmp_path / "a.jpg")).min() >= 250


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (20, 10), "white")
    image.paste("black", (0, 0, 10, 10))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    shown = read_photo(tmp_path / "a.png")
    assert shown.size == (10, 20)
    assert np.asarray(shown)[:10].max() == 0
    assert np.asarray(shown)[10:].min() == 255


def test_damaged_files_are_named(tmp_path, rgb):
    with pytest.raises(FastsketchError, match=r"none\.png: no such"):
        read_photo(tmp_path / "none.png")
    with pytest.raises(FastsketchError, match="is a folder"):
        read_photo(tmp_path)
    big = rgb.resize((200, 200))
    for name in ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp"):
        path = tmp_path / name
        big.save(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(FastsketchError, match=rf"{name}: unreadable image \(.+\)"):
            read_photo(path)
    for content in (b"", b"not an image at all"):
        (tmp_path / "t.jpg").write_bytes(content)
        with pytest.raises(FastsketchError, match=r"t\.jpg: unreadable"):
            read_photo(tmp_path / "t.jpg")


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("b.jpg", {}), ("c.jpg", {"progressive": True})])
def test_a_truncated_file_is_read_whole_or_refused(tmp_path, rgb, monkeypatch, name, options, tolerant):
    """Cut anywhere: an error that names it, or (where no pixel is missing) the very picture; never one made up."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)  # as some programs set it, for all there is
    path = tmp_path / name
    rgb.save(path, **options)
    data, picture = path.read_bytes(), np.asarray(read_photo(path))
    survived = []
    for size in range(len(data)):
        path.write_bytes(data[:size])
        try:
            assert np.array_equal(read_photo(path), picture)
            survived.append(len(data) - size)
        except FastsketchError as error:
            assert str(error).startswith(f"{path}: unreadable image (")
    assert max(survived, default=0) <= 21  # a PNG's last checksums and its end marker
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tensor_round_trip_is_exact_for_every_byte(mode):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    tensor = to_signed_tensor(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (len(mode), 16, 16)
    assert tensor.min() == -1
    assert tensor.max() == 1
    assert np.array_equal(to_image(tensor), image)
    assert to_image(tensor).mode == mode
    torch.testing.assert_close(tensor[0].flatten(), torch.arange(256) / 255 * 2 - 1, rtol=0, atol=0)


def test_to_image_clamps_and_refuses():
    assert np.asarray(to_image(torch.tensor([[[-9.0, 9.0]]]))).tolist() == [[0, 255]]
    with pytest.raises(ValueError, match="non-finite"):
        to_image(torch.tensor([[[float("nan")]]]))
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\)"):
        to_image(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="got RGBA"):
        to_signed_tensor(Image.new("RGBA", (2, 2)))


def test_fit_within_keeps_aspect_and_never_enlarges():
    image = Image.new("RGB", (200, 250))
    assert fit_within(image, 128).size == (102, 128)
    assert fit_within(image.transpose(Image.Transpose.ROTATE_90), 128).size == (128, 102)
    assert fit_within(image, 256) is fit_within(image, 250) is image
    assert fit_within(image, 1).size == (1, 1)
    edge = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 50, axis=1))
    assert set(np.unique(fit_within(edge, 25, mask=True))) >= {0, 255}


@pytest.mark.parametrize("size", [(250, 200), (256, 256), (255, 1)])
def test_pad_and_crop_back(size):
    image = torch.rand(2, 3, *size)
    padded, padding = pad_to(image, 256, 256)
    assert padded.shape == (2, 3, 256, 256)
    assert torch.equal(crop_back(padded, padding), image)
    assert abs(padding.left - padding.right) <= 1
    assert abs(padding.top - padding.bottom) <= 1
    if padding.left:
        left = padded[..., padding.top : padding.top + size[0], : padding.left]
        assert torch.equal(left, image[..., :1].expand_as(left))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_repeats_the_border(dtype, channels):
    image = (torch.rand(7, 5, channels) * 255).to(dtype).permute(2, 0, 1)  # as pixels lie in a picture
    padded, padding = pad_to(image, 10, 20)
    assert padding == (7, 1, 8, 2)
    assert padded.dtype == dtype and padded.is_contiguous()
    rows, columns = torch.arange(-1, 9).clamp(0, 6), torch.arange(-7, 13).clamp(0, 4)
    assert torch.equal(padded, image[:, rows][:, :, columns])


def test_padding_refuses():
    image = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="canvas 1x4 is smaller than the image 2x2"):
        pad_to(image, 1, 4)
    with pytest.raises(ValueError, match="smaller than its padding"):
        crop_back(torch.zeros(1, 2, 2), pad_to(image, 9, 9)[1])


def test_save_image(tmp_path, rgb):
    save_image(rgb, tmp_path / "new" / "folder" / "a.png")
    assert np.array_equal(read_photo(tmp_path / "new" / "folder" / "a.png"), rgb)
    save_image(torch.zeros(1, 3, 4), tmp_path / "b.png")
    assert read_photo(tmp_path / "b.png").size == (4, 3)
    with pytest.raises(FastsketchError, match=r"c\.xyz: unknown image suffix"):
        save_image(rgb, tmp_path / "c.xyz")
    (tmp_path / "file").write_text("")
    with pytest.raises(FastsketchError, match="cannot write"):
        save_image(rgb, tmp_path / "file" / "a.png")


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    for failure, expected in ((OSError(28, "No space left on device"), FastsketchError), (KeyboardInterrupt(),) * 2):
        with (
            pytest.raises(expected if isinstance(expected, type) else type(expected)),
            written_whole(path) as temporary,
        ):
            temporary.write_text("half")
            raise failure
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
