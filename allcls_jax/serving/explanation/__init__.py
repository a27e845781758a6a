"""Where a network looks: maps, their checks, pictures of them."""
