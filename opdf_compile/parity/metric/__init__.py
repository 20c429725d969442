"""What a difference in the outputs is worth: the user's own metric on the user's own rows."""
