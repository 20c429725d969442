"""The seam to inference runtimes: what is asked of one, which there are, and each in a folder."""
