"""Scripts that measure and print tables."""
