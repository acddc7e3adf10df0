"""From documents to tokens: sources are read, split and packed. Uses no model."""
