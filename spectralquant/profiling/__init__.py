"""How fast kernels are on this device: timers, telemetry, measured peaks, baselines, roofline."""
