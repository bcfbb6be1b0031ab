"""The fast settings cost no accuracy."""

import statistics

import pytest

from eakd.composing import compose
from eakd.training.run import run


@pytest.mark.slow
def test_bf16_and_float32_learn_the_same(tmp_path):
    """Five seeds of EA-KD in each precision; the curves differ by less than seeds do."""
    roots = [f"output_root={tmp_path / 'outputs'}", f"checkpoint_root={tmp_path / 'checkpoints'}"]
    # Two thirds of a run is the test set, which only the last epoch needs here.
    roots.append("recipe.evaluate_every=0")
    run(compose([*roots, "student=resnet8", "distiller=none", "save_teacher=true"]))
    accuracies = {"bf16": [], "float32": []}
    for precision, values in accuracies.items():
        for seed in range(5):
            job = ["teacher=resnet8", "distiller=ea_kd", f"precision={precision}", f"seed={seed}"]
            values.append(run(compose([*roots, *job]))["top1_last"])
    pairs = zip(accuracies["bf16"], accuracies["float32"], strict=True)
    differences = [fast - exact for fast, exact in pairs]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    assert abs(statistics.fmean(differences)) < 3 * error + 0.5  # percentage points
    assert statistics.fmean(accuracies["bf16"]) > 85
