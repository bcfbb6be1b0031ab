"""Finished runs as a training leaves them, written in milliseconds, with known numbers."""

import json

import numpy as np

from eakd.training.reading import checksum, text_digest

TENTHS = 10
CLASSES = 100


def config_of(method, seed, epochs, student="resnet8", teacher="resnet20", **distiller):
    """What ``config.json`` of a run holds, as far as figures look at it."""
    base = method.removeprefix("ea_").partition("+")[0]
    kind = "ea" if method.startswith("ea_") else method.partition("+")[2] or "uniform"
    weighting = "uniform"
    if kind != "uniform":
        weighting = {"_target_": "eakd.weighting.Weighting", "kind": kind, "entropy_temperature": 3}
    return {
        "seed": seed,
        "data": {"name": "cifar100", "num_classes": CLASSES},
        "teacher": {"name": teacher, "checkpoint": "auto"},
        "student": {"name": student},
        "recipe": {"epochs": epochs, "batch_size": 64},
        "weighting": weighting,
        "distiller": {"name": method, "temperature": 4, "kd_weight": 0.9, **distiller},
        "precision": "auto",
        **({} if base != "none" else {"teacher": {}}),
    }


def segments_of(loss, spread=0.2, weight=1.0, samples=10, top1=50.0, high=4.0):
    """One ranking of a line of ``dynamics.jsonl``.

    Args:
        loss: ``(10,)`` means of the unweighted loss.
        spread: standard deviation of the student's entropy.
        weight: of each tenth, a number or ``(10,)``.
        high: mean of the teacher's entropy in the last tenth.
    """
    loss = np.asarray(loss, float)
    weight = np.broadcast_to(np.asarray(weight, float), loss.shape)
    teacher = np.linspace(2, high, TENTHS)
    student = np.linspace(3.0, 3.9, TENTHS)

    def values(mean, std):
        both = {"mean": mean, "std": std}
        return {
            k: np.broadcast_to(np.asarray(v, float), (TENTHS,)).tolist() for k, v in both.items()
        }

    found = {
        "samples": [samples] * TENTHS,
        "teacher_entropy": values(teacher, 0.1),
        "student_entropy": values(student, spread),
        "loss": values(loss, 1),
        "weighted_loss": values(loss * weight, 1),
        "weight": values(weight, 0.1),
        "top1": values(np.linspace(top1 + 5, top1 - 5, TENTHS), 10),
        "target_probability": values(0.5, 0.1),
    }
    for percent, shift in ((5, -1.64), (25, -0.67), (50, 0), (75, 0.67), (95, 1.64)):
        found["student_entropy"][f"q{percent:02d}"] = (student + shift * spread).tolist()
    return found


def write_run(root, method, seed, *, epochs=4, lines=None, accuracy=60.0, speed=1000.0, **config):
    """A finished run's directory.

    Args:
        lines: ``epoch -> {ranking: segments}``, or ``None`` for a run without dynamics.
        accuracy: of the last epoch.
    """
    known = config_of(method, seed, epochs, **config)
    pair = f"{known['teacher'].get('name', 'none')}-{known['student']['name']}"
    tail = "".join(f"-{value}" for value in config.values() if isinstance(value, int | float))
    directory = root / "cifar100" / pair / method / f"seed{seed}{tail}"
    directory.mkdir(parents=True)
    metrics = [
        {
            "epoch": epoch,
            "lr": 0.05,
            "train_loss": 5.0 / epoch,
            "train_loss_ce": 1.0 / epoch,
            "train_loss_kd": 4.0 / epoch,
            "train_top1": accuracy - 2 + epoch / epochs,
            "weight_mean": 1.0,
            "weight_std": 0.1,
            "share_low_entropy": 0.25,
            "share_high_entropy": 0.04,
            "train_seconds": 10.0,
            "samples_per_second": speed,
            "test_top1": accuracy - epochs + epoch,
        }
        for epoch in range(1, epochs + 1)
    ]
    files = {"metrics.jsonl": metrics}
    if lines is not None:
        files["dynamics.jsonl"] = [
            {"epoch": epoch, "entropy_temperature": 3.0, "by": lines(epoch)}
            for epoch in range(1, epochs + 1)
        ]
    texts = {
        name: "".join(json.dumps(line) + "\n" for line in each) for name, each in files.items()
    }
    summary = {
        "method": method,
        "data": "cifar100",
        "teacher": known["teacher"].get("name"),
        "student": known["student"]["name"],
        "metrics": {"top1": "top-1 %"},
        "seed": seed,
        "epochs": epochs,
        "selection": "test",
        "seconds": 40.0,
        "top1_last": accuracy,
        "top1_best": accuracy + 0.5,
        "lines": {name: text_digest(text) for name, text in texts.items()},
        "environment": {"processor": "x86_64", "threads": 1},
        "precision": "fp32",
        "device": "cpu",
    }
    summary["checksum"] = checksum(summary)
    for name, text in texts.items():
        (directory / name).write_text(text)
    (directory / "config.json").write_text(json.dumps(known))
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def write_trio(root, seeds=(0, 1, 2), epochs=12, methods=("kd", "ea_kd", "kd+matched")):
    """KD, EA-KD and the control as one would expect them: the spread grows most under KD."""
    growth = {"kd": 0.06, "ea_kd": 0.02, "kd+matched": 0.04}
    for method in methods:
        for seed in seeds:
            random = np.random.default_rng(seed)
            wiggle = random.normal(0, 0.01, size=epochs + 1)

            def lines(epoch, method=method, seed=seed, wiggle=wiggle):
                loss = np.linspace(16, 2, TENTHS) / epoch**0.8 * (1 + wiggle[epoch])
                loss = loss * (0.9 if method == "ea_kd" else 1)
                weight = np.linspace(1.5, 4, TENTHS) if method == "ea_kd" else 1.0
                spread = 0.14 + growth[method] * (1 + seed / 9) * epoch / 3 + wiggle[epoch]
                return {
                    name: segments_of(loss, spread, weight, top1=20 + 3 * epoch)
                    for name in ("epoch", "clean")
                }

            last = 60 + (method == "ea_kd") + float(wiggle[-1])
            write_run(root, method, seed, epochs=epochs, lines=lines, accuracy=last)
