"""What the benchmarks share: students, forms, the race, the floor, intervals, reports.

The scripts beside this folder are the benchmarks; nothing in here is run by itself.
"""
