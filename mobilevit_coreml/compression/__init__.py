"""Weight compression: storage formats, calibration, quantization, and the search for a format for each layer."""
