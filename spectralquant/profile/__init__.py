"""The calibration profile: tensors, sidecar, views."""
