"""Files that are written entirely or not at all, and arrays that nobody vouches for."""
