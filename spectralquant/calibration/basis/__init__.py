"""From sums to bases, spectra and ranks."""
