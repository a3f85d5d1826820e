"""edgeff.runtime."""
