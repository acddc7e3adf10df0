"""What every other part may use and that knows none of them."""
