"""The study on text: all-MiniLM-L6-v2 with 6 layers teaches a student of 3, on the Lee corpus."""
