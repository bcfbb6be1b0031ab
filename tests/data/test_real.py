"""The real sets, where ``EAKD_TEST_DATA`` names the folder of their archives."""

import numpy as np
import pytest

from eakd.data import Pipeline, cifar100, tiny_imagenet


@pytest.fixture
def cifar(real_data, session_cache):
    archive = real_data / "cifar100-images.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    return cifar100(archive, cache_dir=session_cache)


@pytest.fixture
def tiny(real_data, session_cache):
    archive = real_data / "tiny-imagenet-10.zip"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    return tiny_imagenet(archive, cache_dir=session_cache)


def moments(images):
    """Mean and standard deviation per channel of pixels in [0, 1], exactly."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255
    mean = (counts * levels).sum(1) / counts.sum(1)
    return mean, np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(1) / counts.sum(1))


@pytest.mark.slow
def test_cifar100(cifar):
    assert np.bincount(cifar.train_labels).tolist() == [500] * 100
    assert np.bincount(cifar.test_labels).tolist() == [100] * 100
    assert cifar.classes[:2] == ("apple", "aquarium_fish") and cifar.classes[-1] == "worm"
    mean, std = moments(cifar.train_images)
    # Known to more digits than the published 0.5071 0.4867 0.4408, 0.2675 0.2565 0.2761.
    assert mean == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-8)
    assert std == pytest.approx([0.26733429, 0.25643846, 0.27615047], abs=1e-8)


def test_cifar100_through_the_pipeline(cifar):
    mean, std = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
    pipe = Pipeline(cifar, batch_size=64, mean=mean, std=std, val_fraction=0.1)
    assert pipe.train_size == 45_000 and pipe.steps_per_epoch == 704
    batch = next(pipe.epoch(1))
    assert batch.images.shape == (64, 3, 32, 32)
    assert [len(b.targets) for b in pipe.evaluation("val")] == [500] * 10
    images = next(pipe.evaluation("test")).images
    assert images.mean().abs() < 0.2 and 0.9 < images.std() < 1.1


def test_tiny_imagenet(tiny):
    assert np.bincount(tiny.train_labels).tolist() == [500] * 10
    assert np.bincount(tiny.test_labels).tolist() == [50] * 10
    assert tiny.train_images.shape[1:] == (64, 64, 3)
    assert tiny.classes == tuple(sorted(tiny.classes)) and tiny.classes[0] == "n01641577"
    grey = (tiny.train_images == tiny.train_images[..., :1]).all(axis=(1, 2, 3))
    assert 0 < grey.sum() < len(grey) / 10
    mean, std = moments(tiny.train_images)
    # Of ten classes only, so near the published mean of two hundred.
    assert mean == pytest.approx([0.4802, 0.4481, 0.3975], abs=0.02)
    assert std == pytest.approx([0.277, 0.269, 0.282], abs=0.01)
