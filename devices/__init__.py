"""edgeff.devices."""
