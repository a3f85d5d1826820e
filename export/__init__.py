"""edgeff.export."""
