"""Means and standard deviations of data sets' channels, RGB, of pixels in [0, 1].

For loops of one's own. The files in ``configs/data/`` hold the same numbers, each with its source,
and what is to be said about it; a test compares them.
"""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# The public zoo's, whose teachers expect them; so are Tiny-ImageNet's.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
TINY_IMAGENET_MEAN, TINY_IMAGENET_STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# At 16 pixels.
DIGITS_MEAN, DIGITS_STD = (0.2990, 0.2990, 0.2990), (0.3131, 0.3131, 0.3131)
