"""What one calibration step shows, and the sums of all steps."""
