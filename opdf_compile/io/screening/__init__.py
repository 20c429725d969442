"""What must hold before torch opens a file that nobody vouches for."""
