"""The end of a trial as a small moving picture: an animated WebP from the compressed images in its recording (MCAP)."""

from __future__ import annotations

import io
from pathlib import Path

CAMERA = "/color/image_raw/compressed"
"""How the topics of compressed images end; what stands before it names the camera."""

LAST_FRAME_S = 1.5


class ClipError(RuntimeError):
    """There is nothing to show; the message says why."""


def clip(recording, ended: float | None = None, seconds: float = 5.0, rate_hz: float = 5.0, height: int = 120) -> bytes:
    """The last ``seconds`` before ``ended`` (s since 1970; None: the end of the file), cameras side by side, as WebP.

    It plays in real time; ``height`` in px. ClipError says why there is none: no file, an unfinished or damaged one, no images.
    """
    recording = Path(recording)
    if not recording.is_file():
        partial = recording.with_name(recording.name + ".partial")
        raise ClipError("the recording was never finished" if partial.exists() else "the recording is missing")
    try:
        frames = _frames(recording, ended, seconds, rate_hz, height)
        return _webp(frames, 1.0 / rate_hz)
    except ImportError as error:
        raise ClipError(f"'{error.name}' is not installed (extra 'record')") from error
    except ClipError:
        raise
    except Exception as error:  # whatever a damaged file makes of four decoders: a report must not fail for it
        raise ClipError(f"the recording cannot be read ({type(error).__name__}: {error})"[:200]) from error


def _frames(recording: Path, ended, seconds, rate_hz, height) -> list:
    """Pictures (PIL) at ``rate_hz``: the newest of every camera at that moment, side by side."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory

    with open(recording, "rb") as stream:
        reader = make_reader(stream, decoder_factories=[DecoderFactory()])
        summary = reader.get_summary()
        if summary is None or summary.statistics is None:
            raise ClipError("the recording was never finished")
        cameras = sorted(channel.topic for channel in summary.channels.values() if channel.topic.endswith(CAMERA))
        first, last = summary.statistics.message_start_time, summary.statistics.message_end_time
        end = last if ended is None or not first <= ended * 1e9 <= last else int(ended * 1e9)
        begin = max(first, end - int(seconds * 1e9))
        step, due, newest, found = int(1e9 / rate_hz), begin, {}, []
        before = begin - int(1e9)  # what a camera last saw before the clip begins
        for _, channel, message, image in (
            reader.iter_decoded_messages(cameras, starting_at=max(first, before), ending_before=end + 1) if cameras else ()
        ):
            while message.log_time >= due and len(newest) == len(cameras):
                found.append(dict(newest))
                due += step
            newest[channel.topic] = bytes(image.data)
    if len(newest) < len(cameras) or not newest:
        missing = [topic for topic in cameras if topic not in newest]
        raise ClipError(f"the recording holds no images{' of ' + ', '.join(missing) if missing else ''}")
    return [_side_by_side([pictures[topic] for topic in cameras], height) for pictures in [*found, newest]]


def _side_by_side(pictures: list[bytes], height: int):
    from PIL import Image

    tiles = []
    for data in pictures:
        picture = Image.open(io.BytesIO(data))
        picture.draft("RGB", (2 * height, 2 * height))  # a JPEG decodes at a fraction of its size
        tiles.append(picture.convert("RGB").resize((max(1, round(picture.width * height / picture.height)), height)))
    whole = Image.new("RGB", (sum(tile.width for tile in tiles), height))
    left = 0
    for tile in tiles:
        whole.paste(tile, (left, 0))
        left += tile.width
    return whole


def _webp(frames: list, frame_s: float) -> bytes:
    file = io.BytesIO()
    durations = [round(1000 * frame_s)] * (len(frames) - 1) + [round(1000 * LAST_FRAME_S)]
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=durations if len(frames) > 1 else durations[0], loop=0,
        quality=50, method=4,
    )  # fmt: skip
    return file.getvalue()
