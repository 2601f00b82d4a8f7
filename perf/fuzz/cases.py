"""One case of the fuzzer: a file that a format, a seed and a number decide alone, so that it can be made again."""

from __future__ import annotations

from random import Random

from perf.fuzz.bombs import bomb
from perf.fuzz.mutations import blind, structured
from perf.fuzz.pieces import FORMATS, Format
from perf.fuzz.sources import sources

BOMB_SHARE = 0.003  # a bomb takes about a second, other files a thousandth of it
FOREIGN_SHARE = 0.1  # of the files that give bytes, those of another format


def case(form: Format, seed: int, number: int) -> bytes:
    """Return the file: a source after one to four mutations, or a bomb; the same in every process."""
    random = Random(f"{form} {seed} {number}")
    if random.random() < BOMB_SHARE:
        return bomb(form, random)
    files = sources()
    own = sorted(files[form])
    data = files[form][random.choice(own)]
    structure = random.random() < 0.7  # first by structure, while there is one; then blindly
    if structure:
        data = structured(form, data, files[form][random.choice(own)], random)
    for _ in range(random.choice((0, 0, 1, 3)) if structure else random.choice((1, 1, 2, 4))):
        donor = random.choice(FORMATS) if random.random() < FOREIGN_SHARE else form
        data = blind(data, files[donor][random.choice(sorted(files[donor]))], random)
    return data
