"""Students taken to other tools and brought in from them."""
