"""Person masks made from the photo alone: by its white background, by GrabCut, by a segmentation network.

The paper does not say how its masks are derived [P]; all of this is our decision [D]. Who changes
what comes out raises `fastsketch.training.masks.MASK_VERSION`.
"""

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from fastsketch.nn.losses import IMAGENET_MEAN, IMAGENET_STD

NEAR_WHITE = 235  # the darkest channel of a whitened background, JPEG noise allowed for
NEAR_BLACK = 24  # the brightest channel of the black that fills the corners of a rotated photo
_PERSON_CLASS = 15  # in the VOC labels


def border_is_white(photo: Image.Image) -> bool:
    """Whether the photo's surroundings (top edge, upper quarter of the sides) are mostly near white."""
    darkest = np.asarray(photo).min(axis=2)
    height, width = darkest.shape
    edge = max(1, round(0.03 * min(height, width)))
    upper = max(1, height // 4)
    ring = (darkest[:edge].ravel(), darkest[:upper, :edge].ravel(), darkest[:upper, -edge:].ravel())
    return float((np.concatenate(ring) >= NEAR_WHITE).mean()) >= 0.6


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _largest_component(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return np.zeros_like(mask)
    return (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)


def _reached_from_outside(passable: np.ndarray) -> np.ndarray:
    """Pixels connected through `passable` to the top or a side; the bottom edge is where the body goes on."""
    height, width = passable.shape
    framed = np.zeros((height + 1, width + 2), np.uint8)
    framed[1:, 1:-1] = passable
    framed[0] = 1
    framed[:, 0] = framed[:, -1] = 1
    _, labels = cv2.connectedComponents(framed, connectivity=4)
    return (labels[1:, 1:-1] == labels[0, 0]).astype(np.uint8)


def _black_wedge(brightest: np.ndarray) -> np.ndarray:
    """The black strip that a rotation left along the bottom: thin, straight-edged, from side to side.

    Clothes can be as black, but are neither straight-edged nor do they span the width: the height of the black run
    above the bottom edge is fitted by a line over the columns, robustly, and must follow it in many columns and at
    one side of the photo at least. A strip below clothes of the same black cannot be told from them and stays.
    """
    height, width = brightest.shape
    most = max(2, round(0.15 * height))
    black = brightest[::-1][: 2 * most] < NEAR_BLACK
    run = np.where(black.all(axis=0), 2 * most, black.argmin(axis=0))
    columns = np.arange(width)
    wedge = np.zeros_like(brightest, dtype=np.uint8)
    usable = (run > 1) & (run < most)
    if usable.sum() < 0.3 * width:
        return wedge
    slopes = [(run[j] - run[i]) / (j - i) for i, j in _line_candidates(columns[usable])]
    slope = float(np.median(slopes))
    offset = float(np.median(run[usable] - slope * columns[usable]))
    line = slope * columns + offset
    covered = run >= line - 2
    exact = np.abs(run - line) <= 2
    edges = max(3, width // 20)
    # The outer columns tell: beside the shoulders only a wedge is black below a white background.
    outer = exact[:edges].mean() >= 0.8 or exact[-edges:].mean() >= 0.8
    if covered.mean() < 0.9 or exact.mean() < 0.35 or not outer or line.max() > most or line.max() < 2:
        return wedge
    rows = np.arange(height)[::-1, None]
    return (rows < np.ceil(line)[None] + 1).astype(np.uint8)


def _line_candidates(columns: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of columns half the width apart (Theil-Sen slopes are steady over long distances)."""
    half = len(columns) // 2
    return [(int(columns[i]), int(columns[i + half])) for i in range(len(columns) - half)]


def white_background_mask(photo: Image.Image) -> np.ndarray:  # [H, W]
    """Person mask of a photo on a white background, float32 0 or 1.

    Background is near white and reached from the top or the sides; specks, rules and thin lines are removed by an
    opening, the largest remaining piece is the person, whose holes (white collars, spectacles) are filled. A black
    strip that a rotation left along the bottom is background.
    """
    pixels = np.asarray(photo)
    height, width = pixels.shape[:2]
    radius = max(1, round(0.012 * min(height, width)))
    wedge = _black_wedge(pixels.max(axis=2))
    dark = ((pixels.min(axis=2) < NEAR_WHITE) & (wedge == 0)).astype(np.uint8)
    # Hair against white is ragged: close first, so that the opening does not eat it.
    padded = np.pad(dark, ((radius, 0), (radius, radius)))
    padded = np.pad(padded, ((0, radius), (0, 0)), mode="edge")
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(radius))
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, _disc(radius))
    opened = np.ascontiguousarray(opened[radius : radius + height, radius : radius + width])
    person = _largest_component(opened)
    person = 1 - _reached_from_outside(1 - person)
    person[wedge == 1] = 0
    return person.astype(np.float32)


def _face_shaped_start(height: int, width: int) -> np.ndarray:
    """GrabCut's first guess for a portrait: an oval head over an oval pair of shoulders."""
    start = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    centre = (width // 2, round(0.47 * height))
    foot = (width // 2, round(1.08 * height))

    def oval(middle: tuple[int, int], half_width: float, half_height: float, label: int) -> None:
        axes = (max(1, round(half_width * width)), max(1, round(half_height * height)))
        cv2.ellipse(start, middle, axes, 0, 0, 360, int(label), -1)

    oval(centre, 0.34, 0.42, cv2.GC_PR_FGD)
    oval(foot, 0.48, 0.30, cv2.GC_PR_FGD)
    oval(centre, 0.18, 0.26, cv2.GC_FGD)
    oval(foot, 0.25, 0.16, cv2.GC_FGD)
    edge_h, edge_w = max(1, round(0.03 * height)), max(1, round(0.04 * width))
    start[:edge_h] = cv2.GC_BGD
    start[: height // 3, :edge_w] = cv2.GC_BGD
    start[: height // 3, -edge_w:] = cv2.GC_BGD
    return start


def grabcut_mask(photo: Image.Image) -> np.ndarray:  # [H, W]
    """Person mask by GrabCut [L: Rother et al., SIGGRAPH 2004] from a face-shaped start, float32 0 or 1.

    Supposes a roughly centred portrait. On a photo without any contrast the start itself is what remains.
    """
    pixels = np.ascontiguousarray(np.asarray(photo)[:, :, ::-1])
    height, width = pixels.shape[:2]
    labels = _face_shaped_start(height, width)
    if pixels.std() > 1.0:  # its colour models are degenerate on a blank picture
        cv2.setRNGSeed(0)  # the colour models start from k-means with random centres
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(pixels, labels, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    person = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    radius = max(1, round(0.01 * min(height, width)))
    person = cv2.morphologyEx(person, cv2.MORPH_OPEN, _disc(radius))
    person = 1 - _reached_from_outside(1 - _largest_component(person))
    return person.astype(np.float32)


@torch.inference_mode()
def person_mask(photo: Image.Image, segmenter: torch.nn.Module) -> np.ndarray:  # [H, W]
    """Probability of the class person, float32 in [0, 1], by a torchvision segmentation network."""
    device = next(segmenter.parameters()).device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (TF.to_tensor(photo).to(device) - mean) / std
    logits = segmenter(pixels[None])["out"]
    return logits.softmax(dim=1)[0, _PERSON_CLASS].float().cpu().numpy()
