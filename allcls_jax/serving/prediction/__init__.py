"""From pictures to a table: listed, read, computed, written; any number of them."""
