"""Clips in and out: files that OpenCV decodes, and VP9 in MP4, which browsers play."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from litelvlm.errors import InputError

# How a clip begins that is no picture as well: MP4 and MOV, WebM and Matroska, AVI.
_START = re.compile(
    rb"....(ftyp(?!avi|hei|hev|mif)|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL
)
MAX_FRAMES, MAX_SIDE, MAX_SECONDS = 200, 1920, 60.0
USUAL_FPS = 25.0  # of a file that does not tell


@dataclass(frozen=True)
class Clip:
    """Frames in memory.

    Attributes:
        frames: (T, H, W, 3) uint8, upright RGB.
        fps: frames a second.
    """

    frames: np.ndarray
    fps: float = USUAL_FPS


def is_clip(path: str | Path) -> bool:
    """Whether a file begins as a clip does; its name does not matter."""
    try:
        with Path(path).open("rb") as file:
            return _START.match(file.read(16)) is not None
    except OSError:  # told by whoever reads it
        return False


def read_clip(source: str | Path | Clip | np.ndarray, fps: float | None = None) -> Clip:
    """Read a clip.

    Args:
        source: path of a file, a `Clip`, or (T, H, W, 3) uint8 RGB frames.
        fps: frames a second to take, evenly; None takes all.

    Raises:
        InputError: not a clip, damaged, or more than `MAX_FRAMES` taken frames, `MAX_SECONDS`, or
            `MAX_SIDE` pixels a side.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps must be above 0, got {fps}")
    if isinstance(source, (str, Path)):
        return _from_file(Path(source), fps)
    clip = source if isinstance(source, Clip) else Clip(np.asarray(source))
    frames = clip.frames
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        given = f"{tuple(frames.shape)} {frames.dtype}"
        raise InputError(f"a clip is a file or (frames, height, width, 3) uint8 RGB; got {given}")
    _check_side(frames.shape[1], frames.shape[2], "the clip")
    if len(frames) > MAX_FRAMES:
        raise InputError(f"the clip has {len(frames)} frames, at most {MAX_FRAMES} are taken")
    return clip


def _from_file(path: Path, fps: float | None) -> Clip:
    name = str(path)[-80:]
    if not path.is_file():
        told = "is a folder, expected a clip" if path.is_dir() else "no such file"
        raise InputError(f"{name}: {told}")
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise InputError(f"{name}: not a clip that can be read (MP4, WebM, MOV, AVI, GIF are)")
        own = video.get(cv2.CAP_PROP_FPS)
        own = own if math.isfinite(own) and 0 < own <= 1000 else USUAL_FPS
        step = 1.0 if fps is None else max(1.0, own / fps)
        taken: list[np.ndarray] = []
        number = 0
        while video.grab():
            if number >= len(taken) * step:
                whole, frame = video.retrieve()
                if not whole:
                    break
                _check_side(frame.shape[0], frame.shape[1], name)
                if taken and frame.shape != taken[0].shape:
                    raise InputError(f"{name}: frames of different sizes")
                taken.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            number += 1
            if number > MAX_SECONDS * own:
                raise InputError(f"{name}: longer than {MAX_SECONDS:g} seconds; cut out a part")
            if len(taken) > MAX_FRAMES:
                raise InputError(
                    f"{name}: more than {MAX_FRAMES} frames at {own / step:g} a second; take fewer "
                    "a second, or a part"
                )
    finally:
        video.release()
    if not taken:
        raise InputError(f"{name}: damaged clip (no frame can be decoded)")
    return Clip(np.stack(taken), own / step)


def _check_side(height: int, width: int, name: str) -> None:
    if max(height, width) > MAX_SIDE:
        raise InputError(f"{name}: {width} x {height} pixels, at most {MAX_SIDE} a side are taken")


def write_clip(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write an MP4 in VP9; an odd side loses its last row or column, which the format demands.

    Args:
        path: of the file.
        frames: (H, W, 3) uint8 RGB each, at least one, all of one size.
        fps: frames a second.

    Raises:
        InputError: the file cannot be written.
    """
    video: Any = None
    for frame in frames:
        height, width = (max(2, side - side % 2) for side in frame.shape[:2])
        if video is None:
            code = cv2.VideoWriter.fourcc(*"vp09")
            video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, (width, height))
            if not video.isOpened():
                raise InputError(f"{path}: cannot be written")
        video.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))
    video.release()
