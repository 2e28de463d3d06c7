"""Voice and silence for silero-vad (16 kHz): a synthetic speaker, background noise, and the model's 32 ms chunks.

The speaker is source and filter: the harmonics of a gliding pitch, shaped by the formants of vowels that change with
each syllable. Tensors follow the package's ``utils_vad.OnnxWrapper``: 64 samples of context before each chunk of 512,
a state that the caller carries. Not here: files, codecs, resampling.
"""

from __future__ import annotations

import numpy as np

from mesh.demo.request import Array, Floats, Request, Tensors, Unreadable, floats, probabilities

RATE = 16_000
"""Samples per second."""
CHUNK, CONTEXT = 512, 64
STATE_SHAPE = (2, 1, 128)
CHUNKS = 12
"""Chunks of one stream: 0.4 s."""
SETTLE = 4
"""Chunks in which the model may still make up its mind."""
VOICE_ABOVE, SILENCE_BELOW = 0.5, 0.3

VOWELS = (
    (730.0, 1090.0, 2440.0, 3400.0),
    (530.0, 1840.0, 2480.0, 3500.0),
    (570.0, 840.0, 2410.0, 3300.0),
    (390.0, 1990.0, 2550.0, 3600.0),
    (440.0, 1020.0, 2240.0, 3300.0),
)
"""Formants in Hz of five vowels (Peterson and Barney 1952, men's averages; the fourth by convention)."""
BANDWIDTHS = (80.0, 100.0, 120.0, 180.0)
"""Of the formants, in Hz."""


def voice_request(rng: np.random.Generator) -> Request:
    """First chunk of a stream in which somebody speaks, or nobody does."""
    if rng.random() < 0.5:
        return _chunk(speech(rng), "voice", 0, np.zeros(STATE_SHAPE, np.float32))
    return _chunk(background(rng), "silence", 0, np.zeros(STATE_SHAPE, np.float32))


def _chunk(signal: Floats, expected: str, index: int, state: Array) -> Request:
    start = index * CHUNK
    inputs = {
        "input": np.pad(signal, (CONTEXT, 0))[None, start : start + CONTEXT + CHUNK],
        "state": state,
        "sr": np.array(RATE, np.int64),
    }

    def then(outputs: Tensors) -> Request:
        return _chunk(signal, expected, index + 1, floats(outputs, "stateN", STATE_SHAPE))

    settled = index >= SETTLE
    return Request(
        inputs,
        expected if settled else "listening",
        _verdict if settled else _listening,
        then if index + 1 < CHUNKS else None,
    )


def _speaking(outputs: Tensors) -> float:
    """Probability of speech. Raises ``Unreadable`` also where the state was not stepped."""
    if not floats(outputs, "stateN", STATE_SHAPE).any():
        raise Unreadable("output stateN is all zero, as before the first chunk")
    return float(probabilities(outputs, "output", (1, 1))[0, 0])


def _listening(outputs: Tensors) -> str:
    _speaking(outputs)
    return "listening"


def _verdict(outputs: Tensors) -> str:
    speaking = _speaking(outputs)
    if speaking > VOICE_ABOVE:
        return "voice"
    return "silence" if speaking < SILENCE_BELOW else "unsure"


def speech(rng: np.random.Generator) -> Floats:
    """f32[CHUNKS * CHUNK]: one quick voice that speaks vowels all the time; steadier vowels are music to the model."""
    t = np.arange(CHUNKS * CHUNK) / RATE
    syllable_s = rng.uniform(0.09, 0.12)
    knots = np.arange(int(t[-1] / syllable_s) + 2) * syllable_s
    pitch = np.interp(t, knots, rng.uniform(90, 140) * rng.uniform(0.85, 1.2, len(knots)))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    vowels = np.asarray(VOWELS)[rng.integers(len(VOWELS), size=len(knots))]
    formants = [np.interp(t, knots, vowels[:, f]) for f in range(len(BANDWIDTHS))]
    sound = np.zeros_like(t)
    for k in range(1, int(3800 / pitch.max()) + 1):
        gain = np.ones_like(t) / k
        for centre, width in zip(formants, BANDWIDTHS, strict=True):
            gain *= _resonance(k * pitch, centre, width)
        sound += gain * np.sin(k * phase)
    sound *= 0.1 + 0.9 * np.sin(np.pi * t / syllable_s) ** 2
    sound *= rng.uniform(0.1, 0.3) / np.sqrt(np.mean(sound**2))
    return (sound + 0.002 * rng.standard_normal(len(t))).astype(np.float32)


def _resonance(at: Array, centre: Array, width: float) -> Array:
    """Gain of a formant, 1 far below ``centre``, all in Hz."""
    ratio = at / centre
    gain: Array = 1 / np.sqrt((1 - ratio**2) ** 2 + (ratio * width / centre) ** 2)
    return gain


def background(rng: np.random.Generator) -> Floats:
    """f32[CHUNKS * CHUNK]: white noise between -70 and -40 dB of full scale."""
    level = 10 ** rng.uniform(-3.5, -2.0)
    return (level * rng.standard_normal(CHUNKS * CHUNK)).astype(np.float32)
