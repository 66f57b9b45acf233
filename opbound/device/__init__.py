"""The user's own device: measured, written down as a hardware file, and compared with predictions."""
