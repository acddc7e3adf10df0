"""Documents to tokens: sources are read, split, packed. No network, no model."""
