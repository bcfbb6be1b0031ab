"""Which methods a figure tests against which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eakd.analysis.marks import display
from eakd.analysis.seeds import difference_text
from eakd.config import EA, base_method
from eakd.reproduce.comparison import Difference, paired_difference

# What is compared, in words.
WORDS = {
    "slope": "trend of the spread over the run",
    "spread.last": "spread in the last epoch",
    "share_low": "share of the lowest tenth",
    "share_high": "share of the highest tenth",
    "kld": "raw KLD in the last epoch",
    "kld_low": "raw KLD of the lowest tenth in the last epoch",
    "kld_high": "raw KLD of the highest tenth in the last epoch",
    "accuracy": "training accuracy in the last epoch",
    "variability": "mean variability",
    "within.highest": "movement of the samples of highest teacher entropy",
}


def comparisons(names: Sequence[str]) -> list[tuple[str, str]]:
    """What is tested against what: ``(ea_kd, kd)``, ``(ea_kd, kd+matched)``, ``(kd+matched, kd)``.

    A method's EA form against the method and against each of its controls, a control against the
    method, as far as they are among ``names``.
    """
    pairs = []
    for plain in dict.fromkeys(map(base_method, names)):
        controls = [name for name in names if name.startswith(f"{plain}+")]
        for name, others in [(EA + plain, [plain, *controls]), *((c, [plain]) for c in controls)]:
            pairs += [(name, other) for other in others if name in names and other in names]
    return pairs


def differences(values: Mapping[str, Mapping[int, float]], key: str) -> dict[str, Difference]:
    """``KEY.ea_kd-kd`` → the paired difference of ``{method: {seed: value}}``, seed by seed.

    Only of pairs that share two seeds or more.
    """
    found = {
        f"{key}.{name}-{other}": paired_difference(dict(values[name]), dict(values[other]))
        for name, other in comparisons([*values])
    }
    return {key: difference for key, difference in found.items() if difference is not None}


def told(tests: Mapping[str, Difference], p: Mapping[str, float], unit: str = "") -> list[str]:
    """A sentence for each test of `differences`.

    Args:
        p: of each, after Holm.
    """
    sentences = []
    for key, test in tests.items():
        kind, _, pair = key.rpartition(".")
        name, _, other = pair.partition("-")
        sentences.append(
            f"{display(name)}, {WORDS.get(kind, kind)} against {display(other)}: "
            f"{difference_text(test, p[key], unit)}, p after Holm."
        )
    return sentences


def seeds_text(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
