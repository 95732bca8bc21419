"""The small field on which matrices of levels are tested."""

from policies import Calibration

SECRET = b"the secret of this installation"
FEATURES, CLASSES, DEPTH = 8, 6, 32
CALIBRATION = Calibration("m", 10.0, DEPTH, ((0, 1.0), (16_000, 0.9), (18_000, 0.1)), (1.0,), (1.0,), 1000)
HUNDRED = range(1, 101)
BYTES = 4 * DEPTH * CLASSES
