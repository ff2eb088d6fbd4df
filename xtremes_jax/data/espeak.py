"""Speech from text through libespeak-ng, which the `espeakng-loader` wheel brings with its data: nothing to install.

The library keeps state between calls (its noise generator, the phase of its oscillators), so the same sentence spoken
twice in one process differs. `speak` therefore runs this file as a fresh process: the same list of utterances always
gives the same samples, whatever the calling process did before.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_TEXT_IS_UTF8 = 1
_RATE, _PITCH = 1, 3
_LONGEST_DATA_PATH = 120  # the library silently cuts its data path at 160 bytes, file names below it included


class Utterance(NamedTuple):
    """One sentence to speak."""

    text: str
    voice: str
    """An espeak-ng voice with a variant: "es+f3"."""
    rate: int
    """Words per minute, 80 to 450."""
    pitch: int
    """0 to 99; 50 is the voice's own."""


def speak(utterances: Sequence[Utterance]) -> tuple[int, list[np.ndarray]]:
    """Speaks the utterances in order, in a fresh process.

    Returns:
        The sample rate in Hz, and one int16 array `[samples]` per utterance.

    Raises:
        RuntimeError: The library cannot be loaded or knows no such voice; the message is the process's own.
    """
    request = json.dumps([list(utterance) for utterance in utterances]).encode()
    # -P: this file's own folder must not come first on the path, where its neighbours could hide other packages.
    done = subprocess.run([sys.executable, "-P", __file__], input=request, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"espeak-ng could not speak the demo sentences: {done.stderr.decode(errors='replace')}")
    rate = int(np.frombuffer(done.stdout, np.int64, count=1)[0])
    lengths = np.frombuffer(done.stdout, np.int64, count=len(utterances), offset=8)
    samples = np.frombuffer(done.stdout, np.int16, offset=8 * (1 + len(utterances)))
    return rate, np.split(samples, np.cumsum(lengths)[:-1])


def _load() -> ctypes.CDLL:
    import espeakng_loader  # only the child needs it

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
        ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def _main() -> None:
    """The child: utterances as JSON on standard input; rate, lengths (int64) and samples (int16) on standard output."""
    import espeakng_loader

    utterances = [Utterance(*fields) for fields in json.load(sys.stdin.buffer)]
    library = _load()
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def keep(samples, count, _events):
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        data = espeakng_loader.get_data_path()
        if len(os.fsencode(data)) > _LONGEST_DATA_PATH:
            link = os.path.join(folder, "espeak-ng-data")
            os.symlink(data, link)
            data = link
        rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if rate <= 0:
            raise RuntimeError(f"no espeak-ng data in {data}")
        library.espeak_SetSynthCallback(keep)
        library.espeak_ng_SetRandSeed(1)
        spoken = []
        for utterance in utterances:
            chunks.clear()
            if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
                raise RuntimeError(f"no espeak-ng voice is called {utterance.voice!r}")
            library.espeak_SetParameter(_RATE, utterance.rate, 0)
            library.espeak_SetParameter(_PITCH, utterance.pitch, 0)
            text = utterance.text.encode() + b"\0"
            if library.espeak_Synth(text, len(text), 0, 0, 0, _TEXT_IS_UTF8, None, None) != 0:
                raise RuntimeError(f"espeak-ng refused {utterance}")
            spoken.append(b"".join(chunks))
    header = np.array([rate, *(len(samples) // 2 for samples in spoken)], np.int64)
    sys.stdout.buffer.write(header.tobytes() + b"".join(spoken))


if __name__ == "__main__":
    _main()
